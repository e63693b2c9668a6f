// The tile registers of the amx tier: their configuration and the five instructions that kernels use.
#pragma once

#include <cstdint>

#include "intrinsics.h"

#define CS_AMX                                                                                             \
    CS_TARGET(                                                                                             \
        "amx-tile,amx-int8,avx512f,avx512dq,avx512cd,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni," \
        "avx512bitalg,"                                                                                    \
        "avx512vpopcntdq,gfni,bmi,bmi2,popcnt,lzcnt,fma")

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

}  // namespace
}  // namespace cs::amx

#if defined(CS_EMULATE_AVX512)
#include "emulated_amx.h"
#else

namespace cs::amx {
namespace {

CS_AMX inline void configure_tiles(const TileConfiguration& configuration) { _tile_loadconfig(&configuration); }

CS_AMX inline void release_tiles() { _tile_release(); }

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

}  // namespace
}  // namespace cs::amx

#endif
