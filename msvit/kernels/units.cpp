// Spiking units in as few passes over memory as they need. Plain C interface, called by cpp.py.
//
// Activations are [T, R, C] (time, row = image and position, channel); a time step of 0 elements
// means that all T steps share one [R, C] array. Storage is float, double or bfloat16; potentials,
// statistics and parameters are float (double for double). A block of channels of one row runs all
// its T steps in vector registers, so that nothing but inputs and outputs touches memory.
//
// Vectors are the compiler's own vector types (GCC and Clang, every processor), so loops need no
// vectoriser and options such as the kind of reset are ordinary, well predicted branches. Partial
// sums of a thread have a slot of their own and are added in thread order: same thread count,
// same bits. No fast-math: NaN and infinity go through.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using i64 = int64_t;
struct bf16 { uint16_t bits; };

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int K = 2;              // vectors per block: two dependent chains hide each other's latency
constexpr i64 ROWS_PER_FLUSH = 128;  // rows that are summed in working precision, then in double

using S = STORAGE;  // float, double or bf16: one library each
using R = std::conditional_t<std::is_same_v<S, double>, double, float>;
constexpr int L = BYTES / sizeof(R);  // lanes of a vector
constexpr int BLOCK = K * L;          // channels of a block

typedef float vf __attribute__((vector_size(BYTES)));
typedef int32_t vi __attribute__((vector_size(BYTES)));
typedef uint32_t vu __attribute__((vector_size(BYTES)));
typedef uint16_t vh __attribute__((vector_size(BYTES / 2)));
typedef double vd __attribute__((vector_size(BYTES)));
typedef int64_t vl __attribute__((vector_size(BYTES)));
using V = std::conditional_t<std::is_same_v<R, double>, vd, vf>;
using M = std::conditional_t<std::is_same_v<R, double>, vl, vi>;

inline V load(const R* p) { V v; std::memcpy(&v, p, BYTES); return v; }
inline void store(R* p, V v) { std::memcpy(p, &v, BYTES); }
inline void store_spikes(R* p, M fired) { store(p, fired ? V{} + R(1) : V{}); }

inline vf load(const bf16* p) {
    vh half;
    std::memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}
inline void store(bf16* p, vf v) {  // round to nearest even; NaN stays NaN
    vu u = (vu)v;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vh half = __builtin_convertvector(v != v ? (u >> 16) | 0x40 : rounded, vh);
    std::memcpy(p, &half, sizeof half);
}
inline void store_spikes(bf16* p, vi fired) {
    vh half = __builtin_convertvector(fired ? vu{} + 0x3f80u : vu{}, vh);
    std::memcpy(p, &half, sizeof half);
}

// The first n lanes only (all of them if FULL): the last channels of a row.
template <bool FULL, class T> inline V load(const T* p, i64 n) {
    if (FULL || n >= L) return load(p);
    T lanes[L] = {};
    for (i64 i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}
template <class F> inline void partial(S* p, i64 n, F write) {
    S lanes[L];
    write(lanes);
    for (i64 i = 0; i < n; ++i) p[i] = lanes[i];
}
template <bool FULL> inline void store(S* p, V v, i64 n) {
    if (FULL || n >= L) store(p, v);
    else partial(p, n, [&](S* lanes) { store(lanes, v); });
}
template <bool FULL> inline void store_spikes(S* p, M fired, i64 n) {
    if (FULL || n >= L) store_spikes(p, fired);
    else partial(p, n, [&](S* lanes) { store_spikes(lanes, fired); });
}

// 2^-u for u >= 0, relative error 1e-7 (float) or 1e-16 (double); NaN stays NaN. Subtracting u from
// a large constant leaves the exponent of the result in the low bits, the minimax polynomial does
// the fraction in [-1/2, 1/2].
template <class F, class I, int N>
inline F exp2_negative(F u, decltype(F{}[0] + 0) magic, decltype(F{}[0] + 0) most, int mantissa,
                       const decltype(F{}[0] + 0) (&c)[N]) {
    u = u > most ? F{} + most : u;
    F t = magic - u, fraction = u + (t - magic), p = F{} + c[N - 1];
    for (int i = N - 2; i >= 0; --i) p = p * fraction + c[i];
    return p * (F)((I)t << mantissa);
}
inline vf exp2_negative(vf u) {
    static constexpr float c[] = {1.000000072f, -0.6931469671f, 0.2402211972f, -0.05550713273f,
                                  0.009675541331f, -0.001327647217f};
    return exp2_negative<vf, vi>(u, 12582912.0f + 127, 126.0f, 23, c);  // 1.5 * 2^23 + bias
}
inline vd exp2_negative(vd u) {
    static constexpr double c[] = {
        1.0, -0.6931471805599453305, 0.240226506959101562, -0.05550410866481992148,
        0.009618129107588335083, -0.001333355814678995032, 0.0001540353046251461303,
        -0.0000152527334899608046, 1.321543308959462904e-6, -1.017819803332852766e-7,
        7.074105626245659371e-9, -4.435280944610336161e-10};
    return exp2_negative<vd, vl>(u, 6755399441055744.0 + 1023, 1022.0, 52, c);
}
inline vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }
inline vd absolute(vd x) { return (vd)((vl)x & 0x7fffffffffffffff); }

}  // namespace

// Both mirrored by cpp.py.
enum Surrogate { SIGMOID, ATAN, ERF, PIECEWISE_QUADRATIC, SOFT_SIGN, RECT };
struct Neuron {
    int32_t leaky, decay_input, divide, soft_reset, detach_reset, surrogate;
    double tau, decay, threshold, reset, alpha;
};

namespace {

// One time step of IF, LIF and PLIF as spikingjelly computes it, and its gradient.
struct Dynamics {
    const bool leaky, decay_input, divide, soft, detach;
    const Surrogate shape;
    const R tau, decay, threshold, reset, alpha, slope;

    explicit Dynamics(const Neuron& n)
        : leaky(n.leaky), decay_input(n.decay_input), divide(n.divide), soft(n.soft_reset),
          detach(n.detach_reset), shape(Surrogate(n.surrogate)), tau(n.tau), decay(n.decay), threshold(n.threshold),
          reset(n.soft_reset ? 0 : n.reset), alpha(n.alpha),
          slope(n.alpha * (shape == SIGMOID ? M_LOG2E : shape == ATAN ? M_PI_2 : std::sqrt(M_LOG2E))) {}

    V rest() const { return V{} + reset; }
    V charge(V v, V x) const {
        if (!leaky) return v + x;
        V leak = v - reset;
        if (decay_input) return v + (divide ? (x - leak) / tau : (x - leak) * decay);
        return v - (divide ? leak / tau : leak * decay) + x;
    }
    M fires(V h) const { return h >= threshold; }
    V after(V h, M fired) const {  // 0 * h: an infinite potential leaves NaN, as in (1 - s) * h
        if (soft) return fired ? h - threshold : h;
        return fired ? h * R(0) + reset : h;
    }
    V surrogate(V h) const {
        V x = h - threshold;
        switch (shape) {
            case SIGMOID: {  // alpha s (1 - s) with s = 1 / (1 + e)
                V e = exp2_negative(absolute(x * slope));
                return e / ((e * (1 / alpha) + 2 / alpha) * e + 1 / alpha);
            }
            case ATAN: x *= slope; return (alpha / 2) / (x * x + R(1));
            case ERF: x *= slope; return exp2_negative(x * x) * (alpha * R(M_2_SQRTPI / 2));
            case PIECEWISE_QUADRATIC: x = absolute(x); return x > 1 / alpha ? V{} : alpha - alpha * alpha * x;
            case SOFT_SIGN: x = absolute(x) + 1 / alpha; return R(1) / (2 * alpha * x * x);
            default: return absolute(x) < R(0.5) / alpha ? V{} + alpha : V{};
        }
    }
    // Gradient of the charged potential h from that of the spike and of the potential after reset.
    V back(V h, V grad_spike, V grad_v) const {
        M fired = fires(h);
        if (!detach) grad_spike = grad_spike + grad_v * (soft ? V{} - threshold : reset - h);
        V kept = soft ? grad_v : (fired ? V{} : grad_v);
        return grad_spike * surrogate(h) + kept;
    }
    R input_gain() const { return leaky && decay_input ? decay : R(1); }
    R state_gain() const { return leaky ? R(1) - decay : R(1); }
};

template <class F> void in_parallel(int threads, F body) {  // body(thread, threads)
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        body(omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    body(0, 1);
}
int useful_threads(int threads, i64 elements) {
    i64 worth = 1 + elements / 32768;
    return int(threads < worth ? threads : worth);
}

// Calls block(row, channel) for this thread's share of all blocks and after_row() behind each row
// (or part of one) that it has finished.
template <int WIDTH, class F, class G>
void over_blocks(i64 rows, i64 channels, int thread, int threads, F block, G after_row) {
    i64 per_row = (channels + WIDTH - 1) / WIDTH, total = rows * per_row;
    i64 first = total * thread / threads, last = total * (thread + 1) / threads;
    i64 row = first / per_row, column = first % per_row;
    for (i64 i = first; i < last; ++i) {
        block(row, column * WIDTH);
        if (++column == per_row) { column = 0; ++row; after_row(); }
    }
    if (column) after_row();
}

// Per-channel sums: `parts` vectors of channels in working precision, flushed to double every
// ROWS_PER_FLUSH rows; one object per thread.
struct Sums {
    i64 width, rows = 0;
    std::vector<R> working;
    std::vector<double> total;
    Sums(int parts, i64 channels)
        : width((channels + 2 * L - 1) / (2 * L) * (2 * L)),
          working(parts * width), total(parts * width) {}
    void add(int part, i64 channel, V v) {
        R* p = &working[part * width + channel];
        store(p, load(p) + v);
    }
    void row_done() { if (++rows >= ROWS_PER_FLUSH) flush(); }
    void flush() {
        for (size_t i = 0; i < working.size(); ++i) { total[i] += working[i]; working[i] = 0; }
        rows = 0;
    }
};
using Slots = std::vector<std::unique_ptr<Sums>>;

// Adds the slots in thread order into out [parts, C].
void collect(const Slots& slots, int parts, i64 channels, double* out) {
    for (int part = 0; part < parts; ++part)
        for (i64 c = 0; c < channels; ++c) {
            double sum = 0;
            for (auto& slot : slots)
                if (slot) sum += slot->total[part * slot->width + c];
            out[part * channels + c] = sum;
        }
}

// Mean and biased variance per channel of y [rows, C], around the first row as pivot so that a
// large mean does not cancel the variance.
void moments(const S* y, i64 rows, i64 channels, double* out, int threads) {
    constexpr int GROUP = 8;
    Slots slots(threads);
    in_parallel(threads, [&](int thread, int n) {
        auto sums = std::make_unique<Sums>(2, channels);
        i64 last = rows * (thread + 1) / n;
        for (i64 r = rows * thread / n; r < last; r += GROUP) {
            i64 group = std::min<i64>(GROUP, last - r);
            for (i64 c = 0; c < channels; c += L) {
                i64 lanes = channels - c;
                V pivot = load<false>(y + c, lanes), sum{}, squares{};
                for (i64 g = 0; g < group; ++g) {
                    V d = load<false>(y + (r + g) * channels + c, lanes) - pivot;
                    sum += d;
                    squares += d * d;
                }
                sums->add(0, c, sum);
                sums->add(1, c, squares);
            }
            sums->rows += group - 1;
            sums->row_done();
        }
        sums->flush();
        slots[thread] = std::move(sums);
    });
    collect(slots, 2, channels, out);
    for (i64 c = 0; c < channels; ++c) {
        double pivot = load<false>(y + c, 1)[0], mean = out[c] / rows;
        out[channels + c] = std::max(0.0, out[channels + c] / rows - mean * mean);
        if (std::isnan(mean)) out[channels + c] = mean;
        out[c] = pivot + mean;
    }
}

// scale * y + shift (both null: y itself) -> neuron -> (+ shortcut)
struct ForwardPass {
    const S* y; i64 y_step;
    const R *scale, *shift;
    const S* shortcut; i64 shortcut_step;
    S* out;
    i64 steps, rows, channels;
    const Dynamics neuron;

    template <bool FULL> void block(i64 row, i64 channel) const {
        const i64 at = row * channels + channel, plane = rows * channels, n = channels - channel;
        V a[K] = {}, b[K] = {}, v[K];
        for (int k = 0; k < K; ++k) {
            v[k] = neuron.rest();
            if (!scale) continue;
            a[k] = load<FULL>(scale + channel + k * L, n - k * L);
            b[k] = load<FULL>(shift + channel + k * L, n - k * L);
        }
        for (i64 t = 0; t < steps; ++t)
            for (int k = 0; k < K; ++k) {
                const i64 i = at + k * L, m = n - k * L;
                V x = load<FULL>(y + t * y_step + i, m);
                if (scale) x = x * a[k] + b[k];
                V h = neuron.charge(v[k], x);
                M fired = neuron.fires(h);
                v[k] = neuron.after(h, fired);
                if (!shortcut) { store_spikes<FULL>(out + t * plane + i, fired, m); continue; }
                V s = load<FULL>(shortcut + t * shortcut_step + i, m);
                store<FULL>(out + t * plane + i, fired ? s + R(1) : s, m);
            }
    }
    void run(int threads) const {
        in_parallel(threads, [&](int thread, int n) {
            over_blocks<BLOCK>(rows, channels, thread, n, [&](i64 r, i64 c) {
                c + BLOCK <= channels ? block<true>(r, c) : block<false>(r, c);
            }, [] {});
        });
    }
};

// Recomputes the potentials from y and runs back through time. g is the gradient of the neuron's
// input. sums: [sum g, sum g * (y - mean)] per channel; out: g, or a * g + b * y + d where the
// coefficients are given (summed over time where y has one step only).
struct BackwardPass {
    const S* y; i64 y_step;
    const R *scale, *shift, *mean;
    const S* grad; i64 grad_step;
    const R *a, *b, *d;
    S* out;
    i64 steps, rows, channels;
    const Dynamics neuron;
    const bool learns_decay;

    struct Step { V y, h, leak; };

    template <bool FULL>
    void block(i64 row, i64 channel, Step (*step)[K], Sums* sums, V& decay_sum) const {
        const i64 at = row * channels + channel, plane = rows * channels, n = channels - channel;
        const R in = neuron.input_gain(), state = neuron.state_gain();
        auto param = [&](const R* p, int k) { return load<FULL>(p + channel + k * L, n - k * L); };
        V p[K] = {}, q[K] = {}, v[K];
        for (int k = 0; k < K; ++k) {
            v[k] = neuron.rest();
            if (scale) p[k] = param(scale, k), q[k] = param(shift, k);
        }
        for (i64 t = 0; t < steps; ++t)
            for (int k = 0; k < K; ++k) {
                Step& s = step[t][k];
                V x = s.y = load<FULL>(y + t * y_step + at + k * L, n - k * L);
                if (scale) x = x * p[k] + q[k];
                if (learns_decay)
                    s.leak = neuron.decay_input ? x - (v[k] - neuron.reset) : neuron.reset - v[k];
                s.h = neuron.charge(v[k], x);
                v[k] = neuron.after(s.h, neuron.fires(s.h));
            }
        V ca[K] = {}, cb[K] = {}, cd[K] = {}, m[K] = {}, sum[K], product[K], over_time[K];
        for (int k = 0; k < K; ++k) {
            v[k] = sum[k] = product[k] = over_time[k] = V{};
            if (a) ca[k] = param(a, k);
            if (b) cb[k] = param(b, k), cd[k] = param(d, k);
            if (sums) m[k] = param(mean, k);
        }
        for (i64 t = steps - 1; t >= 0; --t)
            for (int k = 0; k < K; ++k) {
                const Step& s = step[t][k];
                const i64 i = at + k * L, lanes = n - k * L;
                V gh = neuron.back(s.h, load<FULL>(grad + t * grad_step + i, lanes), v[k]);
                V g = gh * in;
                v[k] = gh * state;
                if (learns_decay) decay_sum += gh * s.leak;
                if (sums) sum[k] += g, product[k] += g * (s.y - m[k]);
                if (!out) continue;
                if (!y_step) over_time[k] += g;
                else store<FULL>(out + t * plane + i, a ? ca[k] * g + (cb[k] * s.y + cd[k]) : g, lanes);
            }
        for (int k = 0; k < K; ++k) {
            if (out && !y_step) {
                V g = over_time[k];
                store<FULL>(out + at + k * L, a ? ca[k] * g + (cb[k] * step[0][k].y + cd[k]) : g, n - k * L);
            }
            if (sums) sums->add(0, channel + k * L, sum[k]), sums->add(1, channel + k * L, product[k]);
        }
    }

    void run(int threads, double* sums_out, double* decay_out) const {
        Slots slots(threads);
        std::vector<double> decay_slots(threads);
        in_parallel(threads, [&](int thread, int n) {
            std::unique_ptr<Sums> sums;
            if (sums_out) sums = std::make_unique<Sums>(2, channels);
            std::vector<Step> scratch(steps * K);
            auto step = reinterpret_cast<Step(*)[K]>(scratch.data());
            V decay_sum{};
            int blocks = 0;
            auto flush_decay = [&] {
                for (int i = 0; i < L; ++i) decay_slots[thread] += decay_sum[i];
                decay_sum = V{};
            };
            over_blocks<BLOCK>(rows, channels, thread, n, [&](i64 r, i64 c) {
                if (c + BLOCK <= channels) block<true>(r, c, step, sums.get(), decay_sum);
                else block<false>(r, c, step, sums.get(), decay_sum);
                if (learns_decay && ++blocks % ROWS_PER_FLUSH == 0) flush_decay();
            }, [&] { if (sums) sums->row_done(); });
            flush_decay();
            if (sums) { sums->flush(); slots[thread] = std::move(sums); }
        });
        if (sums_out) collect(slots, 2, channels, sums_out);
        if (decay_out) {
            *decay_out = 0;
            for (double slot : decay_slots) *decay_out += slot;
        }
    }
};

// out = a * u + b * v + d per channel; b null: a * u + v + d; v null: a * u + d. out may be u.
void affine(const S* u, const R* a, const S* v, const R* b, const R* d, S* out,
            i64 rows, i64 channels, int threads) {
    in_parallel(threads, [&](int thread, int n) {
        over_blocks<L>(rows, channels, thread, n, [&](i64 row, i64 c) {
            const i64 i = row * channels + c, lanes = channels - c;
            V x = load<false>(u + i, lanes) * load<false>(a + c, lanes);
            if (v) {
                V other = load<false>(v + i, lanes);
                x += b ? other * load<false>(b + c, lanes) : other;
            }
            store<false>(out + i, x + load<false>(d + c, lanes), lanes);
        }, [] {});
    });
}

// [sum g, sum g * (y - mean)] per channel.
void gradient_sums(const S* g, const S* y, const R* mean, double* out, i64 rows, i64 channels,
                   int threads) {
    Slots slots(threads);
    in_parallel(threads, [&](int thread, int n) {
        auto sums = std::make_unique<Sums>(2, channels);
        over_blocks<L>(rows, channels, thread, n, [&](i64 row, i64 c) {
            const i64 i = row * channels + c, lanes = channels - c;
            V grad = load<false>(g + i, lanes);
            sums->add(0, c, grad);
            sums->add(1, c, grad * (load<false>(y + i, lanes) - load<false>(mean + c, lanes)));
        }, [&] { sums->row_done(); });
        sums->flush();
        slots[thread] = std::move(sums);
    });
    collect(slots, 2, channels, out);
}

// What one norm does to a channel: mean, 1/std, and the scale and shift that they fold into with
// weight and bias (null: 1 and 0). moments: [mean, biased variance] of `count` values, towards
// which the running statistics (null: none) move by `momentum`; null: the running ones are used.
// offset (null: 0): what the layer in front has not added to its output.
void fold(const double* moments, double count, const R* weight, const R* bias, const R* offset,
          double eps, R* running_mean, R* running_var, double momentum, R* out, i64 channels) {
    for (i64 c = 0; c < channels; ++c) {
        double added = offset ? offset[c] : 0;
        double mean = moments ? moments[c] : running_mean[c] - added;
        double variance = moments ? moments[channels + c] : running_var[c];
        double invstd = 1 / std::sqrt(variance + eps), scale = (weight ? weight[c] : 1) * invstd;
        out[c] = mean;
        out[channels + c] = invstd;
        out[2 * channels + c] = scale;
        out[3 * channels + c] = (bias ? bias[c] : 0) - mean * scale;
        if (!moments || !running_mean) continue;
        running_mean[c] += momentum * (mean + added - running_mean[c]);
        running_var[c] += momentum * (variance * (count / (count - 1)) - running_var[c]);
    }
}

// Gradients of weight and bias [2, C] from the sums of this process, and the a, b, d [3, C] of
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
        grads[c] = own[channels + c] * invstd[c];
        grads[channels + c] = own[c];
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
                  i64 channels, const Neuron* neuron, int threads) {
    threads = useful_threads(threads, steps * rows * channels);
    ForwardPass{in<S>(y), y_step, in<R>(scale), in<R>(shift), in<S>(shortcut), shortcut_step,
                   to<S>(out), steps, rows, channels, Dynamics(*neuron)}.run(threads);
}

void unit_backward(const void* y, i64 y_step, const void* scale, const void* shift,
                   const void* mean, const void* grad, i64 grad_step, const void* a, const void* b,
                   const void* d, void* out, i64 steps, i64 rows, i64 channels, const Neuron* neuron,
                   double* sums, double* decay_grad, int threads) {
    threads = useful_threads(threads, steps * rows * channels);
    BackwardPass{in<S>(y), y_step, in<R>(scale), in<R>(shift), in<R>(mean), in<S>(grad),
                    grad_step, in<R>(a), in<R>(b), in<R>(d), to<S>(out), steps, rows, channels,
                    Dynamics(*neuron), decay_grad != nullptr}.run(threads, sums, decay_grad);
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

}  // extern "C"
