// First convolutions: dense, int8 weights, images of few channels, amx tier.
//
// Why it is fast: a window of few channels is far narrower than the 64 inputs of a tile's row if it is read line by
// line. Here eight lines of the image are transposed into a strip, [input of a line][8 lines], so that a window of up
// to eight lines is contiguous: the paper's 5 x 5 x 1 has 40 bytes, one multiplication instead of five, ResNet's
// 7 x 7 x 3 three instead of seven. Windows of neighbouring positions overlap in the strip; a tile's rows may. With
// 2 x 2 max-pooling the four windows of a result lie in the same row of a tile: four sets of weights, shifted against
// each other, give the four sums, and the row is loaded once.
#include <algorithm>
#include <array>

#include "amx.h"
#include "amx_math.h"
#include "arithmetic.h"
#include "padded_image.h"

namespace cs::amx {
namespace {

constexpr int kLines = 8;  // of a strip
constexpr int kMaxChunks =
    4;  // tiles of inputs that a window may take: they stay in registers, beside kWeight and sums
constexpr int kInput = 0, kWeight = 4, kSum = 5;

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

template <int CHUNK, bool kSigned>
CS_AMX inline void multiply(const int8_t* weight, int chunks) {
    if (CHUNK >= chunks) return;
    load_tile<kWeight>(weight + CHUNK * kTileBytes, kRowBytes);
    multiply_tiles<kSum, kInput + CHUNK, kWeight, kSigned>();
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
          way_out_(s) {
        const int across = (output_.width + kTileRows - 1) / kTileRows;
        positions_ = (output_.width + across - 1) / across;
        lay_out(static_cast<const int8_t*>(s.dense));
        for (int tile = 0; tile < kMaxChunks; ++tile) configuration_.set(kInput + tile, positions_);
        configuration_.set(kWeight, kTileRows);
        configuration_.set(kSum, positions_);
    }

    static int chunks_of(const LayerSpec& s) {
        const int columns = s.window.kernel_w + (s.pool_w - 1) * s.window.stride_w;
        return (columns * s.input.channels * kLines + kRowBytes - 1) / kRowBytes;
    }

    size_t scratch_bytes() const override { return image_bytes() + output_.height * strip_bytes() + 2 * sums_bytes(); }

    CS_AMX void run(const Call& call) const noexcept override {
        _tile_loadconfig(&configuration_);
        std::byte* strips = call.scratch + image_bytes();
        std::byte* sums = strips + output_.height * strip_bytes();
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = with_lines(sample<std::byte>(call.inputs[0], input_, n), call.scratch);
            for (int y = 0; y < output_.height; ++y) {
                fill_strip(image + int64_t{y} * pool_ * window_.stride_h * image_.line_bytes(),
                           strips + y * strip_bytes());
            }
            run_image(strips, sums, sample<std::byte>(call.output, output_, n));
        }
        _tile_release();
    }

  private:
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

    // The sums of one tile of positions are written out while the next tile's are made.
    CS_AMX void run_image(const std::byte* strips, std::byte* sums, std::byte* out) const {
        const int64_t step = int64_t{pool_} * window_.stride_w * input_.channels * kLines;
        std::byte* pending = nullptr;
        const int across = (output_.width + positions_ - 1) / positions_;
        for (int tile = 0; tile < output_.height * across; ++tile) {
            const int y = tile / across, x = std::min(tile % across * positions_, output_.width - positions_);
            std::byte* to = sums + tile % 2 * sums_bytes();
            const std::byte* windows = strips + y * strip_bytes() + x * step;
            if (input_.dtype == DType::s8) {
                multiply_all<true>(windows, step, to);
            } else {
                multiply_all<false>(windows, step, to);
            }
            if (pending) write(sums + (tile - 1) % 2 * sums_bytes(), pending);
            pending = out + (int64_t{y} * output_.width + x) * pixel_bytes();
            if (tile + 1 == output_.height * across) write(to, pending);
        }
    }

    // Sums [corner][position][kernel] of one tile of positions.
    template <bool kSigned>
    CS_AMX void multiply_all(const std::byte* windows, int64_t step, std::byte* sums) const {
        load_inputs(windows, step);
        const int8_t* weight = weight_.data();
        for (int64_t kernel = 0; kernel < kernels_; kernel += kTileKernels) {
            for (int corner = 0; corner < corners(); ++corner, weight += chunks_ * kTileBytes) {
                clear_tile<kSum>();
                multiply<0, kSigned>(weight, chunks_);
                multiply<1, kSigned>(weight, chunks_);
                multiply<2, kSigned>(weight, chunks_);
                multiply<3, kSigned>(weight, chunks_);
                store_tile<kSum>(sums + corner * plane_bytes() + 4 * kernel, way_out_.position_bytes());
            }
        }
    }

    CS_AMX void load_inputs(const std::byte* windows, int64_t step) const {
        load_tile<kInput>(windows, step);
        if (chunks_ > 1) load_tile<kInput + 1>(windows + kRowBytes, step);
        if (chunks_ > 2) load_tile<kInput + 2>(windows + 2 * kRowBytes, step);
        if (chunks_ > 3) load_tile<kInput + 3>(windows + 3 * kRowBytes, step);
    }

    CS_AMX void write(const std::byte* sums, std::byte* out) const {
        const int64_t plane = plane_bytes();
        if (pool_ == 2) {
            const std::byte* corner[] = {sums, sums + plane, sums + 2 * plane, sums + 3 * plane};
            way_out_.write(corner, way_out_.position_bytes(), positions_, out);
        } else {
            const std::byte* corner[] = {sums};
            way_out_.write(corner, way_out_.position_bytes(), positions_, out);
        }
    }

    // Weights as tiles [tile of kernels][corner][chunk][16 quads][16 kernels][4 inputs], zeros where the window is not.
    void lay_out(const int8_t* dense) {
        const int kernel_tiles = (kernels_ + kTileKernels - 1) / kTileKernels;
        weight_.resize(int64_t{kernel_tiles} * corners() * chunks_ * kTileBytes);
        int8_t* tile = weight_.data();
        for (int first = 0; first < kernels_; first += kTileKernels) {
            for (int corner = 0; corner < corners(); ++corner, tile += chunks_ * kTileBytes) {
                const int down = corner / pool_ * window_.stride_h, right = corner % pool_ * window_.stride_w;
                for (int o = first; o < std::min(first + kTileKernels, kernels_); ++o) {
                    lay_out_kernel(dense, o, down, right, tile + (o - first) * 4);
                }
            }
        }
    }

    // One kernel, its window moved down and right.
    void lay_out_kernel(const int8_t* dense, int kernel, int down, int right, int8_t* to) const {
        const int line_inputs = window_.kernel_w * input_.channels;
        for (int line = 0; line < window_.kernel_h; ++line) {
            for (int input = 0; input < line_inputs; ++input) {
                const int place = (right * input_.channels + input) * kLines + down + line;
                to[place / 4 * kRowBytes + place % 4] =
                    dense[(int64_t{line} * line_inputs + input) * kernels_ + kernel];
            }
        }
    }

    Tensor input_, output_;
    Window window_;
    PaddedImage image_;
    int pool_, kernels_, chunks_, positions_;
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
