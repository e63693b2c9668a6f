// Weights laid out for 8-bit dot products of four inputs: what the vector tiers prepare from a layer.
#pragma once

#include <cstdint>
#include <vector>

#include "../aligned.h"
#include "kernel.h"

namespace cs {

// A quad is four consecutive rows of the weight matrix; a block is `lanes` consecutive kernels. Each block lists the
// quads in which any of its kernels has a weight, whatever shape the weight was packed in; quads that are all zero cost
// nothing. Rows and kernels beyond the matrix have zero weights.
struct DotBlocks {
    int lanes, blocks, quads;      // quads: of the whole matrix
    std::vector<int32_t> begin;    // [blocks + 1]: where the list of each block begins
    std::vector<int32_t> quad;     // [n], ascending within a block
    AlignedVector<int8_t> weight;  // [n, lanes, 4]
    AlignedVector<int32_t> bias;   // padded_bias()
    std::vector<int32_t> row_sum;  // [kernels, padded likewise]: sum of the weights of each kernel
    AlignedVector<float> scale;    // padded_scale()

    size_t size() const { return quad.size(); }
};

// all: list every quad, as a dense layer does. Needs groups == 1 and int8 weights.
DotBlocks dot_blocks(const LayerSpec& spec, int lanes, bool all);

// The bias of each kernel (of float32 layers its bits), zeros without one and up to a multiple of 16 kernels: vectors
// may be read whole.
AlignedVector<int32_t> padded_bias(const LayerSpec& spec);

// M / 2**s of each kernel, padded likewise and by eight more: vectors of 16 may begin at any eight. Empty without a
// requantization.
AlignedVector<float> padded_scale(const LayerSpec& spec);

// Whether requantizing in float32, rounding down, is exact for every accumulator that the layer can reach: it is exact
// in float32 or it saturates, and its scaled value fits 32 bits. True also where there is no requantization.
bool requantizes_exactly(const LayerSpec& spec);

// Whether a layer requantizes at all, and in float32.
inline bool requantizes_in_float(const LayerSpec& spec) {
    return !spec.requantization.empty() && requantizes_exactly(spec);
}

}  // namespace cs
