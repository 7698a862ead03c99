// Spikes and small sums of them, a byte each, for as long as they wait for the backward pass.
#pragma once
#include "vectors.h"

namespace {

// Each lane's number as an integer; `others` marks lanes that are no whole number from 0 to 255.
INLINE M whole(V x, M& others) {
    M small = (x >= R(0)) & (x < R(256));  // false for NaN
    M code = __builtin_convertvector(small ? x : V{}, M);
    others |= __builtin_convertvector(code, V) != x;
    return code;
}

// x [count] as bytes [padded(count)] and their sum; -1 (and out is worthless) where they cannot hold
// it. A tensor of other numbers betrays itself at once, which makes asking cheap.
i64 to_bytes(const S* x, uint8_t* out, i64 count, int threads) {
    constexpr i64 STRETCH = 64 * BLOCK;
    std::vector<i64> sums(threads);
    std::vector<char> failed(threads);
    in_parallel(threads, [&](int thread, int n) {
        const i64 stretches = (count + STRETCH - 1) / STRETCH;
        for (i64 s = stretches * thread / n; s < stretches * (thread + 1) / n; ++s) {
            M others{}, sum{};
            const i64 end = std::min(count, (s + 1) * STRETCH);
            for (i64 i = s * STRETCH; i < end; i += BLOCK) {
                Pair block = load_part(x + i, count - i);
                const Codes codes{whole(block.a, others), whole(block.b, others)};
                sum += codes.a + codes.b;
                store_codes(out + i, codes);
            }
            for (int i = 0; i < L; ++i) failed[thread] |= others[i] != 0, sums[thread] += sum[i];
            if (failed[thread]) return;
        }
    });
    i64 sum = 0;
    for (int thread = 0; thread < threads; ++thread) {
        if (failed[thread]) return -1;
        sum += sums[thread];
    }
    return sum;
}

void from_bytes(const uint8_t* bytes, S* out, i64 count, int threads) {
    const bool past = large(out, BLOCK, count) && count % BLOCK == 0;
    in_parallel(threads, [&](int thread, int n) {
        over_blocks(1, count, thread, n, [&](i64, i64 i) {
            Codes codes = load_codes(bytes + i);
            Pair x{__builtin_convertvector(codes.a, V), __builtin_convertvector(codes.b, V)};
            if (count - i < BLOCK) store_part(out + i, x, count - i);
            else store(out + i, x, past);
        }, [] {});
        if (past) written_past();
    });
}

}  // namespace
