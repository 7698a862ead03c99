// 3 x 3 max pooling with stride 2 and padding 1 between norm and neuron, or alone.
#pragma once
#include "neuron.h"

namespace {

// The pixels of the window of one pooled pixel that lie inside the image, in torch's order (the
// first of equal values wins); a code is the place in the window.
struct Window {
    int count = 0, codes[9];
    i64 pixels[9];
    Window(i64 oh, i64 ow, i64 height, i64 width) {
        for (int i = 0; i < 9; ++i) {
            i64 h = 2 * oh - 1 + i / 3, w = 2 * ow - 1 + i % 3;
            if (h < 0 || h >= height || w < 0 || w >= width) continue;
            codes[count] = i;
            pixels[count++] = h * width + w;
        }
    }
};

// The largest x = scale * y + shift of a window, where it is, and its y. NaN counts as largest.
struct Largest {
    Pair x, y;
    Codes code;
    INLINE void offer(V& best, V& raw, M& where, V x, V y, int code) {
        M larger = (x > best) | (x != x);
        best = larger ? x : best;
        raw = larger ? y : raw;
        where = larger ? M{} + code : where;
    }
    INLINE void find(const S* image, const Window& window, i64 channels, i64 left, const R* p, const R* q) {
        Pair a{}, b{};
        if (p) a = in_order(p), b = in_order(q);
        const M first = M{} + window.codes[0];
        x = {V{} - R(INFINITY), V{} - R(INFINITY)};
        y = load_part(image + window.pixels[0] * channels, left);
        code = {first, first};
        for (int i = 0; i < window.count; ++i) {
            Pair raw = load_part(image + window.pixels[i] * channels, left), value = p ? raw * a + b : raw;
            offer(x.a, y.a, code.a, value.a, raw.a, window.codes[i]);
            offer(x.b, y.b, code.b, value.b, raw.b, window.codes[i]);
        }
    }
};

// norm (scale and shift null: none) -> pool -> neuron (null: none) (-> + shortcut). For backward
// (null: not needed): y at the maxima [t, R', C], and codes of the maxima [t, R', padded C], for as
// many steps as y has.
struct MaxPool {
    Planes<const S> y;
    const R *scale, *shift;
    Planes<const S> shortcut;
    S *out, *raw;
    uint8_t* codes;
    i64 steps, images, height, width, channels;

    void run(const Neuron* neuron, int threads) const {
        const PerChannel scales(scale, channels), shifts(shift, channels);
        const i64 high = (height + 1) / 2, wide = (width + 1) / 2, rows = images * high * wide;
        in_parallel(threads, [&](int thread, int n) {
            i64 seen = -1;
            Window window(0, 0, height, width);
            over_blocks(rows, channels, thread, n, [&](i64 row, i64 c) {
                if (row != seen) window = Window(row / wide % high, row % wide, height, width), seen = row;
                const i64 at = row * channels + c, left = channels - c, image = row / (high * wide);
                const S* source = y.at + image * height * width * channels + c;
                Pair v{};
                Largest top;
                for (i64 t = 0; t < steps; ++t) {
                    const i64 here = t * rows * channels + at;
                    if (t == 0 || y.step) {
                        top.find(source + t * y.step, window, channels, left, scales.at(c), shifts.at(c));
                        if (raw) store_part(raw + here, top.y, left);
                        if (codes) store_codes(codes + (t * rows + row) * padded(channels) + c, top.code);
                    }
                    Pair x = top.x;
                    if (neuron) {
                        Pair h{neuron->charge(v.a, x.a), neuron->charge(v.b, x.b)};
                        M fired_a = neuron->fires(h.a), fired_b = neuron->fires(h.b);
                        v = {neuron->after(h.a, fired_a), neuron->after(h.b, fired_b)};
                        x = {fired_a ? V{} + R(1) : V{}, fired_b ? V{} + R(1) : V{}};
                    }
                    if (shortcut.at) x = x + load_part(shortcut.at + t * shortcut.step + at, left);
                    store_part(out + here, x, left);
                }
            }, [] {});
        });
    }
};

// Hands the gradient of pooled pixels [T, R', C] to the pixels they came from: g, or
// a * g + b * y + d where the coefficients are given.
struct MaxPoolGradient {
    const S* grad;
    const uint8_t* codes;
    const S* y;
    const R *a, *b, *d;
    S* out;
    i64 images, height, width, channels;  // time steps are images as well

    void run(int threads) const {
        const PerChannel as(a, channels), bs(b, channels), ds(d, channels);
        const i64 high = (height + 1) / 2, wide = (width + 1) / 2, rows = images * height * width;
        in_parallel(threads, [&](int thread, int n) {
            over_blocks(rows, channels, thread, n, [&](i64 row, i64 c) {
                const i64 w = row % width, h = row / width % height, image = row / (height * width);
                const i64 at = row * channels + c, left = channels - c;
                Pair g{};
                for (i64 oh = h / 2; oh <= (h + 1) / 2 && oh < high; ++oh)
                    for (i64 ow = w / 2; ow <= (w + 1) / 2 && ow < wide; ++ow) {
                        const i64 from = (image * high + oh) * wide + ow;
                        const int code = int((h - 2 * oh + 1) * 3 + w - 2 * ow + 1);
                        Codes found = load_codes(codes + from * padded(channels) + c);
                        Pair pooled = load_part(grad + from * channels + c, left);
                        g = g + Pair{found.a == code ? pooled.a : V{}, found.b == code ? pooled.b : V{}};
                    }
                if (a)
                    g = in_order(as.at(c)) * g + (in_order(bs.at(c)) * load_part(y + at, left) + in_order(ds.at(c)));
                store_part(out + at, g, left);
            }, [] {});
        });
    }
};

}  // namespace
