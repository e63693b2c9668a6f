// First convolutions: dense, int8 weights, images of few channels, amx tier.
//
// Why it is fast: a window of few channels is far narrower than the 64 inputs of a tile's row if it is read line by
// line. Here eight lines of the image are transposed into a strip, [input of a line][8 lines], so that a window of up
// to eight lines is contiguous: the paper's 5 x 5 x 1 has 40 bytes, one multiplication instead of five, ResNet's
// 7 x 7 x 3 three instead of seven. Windows of neighbouring positions overlap in the strip; a tile's rows may. With
// 2 x 2 max-pooling the four windows of a result lie in the same row of a tile: four sets of weights, shifted against
// each other, give the four sums, and the row is loaded once.
//
// A sum takes one multiplication, so that storing and writing it out cost as much. All three overlap only if they are
// close together and do not wait for each other: a tile of sums is stored just before its register is needed again, and
// a share of the results of the last tile of positions is written out after every multiplication.
#include <algorithm>
#include <array>

#include "amx.h"
#include "amx_math.h"
#include "arithmetic.h"
#include "padded_image.h"

namespace cs::amx {
namespace {

constexpr int kLines = 8;                         // of a strip
constexpr int kMaxChunks = 3;                     // tiles of inputs that a window may take
constexpr int kInput = 0, kWeight = 3, kSum = 4;  // tile registers: inputs by chunk, weights, sums by corner

// Sixteen bytes of eight lines become sixteen groups of eight.
CS_AMX inline void transpose16(const std::byte* from, int64_t line_bytes, std::byte* to) {
    __m128i line[kLines], pair[kLines], quad[kLines];
    for (int i = 0; i < kLines; ++i) line[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * line_bytes));
    for (int i = 0; i < 4; ++i) {
        pair[i] = _mm_unpacklo_epi8(line[2 * i], line[2 * i + 1]);
        pair[i + 4] = _mm_unpackhi_epi8(line[2 * i], line[2 * i + 1]);
    }
    for (int half = 0; half < 8; half += 4) {
        quad[half] = _mm_unpacklo_epi16(pair[half], pair[half + 1]);
        quad[half + 1] = _mm_unpackhi_epi16(pair[half], pair[half + 1]);
        quad[half + 2] = _mm_unpacklo_epi16(pair[half + 2], pair[half + 3]);
        quad[half + 3] = _mm_unpackhi_epi16(pair[half + 2], pair[half + 3]);
    }
    auto* out = reinterpret_cast<__m128i*>(to);
    for (int half = 0; half < 8; half += 4, out += 4) {
        _mm_storeu_si128(out, _mm_unpacklo_epi32(quad[half], quad[half + 2]));
        _mm_storeu_si128(out + 1, _mm_unpackhi_epi32(quad[half], quad[half + 2]));
        _mm_storeu_si128(out + 2, _mm_unpacklo_epi32(quad[half + 1], quad[half + 3]));
        _mm_storeu_si128(out + 3, _mm_unpackhi_epi32(quad[half + 1], quad[half + 3]));
    }
}

// One sum of a tile of positions and a tile of kernels, from weights [chunk].
template <int CORNER, bool kSigned>
CS_AMX inline void multiply(const int8_t* weight, int chunks) {
    clear_tile<kSum + CORNER>();
    load_tile<kWeight>(weight, kRowBytes);
    multiply_tiles<kSum + CORNER, kInput, kWeight, kSigned>();
    if (chunks > 1) {
        load_tile<kWeight>(weight + kTileBytes, kRowBytes);
        multiply_tiles<kSum + CORNER, kInput + 1, kWeight, kSigned>();
    }
    if (chunks > 2) {
        load_tile<kWeight>(weight + 2 * kTileBytes, kRowBytes);
        multiply_tiles<kSum + CORNER, kInput + 2, kWeight, kSigned>();
    }
}

class Strips final : public Step {
  public:
    explicit Strips(const LayerSpec& s)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          image_(s, false),
          pool_(s.pool_h),
          kernels_(s.kernels),
          chunks_(chunks_of(s)),
          kernel_tiles_((s.kernels + kTileKernels - 1) / kTileKernels),
          way_out_(s) {
        const int across = (output_.width + kTileRows - 1) / kTileRows;
        positions_ = (output_.width + across - 1) / across;
        lay_out(static_cast<const int8_t*>(s.dense));
        // A window that fits one tile takes no more of it than it needs: fewer rows to load.
        const int quads = chunks_ == 1 ? (window_bytes(s) + 3) / 4 : kTileRows;
        for (int tile = 0; tile < kMaxChunks; ++tile) configuration_.set(kInput + tile, positions_, quads * 4);
        configuration_.set(kWeight, quads);
        for (int corner = 0; corner < 4; ++corner) configuration_.set(kSum + corner, positions_);
    }

    static int chunks_of(const LayerSpec& s) { return (window_bytes(s) + kRowBytes - 1) / kRowBytes; }

    size_t scratch_bytes() const override { return image_bytes() + output_.height * strip_bytes() + 2 * sums_bytes(); }

    CS_AMX void run(const Call& call) const noexcept override {
        configure_tiles(configuration_);
        std::byte* strips = call.scratch + image_bytes();
        std::byte* sums = strips + output_.height * strip_bytes();
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = with_lines(sample<std::byte>(call.inputs[0], input_, n), call.scratch);
            for (int y = 0; y < output_.height; ++y) {
                fill_strip(image + int64_t{y} * pool_ * window_.stride_h * image_.line_bytes(),
                           strips + y * strip_bytes());
            }
            auto* out = sample<std::byte>(call.output, output_, n);
            if (pool_ == 2) {
                run_image<4>(strips, sums, out);
            } else {
                run_image<1>(strips, sums, out);
            }
        }
        release_tiles();
    }

  private:
    // Of a strip, that the windows of one result take.
    static int window_bytes(const LayerSpec& s) {
        return (s.window.kernel_w + (s.pool_w - 1) * s.window.stride_w) * s.input.channels * kLines;
    }

    int corners() const { return pool_ * pool_; }
    int64_t sums_bytes() const { return corners() * plane_bytes(); }
    int64_t plane_bytes() const { return positions_ * way_out_.position_bytes(); }
    int64_t pixel_bytes() const { return kernels_ * static_cast<int64_t>(element_bytes(output_.dtype)); }
    int64_t strip_bytes() const { return static_cast<int64_t>(round_up(image_.line_bytes(), 16)) * kLines + kRowBytes; }

    // Strips read eight lines, however many the window has, and 16 bytes at a time: the image is copied with both.
    int64_t image_bytes() const {
        return static_cast<int64_t>(round_up((image_.height + kLines) * image_.line_bytes() + kSlack, kAlignment));
    }
    const std::byte* with_lines(const std::byte* image, std::byte* to) const {
        if (image_.fill(input_, window_, image, to) != to) std::memcpy(to, image, input_.bytes());
        return to;
    }

    CS_AMX void fill_strip(const std::byte* line, std::byte* strip) const {
        for (int64_t x = 0; x < image_.line_bytes(); x += 16) {
            transpose16(line + x, image_.line_bytes(), strip + x * kLines);
        }
    }

    // Sums [corner][position][kernel] of a tile of positions, and where their results go; `next` is the first to write.
    struct Pending {
        const std::byte* sums;
        std::byte* out;
        int next;
    };

    // Two tiles of positions are under way: while the sums of one are made, those of the other are written out.
    template <int CORNERS>
    CS_AMX void run_image(const std::byte* strips, std::byte* sums, std::byte* out) const {
        const int64_t step = int64_t{pool_} * window_.stride_w * input_.channels * kLines;
        const int across = (output_.width + positions_ - 1) / positions_;
        Pending pending{sums, out, positions_};
        std::byte* in_registers = sums;
        for (int tile = 0; tile < output_.height * across; ++tile) {
            const int y = tile / across, x = std::min(tile % across * positions_, output_.width - positions_);
            std::byte* made = sums + tile % 2 * sums_bytes();
            load_inputs(strips + y * strip_bytes() + x * step, step);
            for (int k = 0; k < kernel_tiles_; ++k) {
                multiply_corners<CORNERS>(k, in_registers);
                in_registers = made + int64_t{k} * kTileKernels * 4;
                // The first tile of kernels stores the last of the pending sums.
                write<CORNERS>(pending, kernel_tiles_ == 1 ? positions_ : positions_ * k / (kernel_tiles_ - 1));
            }
            pending = {made, out + (int64_t{y} * output_.width + x) * pixel_bytes(), 0};
        }
        store_corners<CORNERS>(in_registers);
        write<CORNERS>(pending, positions_);
    }

    CS_AMX void load_inputs(const std::byte* windows, int64_t step) const {
        load_tile<kInput>(windows, step);
        if (chunks_ > 1) load_tile<kInput + 1>(windows + kRowBytes, step);
        if (chunks_ > 2) load_tile<kInput + 2>(windows + 2 * kRowBytes, step);
    }

    // The sums of one tile of kernels, after what the registers hold is stored.
    template <int CORNERS>
    CS_AMX void multiply_corners(int kernel_tile, std::byte* in_registers) const {
        multiply_corner<CORNERS, 0>(kernel_tile, in_registers);
        if constexpr (CORNERS == 4) {
            multiply_corner<CORNERS, 1>(kernel_tile, in_registers);
            multiply_corner<CORNERS, 2>(kernel_tile, in_registers);
            multiply_corner<CORNERS, 3>(kernel_tile, in_registers);
        }
    }

    template <int CORNERS, int CORNER>
    CS_AMX void multiply_corner(int kernel_tile, std::byte* in_registers) const {
        store_tile<kSum + CORNER>(in_registers + CORNER * plane_bytes(), way_out_.position_bytes());
        const int place = kernel_tile * CORNERS + CORNER;
        const int8_t* weight = weight_.data() + int64_t{place} * chunks_ * kTileBytes;
        if (input_.dtype == DType::s8) {
            multiply<CORNER, true>(weight, chunks_);
        } else {
            multiply<CORNER, false>(weight, chunks_);
        }
    }

    template <int CORNERS>
    CS_AMX void store_corners(std::byte* to) const {
        store_tile<kSum>(to, way_out_.position_bytes());
        if constexpr (CORNERS == 4) {
            store_tile<kSum + 1>(to + plane_bytes(), way_out_.position_bytes());
            store_tile<kSum + 2>(to + 2 * plane_bytes(), way_out_.position_bytes());
            store_tile<kSum + 3>(to + 3 * plane_bytes(), way_out_.position_bytes());
        }
    }

    template <int CORNERS>
    CS_AMX void write(Pending& pending, int end) const {
        const int count = end - pending.next;
        if (count <= 0) return;
        const int64_t position = way_out_.position_bytes(), plane = plane_bytes();
        const std::byte* first = pending.sums + pending.next * position;
        std::byte* out = pending.out + pending.next * pixel_bytes();
        if constexpr (CORNERS == 4) {
            way_out_.write({first, first + plane, first + 2 * plane, first + 3 * plane}, position, count, out);
        } else {
            way_out_.write({first}, position, count, out);
        }
        pending.next = end;
    }

    // Weights as tiles [tile of kernels][corner][chunk][16 quads][16 kernels][4 inputs], zeros where no window is.
    void lay_out(const int8_t* dense) {
        weight_.resize(int64_t{kernel_tiles_} * corners() * chunks_ * kTileBytes);
        for (int kernel = 0; kernel < kernels_; ++kernel) {
            for (int corner = 0; corner < corners(); ++corner) {
                const int64_t place = int64_t{kernel} / kTileKernels * corners() + corner;
                int8_t* tiles = weight_.data() + place * chunks_ * kTileBytes + kernel % kTileKernels * 4;
                lay_out_kernel(dense + kernel, corner / pool_, corner % pool_, tiles);
            }
        }
    }

    // One kernel, its window moved down and right by so many positions.
    void lay_out_kernel(const int8_t* dense, int down, int right, int8_t* tiles) const {
        const int line_inputs = window_.kernel_w * input_.channels;
        for (int line = 0; line < window_.kernel_h; ++line) {
            for (int input = 0; input < line_inputs; ++input, dense += kernels_) {
                const int row = down * window_.stride_h + line;
                const int place = (right * window_.stride_w * input_.channels + input) * kLines + row;
                tiles[place / 4 * kRowBytes + place % 4] = *dense;
            }
        }
    }

    Tensor input_, output_;
    Window window_;
    PaddedImage image_;
    int pool_, kernels_, chunks_, kernel_tiles_, positions_;
    AlignedVector<int8_t> weight_;
    WayOut way_out_;
    TileConfiguration configuration_;
};

}  // namespace

std::unique_ptr<Step> conv_strips(const LayerSpec& s) {
    const Window& w = s.window;
    const bool is_image = !is_linear(s) && s.groups == 1 && s.input.dtype != DType::f32;
    const bool poolable = s.pool_h == s.pool_w && s.pool_h <= 2;
    const int lines = w.kernel_h + (s.pool_h - 1) * w.stride_h;
    if (!is_image || !poolable || lines > kLines || Strips::chunks_of(s) > kMaxChunks) return nullptr;
    return requantizes_exactly(s) ? std::make_unique<Strips>(s) : nullptr;
}

}  // namespace cs::amx
