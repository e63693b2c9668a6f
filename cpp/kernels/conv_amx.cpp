// Dense convolution with int8 weights, amx tier.
//
// Why it is fast: TDPBUSD multiplies a tile of up to 16 positions x 64 inputs by a tile of 64 inputs x 16 kernels,
// 16384 multiply-accumulates in as many cycles as there are positions. A block of 2 x 2 result tiles stays in tile
// registers over the whole window, so that every tile loaded is used twice. The rows of an input tile are windows of
// neighbouring positions, read from the image where they lie: the inputs of one window line are contiguous, and where
// they are no multiple of 64 the rest of the tile meets zero weights.
#include <algorithm>

#include "../aligned.h"
#include "amx.h"
#include "arithmetic.h"
#include "avx512vnni_math.h"
#include "dot_layout.h"
#include "padded_image.h"

#define CS_AMX                                                                             \
    __attribute__((                                                                        \
        target("amx-tile,amx-int8,avx512f,avx512dq,avx512cd,avx512bw,avx512vl,avx512vbmi," \
               "avx512vbmi2,avx512vnni,avx512bitalg,avx512vpopcntdq,bmi,bmi2,popcnt,lzcnt,fma")))

namespace cs::amx {
namespace {

constexpr int kRowBytes = 64;  // of a tile
constexpr int kKernels = 16;   // of a tile
constexpr int kTileBytes = 16 * kRowBytes;
constexpr int kResults = 4;  // result tiles: 2 of positions x 2 of kernels

struct alignas(64) TileConfiguration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// One block: the tiles 0 to 3 are results, 4 and 5 inputs, 6 and 7 weights.
struct Block {
    const std::byte* input[2];  // first window of each tile of positions
    int64_t line_bytes;         // from one line of a window to the next
    int64_t position_bytes;     // from one window to the next
    const int8_t* weight[2];    // [lines * chunks] tiles
    int lines, chunks;          // of a window; chunks of 64 inputs per line
};

template <bool kSigned>
CS_AMX void multiply_tiles() {
    if constexpr (kSigned) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    } else {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
}

template <bool kSigned>
CS_AMX void run_block(const Block& b, std::byte* results) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const int8_t *first = b.weight[0], *second = b.weight[1];
    for (int line = 0; line < b.lines; ++line) {
        for (int chunk = 0; chunk < b.chunks; ++chunk, first += kTileBytes, second += kTileBytes) {
            const int64_t offset = line * b.line_bytes + chunk * kRowBytes;
            _tile_loadd(4, b.input[0] + offset, b.position_bytes);
            _tile_loadd(5, b.input[1] + offset, b.position_bytes);
            _tile_loadd(6, first, kRowBytes);
            _tile_loadd(7, second, kRowBytes);
            multiply_tiles<kSigned>();
        }
    }
    _tile_stored(0, results, kRowBytes);
    _tile_stored(1, results + kTileBytes, kRowBytes);
    _tile_stored(2, results + 2 * kTileBytes, kRowBytes);
    _tile_stored(3, results + 3 * kTileBytes, kRowBytes);
}

class Conv final : public Step {
  public:
    explicit Conv(const LayerSpec& s)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          image_(s, false),
          kernels_(s.kernels),
          pooled_(s.pool_h == 2),
          line_inputs_(s.window.kernel_w * s.input.channels),
          chunks_((line_inputs_ + kRowBytes - 1) / kRowBytes),
          kernel_tiles_(static_cast<int>(round_up(s.kernels, 2 * kKernels)) / kKernels),
          columns_(s.output.width * (pooled_ ? 2 : 1)) {
        const DotBlocks blocks = dot_blocks(s, kKernels, true);
        bias_.assign(blocks.bias.begin(), blocks.bias.end());
        scale_.assign(blocks.scale.begin(), blocks.scale.end());
        lay_out(static_cast<const int8_t*>(s.dense));
        const int tiles = (columns_ + 15) / 16;
        positions_ = (columns_ + tiles - 1) / tiles;
        if (pooled_) positions_ += positions_ % 2;
        for (int tile = 0; tile < 8; ++tile) {
            configuration_.row_bytes[tile] = kRowBytes;
            configuration_.rows[tile] = static_cast<uint8_t>(tile < 6 ? positions_ : 16);
        }
    }

    size_t scratch_bytes() const override { return image_.bytes() + kResults * kTileBytes; }

    CS_AMX void run(const Call& call) const noexcept override {
        _tile_loadconfig(&configuration_);
        std::byte* results = call.scratch + image_.bytes();
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            image = image_.fill(input_, window_, image, call.scratch);
            auto* out = sample<std::byte>(call.output, output_, n);
            if (pooled_) {
                run_pooled(image, results, out);
            } else {
                run_plain(image, results, out);
            }
        }
        _tile_release();
    }

  private:
    struct Place {
        int y, x;  // of a tile's first position
    };

    // The tiles of a row; the last one begins early rather than end beyond the row.
    int tiles_per_row() const { return (columns_ + positions_ - 1) / positions_; }
    Place place(int tile) const {
        const int x = tile % tiles_per_row() * positions_;
        return {tile / tiles_per_row(), std::min(x, columns_ - positions_)};
    }

    const std::byte* at(const std::byte* image, Place p) const {
        const int64_t line = int64_t{p.y} * window_.stride_h * image_.line_bytes();
        return image + line + int64_t{p.x} * window_.stride_w * input_.channels;
    }

    int64_t element() const { return static_cast<int64_t>(element_bytes(output_.dtype)); }
    std::byte* pixel(std::byte* out, int y, int x) const {
        return out + (int64_t{y} * output_.width + x) * kernels_ * element();
    }

    CS_AMX void multiply(const std::byte* image, Place first, Place second, int kernel_tile, std::byte* results) const {
        const int64_t tile = int64_t{kRowBytes} * 16 * window_.kernel_h * chunks_;
        const int8_t* weight = weight_.data() + kernel_tile * tile;
        const Block block{{at(image, first), at(image, second)},
                          image_.line_bytes(),
                          int64_t{window_.stride_w} * input_.channels,
                          {weight, weight + tile},
                          window_.kernel_h,
                          chunks_};
        if (input_.dtype == DType::s8) {
            run_block<true>(block, results);
        } else {
            run_block<false>(block, results);
        }
    }

    // Tiles two by two, in order.
    CS_AMX void run_plain(const std::byte* image, std::byte* results, std::byte* out) const {
        const int tiles = tiles_per_row() * output_.height;
        for (int tile = 0; tile < tiles; tile += 2) {
            const Place places[2] = {place(tile), place(std::min(tile + 1, tiles - 1))};
            for (int k = 0; k < kernel_tiles_; k += 2) {
                multiply(image, places[0], places[1], k, results);
                for (int i = 0; i < kResults; ++i) {
                    const std::byte* result = results + i * kTileBytes;
                    std::byte* to = pixel(out, places[i / 2].y, places[i / 2].x);
                    for (int p = 0; p < positions_; ++p) {
                        store(_mm512_load_si512(result + p * kRowBytes), k + i % 2, to + p * kernels_ * element());
                    }
                }
            }
        }
    }

    // Two rows of positions at a time, and the largest of each 2 x 2.
    CS_AMX void run_pooled(const std::byte* image, std::byte* results, std::byte* out) const {
        for (int tile = 0; tile < tiles_per_row() * output_.height; ++tile) {
            const Place p = place(tile);
            for (int k = 0; k < kernel_tiles_; k += 2) {
                multiply(image, {2 * p.y, p.x}, {2 * p.y + 1, p.x}, k, results);
                for (int i = 0; i < 2; ++i) {
                    const std::byte* upper = results + i * kTileBytes;
                    const std::byte* lower = upper + 2 * kTileBytes;
                    for (int x = 0; x < positions_; x += 2) {
                        const std::byte *a = upper + x * kRowBytes, *b = lower + x * kRowBytes;
                        const __m512i left = _mm512_max_epi32(_mm512_load_si512(a), _mm512_load_si512(b));
                        const __m512i right = _mm512_max_epi32(_mm512_load_si512(a + kRowBytes),  //
                                                               _mm512_load_si512(b + kRowBytes));
                        store(_mm512_max_epi32(left, right), k + i, pixel(out, p.y, (p.x + x) / 2));
                    }
                }
            }
        }
    }

    // One position of one tile of kernels, on its way out.
    CS_AMX void store(__m512i sum_s32x16, int kernel_tile, std::byte* to) const {
        const int first = kernel_tile * kKernels, count = std::min(kKernels, kernels_ - first);
        if (count <= 0) return;
        const auto mask = static_cast<__mmask16>((1u << count) - 1);
        const __m512i total = _mm512_add_epi32(sum_s32x16, _mm512_loadu_si512(bias_.data() + first));
        if (scale_.empty()) {
            _mm512_mask_storeu_epi32(to + 4 * first, mask, total);
        } else {
            const __m512i result = requantize16(total, _mm512_loadu_ps(scale_.data() + first));
            _mm_mask_storeu_epi8(to + first, mask, narrow16(result, output_.dtype == DType::u8));
        }
    }

    // Weights as tiles [kernel tile][line][chunk][16 rows][16 kernels][4 inputs], zeros where there are no inputs.
    void lay_out(const int8_t* dense) {
        weight_.resize(int64_t{kernel_tiles_} * window_.kernel_h * chunks_ * kTileBytes);
        int8_t* to = weight_.data();
        for (int tile = 0; tile < kernel_tiles_; ++tile) {
            for (int line = 0; line < window_.kernel_h; ++line) {
                for (int input = 0; input < chunks_ * kRowBytes; input += 4) {
                    for (int i = 0; i < kKernels * 4; ++i) {
                        const int row = input + i % 4, kernel = tile * kKernels + i / 4;
                        if (row < line_inputs_ && kernel < kernels_) {
                            *to = dense[(int64_t{line} * line_inputs_ + row) * kernels_ + kernel];
                        }
                        ++to;
                    }
                }
            }
        }
    }

    Tensor input_, output_;
    Window window_;
    PaddedImage image_;
    int kernels_;
    bool pooled_;
    int line_inputs_, chunks_, kernel_tiles_, columns_, positions_;
    AlignedVector<int8_t> weight_;
    std::vector<int32_t> bias_;
    std::vector<float> scale_;
    TileConfiguration configuration_;
};

}  // namespace

std::unique_ptr<Step> conv_dense(const LayerSpec& s) {
    const bool fits = !is_linear(s) && s.groups == 1 && s.input.dtype != DType::f32;
    const bool poolable = s.pool_h == s.pool_w && s.pool_h <= 2;
    if (!fits || !poolable || !requantizes_exactly(s)) return nullptr;
    return std::make_unique<Conv>(s);
}

}  // namespace cs::amx
