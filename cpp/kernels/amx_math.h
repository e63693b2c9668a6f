// What kernels of the amx tier share: the way out of their sums. Everything has internal linkage and carries its
// target, so that no other tier can end up calling it.
#pragma once

#include <algorithm>
#include <vector>

#include "../aligned.h"
#include "amx_tiles.h"
#include "avx512vnni_math.h"
#include "dot_layout.h"

namespace cs::amx {
namespace {

// From sums to results: bias and requantization, of all kernels of a position.
class WayOut {
  public:
    explicit WayOut(const LayerSpec& s)
        : kernels_(s.kernels), dtype_(s.output.dtype), bias_(padded_bias(s)), scale_(padded_scale(s)) {}

    // From one position of the sums to the next.
    int64_t position_bytes() const { return static_cast<int64_t>(bias_.size() * sizeof(int32_t)); }

    // Writes `count` positions; each is the largest of its corners, which lie `step` bytes apart for consecutive
    // positions.
    template <int CORNERS>
    CS_AMX void write(const std::byte* const (&corner)[CORNERS], int64_t step, int count, std::byte* out) const {
        if (dtype_ == DType::u8) return write_as<CORNERS, DType::u8>(corner, step, count, out);
        if (dtype_ == DType::s8) return write_as<CORNERS, DType::s8>(corner, step, count, out);
        write_as<CORNERS, DType::s32>(corner, step, count, out);
    }

  private:
    template <int CORNERS, DType kOut>
    CS_AMX void write_as(const std::byte* const (&corner)[CORNERS], int64_t step, int count, std::byte* out) const {
        const std::byte* from[CORNERS];
        std::copy(corner, corner + CORNERS, from);
        for (int i = 0; i < count; ++i) {
            int kernel = 0;
            if constexpr (kOut != DType::s32) {
                for (; kernel + 64 <= kernels_; kernel += 64) write64<CORNERS, kOut>(from, kernel, out + kernel);
            }
            for (; kernel < kernels_; kernel += 16) write16<CORNERS, kOut>(from, kernel, out);
            for (auto& place : from) place += step;
            out += kernels_ * static_cast<int64_t>(element_bytes(kOut));
        }
    }

    // Sums of 16 kernels with their bias, the largest of the corners.
    template <int CORNERS>
    CS_AMX __m512i largest(const std::byte* const* corner, int kernel) const {
        __m512i sum_s32x16 = _mm512_load_si512(corner[0] + 4 * kernel);
        for (int c = 1; c < CORNERS; ++c) {
            sum_s32x16 = _mm512_max_epi32(sum_s32x16, _mm512_load_si512(corner[c] + 4 * kernel));
        }
        return _mm512_add_epi32(sum_s32x16, _mm512_load_si512(bias_.data() + kernel));
    }

    template <int CORNERS>
    CS_AMX __m512i result(const std::byte* const* corner, int kernel) const {
        return requantize16(largest<CORNERS>(corner, kernel), _mm512_load_ps(scale_.data() + kernel));
    }

    template <int CORNERS, DType kOut>
    CS_AMX void write64(const std::byte* const* corner, int kernel, std::byte* to) const {
        const __m512i result_s32x16[4] = {result<CORNERS>(corner, kernel), result<CORNERS>(corner, kernel + 16),
                                          result<CORNERS>(corner, kernel + 32), result<CORNERS>(corner, kernel + 48)};
        _mm512_storeu_si512(to, narrow64(result_s32x16, kOut == DType::u8));
    }

    template <int CORNERS, DType kOut>
    CS_AMX void write16(const std::byte* const* corner, int kernel, std::byte* out) const {
        const int count = std::min(16, kernels_ - kernel);
        const auto mask = static_cast<__mmask16>((1u << count) - 1);
        if constexpr (kOut == DType::s32) {
            _mm512_mask_storeu_epi32(out + 4 * kernel, mask, largest<CORNERS>(corner, kernel));
        } else {
            _mm_mask_storeu_epi8(out + kernel, mask, narrow16(result<CORNERS>(corner, kernel), kOut == DType::u8));
        }
    }

    int kernels_;
    DType dtype_;
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
};

}  // namespace
}  // namespace cs::amx
