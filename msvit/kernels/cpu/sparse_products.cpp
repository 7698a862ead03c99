// Products of spikes and weights: what did not fire is not computed. Plain C interface, called by
// sparse_products.py.
//
// x is [P, C], a byte for each spike or small sum of spikes, P the pixels of all images in raster
// order. A kernel of odd sides slides over the image plane with stride 1 and zeros around it; 1×1 is
// a matrix product. Forward: the weights of every channel that fired at a pixel, for some outputs at
// all taps, lie in a row and are added up in registers, from where each tap's sum goes to the pixel
// it belongs to. Gradient of the weights: the same per channel, over rows of the output's gradient
// around the pixels at which the channel fired. Weights and gradients are cut into panels of a few
// outputs that stay in the second-level cache, so that the work shrinks with the firing rate. Sums
// run in working precision and in a fixed order.
#include "vectors.h"

namespace {

// Bytes of a panel of weights, and of one frame of outputs or gradients: parts of a small
// second-level cache.
constexpr i64 WEIGHTS = 128 << 10, FRAME = 200 << 10;
constexpr int MOST = BYTES == 64 ? 12 : 6;  // pairs of vectors that fit the registers
constexpr i64 WORD = 64;                    // places told apart by the bits of one word

struct Plane {
    i64 images, height, width, channels, outputs, kernel_height, kernel_width;
    i64 pixels() const { return images * height * width; }
    i64 taps() const { return kernel_height * kernel_width; }
    i64 rise() const { return kernel_height / 2; }
    i64 shift() const { return kernel_width / 2; }
};

// Working memory that no vector load crosses a cache line in.
template <class T> class Aligned {
    struct alignas(64) Line { T values[64 / sizeof(T)]; };
    std::vector<Line> memory;
public:
    explicit Aligned(i64 elements = 0) : memory((elements * sizeof(T) + 63) / 64) {}
    T* data() { return reinterpret_cast<T*>(memory.data()); }
    const T* data() const { return reinterpret_cast<const T*>(memory.data()); }
    bool empty() const { return memory.empty(); }
};

typedef uint8_t Bytes __attribute__((vector_size(WORD)));

INLINE uint64_t nonzero(Bytes x) {  // a bit per byte
#ifdef __AVX512BW__
    uint64_t bits;
    asm("vptestmb %1, %1, %%k1\n\tkmovq %%k1, %0" : "=r"(bits) : "v"(x) : "k1");
    return bits;
#else
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) {
        uint64_t word;
        std::memcpy(&word, reinterpret_cast<const uint8_t*>(&x) + 8 * i, 8);
        const uint64_t low = 0x7f7f7f7f7f7f7f7f;
        uint64_t tops = (((word & low) + low) | word) & ~low;  // the top bit of every nonzero byte
        bits |= ((tops >> 7) * 0x0102040810204080 >> 56) << 8 * i;
    }
    return bits;
#endif
}
INLINE uint64_t first_bits(i64 count) { return count >= WORD ? ~uint64_t(0) : (uint64_t(1) << count) - 1; }

// A list of places that grows.
struct Places {
    std::vector<uint16_t> memory;
    i64 used = 0;
    uint16_t* room(i64 more) {
        if (i64(memory.size()) < used + more + WORD) memory.resize(2 * (used + more + WORD));
        return &memory[used];
    }
    template <class F> INLINE void add(uint64_t bits, F place) {  // place(i) for every bit i
        uint16_t* to = room(WORD);
        used += __builtin_popcountll(bits);
        for (; bits; bits &= bits - 1) *to++ = uint16_t(place(__builtin_ctzll(bits)));
    }
    void repeat(uint16_t place, i64 times) { std::fill_n(room(times), times, place), used += times; }
};

template <class T> T narrowed(R x) {
    if constexpr (std::is_same_v<T, bf16>) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits = x != x ? bits | 0x400000 : bits + (0x7fff + (bits >> 16 & 1));  // to nearest even
        return {uint16_t(bits >> 16)};
    } else {
        return x;
    }
}

// The channels that fired at each of some pixels, a sum of v named v times.
struct FiredChannels {
    Places places;
    std::vector<i64> starts;
    void find(const uint8_t* x, i64 channels, i64 pixels) {
        places.used = 0, starts.resize(pixels + 1);
        for (i64 p = 0; p < pixels; ++p) {
            starts[p] = places.used;
            const uint8_t* row = x + p * channels;
            for (i64 c = 0; c < channels; c += WORD) {
                const uint64_t within = first_bits(channels - c);
                const Bytes values = read<Bytes>(row + c);
                places.add(nonzero(values) & within, [=](i64 bit) { return c + bit; });
                for (uint64_t sums = nonzero(values & 0xfe) & within; sums; sums &= sums - 1) {
                    const i64 channel = c + __builtin_ctzll(sums);
                    places.repeat(channel, row[channel] - 1);
                }
            }
        }
        starts[pixels] = places.used;
    }
    const uint16_t* begin(i64 pixel) const { return places.memory.data() + starts[pixel]; }
    const uint16_t* end(i64 pixel) const { return places.memory.data() + starts[pixel + 1]; }
};

INLINE void transpose(uint64_t (&m)[WORD]) {  // bit j of word i <-> bit i of word j
    uint64_t mask = 0xffffffff;
    for (int step = 32; step; step >>= 1, mask ^= mask << step)
        for (int block = 0; block < WORD; block += 2 * step)
            for (int i = block; i < block + step; ++i) {
                const uint64_t swapped = ((m[i] >> step) ^ m[i + step]) & mask;
                m[i] ^= swapped << step, m[i + step] ^= swapped;
            }
}

// The pixels of a tile at which each channel fired: planes [C, words], in plane v the bits of values
// above v.
struct FiredPixels {
    std::vector<std::vector<uint64_t>> planes;
    i64 words = 0;
    void find(const uint8_t* x, i64 channels, i64 pixels) {
        words = (pixels + WORD - 1) / WORD;
        for (auto& plane : planes) plane.clear();
        for (i64 w = 0; w < words; ++w)
            for (i64 c = 0; c < channels; c += WORD) {
                const uint64_t within = first_bits(channels - c);
                const uint8_t* block = x + w * WORD * channels + c;
                const i64 rows = std::min(WORD, pixels - w * WORD);
                bool more = true;
                for (int above = 0; more && above < 255; ++above) {
                    uint64_t bits[WORD] = {}, any = 0, next = 0;
                    for (i64 i = 0; i < rows; ++i) {
                        const Bytes values = read<Bytes>(block + i * channels);
                        bits[i] = within & (above ? nonzero((Bytes)(values > Bytes{} + uint8_t(above))) : nonzero(values));
                        any |= bits[i];
                        next |= above ? bits[i] : nonzero(values & 0xfe) & within;
                    }
                    more = next;
                    if (!any) break;
                    transpose(bits);
                    if (i64(planes.size()) <= above) planes.emplace_back();
                    auto& plane = planes[above];
                    plane.resize(channels * words);
                    for (i64 i = 0; i < std::min(WORD, channels - c); ++i) plane[(c + i) * words + w] = bits[i];
                }
            }
    }
    void places(i64 channel, const std::vector<uint16_t>& positions, Places& to) const {
        to.used = 0;
        for (const auto& plane : planes)
            for (i64 w = 0; w < words && !plane.empty(); ++w)
                to.add(plane[channel * words + w], [&](i64 bit) { return positions[w * WORD + bit]; });
    }
};

// sums += `pairs` blocks of a table from each of the places on, where a place has `step` elements.
template <int PAIRS>
INLINE void add_rows(Pair* sums, const S* table, i64 step, const uint16_t* begin, const uint16_t* end) {
    for (; begin < end; ++begin) {
        const S* row = table + i64(*begin) * step;
#pragma GCC unroll 12
        for (int b = 0; b < PAIRS; ++b) sums[b] = sums[b] + load(row + b * BLOCK);
    }
}
template <int PAIRS = MOST, class F> INLINE void with_pairs(i64 pairs, F f) {
    if (pairs == PAIRS) return f(std::integral_constant<int, PAIRS>());
    if constexpr (PAIRS > 1) with_pairs<PAIRS - 1>(pairs, f);
}

// Some whole images, or some rows of one, in a frame of zeros: pixels around the plane have a place.
struct Tiling {
    const Plane plane;
    i64 images, rows, margin, width, per_image, count;

    Tiling(const Plane& plane, i64 aim, i64 reach) : plane(plane), width(plane.width + 2 * plane.shift()) {
        const i64 whole = (plane.height + 2 * plane.rise()) * width;
        images = std::max<i64>(1, std::min(plane.images, aim / whole));
        margin = plane.rise(), rows = plane.height;
        if (whole > aim) {
            margin *= reach;
            rows = std::max<i64>(1, std::min(plane.height, aim / width - 2 * margin));
        }
        per_image = (plane.height + rows - 1) / rows;
        count = (plane.images + images - 1) / images * per_image;
    }
    i64 pixels() const { return images * rows * plane.width; }
    i64 places() const { return images * (rows + 2 * margin) * width; }
    // Of a pixel in an image of the tile, counted from its first row.
    i64 place(i64 image, i64 row, i64 column) const {
        return (image * (rows + 2 * margin) + margin + row) * width + plane.shift() + column;
    }
};
struct Tile {
    i64 image, images, row, rows;  // the first and how many
    Tile(const Tiling& t, i64 i)
        : image(i / t.per_image * t.images), images(std::min(t.images, t.plane.images - image)),
          row(i % t.per_image * t.rows), rows(std::min(t.rows, t.plane.height - row)) {}
};

// Some outputs, and what a row of their panel holds: some taps of each. The panels of the same
// outputs follow one another.
struct Panel {
    i64 output, blocks, tap, taps;
    i64 width() const { return blocks * BLOCK; }
    i64 pairs() const { return blocks * taps; }
    i64 outputs(const Plane& plane) const { return std::min(width(), plane.outputs - output); }
};
i64 widest(const std::vector<Panel>& panels) {
    i64 width = 0;
    for (const Panel& panel : panels) width = std::max(width, panel.width());
    return width;
}
// `fits(blocks, taps)` says whether a panel may be that wide.
template <class F> std::vector<Panel> panels_of(const Plane& plane, i64 most_taps, F fits) {
    std::vector<Panel> panels;
    const i64 taps = std::min<i64>(most_taps, MOST);
    for (i64 n = 0, blocks; n < plane.outputs; n += blocks * BLOCK) {
        blocks = std::min<i64>(MOST / taps, (plane.outputs - n + BLOCK - 1) / BLOCK);
        while (blocks > 1 && !fits(blocks, taps)) --blocks;
        for (i64 tap = 0; tap < plane.taps(); tap += taps)
            panels.push_back({n, blocks, tap, std::min(taps, plane.taps() - tap)});
    }
    return panels;
}

// y [P, N] of x and weight [N, C, kh, kw].
struct SpikeProduct {
    const Plane plane;
    const uint8_t* x;
    const R* weight;
    S* y;
    const bool past = large(y, plane.outputs, plane.pixels() * plane.outputs);

    // Of a panel: [C, taps, width].
    void pack(const Panel& panel, S* to) const {
        for (i64 n = 0; n < panel.outputs(plane); ++n)
            for (i64 c = 0; c < plane.channels; ++c)
                for (i64 t = 0; t < panel.taps; ++t)
                    to[(c * panel.taps + t) * panel.width() + n] =
                        narrowed<S>(weight[((panel.output + n) * plane.channels + c) * plane.taps() + panel.tap + t]);
    }

    // The sums of one pixel's channels, to each tap's place in the frame.
    template <int PAIRS>
    INLINE void scatter(const uint16_t* begin, const uint16_t* end, const S* weights, const Panel& panel,
                        const Tiling& t, R* place) const {
        if (begin == end && plane.taps() > 1) return;
        Pair sums[PAIRS] = {};
        add_rows<PAIRS>(sums, weights, PAIRS * BLOCK, begin, end);
        if (plane.taps() == 1) {
            for (int b = 0; b < PAIRS; ++b, place += BLOCK) write(place, sums[b].a), write(place + L, sums[b].b);
            return;
        }
        for (i64 tap = 0, b = 0; tap < panel.taps; ++tap) {
            const i64 up = (panel.tap + tap) / plane.kernel_width - plane.rise();
            const i64 aside = (panel.tap + tap) % plane.kernel_width - plane.shift();
            R* to = place - (up * t.width + aside) * panel.width();
            for (i64 block = 0; block < panel.blocks; ++block, ++b, to += BLOCK) {
                const Pair sum = in_order(to) + sums[b];
                write(to, sum.a), write(to + L, sum.b);
            }
        }
    }

    void run(int threads) const {
        const bool product = plane.taps() == 1;
        const Tiling t(plane, product ? 256 : 1200, 2);
        const auto panels = panels_of(plane, plane.kernel_width, [&](i64 blocks, i64 taps) {
            return blocks * taps * BLOCK * plane.channels * i64(sizeof(S)) <= WEIGHTS &&
                   (product || blocks * BLOCK * t.places() * i64(sizeof(R)) <= FRAME);
        });
        std::vector<Aligned<S>> weights(panels.size());
        in_parallel(threads, [&](int thread, int n) {
            for (size_t i = thread; i < panels.size(); i += n) {
                weights[i] = Aligned<S>(plane.channels * panels[i].pairs() * BLOCK);
                pack(panels[i], weights[i].data());
            }
        });
        in_parallel(threads, [&](int thread, int n) {
            FiredChannels fired;
            Aligned<R> frame(t.places() * widest(panels));
            for (i64 i = t.count * thread / n; i < t.count * (thread + 1) / n; ++i) {
                const Tile tile(t, i);
                // Rows around those of the tile reach into it.
                const i64 first = std::max<i64>(0, tile.row - plane.rise());
                const i64 last = std::min(plane.height, tile.row + tile.rows + plane.rise());
                const i64 pixels = tile.images * (last - first) * plane.width;
                fired.find(x + (tile.image * plane.height + first) * plane.width * plane.channels, plane.channels, pixels);
                for (size_t p = 0; p < panels.size(); ++p) {
                    const Panel& panel = panels[p];
                    if (!panel.tap && !product) std::fill_n(frame.data(), t.places() * panel.width(), R(0));
                    with_pairs(panel.pairs(), [&](auto pairs) {
                        for (i64 image = 0, pixel = 0; image < tile.images; ++image)
                            for (i64 row = first; row < last; ++row) {
                                R* place = frame.data() + t.place(image, row - tile.row, 0) * panel.width();
                                for (i64 c = 0; c < plane.width; ++c, ++pixel, place += panel.width())
                                    scatter<pairs>(fired.begin(pixel), fired.end(pixel), weights[p].data(), panel, t, place);
                            }
                    });
                    if (panel.tap + panel.taps == plane.taps()) copy_out(panel, t, tile, frame.data());
                }
            }
            if (past) written_past();
        });
    }

    void copy_out(const Panel& panel, const Tiling& t, const Tile& tile, const R* frame) const {
        const i64 count = panel.outputs(plane);
        for (i64 image = 0; image < tile.images; ++image)
            for (i64 row = 0; row < tile.rows; ++row) {
                const R* from = frame + t.place(image, row, 0) * panel.width();
                S* to = y + ((tile.image + image) * plane.height + tile.row + row) * plane.width * plane.outputs + panel.output;
                for (i64 c = 0; c < plane.width; ++c, from += panel.width(), to += plane.outputs)
                    for (i64 n = 0; n < count; n += BLOCK) {
                        if (past) store(to + n, in_order(from + n), true);
                        else store_part(to + n, in_order(from + n), count - n);
                    }
            }
    }
};

// Gradient of weight [N, C, kh, kw] from x and grad [P, N].
struct SpikeWeightGradient {
    const Plane plane;
    const uint8_t* x;
    const S* grad;
    R* out;

    // Gradients of one panel around the pixels of a tile, with zeros where the plane ends.
    void fill(const Panel& panel, const Tiling& t, const Tile& tile, S* to) const {
        const i64 count = panel.outputs(plane);
        for (i64 image = tile.image; image < tile.image + tile.images; ++image)
            for (i64 row = tile.row - t.margin; row < tile.row + t.rows + t.margin; ++row)
                for (i64 c = -plane.shift(); c < plane.width + plane.shift(); ++c, to += panel.width()) {
                    if (row < 0 || row >= plane.height || c < 0 || c >= plane.width) {
                        std::fill_n(to, panel.width(), S{});
                        continue;
                    }
                    const S* from = grad + ((image * plane.height + row) * plane.width + c) * plane.outputs + panel.output;
                    for (i64 n = 0; n < panel.width(); n += BLOCK)
                        store(to + n, n < count ? load_part(from + n, count - n) : Pair{});
                }
    }

    // A row of the kernel meets neighbouring gradients, the last tap first. sums: [kh, C, pairs].
    template <int PAIRS>
    void add(const FiredPixels& fired, const std::vector<uint16_t>& positions, const Panel& panel,
             const Tiling& t, const S* frame, R* sums, Places& places) const {
        for (i64 c = 0; c < plane.channels; ++c) {
            fired.places(c, positions, places);
            if (!places.used) continue;
            const uint16_t* first = places.memory.data();
            for (i64 up = -plane.rise(); up <= plane.rise(); ++up) {
                const i64 tap = panel.tap + panel.taps - 1 - plane.shift();
                Pair own[PAIRS] = {};
                add_rows<PAIRS>(own, frame - (up * t.width + tap) * panel.width(), panel.width(), first, first + places.used);
                R* total = sums + ((up + plane.rise()) * plane.channels + c) * (PAIRS * BLOCK);
                for (int b = 0; b < PAIRS; ++b, total += BLOCK) {
                    const Pair sum = in_order(total) + own[b];
                    write(total, sum.a), write(total + L, sum.b);
                }
            }
        }
    }

    void run(int threads) const {
        const Tiling t(plane, plane.taps() == 1 ? 256 : 1200, 1);
        const Plane row{0, 0, 0, plane.channels, plane.outputs, 1, plane.kernel_width};
        const auto panels = panels_of(row, plane.kernel_width, [&](i64 blocks, i64) {
            return blocks * BLOCK * t.places() * i64(sizeof(S)) <= FRAME;
        });
        std::vector<uint16_t> positions((t.pixels() + WORD - 1) / WORD * WORD);
        for (i64 p = 0; p < t.pixels(); ++p) {
            const i64 row = p / plane.width;
            positions[p] = uint16_t(t.place(row / t.rows, row % t.rows, p % plane.width));
        }
        std::vector<i64> starts{0};  // of the panels' sums
        for (const Panel& panel : panels)
            starts.push_back(starts.back() + plane.kernel_height * plane.channels * panel.pairs() * BLOCK);
        std::vector<Aligned<R>> slots(threads);
        in_parallel(threads, [&](int thread, int n) {
            R* sums = (slots[thread] = Aligned<R>(starts.back())).data();
            FiredPixels fired;
            Places places;
            Aligned<S> frame(t.places() * widest(panels));
            for (i64 i = t.count * thread / n; i < t.count * (thread + 1) / n; ++i) {
                const Tile tile(t, i);
                fired.find(x + (tile.image * plane.height + tile.row) * plane.width * plane.channels, plane.channels,
                           tile.images * tile.rows * plane.width);
                for (size_t p = 0; p < panels.size(); ++p) {
                    if (!panels[p].tap) fill(panels[p], t, tile, frame.data());
                    with_pairs(panels[p].pairs(), [&](auto pairs) {
                        add<pairs>(fired, positions, panels[p], t, frame.data(), sums + starts[p], places);
                    });
                }
            }
        });
        in_parallel(threads, [&](int thread, int n) {
            for (size_t p = 0; p < panels.size(); ++p)
                for (i64 c = plane.channels * thread / n; c < plane.channels * (thread + 1) / n; ++c)
                    gather(panels[p], c, starts[p], slots);
        });
    }

    // Adds the slots in the order of threads and brings them into the order of the weights.
    void gather(const Panel& panel, i64 channel, i64 start, const std::vector<Aligned<R>>& slots) const {
        for (i64 n = 0; n < panel.outputs(plane); ++n) {
            R* to = out + ((panel.output + n) * plane.channels + channel) * plane.taps() + panel.tap;
            for (i64 up = 0; up < plane.kernel_height; ++up, to += plane.kernel_width)
                for (i64 tap = 0; tap < panel.taps; ++tap) {
                    const i64 row = (up * plane.channels + channel) * panel.taps + panel.taps - 1 - tap;
                    R sum = 0;
                    for (const auto& slot : slots)
                        if (!slot.empty()) sum += slot.data()[start + row * panel.width() + ::place(n)];
                    to[tap] = sum;
                }
        }
    }
};

}  // namespace

extern "C" {

// plane: images, height, width, channels, outputs, kernel height, kernel width. x is followed by 64
// readable bytes.
void spike_product(const void* x, const void* weight, void* y, const Plane* plane, int threads) {
    threads = useful_threads(threads, plane->pixels() * plane->outputs);
    SpikeProduct{*plane, static_cast<const uint8_t*>(x), static_cast<const R*>(weight), static_cast<S*>(y)}
        .run(threads);
}

void spike_gradient(const void* x, const void* grad, void* out, const Plane* plane, int threads) {
    threads = useful_threads(threads, plane->pixels() * plane->outputs);
    SpikeWeightGradient{*plane, static_cast<const uint8_t*>(x), static_cast<const S*>(grad), static_cast<R*>(out)}
        .run(threads);
}

}  // extern "C"
