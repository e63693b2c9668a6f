// The tile instructions in plain C++, for amx_tiles.h, to test the amx tier anywhere (make test-emulated). Where the
// processor would raise an exception, this ends the process.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace cs::amx {
namespace {

struct Tile {
    int rows = 0, row_bytes = 0;
    uint8_t byte[kTileRows][kRowBytes] = {};  // zeros beyond its rows and columns
};

thread_local Tile tiles[8];

void demand(bool valid) {
    if (!valid) std::abort();
}

Tile& usable(int tile) {
    demand(tiles[tile].rows > 0 && tiles[tile].row_bytes > 0);
    return tiles[tile];
}

void clear(Tile& tile) { std::memset(tile.byte, 0, sizeof tile.byte); }

void configure_tiles(const TileConfiguration& configuration) {
    demand(configuration.palette == 1 && configuration.start_row == 0);
    for (int i = 0; i < 8; ++i) {
        const int rows = configuration.rows[i], row_bytes = configuration.row_bytes[i];
        demand(rows <= kTileRows && row_bytes <= kRowBytes && (rows == 0) == (row_bytes == 0));
        tiles[i] = {rows, row_bytes};
    }
}

void release_tiles() { std::fill(std::begin(tiles), std::end(tiles), Tile{}); }

template <int TILE>
void load_tile(const void* from, int64_t stride) {
    Tile& tile = usable(TILE);
    clear(tile);
    for (int y = 0; y < tile.rows; ++y) {
        std::memcpy(tile.byte[y], static_cast<const char*>(from) + y * stride, tile.row_bytes);
    }
}

template <int TILE>
void store_tile(void* to, int64_t stride) {
    const Tile& tile = usable(TILE);
    for (int y = 0; y < tile.rows; ++y) {
        std::memcpy(static_cast<char*>(to) + y * stride, tile.byte[y], tile.row_bytes);
    }
}

template <int TILE>
void clear_tile() {
    clear(usable(TILE));
}

// A quad of inputs times a quad of weights.
template <class Input>
int32_t dot(const uint8_t* input, const uint8_t* weight) {
    int32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<Input>(input[i]) * static_cast<int8_t>(weight[i]);
    return sum;
}

template <int SUMS, int INPUTS, int WEIGHTS, bool kSigned>
void multiply_tiles() {
    Tile& sums = usable(SUMS);
    const Tile &inputs = usable(INPUTS), &weights = usable(WEIGHTS);
    demand(SUMS != INPUTS && SUMS != WEIGHTS && INPUTS != WEIGHTS);
    demand(inputs.rows == sums.rows && weights.row_bytes == sums.row_bytes);
    demand(inputs.row_bytes == 4 * weights.rows && sums.row_bytes % 4 == 0);
    for (int y = 0; y < sums.rows; ++y) {
        int32_t line[kRowBytes / 4];
        std::memcpy(line, sums.byte[y], sizeof line);
        for (int quad = 0; quad < weights.rows; ++quad) {
            for (int x = 0; x < sums.row_bytes / 4; ++x) {
                line[x] += dot<std::conditional_t<kSigned, int8_t, uint8_t>>(inputs.byte[y] + 4 * quad,
                                                                             weights.byte[quad] + 4 * x);
            }
        }
        std::memcpy(sums.byte[y], line, sizeof line);
    }
}

}  // namespace
}  // namespace cs::amx
