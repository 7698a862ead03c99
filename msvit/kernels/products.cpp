// Products of spikes and weights: what did not fire is not computed. Plain C interface, called by
// cpp.py.
//
// x is [P, C], a byte for each spike or small sum of spikes, P the pixels of all images in raster
// order. A kernel of odd sides slides over the image plane with stride 1 and zeros around it; 1×1 is
// a matrix product. Forward adds, per pixel, the weights of the channels that fired. The gradient of
// the weights adds, per channel, the gradients of the pixels at which it fired. Either way one
// operand is a list of places and the other is cut into panels of a few blocks of outputs that stay
// in the second-level cache, so that the work shrinks with the firing rate. Sums run in working
// precision, in the order of the places.
#include "vectors.h"

namespace {

// Bytes of a panel of weights and of one of gradients: parts of a small second-level cache.
constexpr i64 WEIGHTS = 100 << 10, GRADIENTS = 200 << 10;
constexpr i64 WORD = 64;  // places told apart by the bits of one word

struct Plane {
    i64 images, height, width, channels, outputs, kernel_height, kernel_width;
    i64 pixels() const { return images * height * width; }
    i64 taps() const { return kernel_height * kernel_width; }
    i64 rise(i64 tap) const { return tap / kernel_width - kernel_height / 2; }  // of input over output
    i64 shift(i64 tap) const { return tap % kernel_width - kernel_width / 2; }
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

// The channels that fired at each of the pixels first to last, a sum of v named v times.
struct FiredChannels {
    Places places;
    std::vector<i64> starts;
    i64 first = 0;
    void find(const uint8_t* x, i64 channels, i64 from, i64 last) {
        first = from, places.used = 0, starts.resize(last - from + 1);
        for (i64 p = from; p < last; ++p) {
            starts[p - from] = places.used;
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
        starts[last - from] = places.used;
    }
    const uint16_t* begin(i64 pixel) const { return &places.memory[starts[pixel - first]]; }
    const uint16_t* end(i64 pixel) const { return &places.memory[starts[pixel + 1 - first]]; }
};

// sums += the rows of a panel [.., BLOCKS blocks] at the places.
template <int BLOCKS>
INLINE void add_rows(Pair* sums, const R* panel, const uint16_t* begin, const uint16_t* end) {
    for (; begin < end; ++begin) {
        const R* row = panel + i64(*begin) * (BLOCKS * BLOCK);
        for (int b = 0; b < BLOCKS; ++b) sums[b] = sums[b] + in_order(row + b * BLOCK);
    }
}

// Working memory that no vector load crosses a cache line in.
class Blocks {
    std::vector<Pair> memory;
public:
    explicit Blocks(i64 elements = 0) : memory((elements + BLOCK - 1) / BLOCK) {}
    R* data() { return reinterpret_cast<R*>(memory.data()); }
    const R* data() const { return reinterpret_cast<const R*>(memory.data()); }
    bool empty() const { return memory.empty(); }
};

// Some blocks of outputs. Panels of one operand lie one behind the other.
struct Panel {
    i64 output;  // the first
    int blocks;
    i64 width() const { return blocks * BLOCK; }
};
std::vector<Panel> panels_of(i64 outputs, i64 rows, i64 bytes) {  // of that many rows, each
    std::vector<Panel> panels;
    for (i64 n = 0; n < outputs; n += panels.back().width()) {
        int blocks = 6;
        const auto too_large = [&] {
            return (blocks - 1) * BLOCK >= outputs - n || blocks * BLOCK * rows * i64(sizeof(R)) > bytes;
        };
        while (blocks > 1 && too_large()) blocks = blocks > 2 ? blocks - 2 : 1;
        panels.push_back({n, blocks});
    }
    return panels;
}
template <class F> INLINE void with_blocks(int blocks, F f) {
    if (blocks == 6) f(std::integral_constant<int, 6>());
    else if (blocks == 4) f(std::integral_constant<int, 4>());
    else if (blocks == 2) f(std::integral_constant<int, 2>());
    else f(std::integral_constant<int, 1>());
}

// y [P, N] of x and weight [N, C, kh, kw].
struct SpikeProduct {
    static constexpr i64 TILE = 256;  // pixels
    const Plane plane;
    const uint8_t* x;
    const R* weight;
    S* y;

    // Panel by panel, [taps, C, width], blocks in order.
    Blocks pack(const std::vector<Panel>& panels, int threads) const {
        const i64 rows = plane.taps() * plane.channels;
        Blocks packed(rows * padded(plane.outputs));
        in_parallel(threads, [&](int thread, int n) {
            for (const Panel& panel : panels) {
                R* target = packed.data() + rows * panel.output;
                const i64 count = std::min(panel.width(), plane.outputs - panel.output);
                for (i64 c = plane.channels * thread / n; c < plane.channels * (thread + 1) / n; ++c)
                    for (i64 i = 0; i < count; ++i) {
                        const R* source = weight + ((panel.output + i) * plane.channels + c) * plane.taps();
                        for (i64 tap = 0; tap < plane.taps(); ++tap)
                            target[(tap * plane.channels + c) * panel.width() + place(i)] = source[tap];
                    }
            }
        });
        return packed;
    }

    // Outputs of one panel at the pixels of a tile, from a group of taps whose weights fit the cache.
    // `partial` holds the sums over the groups before.
    template <int BLOCKS>
    void tile(const FiredChannels& fired, const R* weights, const Panel& panel, i64 from, i64 last,
              i64 first_tap, i64 last_tap, R* partial) const {
        i64 row = from / plane.width % plane.height, column = from % plane.width;
        for (i64 p = from; p < last; ++p, partial += BLOCKS * BLOCK) {
            Pair sums[BLOCKS] = {};
            if (first_tap)
                for (int b = 0; b < BLOCKS; ++b) sums[b] = in_order(partial + b * BLOCK);
            for (i64 tap = first_tap; tap < last_tap; ++tap) {
                const i64 up = plane.rise(tap), aside = plane.shift(tap);
                if (row + up < 0 || row + up >= plane.height) continue;
                if (column + aside < 0 || column + aside >= plane.width) continue;
                const i64 source = p + up * plane.width + aside;
                const R* rows = weights + (tap - first_tap) * plane.channels * (BLOCKS * BLOCK);
                add_rows<BLOCKS>(sums, rows, fired.begin(source), fired.end(source));
            }
            if (last_tap < plane.taps()) {
                for (int b = 0; b < BLOCKS; ++b)
                    write(partial + b * BLOCK, sums[b].a), write(partial + b * BLOCK + L, sums[b].b);
            } else {
                S* out = y + p * plane.outputs + panel.output;
                for (int b = 0; b < BLOCKS; ++b)
                    store_part(out + b * BLOCK, sums[b], plane.outputs - panel.output - b * BLOCK);
            }
            if (++column == plane.width) column = 0, row = row + 1 == plane.height ? 0 : row + 1;
        }
    }

    void run(int threads) const {
        const std::vector<Panel> panels = panels_of(plane.outputs, plane.channels, WEIGHTS);
        const Blocks packed = pack(panels, threads);
        const i64 pixels = plane.pixels(), tiles = (pixels + TILE - 1) / TILE;
        const i64 reach = plane.kernel_height / 2 * plane.width + plane.kernel_width / 2;
        in_parallel(threads, [&](int thread, int n) {
            FiredChannels fired;
            Blocks partial(TILE * 6 * BLOCK);
            for (i64 i = tiles * thread / n; i < tiles * (thread + 1) / n; ++i) {
                const i64 from = i * TILE, last = std::min(pixels, from + TILE);
                fired.find(x, plane.channels, std::max<i64>(0, from - reach), std::min(pixels, last + reach));
                for (const Panel& panel : panels) {
                    const i64 of_tap = plane.channels * panel.width();
                    const i64 group = std::max<i64>(1, WEIGHTS / (of_tap * i64(sizeof(R))));
                    const R* weights = packed.data() + plane.taps() * plane.channels * panel.output;
                    for (i64 tap = 0; tap < plane.taps(); tap += group)
                        with_blocks(panel.blocks, [&](auto blocks) {
                            tile<blocks>(fired, weights + tap * of_tap, panel, from, last, tap,
                                         std::min(plane.taps(), tap + group), partial.data());
                        });
                }
            }
        });
    }
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
        planes.resize(1);
        for (i64 w = 0; w < words; ++w)
            for (i64 c = 0; c < channels; c += WORD) {
                const uint64_t within = first_bits(channels - c);
                const uint8_t* block = x + w * WORD * channels + c;
                const i64 rows = std::min(WORD, pixels - w * WORD);
                bool more = true;
                for (int above = 0; more; ++above) {
                    more = false;
                    uint64_t bits[WORD] = {}, any = 0;
                    for (i64 i = 0; i < rows; ++i) {
                        const Bytes values = read<Bytes>(block + i * channels);
                        bits[i] = within & (above ? nonzero((Bytes)(values > Bytes{} + uint8_t(above))) : nonzero(values));
                        any |= above ? bits[i] : nonzero(values & 0xfe) & within;
                    }
                    more = any && above < 254;
                    if (above && !any) break;
                    transpose(bits);
                    if (i64(planes.size()) <= above) planes.emplace_back();
                    auto& plane = planes[above];
                    if (i64(plane.size()) < channels * words) plane.resize(channels * words);
                    for (i64 i = 0; i < std::min(WORD, channels - c); ++i) plane[(c + i) * words + w] = bits[i];
                }
            }
    }
    void forget() { for (auto& plane : planes) plane.clear(); }
    void places(i64 channel, const uint16_t* positions, Places& to) const {
        to.used = 0;
        for (const auto& plane : planes)
            for (i64 w = 0; w < words && !plane.empty(); ++w)
                to.add(plane[channel * words + w], [=](i64 bit) { return positions[w * WORD + bit]; });
    }
};

// Gradient of weight [N, C, kh, kw] from x and grad [P, N].
struct SpikeWeightGradient {
    const Plane plane;
    const uint8_t* x;
    const S* grad;
    R* out;

    i64 rise() const { return plane.kernel_height / 2; }
    i64 shift() const { return plane.kernel_width / 2; }
    i64 padded_width() const { return plane.width + 2 * shift(); }

    // A tile is some whole images or some rows of one. Its gradients lie in a frame of zeros, so that
    // every tap of every pixel finds one.
    struct Tiling {
        i64 images, rows, pixels, padded, per_image, count;
    };
    Tiling tiling() const {
        const i64 aim = plane.taps() == 1 ? 256 : 1200;  // padded pixels
        const i64 whole = (plane.height + 2 * rise()) * padded_width();
        Tiling t{};
        t.images = std::max<i64>(1, std::min(plane.images, aim / whole));
        t.rows = whole <= aim ? plane.height
                              : std::max<i64>(1, std::min(plane.height, aim / padded_width() - 2 * rise()));
        t.pixels = t.images * t.rows * plane.width;
        t.padded = t.images * (t.rows + 2 * rise()) * padded_width();
        t.per_image = (plane.height + t.rows - 1) / t.rows;
        t.count = (plane.images + t.images - 1) / t.images * t.per_image;
        return t;
    }

    // Gradients of one panel around rows of images, with zeros where the plane ends.
    void frame(const Panel& panel, i64 image, i64 images, i64 row, i64 rows, R* to) const {
        const i64 count = std::min(panel.width(), plane.outputs - panel.output);
        for (i64 i = image; i < image + images; ++i)
            for (i64 r = row - rise(); r < row + rows + rise(); ++r)
                for (i64 c = -shift(); c < plane.width + shift(); ++c, to += panel.width()) {
                    if (r < 0 || r >= plane.height || c < 0 || c >= plane.width) {
                        std::fill_n(to, panel.width(), R(0));
                        continue;
                    }
                    const S* from = grad + ((i * plane.height + r) * plane.width + c) * plane.outputs + panel.output;
                    for (i64 n = 0; n < panel.width(); n += BLOCK) {
                        const Pair g = n < count ? load_part(from + n, count - n) : Pair{};
                        write(to + n, g.a), write(to + n + L, g.b);
                    }
                }
    }

    template <int BLOCKS>
    void tile(const FiredPixels& fired, const uint16_t* positions, const R* framed, R* sums, Places& places) const {
        for (i64 c = 0; c < plane.channels; ++c) {
            fired.places(c, positions, places);
            const uint16_t* first = places.memory.data();
            if (!places.used) continue;
            for (i64 tap = 0; tap < plane.taps(); ++tap) {
                const i64 back = plane.rise(tap) * padded_width() + plane.shift(tap);
                Pair own[BLOCKS] = {};
                add_rows<BLOCKS>(own, framed - back * (BLOCKS * BLOCK), first, first + places.used);
                R* total = sums + (tap * plane.channels + c) * (BLOCKS * BLOCK);
                for (int b = 0; b < BLOCKS; ++b) {
                    const Pair sum = in_order(total + b * BLOCK) + own[b];
                    write(total + b * BLOCK, sum.a), write(total + b * BLOCK + L, sum.b);
                }
            }
        }
    }

    void run(int threads) const {
        const Tiling t = tiling();
        const std::vector<Panel> panels = panels_of(plane.outputs, t.padded, GRADIENTS);
        const i64 rows = plane.taps() * plane.channels;
        std::vector<uint16_t> positions((t.pixels + WORD - 1) / WORD * WORD);
        for (i64 p = 0; p < t.pixels; ++p) {
            const i64 row = p / plane.width, image = row / t.rows;
            positions[p] = uint16_t((row + rise() * (2 * image + 1)) * padded_width() + p % plane.width + shift());
        }
        threads = int(std::min<i64>(threads, t.count));
        std::vector<Blocks> slots(threads);
        in_parallel(threads, [&](int thread, int n) {
            R* sums = (slots[thread] = Blocks(rows * padded(plane.outputs))).data();
            FiredPixels fired;
            Places places;
            Blocks framed(t.padded * 6 * BLOCK);
            for (i64 i = t.count * thread / n; i < t.count * (thread + 1) / n; ++i) {
                const i64 image = i / t.per_image * t.images, row = i % t.per_image * t.rows;
                const i64 images = std::min(t.images, plane.images - image);
                const i64 height = std::min(t.rows, plane.height - row);
                fired.forget();
                fired.find(x + (image * plane.height + row) * plane.width * plane.channels, plane.channels,
                           images * height * plane.width);
                for (const Panel& panel : panels) {
                    frame(panel, image, images, row, height, framed.data());
                    with_blocks(panel.blocks, [&](auto blocks) {
                        tile<blocks>(fired, positions.data(), framed.data(), sums + rows * panel.output, places);
                    });
                }
            }
        });
        gather(panels, slots, threads);
    }

    // Adds the slots in the order of threads and brings them into the order of the weights.
    void gather(const std::vector<Panel>& panels, const std::vector<Blocks>& slots, int threads) const {
        const i64 rows = plane.taps() * plane.channels;
        in_parallel(threads, [&](int thread, int n) {
            for (const Panel& panel : panels)
                for (i64 c = plane.channels * thread / n; c < plane.channels * (thread + 1) / n; ++c)
                    for (i64 i = 0; i < std::min(panel.width(), plane.outputs - panel.output); ++i)
                        for (i64 tap = 0; tap < plane.taps(); ++tap) {
                            const i64 at = rows * panel.output + (tap * plane.channels + c) * panel.width() + place(i);
                            R sum = 0;
                            for (const auto& slot : slots)
                                if (!slot.empty()) sum += slot.data()[at];
                            out[((panel.output + i) * plane.channels + c) * plane.taps() + tap] = sum;
                        }
        });
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
