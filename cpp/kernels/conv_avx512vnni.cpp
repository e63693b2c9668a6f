// Convolution with int8 weights, dense and sparse-dense, avx512vnni tier.
//
// Why it is fast: VPDPBUSD multiplies 64 pairs of bytes and adds them up in 16 lanes, twice a cycle (ports 0 and 5).
// The lanes are kernels: a vector holds the weights of one quad (four inputs) for one block of kernels, and the quad of
// one position is broadcast from memory, which costs a load and no vector port. A tile of up to 28 positions stays in
// registers, so that a weight is loaded once per tile. Quads in which a block has no weight are not in its list:
// sparsity saves instructions one for one, and no index is looked up, because the list holds offsets into the input.
//
// With blocks of 16 kernels a register is one position; with blocks of 8 it is two neighbouring positions, lanes
// alternating, whose quads lie side by side and are broadcast as one pair.
//
// Where the quads do not lie in the image as they are wanted, they are put there first: pairs read planes [quad of
// channels][position], transposed once per image; images of few channels, whose quads straddle pixels, are staged row
// by row as [quad][position], 16 positions to a byte permutation.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "arithmetic.h"
#include "avx512vnni.h"
#include "avx512vnni_math.h"
#include "dot_layout.h"
#include "padded_image.h"

namespace cs::avx512vnni {
namespace {

constexpr int kMaxColumns = 14;  // registers across a tile

// The sums of a tile are an array only in name: every loop over them is unrolled, or they would live in memory.
#define CS_UNROLL _Pragma("GCC unroll 16")

// Everything that the inner loop needs, plain.
struct Tile {
    const std::byte* input;  // quad of the tile's first position, before the quad's own offset
    int64_t row_stride;      // bytes to the next row of positions
    int64_t column_stride;   // bytes to the next register of positions
    const int32_t* offset;   // of each quad in the list
    const int8_t* weight;    // [count, lanes, 4]
    int count;
    const int32_t* bias;  // [lanes]
};

// Eight dwords, each twice.
CS_AVX512VNNI inline __m512i expand(const void* eight) {
    const __m512i twice_s32x16 = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m256i loaded = _mm256_loadu_si256(static_cast<const __m256i*>(eight));
    return _mm512_permutexvar_epi32(twice_s32x16, _mm512_castsi256_si512(loaded));
}

// The quad of one position, or of two neighbouring ones, in every lane.
template <bool kPairs>
CS_AVX512VNNI inline __m512i broadcast(const std::byte* from) {
    std::conditional_t<kPairs, int64_t, int32_t> quads;
    std::memcpy(&quads, from, sizeof quads);
    if constexpr (kPairs) return _mm512_set1_epi64(quads);
    return _mm512_set1_epi32(static_cast<int32_t>(quads));
}

// Writes the sums [ROWS][COLUMNS] of a tile. kPairs: blocks of 8 kernels, two positions per register.
template <int ROWS, int COLUMNS, bool kPairs>
CS_AVX512VNNI void accumulate(const Tile& t, __m512i* sums_s32x16) {
    const __m512i bias_s32x16 = kPairs ? expand(t.bias) : _mm512_loadu_si512(t.bias);
    __m512i sum_s32x16[ROWS][COLUMNS];
    CS_UNROLL for (auto& row : sum_s32x16) { CS_UNROLL for (auto& sum : row) sum = bias_s32x16; }
    for (int n = 0; n < t.count; ++n) {
        const int8_t* weight = t.weight + int64_t{n} * (kPairs ? 32 : 64);
        const __m512i weight_s8x64 = kPairs ? expand(weight) : _mm512_loadu_si512(weight);
        const std::byte* quad = t.input + t.offset[n];
        CS_UNROLL for (int r = 0; r < ROWS; ++r, quad += t.row_stride) {
            CS_UNROLL for (int c = 0; c < COLUMNS; ++c) {
                const __m512i input_u8x64 = broadcast<kPairs>(quad + c * t.column_stride);
                sum_s32x16[r][c] = _mm512_dpbusd_epi32(sum_s32x16[r][c], input_u8x64, weight_s8x64);
            }
        }
    }
    CS_UNROLL for (int r = 0; r < ROWS; ++r) {
        CS_UNROLL for (int c = 0; c < COLUMNS; ++c) _mm512_store_si512(sums_s32x16 + r * COLUMNS + c, sum_s32x16[r][c]);
    }
}

using Accumulate = void (*)(const Tile&, __m512i*);

template <int ROWS, bool kPairs, int... kColumns>
Accumulate accumulate_of(int columns, std::integer_sequence<int, kColumns...>) {
    static constexpr Accumulate table[] = {accumulate<ROWS, kColumns + 1, kPairs>...};
    return table[columns - 1];
}

Accumulate accumulate_of(int rows, int columns, bool pairs) {
    constexpr auto counts = std::make_integer_sequence<int, kMaxColumns>();
    if (rows == 2) return pairs ? accumulate_of<2, true>(columns, counts) : accumulate_of<2, false>(columns, counts);
    return pairs ? accumulate_of<1, true>(columns, counts) : accumulate_of<1, false>(columns, counts);
}

// Where the results of a tile go.
struct Destination {
    std::byte* output;    // first position's block of kernels
    int64_t pixel_bytes;  // from one output position to the next
    int columns;          // registers across the tile
    int positions;        // output positions of the tile that exist
    int kernels;          // kernels of the block that exist
    const float* scale;   // [lanes]; unused for int32 results
};

template <DType kOut>
CS_AVX512VNNI inline void store(std::byte* to, __mmask16 kernels, __m512 scale_f32x16, __m512i value_s32x16) {
    if constexpr (kOut == DType::s32) {
        _mm512_mask_storeu_epi32(to, kernels, value_s32x16);
    } else {
        const __m128i result_x8x16 = narrow16(requantize16(value_s32x16, scale_f32x16), kOut == DType::u8);
        if (kernels == 0xffff) {  // whole stores are cheaper than masked ones
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), result_x8x16);
        } else if (kernels == 0xff) {
            _mm_storel_epi64(reinterpret_cast<__m128i*>(to), result_x8x16);
        } else {
            _mm_mask_storeu_epi8(to, kernels, result_x8x16);
        }
    }
}

// The sums [ROWS][columns] of a tile on their way out, the largest of each 2 x 2 positions if there are two rows.
template <int ROWS, bool kPairs, DType kOut>
CS_AVX512VNNI void finish(const __m512i* sum_s32x16, const Destination& d) {
    const __m512i split_s32x16 = _mm512_set_epi32(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0);
    const auto kernels = static_cast<__mmask16>((1u << d.kernels) - 1);
    const __m512 scale_f32x16 = kOut == DType::s32 ? _mm512_setzero_ps() : _mm512_loadu_ps(d.scale);
    constexpr int kStep = ROWS == 2 && !kPairs ? 2 : 1;    // registers per result
    constexpr int kResults = ROWS == 1 && kPairs ? 2 : 1;  // positions per result
    const int count = (d.positions + kResults - 1) / kResults;
    std::byte* to = d.output;
    for (int i = 0; i < count; ++i, to += kResults * d.pixel_bytes, sum_s32x16 += kStep) {
        __m512i value = sum_s32x16[0];
        if constexpr (ROWS == 2) value = _mm512_max_epi32(value, sum_s32x16[d.columns]);
        if constexpr (kStep == 2) {
            value = _mm512_max_epi32(value, _mm512_max_epi32(sum_s32x16[1], sum_s32x16[d.columns + 1]));
        }
        if constexpr (kPairs && ROWS == 2) value = _mm512_max_epi32(value, _mm512_shuffle_epi32(value, _MM_PERM_CDAB));
        if constexpr (kPairs) value = _mm512_permutexvar_epi32(split_s32x16, value);
        store<kOut>(to, kernels, scale_f32x16, value);
        if (kResults == 2 && 2 * i + 1 < d.positions) {
            const __m512i second = _mm512_castsi256_si512(_mm512_extracti64x4_epi64(value, 1));
            store<kOut>(to + d.pixel_bytes, kernels, scale_f32x16, second);
        }
    }
}

using Finish = void (*)(const __m512i*, const Destination&);

template <int ROWS, bool kPairs>
Finish finish_of(DType out) {
    if (out == DType::u8) return finish<ROWS, kPairs, DType::u8>;
    return out == DType::s8 ? finish<ROWS, kPairs, DType::s8> : finish<ROWS, kPairs, DType::s32>;
}

Finish finish_of(int rows, bool pairs, DType out) {
    if (rows == 2) return pairs ? finish_of<2, true>(out) : finish_of<2, false>(out);
    return pairs ? finish_of<1, true>(out) : finish_of<1, false>(out);
}

// Rows of 16 dwords at `stride` bytes, transposed.
CS_AVX512VNNI inline void transpose16(const std::byte* from, int64_t stride, std::byte* to, int64_t to_stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        const __m512i low = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        _mm512_storeu_si512(to + i * to_stride, low);
        _mm512_storeu_si512(to + (i + 8) * to_stride, high);
    }
}

// How the quads of a row of positions are found in memory.
enum class Source {
    image,   // in the image, or in a copy with its padding: channels are a multiple of 4
    planes,  // transposed to [quad of channels][position]
    staged,  // staged as [quad of the kernel][position], row by row
};

// A quad that is staged: 16 positions are a permutation of 64 bytes of one line of the image and 64 of the next.
struct StagedQuad {
    int64_t first, second;  // where the two lines begin, from the first line of the window
    alignas(64) uint8_t index[64];
};

class Conv final : public Step {
  public:
    Conv(const LayerSpec& spec, DotBlocks blocks)
        : input_(spec.input),
          output_(spec.output),
          window_(spec.window),
          image_(spec, spec.input.dtype == DType::s8),
          kernels_(spec.kernels),
          conv_width_(spec.conv_width),
          pooled_(spec.pool_h == 2),
          pairs_(blocks.lanes == 8),
          blocks_(std::move(blocks)) {
        source_ = input_.channels % 4 ? Source::staged : pairs_ ? Source::planes : Source::image;
        if (image_.zero != 0) {
            for (size_t o = 0; o < blocks_.bias.size(); ++o) blocks_.bias[o] -= 128 * blocks_.row_sum[o];
        }
        if (source_ == Source::staged) plan_staging();
        for (int32_t& quad : blocks_.quad) quad = static_cast<int32_t>(offset_of(quad));
        choose_tiles();
    }

    size_t scratch_bytes() const override { return image_.bytes() + planes_bytes() + staged_bytes(); }

    void run(const Call& call) const noexcept override {
        std::byte* copy = call.scratch;
        std::byte* planes = copy + image_.bytes();
        std::byte* staged = planes + planes_bytes();
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            image = image_.fill(input_, window_, image, copy);
            if (source_ == Source::planes) image = transpose(image, planes);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int y = 0; y < output_.height; ++y) run_row(image, staged, y, out);
        }
    }

  private:
    int pool() const { return pooled_ ? 2 : 1; }
    int register_positions() const { return pairs_ ? 2 : 1; }
    int64_t plane_bytes() const { return round_up(4 * int64_t{image_.height} * image_.width + 64, kAlignment); }
    int64_t staged_stride() const { return round_up(4 * (conv_width_ + 16), kAlignment); }
    int64_t staged_row() const { return staged_stride() * blocks_.quads; }

    size_t planes_bytes() const {
        return source_ == Source::planes ? plane_bytes() * round_up(input_.channels / 4, 16) : 0;
    }
    size_t staged_bytes() const { return source_ == Source::staged ? staged_row() * pool() + kSlack : 0; }

    // From the quad of a kernel to where it lies for the first position.
    int64_t offset_of(int quad) const {
        if (source_ == Source::staged) return quad * staged_stride();
        const int tap = quad * 4 / input_.channels, channel = quad * 4 % input_.channels;
        const int64_t pixel = int64_t{tap / window_.kernel_w} * image_.width + tap % window_.kernel_w;
        if (source_ == Source::planes) return channel / 4 * plane_bytes() + pixel * 4;
        return pixel * input_.channels + channel;
    }

    // Tiles of nearly equal width. The last one begins early rather than end beyond the row.
    void choose_tiles() {
        const int limit = pairs_ && pooled_ ? kMaxColumns - 2 : kMaxColumns;
        registers_ = (output_.width * pool() + register_positions() - 1) / register_positions();
        const int tiles = (registers_ + limit - 1) / limit;
        columns_ = (registers_ + tiles - 1) / tiles;
        if (pooled_ && !pairs_) columns_ += columns_ % 2;
        accumulate_ = accumulate_of(pool(), columns_, pairs_);
        finish_ = finish_of(pool(), pairs_, output_.dtype);
    }

    const std::byte* transpose(const std::byte* image, std::byte* to) const {
        const int64_t positions = int64_t{image_.height} * image_.width, planes = input_.channels / 4;
        const bool has_margin = input_.channels % 64 == 0;
        int64_t p = 0;
        for (; has_margin && p + 16 <= positions; p += 16) {
            for (int64_t q = 0; q < planes; q += 16) {
                transpose16(image + p * input_.channels + q * 4, input_.channels, to + q * plane_bytes() + p * 4,
                            plane_bytes());
            }
        }
        for (; p < positions; ++p) {
            for (int64_t q = 0; q < planes; ++q) {
                std::memcpy(to + q * plane_bytes() + p * 4, image + p * input_.channels + q * 4, 4);
            }
        }
        return to;
    }

    void run_row(const std::byte* image, std::byte* staged, int y, std::byte* out) const {
        const bool is_staged = source_ == Source::staged;
        const int64_t position = source_ == Source::image ? window_.stride_w * input_.channels : 4;
        const int64_t pixel_bytes = source_ == Source::planes ? 4 : input_.channels;
        const int64_t row_stride = is_staged ? staged_row() : window_.stride_h * image_.width * pixel_bytes;
        const std::byte* from = image + int64_t{y} * pool() * window_.stride_h * image_.width * pixel_bytes;
        if (is_staged) {
            for (int r = 0; r < pool(); ++r)
                stage(from + r * window_.stride_h * image_.line_bytes(), staged + r * staged_row());
            from = staged;
        }
        const int64_t pixel = kernels_ * static_cast<int64_t>(element_bytes(output_.dtype));
        for (int first = 0; first < registers_; first += columns_) {
            const int column = std::max(0, std::min(first, registers_ - columns_));
            const int x = column * register_positions() / pool();
            run_blocks(from + int64_t{column} * register_positions() * position, row_stride,
                       position * register_positions(), out + (int64_t{y} * output_.width + x) * pixel, pixel,
                       std::min(output_.width - x, columns_ * register_positions() / pool()));
        }
    }

    CS_AVX512VNNI void run_blocks(const std::byte* from, int64_t row_stride, int64_t column_stride, std::byte* to,
                                  int64_t pixel, int positions) const {
        const int lanes = blocks_.lanes;
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        __m512i sums[2 * kMaxColumns];
        for (int b = 0; b < blocks_.blocks; ++b) {
            const int begin = blocks_.begin[b];
            const int8_t* weight = blocks_.weight.data() + int64_t{begin} * lanes * 4;
            const float* scale = blocks_.scale.empty() ? nullptr : blocks_.scale.data() + b * lanes;
            accumulate_({from, row_stride, column_stride, blocks_.quad.data() + begin, weight,
                         blocks_.begin[b + 1] - begin, blocks_.bias.data() + b * lanes},
                        sums);
            finish_(sums, {to + b * lanes * element, pixel, columns_, positions, std::min(lanes, kernels_ - b * lanes),
                           scale});
        }
    }

    // Positions that one permutation can stage: their taps must lie within 64 bytes.
    int at_once() const { return std::min(16, 60 / (window_.stride_w * input_.channels) + 1); }

    void plan_staging() {
        const int width = window_.kernel_w * input_.channels, rows = window_.kernel_h * width;
        const int step = window_.stride_w * input_.channels;
        staging_.resize(blocks_.quads);
        for (int q = 0; q < blocks_.quads; ++q) {
            StagedQuad& s = staging_[q];
            const int first = q * 4, last = std::min(first + 3, rows - 1);
            s.first = first / width * image_.line_bytes() + first % width;
            s.second = last / width * image_.line_bytes();
            for (int i = 0; i < 64; ++i) {
                const int row = std::min(first + i % 4, last), x = std::min(i / 4, at_once() - 1) * step;
                const bool same = row / width == first / width;
                s.index[i] = static_cast<uint8_t>(same ? row - first + x : 64 + row % width + x);
            }
        }
    }

    // The quads of one row of positions, as [quad][position].
    CS_AVX512VNNI void stage(const std::byte* line, std::byte* to) const {
        const int step = window_.stride_w * input_.channels, count = at_once();
        for (const StagedQuad& quad : staging_) {
            const __m512i index_u8x64 = _mm512_load_si512(quad.index);
            for (int x = 0; x < conv_width_; x += count) {
                const __m512i first = _mm512_loadu_si512(line + quad.first + x * step);
                const __m512i second = _mm512_loadu_si512(line + quad.second + x * step);
                _mm512_storeu_si512(to + 4 * x, _mm512_permutex2var_epi8(first, index_u8x64, second));
            }
            to += staged_stride();
        }
    }

    Tensor input_, output_;
    Window window_;
    PaddedImage image_;
    int kernels_, conv_width_, registers_, columns_;
    bool pooled_, pairs_;
    Source source_;
    DotBlocks blocks_;
    std::vector<StagedQuad> staging_;
    Accumulate accumulate_;
    Finish finish_;
};

// Registers of 16 lanes per position that one pass over the lists takes.
double work(const DotBlocks& blocks) { return static_cast<double>(blocks.size()) * blocks.lanes; }

std::unique_ptr<Step> make(const LayerSpec& s, bool all) {
    const bool is_image = !is_linear(s) && s.groups == 1 && s.input.dtype != DType::f32;
    const bool poolable = s.pool_h == s.pool_w && s.pool_h <= 2;
    const bool narrow = s.input.channels % 4 == 0 || s.window.stride_w * s.input.channels + 4 <= 64;
    const bool spans_two_lines = s.input.channels % 4 == 0 || s.window.kernel_w * s.input.channels >= 3;
    if (!is_image || !poolable || !narrow || !spans_two_lines || !requantizes_exactly(s)) return nullptr;
    DotBlocks blocks = dot_blocks(s, 16, all);
    if (!all && s.input.channels % 4 == 0 && s.window.stride_w == 1) {
        DotBlocks halves = dot_blocks(s, 8, all);
        if (work(halves) < 0.8 * work(blocks)) blocks = std::move(halves);
    }
    return std::make_unique<Conv>(s, std::move(blocks));
}

}  // namespace

std::unique_ptr<Step> conv_dense(const LayerSpec& s) { return make(s, true); }
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec& s) { return s.packed ? make(s, false) : nullptr; }

}  // namespace cs::avx512vnni
