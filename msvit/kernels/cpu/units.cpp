// Spiking units in as few passes over memory as they need. Plain C interface, called by
// passes.py and spike_bytes.py.
//
// Activations are [T, R, C] (time, row = image and position, channel); a time step of 0 elements
// means that all T steps share one [R, C] array. Storage is float, double or bfloat16; potentials,
// statistics and parameters are float (double for double). A block of channels of one row runs all
// its T steps in vector registers, so that nothing but inputs and outputs touches memory. Options
// such as the kind of reset are ordinary, well predicted branches. No fast-math: NaN and infinity
// go through.
#include "max_pool.h"
#include "spike_bytes.h"
#include "token_attention.h"

namespace {

INLINE V median(V a, V b, V c) {
    V low = a < b ? a : b, high = a < b ? b : a, least = high < c ? high : c;
    return low < least ? least : low;
}

// Mean and biased variance per channel of y [rows, C], around a pivot so that a large mean does not
// cancel the variance: the median of three rows, since one may be an outlier (a corner of an image).
void moments(const S* y, i64 rows, i64 channels, double* out, int threads) {
    constexpr i64 GROUP = 8;  // rows per visit to the sums
    const S *first = y + rows / 4 * channels, *second = y + rows / 2 * channels, *third = y + rows * 3 / 4 * channels;
    const auto pivot_at = [=](i64 c) {
        const i64 left = channels - c;
        const Pair p = load_part(first + c, left), q = load_part(second + c, left), r = load_part(third + c, left);
        return Pair{median(p.a, q.a, r.a), median(p.b, q.b, r.b)};
    };
    sum_in_parallel(2, channels, out, threads, [=](Sums& sums, int thread, int n) {
        i64 last = rows * (thread + 1) / n;
        for (i64 r = rows * thread / n; r < last; r += GROUP) {
            i64 group = std::min(GROUP, last - r);
            for (i64 c = 0; c < channels; c += BLOCK) {
                const Pair pivot = pivot_at(c);
                Pair sum{}, squares{};
                for (i64 g = 0; g < group; ++g) {
                    Pair d = load_part(y + (r + g) * channels + c, channels - c) - pivot;
                    sum = sum + d;
                    squares = squares + d * d;
                }
                sums.add(0, c, sum);
                sums.add(1, c, squares);
            }
            sums.rows_done(group);
        }
    });
    for (i64 c = 0; c < channels; ++c) {
        double pivot = pivot_at(c).a[0], mean = out[c] / rows;
        double variance = out[channels + c] / rows - mean * mean;
        out[c] = pivot + mean;
        out[channels + c] = variance < 0 ? 0 : variance;
    }
}

// scale * y + shift (both null: y itself) -> neuron (-> + shortcut)
struct ForwardPass {
    Planes<const S> y;
    const R *scale, *shift;
    Planes<const S> shortcut;
    S* out;
    i64 steps, rows, channels;
    const Neuron neuron;

    INLINE void block(Planes<const S> y, const R* p, const R* q, Planes<const S> shortcut,
                      Planes<S> out, bool past) const {
        Pair v{}, a{}, b{};
        if (p) a = in_order(p), b = in_order(q);
        for (i64 t = 0; t < steps; ++t) {
            Pair x = load(y.at + t * y.step);
            if (p) x = x * a + b;
            Pair h{neuron.charge(v.a, x.a), neuron.charge(v.b, x.b)};
            M fired_a = neuron.fires(h.a), fired_b = neuron.fires(h.b);
            v = {neuron.after(h.a, fired_a), neuron.after(h.b, fired_b)};
            if (!shortcut.at) {
                store_spikes(out.at + t * out.step, fired_a, fired_b, past);
            } else {
                Pair s = load(shortcut.at + t * shortcut.step);
                Pair sum{fired_a ? s.a + R(1) : s.a, fired_b ? s.b + R(1) : s.b};
                store(out.at + t * out.step, sum, past);
            }
        }
    }

    void run(int threads) const {
        const PerChannel scales(scale, channels), shifts(shift, channels);
        const bool past = large(out, channels, steps * rows * channels);
        in_parallel(threads, [&](int thread, int n) {
            const ForwardPass self = *this;  // a copy that no store can alias
            Tail y_tail(steps), shortcut_tail(steps), out_tail(steps);
            over_blocks(rows, channels, thread, n, [&](i64 row, i64 c) {
                const i64 at = row * self.channels + c, left = self.channels - c;
                Planes<const S> y{self.y.at + at, self.y.step};
                Planes<const S> add{self.shortcut.at ? self.shortcut.at + at : nullptr, self.shortcut.step};
                Planes<S> out{self.out + at, self.rows * self.channels}, target = out;
                if (left < BLOCK) {
                    y = y_tail.read(y, self.steps, left);
                    add = shortcut_tail.read(add, self.steps, left);
                    target = out_tail.planes();
                }
                self.block(y, scales.at(c), shifts.at(c), add, target, past);
                if (left < BLOCK) out_tail.write(out, self.steps, left);
            }, [] {});
            if (past) written_past();
        });
    }
};

// Recomputes the potentials from y and runs back through time. g is the gradient of the neuron's
// input. sums: [sum g, sum g * (y - mean)] per channel; out: g, or a * g + b * y + d where the
// coefficients are given (g summed over time where all steps share y).
struct BackwardPass {
    Planes<const S> y;
    const R *scale, *shift, *mean;
    Planes<const S> grad;
    const R *a, *b, *d;
    S* out;
    i64 steps, rows, channels;
    const Neuron neuron;
    const bool shared, learns_decay;

    struct Step { Pair y, h, slope, leak; };
    struct Vectors { const R *scale, *shift, *mean, *a, *b, *d; };  // of one block

    INLINE void block(Planes<const S> y, const Vectors& c, Planes<const S> grad, Planes<S> out,
                      Step* step, Sums* sums, i64 channel, V& decay_sum, bool past) const {
        Pair v{}, p{}, q{};
        if (c.scale) p = in_order(c.scale), q = in_order(c.shift);
        for (i64 t = 0; t < steps; ++t) {
            Pair x = load(y.at + t * y.step);
            step[t].y = x;
            if (c.scale) x = x * p + q;
            if (learns_decay) step[t].leak = {neuron.decay_slope(v.a, x.a), neuron.decay_slope(v.b, x.b)};
            Pair h{neuron.charge(v.a, x.a), neuron.charge(v.b, x.b)};
            v = {neuron.after(h.a, neuron.fires(h.a)), neuron.after(h.b, neuron.fires(h.b))};
            step[t].h = h;
            // Here, not on the way back: it fills the time in which the next step waits for v.
            step[t].slope = {neuron.surrogate(h.a), neuron.surrogate(h.b)};
        }
        const R in = neuron.input_gain(), state = neuron.state_gain();
        Pair a{}, b{}, d{}, mean{}, sum{}, product{}, over_time{};
        if (c.a) a = in_order(c.a), b = in_order(c.b), d = in_order(c.d);
        if (c.mean) mean = in_order(c.mean);
        v = Pair{};
        for (i64 t = steps - 1; t >= 0; --t) {
            const Step& s = step[t];
            Pair g = load(grad.at + t * grad.step);
            g = {neuron.back(s.h.a, s.slope.a, g.a, v.a), neuron.back(s.h.b, s.slope.b, g.b, v.b)};
            if (learns_decay) decay_sum += g.a * s.leak.a + g.b * s.leak.b;
            v = g * state;
            g = in == state ? v : g * in;
            if (sums) sum = sum + g, product = product + g * (s.y - mean);
            if (!out.at) continue;
            if (shared) over_time = over_time + g;
            else store(out.at + t * out.step, c.a ? a * g + (b * s.y + d) : g, past);
        }
        if (out.at && shared) store(out.at, c.a ? a * over_time + (b * step[0].y + d) : over_time);
        if (sums) sums->add(0, channel, sum), sums->add(1, channel, product);
    }

    __attribute__((noinline)) void work(Sums* sums, double* decay, int thread, int n) const {
        const BackwardPass self = *this;  // a copy that no store can alias
        const PerChannel scales(scale, channels), shifts(shift, channels), means(sums ? mean : nullptr, channels),
            as(a, channels), bs(b, channels), ds(d, channels);
        const i64 out_steps = shared ? 1 : steps;
        const bool past = large(out, channels, out_steps * rows * channels);
        Tail y_tail(steps), grad_tail(steps), out_tail(steps);
        std::vector<Step> scratch(steps);
        V decay_sum{};
        i64 blocks = 0;
        auto flush_decay = [&] {
            for (int i = 0; i < L; ++i) *decay += decay_sum[i];
            decay_sum = V{};
        };
        over_blocks(rows, channels, thread, n, [&](i64 row, i64 c) {
            const i64 at = row * self.channels + c, left = self.channels - c;
            Planes<const S> y{self.y.at + at, self.y.step}, grad{self.grad.at + at, self.grad.step};
            Planes<S> out{self.out ? self.out + at : nullptr, self.rows * self.channels}, target = out;
            if (left < BLOCK) {
                y = y_tail.read(y, self.steps, left);
                grad = grad_tail.read(grad, self.steps, left);
                if (out.at) target = out_tail.planes();
            }
            const Vectors vectors{scales.at(c), shifts.at(c), means.at(c), as.at(c), bs.at(c), ds.at(c)};
            self.block(y, vectors, grad, target, scratch.data(), sums, c, decay_sum, past);
            if (left < BLOCK && out.at) out_tail.write(out, out_steps, left);
            if (self.learns_decay && ++blocks % Sums::ROWS == 0) flush_decay();
        }, [&] { if (sums) sums->rows_done(1); });
        flush_decay();
        if (past) written_past();
    }

    void run(int threads, double* sums_out, double* decay_out) const {
        std::vector<double> decay(threads);
        if (sums_out)
            sum_in_parallel(2, channels, sums_out, threads, [&](Sums& sums, int thread, int n) {
                work(&sums, &decay[thread], thread, n);
            });
        else
            in_parallel(threads, [&](int thread, int n) { work(nullptr, &decay[thread], thread, n); });
        if (decay_out) {
            *decay_out = 0;
            for (double slot : decay) *decay_out += slot;
        }
    }
};

// out = a * u + b * v + d per channel; b null: a * u + v + d; v null: a * u + d. out may be u.
void affine(const S* u, const R* a, const S* v, const R* b, const R* d, S* out, i64 rows, i64 channels,
            int threads) {
    const PerChannel as(a, channels), bs(b, channels), ds(d, channels);
    in_parallel(threads, [&](int thread, int n) {
        over_blocks(rows, channels, thread, n, [&](i64 row, i64 c) {
            const i64 i = row * channels + c, left = channels - c;
            Pair x = load_part(u + i, left) * in_order(as.at(c)) + in_order(ds.at(c));
            if (v) {
                Pair other = load_part(v + i, left);
                x = x + (b ? other * in_order(bs.at(c)) : other);
            }
            store_part(out + i, x, left);
        }, [] {});
    });
}

// [sum g, sum g * (y - mean)] per channel.
void gradient_sums(const S* g, const S* y, const R* mean, double* out, i64 rows, i64 channels, int threads) {
    const PerChannel means(mean, channels);
    sum_in_parallel(2, channels, out, threads, [&](Sums& sums, int thread, int n) {
        over_blocks(rows, channels, thread, n, [&](i64 row, i64 c) {
            const i64 i = row * channels + c, left = channels - c;
            Pair grad = load_part(g + i, left);
            sums.add(0, c, grad);
            sums.add(1, c, grad * (load_part(y + i, left) - in_order(means.at(c))));
        }, [&] { sums.rows_done(1); });
    });
}

// What one norm does to a channel: mean, 1/std, and the scale and shift that they fold into with
// weight and bias. moments: [mean, biased variance] of `count` values, towards which the running
// statistics move by `momentum`; null: the running ones are used.
// offset (null: 0): what the layer in front has not added to its output.
void fold(const double* moments, double count, const R* weight, const R* bias, const R* offset,
          double eps, R* running_mean, R* running_var, double momentum, R* out, i64 channels) {
    for (i64 c = 0; c < channels; ++c) {
        double added = offset ? offset[c] : 0;
        double mean = moments ? moments[c] : running_mean[c] - added;
        double variance = moments ? moments[channels + c] : running_var[c];
        double invstd = 1 / std::sqrt(variance + eps), scale = weight[c] * invstd;
        out[c] = mean;
        out[channels + c] = invstd;
        out[2 * channels + c] = scale;
        out[3 * channels + c] = bias[c] - mean * scale;
        if (!moments) continue;
        running_mean[c] += momentum * (mean + added - running_mean[c]);
        running_var[c] += momentum * (variance * (count / (count - 1)) - running_var[c]);
    }
}

// Gradients of weight and bias [2, C] from the sums of this process (null: neither), and the a, b, d [3, C] of
// a * g + b * y + d from the sums over `count` values of all processes (count 0: the statistics
// were constants). With y shared by `repeats` time steps, g is summed over them and the result is
// one step's share.
void fold_gradients(const double* own, const double* sums, const R* folded, double count,
                    double repeats, R* grads, R* coefficients, i64 channels) {
    const R *mean = folded, *invstd = folded + channels, *scale = folded + 2 * channels;
    for (i64 c = 0; c < channels; ++c) {
        double gain = scale[c], b = 0, d = 0;
        if (count) {
            b = -gain * invstd[c] * invstd[c] * sums[channels + c] / count;
            d = -gain * sums[c] / count - b * mean[c];
        }
        if (own) {
            grads[c] = own[channels + c] * invstd[c];
            grads[channels + c] = own[c];
        }
        coefficients[c] = gain / repeats;
        coefficients[channels + c] = b;
        coefficients[2 * channels + c] = d;
    }
}

template <class T> const T* in(const void* p) { return static_cast<const T*>(p); }
template <class T> T* to(void* p) { return static_cast<T*>(p); }

}  // namespace

extern "C" {

void unit_moments(const void* y, i64 rows, i64 channels, double* out, int threads) {
    threads = useful_threads(threads, rows * channels);
    moments(in<S>(y), rows, channels, out, threads);
}

void unit_fold(const double* moments, double count, const void* weight, const void* bias,
               const void* offset, double eps, void* running_mean, void* running_var,
               double momentum, void* out, i64 channels) {
    fold(moments, count, in<R>(weight), in<R>(bias), in<R>(offset), eps, to<R>(running_mean),
         to<R>(running_var), momentum, to<R>(out), channels);
}

void unit_fold_gradients(const double* own, const double* sums, const void* folded, double count,
                         double repeats, void* grads, void* coefficients, i64 channels) {
    fold_gradients(own, sums, in<R>(folded), count, repeats, to<R>(grads), to<R>(coefficients),
                   channels);
}

void unit_forward(const void* y, i64 y_step, const void* scale, const void* shift,
                  const void* shortcut, i64 shortcut_step, void* out, i64 steps, i64 rows,
                  i64 channels, const NeuronSpec* neuron, int threads) {
    threads = useful_threads(threads, steps * rows * channels);
    ForwardPass{{in<S>(y), y_step}, in<R>(scale), in<R>(shift), {in<S>(shortcut), shortcut_step},
                to<S>(out), steps, rows, channels, Neuron(*neuron)}.run(threads);
}

void unit_backward(const void* y, i64 y_step, const void* scale, const void* shift,
                   const void* mean, const void* grad, i64 grad_step, const void* a, const void* b,
                   const void* d, void* out, i64 steps, i64 rows, i64 channels, const NeuronSpec* neuron,
                   double* sums, double* decay_grad, int threads) {
    threads = useful_threads(threads, steps * rows * channels);
    BackwardPass{{in<S>(y), y_step}, in<R>(scale), in<R>(shift), in<R>(mean), {in<S>(grad), grad_step},
                 in<R>(a), in<R>(b), in<R>(d), to<S>(out), steps, rows, channels, Neuron(*neuron),
                 y_step == 0, decay_grad != nullptr}.run(threads, sums, decay_grad);
}

void unit_affine(const void* u, const void* a, const void* v, const void* b, const void* d,
                 void* out, i64 rows, i64 channels, int threads) {
    threads = useful_threads(threads, rows * channels);
    affine(in<S>(u), in<R>(a), in<S>(v), in<R>(b), in<R>(d), to<S>(out), rows, channels, threads);
}

void unit_gradient_sums(const void* g, const void* y, const void* mean, double* out, i64 rows,
                        i64 channels, int threads) {
    threads = useful_threads(threads, rows * channels);
    gradient_sums(in<S>(g), in<S>(y), in<R>(mean), out, rows, channels, threads);
}

i64 unit_padded(i64 channels) { return padded(channels); }

void unit_max_pool(const void* y, i64 y_step, const void* scale, const void* shift,
                   const void* shortcut, i64 shortcut_step, void* out, void* raw, void* codes, i64 steps,
                   i64 images, i64 height, i64 width, i64 channels, const NeuronSpec* neuron, int threads) {
    threads = useful_threads(threads, steps * images * height * width * channels);
    std::unique_ptr<Neuron> firing(neuron ? new Neuron(*neuron) : nullptr);
    MaxPool{{in<S>(y), y_step}, in<R>(scale), in<R>(shift), {in<S>(shortcut), shortcut_step},
             to<S>(out), to<S>(raw), to<uint8_t>(codes), steps, images, height, width, channels}
        .run(firing.get(), threads);
}

void unit_max_pool_backward(const void* grad, const void* codes, const void* y, const void* a,
                            const void* b, const void* d, void* out, i64 steps, i64 images, i64 height,
                            i64 width, i64 channels, int threads) {
    threads = useful_threads(threads, steps * images * height * width * channels);
    MaxPoolGradient{in<S>(grad), in<uint8_t>(codes), in<S>(y), in<R>(a), in<R>(b), in<R>(d), to<S>(out),
                    steps * images, height, width, channels}.run(threads);
}

void unit_token_attention(const void* joined, const void* const* wide, i64 parts, i64 wides, void* out,
                          void* mask, void* scores, void* keys, i64 steps, i64 rows, i64 channels,
                          i64 heads, const NeuronSpec* neuron, int threads) {
    threads = useful_threads(threads, steps * rows * channels);
    TokenAttention{in<S>(joined), reinterpret_cast<const S* const*>(wide), parts, wides, steps, rows,
                   channels, heads, Neuron(*neuron)}
        .forward(to<S>(out), to<S>(mask), to<R>(scores), to<uint8_t>(keys), threads);
}

void unit_token_attention_backward(const void* grad, const void* scores, const void* keys, i64 parts,
                                   void* joined_grad, void* wide_grad, i64 steps, i64 rows, i64 channels,
                                   i64 heads, const NeuronSpec* neuron, double* decay_grad, int threads) {
    threads = useful_threads(threads, steps * rows * channels);
    TokenAttention{nullptr, nullptr, parts, 0, steps, rows, channels, heads, Neuron(*neuron)}
        .backward(in<S>(grad), in<R>(scores), in<uint8_t>(keys), to<S>(joined_grad), to<S>(wide_grad),
                  decay_grad, threads);
}

i64 unit_to_bytes(const void* x, void* out, i64 count, int threads) {
    const i64 glance = std::min<i64>(count, 64 * BLOCK);
    if (to_bytes(in<S>(x), to<uint8_t>(out), glance, 1) < 0) return -1;
    return to_bytes(in<S>(x), to<uint8_t>(out), count, useful_threads(threads, count));
}

void unit_from_bytes(const void* bytes, void* out, i64 count, int threads) {
    from_bytes(in<uint8_t>(bytes), to<S>(out), count, useful_threads(threads, count));
}

}  // extern "C"
