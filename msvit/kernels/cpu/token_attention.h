// Token attention: votes are summed per head, the attention neuron makes a mask of the score, the
// mask selects the keys' channels of its head.
#pragma once
#include "neuron.h"

namespace {

struct TokenAttention {
    const S* joined;     // [T, R, parts * C]: votes, then keys
    const S* const* wide;  // further votes, [T, R, C] each
    i64 parts, wides, steps, rows, channels, heads;
    const Neuron neuron;

    i64 head() const { return channels / heads; }
    i64 lanes() const { return (heads + L - 1) / L * L; }

    // Adds what each head owns of a row. The two channels of a word of bfloat16 are added first;
    // the caller has seen to it that they belong to one head.
    template <class F> INLINE void per_head(R* sums, R* scratch, F block) const {
        for (i64 c = 0; c < channels; c += BLOCK) {
            Pair x = block(c);
            if (PACKED) write(scratch + c / 2, x.a + x.b);
            else write(scratch + c, x.a), write(scratch + c + L, x.b);
        }
        const i64 words = PACKED ? head() / 2 : head();
        for (i64 h = 0; h < heads; ++h) {
            R sum = 0;
            for (i64 i = 0; i < words; ++i) sum += scratch[h * words + i];
            sums[h] = sum;
        }
    }
    // Calls word(head, i) for the words of 8 bytes of a row, head by head. These loops are too short
    // for vectors, whose set-up would take longer than the loop: the empty asm keeps them out.
    template <class F> INLINE void over_words(F word) const {
        const i64 words = head() * sizeof(S) / 8;
        for (i64 h = 0, at = 0; h < heads; ++h)
            for (i64 end = at + words; at < end; ++at) {
                asm("" : "+r"(at));
                word(h, at);
            }
    }
    // out = mask ? source : 0, a head at a time
    INLINE void select(S* out, const S* source, const R* mask) const {
        const char* from = reinterpret_cast<const char*>(source);
        char* target = reinterpret_cast<char*>(out);
        over_words([=](i64 h, i64 at) {
            const uint64_t kept = mask[h] != 0 ? ~uint64_t(0) : 0;
            write(target + 8 * at, read<uint64_t>(from + 8 * at) & kept);
        });
    }
    INLINE void fill(S* out, const R* values, uint64_t* words) const {
        for (i64 h = 0; h < heads; ++h) {
            S block[BLOCK];
            store(block, Pair{V{} + values[h], V{} + values[h]});
            words[h] = read<uint64_t>(block);
        }
        char* target = reinterpret_cast<char*>(out);
        over_words([=](i64 h, i64 at) { write(target + 8 * at, words[h]); });
    }

    // out [T, R, C], mask [T, R, heads]; for backward (null: not needed) scores [T, R, heads] and
    // keys as bytes [T, R, padded C].
    void forward(S* out, S* mask, R* scores, uint8_t* keys, int threads) const {
        in_parallel(threads, [&](int thread, int n) {
            std::vector<R> score(steps * lanes()), scratch(padded(channels));
            for (i64 row = rows * thread / n; row < rows * (thread + 1) / n; ++row) {
                for (i64 t = 0; t < steps; ++t) {
                    const i64 at = t * rows + row;
                    const S* own = joined + at * parts * channels;
                    per_head(&score[t * lanes()], scratch.data(), [&](i64 c) {
                        const i64 left = channels - c;
                        Pair sum{};
                        for (i64 p = 0; p + 1 < parts; ++p) sum = sum + load_part(own + p * channels + c, left);
                        for (i64 p = 0; p < wides; ++p) sum = sum + load_part(wide[p] + at * channels + c, left);
                        return sum;
                    });
                    if (scores) std::copy_n(&score[t * lanes()], heads, scores + at * heads);
                }
                for (i64 h = 0; h < lanes(); h += L) {
                    V v{};
                    for (i64 t = 0; t < steps; ++t) {
                        R* s = &score[t * lanes() + h];
                        V charged = neuron.charge(v, read<V>(s));
                        M fired = neuron.fires(charged);
                        v = neuron.after(charged, fired);
                        write(s, fired ? V{} + R(1) : V{});
                    }
                }
                for (i64 t = 0; t < steps; ++t) {
                    const i64 at = t * rows + row;
                    const S* key = joined + (at * parts + parts - 1) * channels;
                    const R* opened = &score[t * lanes()];
                    select(out + at * channels, key, opened);
                    for (i64 h = 0; h < heads; ++h) mask[at * heads + h] = spike<S>(opened[h]);
                    if (!keys) continue;
                    for (i64 c = 0; c < channels; c += BLOCK) {
                        Pair k = load_part(key + c, channels - c);
                        store_codes(keys + at * padded(channels) + c,
                                    {__builtin_convertvector(k.a, M), __builtin_convertvector(k.b, M)});
                    }
                }
            }
        });
    }

    // From grad [T, R, C]: joined_grad like joined, wide_grad [T, R, C] (null: no wide votes; the
    // same for all), and the gradient of the decay (null: not learnt).
    void backward(const S* grad, const R* scores, const uint8_t* keys, S* joined_grad, S* wide_grad,
                  double* decay_grad, int threads) const {
        std::vector<double> slots(threads);
        in_parallel(threads, [&](int thread, int n) {
            const R in = neuron.input_gain(), state = neuron.state_gain();
            std::vector<R> open(steps * lanes()), vote(steps * lanes()), scratch(padded(channels));
            std::vector<V> charged(steps), leak(steps);
            std::vector<uint64_t> words(heads);
            double decay = 0;
            for (i64 row = rows * thread / n; row < rows * (thread + 1) / n; ++row) {
                for (i64 t = 0; t < steps; ++t) {
                    const i64 at = t * rows + row;
                    per_head(&vote[t * lanes()], scratch.data(), [&](i64 c) {
                        Codes k = load_codes(keys + at * padded(channels) + c);
                        return load_part(grad + at * channels + c, channels - c) *
                               Pair{__builtin_convertvector(k.a, V), __builtin_convertvector(k.b, V)};
                    });
                    std::copy_n(scores + at * heads, heads, &open[t * lanes()]);
                }
                for (i64 h = 0; h < lanes(); h += L) {
                    V v{};
                    for (i64 t = 0; t < steps; ++t) {
                        R* s = &open[t * lanes() + h];
                        V x = read<V>(s);
                        leak[t] = neuron.decay_slope(v, x);
                        charged[t] = neuron.charge(v, x);
                        M fired = neuron.fires(charged[t]);
                        v = neuron.after(charged[t], fired);
                        write(s, fired ? V{} + R(1) : V{});
                    }
                    v = V{};
                    for (i64 t = steps - 1; t >= 0; --t) {
                        R* g = &vote[t * lanes() + h];
                        V back = neuron.back(charged[t], neuron.surrogate(charged[t]), read<V>(g), v);
                        for (int i = 0; decay_grad && i < L && h + i < heads; ++i) decay += back[i] * leak[t][i];
                        write(g, back * in);
                        v = back * state;
                    }
                }
                for (i64 t = 0; t < steps; ++t) {
                    const i64 at = t * rows + row;
                    S* own = joined_grad + at * parts * channels;
                    for (i64 p = 0; p + 1 < parts; ++p) fill(own + p * channels, &vote[t * lanes()], words.data());
                    if (wide_grad) fill(wide_grad + at * channels, &vote[t * lanes()], words.data());
                    select(own + (parts - 1) * channels, grad + at * channels, &open[t * lanes()]);
                }
            }
            slots[thread] = decay;
        });
        if (!decay_grad) return;
        *decay_grad = 0;
        for (double slot : slots) *decay_grad += slot;
    }
};

}  // namespace
