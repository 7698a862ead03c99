// Vectors of the compiler (GCC and Clang, every processor), storage types, threads and sums.
//
// A block is BLOCK consecutive channels of one row, held as a pair of vectors. Float and double
// blocks are two vectors in order. bfloat16 channels are read as 32-bit words, so that the pair
// holds even and odd channels: one shift and one mask turn 2 * L of them into floats. Per-channel
// vectors are brought into the same order once per pass (PerChannel).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

using i64 = int64_t;
struct bf16 { uint16_t bits; };
using S = STORAGE;  // float, double or bf16: one library each
using R = std::conditional_t<std::is_same_v<S, double>, double, float>;
constexpr bool PACKED = std::is_same_v<S, bf16>;

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int L = BYTES / sizeof(R);  // lanes of a vector
constexpr int BLOCK = 2 * L;

typedef float vf __attribute__((vector_size(BYTES)));
typedef int32_t vi __attribute__((vector_size(BYTES)));
typedef uint32_t vu __attribute__((vector_size(BYTES)));
typedef uint16_t vh __attribute__((vector_size(BYTES)));
typedef double vd __attribute__((vector_size(BYTES)));
typedef int64_t vl __attribute__((vector_size(BYTES)));
using V = std::conditional_t<std::is_same_v<R, double>, vd, vf>;
using M = std::conditional_t<std::is_same_v<R, double>, vl, vi>;  // all bits of true lanes

struct Pair { V a, b; };
template <class F> INLINE Pair both(F f, Pair x) { return {f(x.a), f(x.b)}; }
INLINE Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
INLINE Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
INLINE Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
INLINE Pair operator*(Pair x, R y) { return {x.a * y, x.b * y}; }


template <class T> INLINE T read(const void* p) { T v; std::memcpy(&v, p, sizeof v); return v; }
template <class T> INLINE void write(void* p, T v) { std::memcpy(p, &v, sizeof v); }
// Past the caches: memory is then not read before it is overwritten.
INLINE void write_past(void* p, V v) {
#ifdef __AVX512F__
    asm volatile("vmovntps %1, %0" : "=m"(*static_cast<V*>(p)) : "v"(v));
#else
    write(p, v);
#endif
}
INLINE void written_past() {
#ifdef __AVX512F__
    asm volatile("sfence" ::: "memory");
#endif
}

// 2^-u for u >= 0; NaN stays NaN. Subtracting u from a large constant leaves the exponent of the
// result in the low bits; a minimax polynomial does the fraction in [-1/2, 1/2]. Relative error
// 1e-7 for float, 1e-16 for double, 1e-4 where the result ends in bfloat16 (whose own is 2e-3).
template <class F, class I, class T, int N>
INLINE F exp2_negative(F u, T magic, T most, int mantissa, const T (&c)[N]) {
    u = u > most ? F{} + most : u;
    F t = magic - u, fraction = u + (t - magic), p = F{} + c[N - 1];
    for (int i = N - 2; i >= 0; --i) p = p * fraction + c[i];
    return p * (F)((I)t << mantissa);
}
INLINE vf exp2_negative(vf u) {
    static constexpr float brief[] = {0.9999280735f, -0.6932609855f, 0.2426111222f, -0.05517166909f};
    static constexpr float full[] = {1.000000072f, -0.6931469671f, 0.2402211972f, -0.05550713273f,
                                     0.009675541331f, -0.001327647217f};
    const float magic = 12582912.0f + 127, most = 126.0f;  // 1.5 * 2^23 + bias of the exponent
    return PACKED ? exp2_negative<vf, vi>(u, magic, most, 23, brief)
                  : exp2_negative<vf, vi>(u, magic, most, 23, full);
}
INLINE vd exp2_negative(vd u) {
    static constexpr double c[] = {
        1.0, -0.6931471805599453305, 0.240226506959101562, -0.05550410866481992148,
        0.009618129107588335083, -0.001333355814678995032, 0.0001540353046251461303,
        -0.0000152527334899608046, 1.321543308959462904e-6, -1.017819803332852766e-7,
        7.074105626245659371e-9, -4.435280944610336161e-10};
    return exp2_negative<vd, vl>(u, 6755399441055744.0 + 1023, 1022.0, 52, c);
}
INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }
INLINE vd absolute(vd x) { return (vd)((vl)x & 0x7fffffffffffffff); }

// Blocks to and from memory.
INLINE Pair load(const R* p) { return {read<V>(p), read<V>(p + L)}; }
INLINE void store(R* p, Pair x) { write(p, x.a); write(p + L, x.b); }
INLINE void store_spikes(R* p, M a, M b) { store(p, {a ? V{} + R(1) : V{}, b ? V{} + R(1) : V{}}); }

INLINE Pair load(const bf16* p) {
    vu words = read<vu>(p);
    return {(V)(words << 16), (V)(words & 0xffff0000u)};
}
INLINE vu rounded(vf v) {  // to nearest even in the upper half; NaN stays NaN
    vu u = (vu)v;
    return v != v ? u | 0x400000u : u + (0x7fffu + ((u >> 16) & 1u));
}
INLINE void store(bf16* p, Pair x) {
#ifdef __AVX512BF16__
    vh order, halves;
    for (int i = 0; i < BLOCK; ++i) order[i] = i / 2 + i % 2 * L;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(halves) : "v"(x.a), "v"(x.b));
    asm("vpermw %1, %2, %0" : "=v"(halves) : "v"(halves), "v"(order));
    write(p, halves);
#else
    write(p, rounded((vf)x.a) >> 16 | (rounded((vf)x.b) & 0xffff0000u));
#endif
}
INLINE void store_spikes(bf16* p, vi a, vi b) {
    write(p, (a ? vu{} + 0x3f80u : vu{}) | (b ? vu{} + 0x3f800000u : vu{}));
}

// Whether an output of `count` elements in rows of `channels` is better written past the caches: it
// is larger than they are, and the pass waits for memory, which it does not in bfloat16.
inline bool large(const S* out, i64 channels, i64 count) {
    return !PACKED && count * i64(sizeof(S)) > (i64(32) << 20) && channels % BLOCK == 0 &&
           reinterpret_cast<uintptr_t>(out) % BYTES == 0;
}
template <class T> INLINE void store(T* p, Pair x, bool past) {
    if constexpr (!std::is_same_v<T, bf16>)
        if (past) return write_past(p, x.a), write_past(p + L, x.b);
    store(p, x);
}
template <class T> INLINE void store_spikes(T* p, M a, M b, bool past) {
    if constexpr (!std::is_same_v<T, bf16>)
        if (past) return store(p, {a ? V{} + R(1) : V{}, b ? V{} + R(1) : V{}}, true);
    store_spikes(p, a, b);
}
template <class T> T spike(bool fired) {
    if constexpr (std::is_same_v<T, bf16>) return {uint16_t(fired ? 0x3f80 : 0)};
    else return T(fired);
}

// Whole numbers below 256, a byte each, in the order of the channels.
typedef uint16_t vq __attribute__((vector_size(2 * L)));
typedef uint8_t vc __attribute__((vector_size(L)));
struct Codes { M a, b; };
INLINE Codes load_codes(const uint8_t* p) {
    if constexpr (!PACKED)
        return {__builtin_convertvector(read<vc>(p), M), __builtin_convertvector(read<vc>(p + L), M)};
    M both = __builtin_convertvector(read<vq>(p), M);
    return {both & 0xff, both >> 8};
}
INLINE void store_codes(uint8_t* p, Codes x) {
    if constexpr (PACKED) {
        write(p, __builtin_convertvector(x.a | x.b << 8, vq));
    } else {
        write(p, __builtin_convertvector(x.a, vc));
        write(p + L, __builtin_convertvector(x.b, vc));
    }
}

// A vector of channels [C] in block order, filled up with zeros.
inline i64 padded(i64 channels) { return (channels + BLOCK - 1) / BLOCK * BLOCK; }
INLINE i64 place(i64 channel) {
    if (!PACKED) return channel;
    i64 within = channel % BLOCK;
    return channel - within + within / 2 + within % 2 * L;
}
struct PerChannel {
    std::vector<R> values;
    PerChannel(const R* source, i64 channels) {
        if (!source) return;
        values.resize(padded(channels));
        for (i64 c = 0; c < channels; ++c) values[place(c)] = source[c];
    }
    const R* at(i64 channel) const { return values.empty() ? nullptr : &values[channel]; }
};
INLINE Pair in_order(const R* p) { return {read<V>(p), read<V>(p + L)}; }

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
    return int(std::min<i64>(threads, 1 + elements / 32768));
}

// Calls block(row, channel) for this thread's share of all blocks and after_row() behind each row
// (or part of one) that it has finished.
template <class F, class G>
INLINE void over_blocks(i64 rows, i64 channels, int thread, int threads, F block, G after_row) {
    i64 per_row = (channels + BLOCK - 1) / BLOCK, total = rows * per_row;
    i64 first = total * thread / threads, last = total * (thread + 1) / threads;
    i64 row = first / per_row, column = first % per_row;
    for (i64 i = first; i < last; ++i) {
        block(row, column * BLOCK);
        if (++column == per_row) { column = 0; ++row; after_row(); }
    }
    if (column) after_row();
}

// One operand of a block: its first time step, and the elements from one step to the next.
template <class T> struct Planes { T* at; i64 step; };

// The last channels of a row are worked on in full blocks of scratch memory.
struct Tail {
    std::vector<S> memory;
    explicit Tail(i64 steps) : memory(steps * BLOCK) {}
    Planes<const S> read(Planes<const S> source, i64 steps, i64 channels) {
        if (!source.at) return source;
        for (i64 t = 0; t < steps; ++t)
            std::copy_n(source.at + t * source.step, channels, &memory[t * BLOCK]);
        return {memory.data(), BLOCK};
    }
    Planes<S> planes() { return {memory.data(), BLOCK}; }
    void write(Planes<S> target, i64 steps, i64 channels) const {
        for (i64 t = 0; t < steps; ++t)
            std::copy_n(&memory[t * BLOCK], channels, target.at + t * target.step);
    }
};
INLINE Pair load_part(const S* p, i64 channels) {  // the first channels of a block
    if (channels >= BLOCK) return load(p);
    S edge[BLOCK] = {};
    std::copy_n(p, channels, edge);
    return load(edge);
}
INLINE void store_part(S* p, Pair x, i64 channels) {
    if (channels >= BLOCK) return store(p, x);
    S edge[BLOCK];
    store(edge, x);
    std::copy_n(edge, channels, p);
}

// Sums per channel of one thread, `parts` of them: in working precision, moved to double every
// ROWS rows.
struct Sums {
    static constexpr i64 ROWS = 128;
    const i64 width;
    i64 rows = 0;
    std::vector<R> working;
    std::vector<double> total;
    Sums(int parts, i64 channels)
        : width(padded(channels)), working(parts * width), total(parts * width) {}
    INLINE void add(int part, i64 channel, Pair x) {
        R* p = &working[part * width + channel];
        Pair sum = in_order(p) + x;
        write(p, sum.a), write(p + L, sum.b);
    }
    void rows_done(i64 count) {
        if ((rows += count) >= ROWS) flush();
    }
    void flush() {
        for (size_t i = 0; i < working.size(); ++i) { total[i] += working[i]; working[i] = 0; }
        rows = 0;
    }
};
// Runs body(sums, thread, threads) in parallel; out [parts, C] are the slots of all threads, added
// in thread order: the same thread count gives the same bits.
template <class F> void sum_in_parallel(int parts, i64 channels, double* out, int threads, F body) {
    std::vector<std::unique_ptr<Sums>> slots(threads);
    in_parallel(threads, [&](int thread, int n) {
        auto sums = std::make_unique<Sums>(parts, channels);
        body(*sums, thread, n);
        sums->flush();
        slots[thread] = std::move(sums);
    });
    for (int part = 0; part < parts; ++part)
        for (i64 c = 0; c < channels; ++c) {
            double sum = 0;
            for (auto& slot : slots)
                if (slot) sum += slot->total[part * slot->width + place(c)];
            out[part * channels + c] = sum;
        }
}

}  // namespace
