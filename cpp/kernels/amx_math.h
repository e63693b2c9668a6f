// What kernels of the amx tier share: the tile configuration, and the way out of their sums. Everything has internal
// linkage and carries its target, so that no other tier can end up calling it.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <vector>

#include "../aligned.h"
#include "avx512vnni_math.h"
#include "dot_layout.h"

#define CS_AMX                                                                             \
    __attribute__((                                                                        \
        target("amx-tile,amx-int8,avx512f,avx512dq,avx512cd,avx512bw,avx512vl,avx512vbmi," \
               "avx512vbmi2,avx512vnni,avx512bitalg,avx512vpopcntdq,gfni,bmi,bmi2,popcnt,lzcnt,fma")))

namespace cs::amx {
namespace {

constexpr int kRowBytes = 64;  // of a tile
constexpr int kTileRows = 16;
constexpr int kTileKernels = 16;
constexpr int kTileBytes = kTileRows * kRowBytes;

struct alignas(64) TileConfiguration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int tile_rows, int bytes = kRowBytes) {
        rows[tile] = static_cast<uint8_t>(tile_rows);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};

// GCC 12's intrinsics are macros that paste the tile's number, which a template argument is not, and do not say that
// they read memory.
template <int TILE>
CS_AMX inline void load_tile(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(TILE), "r"(from), "r"(stride) : "memory");
}

template <int TILE>
CS_AMX inline void store_tile(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(TILE), "r"(to), "r"(stride) : "memory");
}

template <int TILE>
CS_AMX inline void clear_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(TILE));
}

// sums += inputs * weights; the inputs are uint8 or int8.
template <int SUMS, int INPUTS, int WEIGHTS, bool kSigned>
CS_AMX inline void multiply_tiles() {
    if constexpr (kSigned) {
        __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(INPUTS), "i"(WEIGHTS));
    } else {
        __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(INPUTS), "i"(WEIGHTS));
    }
}

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
