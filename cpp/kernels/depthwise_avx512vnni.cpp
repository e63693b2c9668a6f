// Depthwise convolution with int8 weights, avx512vnni tier.
//
// Why it is fast: lanes are channels, and a quad is four inputs of one column of the window, so that one VPDPBUSD
// (ports 0, 5) does four taps of 16 channels. The quads of a line of columns are interleaved once per row of results
// (8 shuffles on port 5 for 64 channels) and shared by all windows that overlap; weights are loaded once per four
// positions. Interleaving leaves the channels in an order that packing with saturation undoes, for free.
#include <algorithm>
#include <cmath>

#include "../aligned.h"
#include "arithmetic.h"
#include "avx512vnni.h"
#include "avx512vnni_math.h"
#include "dot_layout.h"

namespace cs::avx512vnni {
namespace {

constexpr int kChannels = 64;    // of a block
constexpr int kQuadBytes = 256;  // a quad of 64 channels: four vectors of 16

// The channel that lies in a lane of 32 bits of one of the four vectors of a quad.
int channel_of(int vector, int lane) { return lane / 4 * 16 + vector * 4 + lane % 4; }

class Depthwise final : public Step {
  public:
    explicit Depthwise(const LayerSpec& s)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          columns_((s.conv_width - 1) * s.window.stride_w + s.window.kernel_w),
          quads_((s.window.kernel_h + 3) / 4),
          blocks_((s.kernels + kChannels - 1) / kChannels),
          flip_(static_cast<char>(s.input.dtype == DType::s8 ? 0x80 : 0)),
          weight_(int64_t{blocks_} * s.window.kernel_w * quads_ * kQuadBytes),
          bias_(blocks_ * kChannels),
          scale_(blocks_ * kChannels) {
        for (int i = 0; i < blocks_ * kChannels; ++i) {
            const int channel = i / kChannels * kChannels + channel_of(i % kChannels / 16, i % 16);
            if (channel < s.kernels) lay_out(s, channel, i);
        }
    }

    size_t scratch_bytes() const override { return int64_t{columns_} * quads_ * kQuadBytes; }

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int y = 0; y < output_.height; ++y) {
                for (int block = 0; block < blocks_; ++block) {
                    stage(image, y * window_.stride_h - window_.pad_top, block, call.scratch);
                    run_row(call.scratch, block, out + int64_t{y} * output_.width * output_.channels);
                }
            }
        }
    }

  private:
    // The weights, bias and scale of a channel, whose place is lane i of all channels.
    void lay_out(const LayerSpec& s, int channel, int i) {
        const auto* dense = static_cast<const int8_t*>(s.dense);
        const int taps = s.window.kernel_h * s.window.kernel_w;
        if (s.bias) bias_[i] = static_cast<const int32_t*>(s.bias)[channel];
        scale_[i] =
            std::ldexp(static_cast<float>(s.requantization.multiplier[channel]), -s.requantization.shift[channel]);
        for (int tap = 0; tap < taps; ++tap) {
            const int8_t weight = dense[int64_t{tap} * s.kernels + channel];
            const int row = tap / s.window.kernel_w, column = tap % s.window.kernel_w;
            const int64_t quad = (int64_t{i / kChannels} * s.window.kernel_w + column) * quads_ + row / 4;
            weight_[quad * kQuadBytes + i % kChannels * 4 + row % 4] = weight;
            if (flip_) bias_[i] -= 128 * weight;
        }
    }

    // One line of quads [column][quad], for the windows whose first line of the image is `top`.
    CS_AVX512VNNI void stage(const std::byte* image, int top, int block, std::byte* to) const {
        const __m512i flip_x8x64 = _mm512_set1_epi8(flip_);
        const __mmask64 mask = first64(input_.channels - block * kChannels);
        for (int x = 0; x < columns_; ++x) {
            const int column = x - window_.pad_left;
            const bool in_line = column >= 0 && column < input_.width;
            const std::byte* pixel = image + int64_t{column} * input_.channels + block * kChannels;
            for (int quad = 0; quad < quads_; ++quad, to += kQuadBytes) {
                __m512i line[4];
                for (int i = 0; i < 4; ++i) {
                    const int tap = quad * 4 + i, row = top + tap;
                    const bool exists = in_line && tap < window_.kernel_h && row >= 0 && row < input_.height;
                    const int64_t offset = int64_t{row} * input_.width * input_.channels;
                    const __m512i value = exists ? _mm512_maskz_loadu_epi8(mask, pixel + offset) : __m512i{};
                    line[i] = _mm512_xor_si512(value, flip_x8x64);
                }
                interleave(line, to);
            }
        }
    }

    CS_AVX512VNNI void run_row(const std::byte* staged, int block, std::byte* out) const {
        int x = 0;
        for (; x + 4 <= output_.width; x += 4) run_tile<4>(staged, x, block, out);
        for (; x < output_.width; ++x) run_tile<1>(staged, x, block, out);
    }

    template <int POSITIONS>
    CS_AVX512VNNI void run_tile(const std::byte* staged, int x, int block, std::byte* out) const {
        const int column_bytes = quads_ * kQuadBytes, position_bytes = window_.stride_w * column_bytes;
        const int count = window_.kernel_w * quads_;
        const int8_t* weight = weight_.data() + int64_t{block} * count * kQuadBytes;
        const std::byte* from = staged + int64_t{x} * position_bytes;
        __m512i sum_s32x16[POSITIONS][4];
        for (int p = 0; p < POSITIONS; ++p) {
            for (int v = 0; v < 4; ++v) {
                sum_s32x16[p][v] = _mm512_loadu_si512(bias_.data() + block * kChannels + v * 16);
            }
        }
        for (int n = 0; n < count; ++n, weight += kQuadBytes, from += kQuadBytes) {
            for (int v = 0; v < 4; ++v) {
                const __m512i weight_s8x64 = _mm512_load_si512(weight + v * 64);
                for (int p = 0; p < POSITIONS; ++p) {
                    const __m512i input_u8x64 = _mm512_load_si512(from + p * position_bytes + v * 64);
                    sum_s32x16[p][v] = _mm512_dpbusd_epi32(sum_s32x16[p][v], input_u8x64, weight_s8x64);
                }
            }
        }
        for (int p = 0; p < POSITIONS; ++p) store(sum_s32x16[p], block, out + int64_t{x + p} * output_.channels);
    }

    CS_AVX512VNNI void store(const __m512i (&sum_s32x16)[4], int block, std::byte* pixel) const {
        __m512i result_s32x16[4];
        for (int v = 0; v < 4; ++v) {
            const __m512 scale_f32x16 = _mm512_loadu_ps(scale_.data() + block * kChannels + v * 16);
            result_s32x16[v] = requantize16(sum_s32x16[v], scale_f32x16);
        }
        const __m512i low_s16x32 = _mm512_packs_epi32(result_s32x16[0], result_s32x16[1]);
        const __m512i high_s16x32 = _mm512_packs_epi32(result_s32x16[2], result_s32x16[3]);
        const __m512i result_x8x64 = output_.dtype == DType::u8 ? _mm512_packus_epi16(low_s16x32, high_s16x32)
                                                                : _mm512_packs_epi16(low_s16x32, high_s16x32);
        const __mmask64 mask = first64(output_.channels - block * kChannels);
        _mm512_mask_storeu_epi8(pixel + block * kChannels, mask, result_x8x64);
    }

    Tensor input_, output_;
    Window window_;
    int columns_, quads_, blocks_;
    char flip_;
    AlignedVector<int8_t> weight_;  // [block][column][quad][vector][lane][4]
    std::vector<int32_t> bias_;     // [block][vector][lane]
    std::vector<float> scale_;      // [block][vector][lane]
};

}  // namespace

std::unique_ptr<Step> depthwise(const LayerSpec& s) {
    const bool fits = s.groups > 1 && s.groups == s.input.channels && s.kernels == s.groups && s.pool_h * s.pool_w == 1;
    if (!fits || s.input.dtype == DType::f32 || s.requantization.empty() || !requantizes_exactly(s)) return nullptr;
    return std::make_unique<Depthwise>(s);
}

}  // namespace cs::avx512vnni
