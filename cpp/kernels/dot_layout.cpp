#include "dot_layout.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace cs {
namespace {

int8_t weight_at(const LayerSpec& s, int row, int kernel) {
    if (row >= s.rows || kernel >= s.kernels) return 0;
    return static_cast<const int8_t*>(s.dense)[int64_t{row} * s.kernels + kernel];
}

// Appends the weights [lanes, 4] of one quad and block, unless they are all zero and not wanted.
void append_quad(const LayerSpec& s, int quad, int first_kernel, bool all, DotBlocks& out) {
    const size_t start = out.weight.size();
    bool any = all;
    for (int lane = 0; lane < out.lanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
            out.weight.push_back(weight_at(s, quad * 4 + i, first_kernel + lane));
            any |= out.weight.back() != 0;
        }
    }
    if (any) {
        out.quad.push_back(quad);
    } else {
        out.weight.resize(start);
    }
}

}  // namespace

DotBlocks dot_blocks(const LayerSpec& s, int lanes, bool all) {
    DotBlocks out{};
    out.lanes = lanes;
    out.blocks = (s.kernels + lanes - 1) / lanes;
    out.quads = (s.rows + 3) / 4;
    for (int block = 0; block < out.blocks; ++block) {
        out.begin.push_back(static_cast<int32_t>(out.quad.size()));
        for (int quad = 0; quad < out.quads; ++quad) append_quad(s, quad, block * lanes, all, out);
    }
    out.begin.push_back(static_cast<int32_t>(out.quad.size()));
    out.bias = padded_bias(s);
    out.scale = padded_scale(s);
    out.row_sum.resize(out.bias.size());
    for (int row = 0; row < s.rows; ++row) {
        for (int kernel = 0; kernel < s.kernels; ++kernel) out.row_sum[kernel] += weight_at(s, row, kernel);
    }
    return out;
}

AlignedVector<int32_t> padded_bias(const LayerSpec& s) {
    AlignedVector<int32_t> bias(round_up(s.kernels, 16));
    if (s.bias) std::memcpy(bias.data(), s.bias, sizeof(int32_t) * s.kernels);
    return bias;
}

AlignedVector<float> padded_scale(const LayerSpec& s) {
    const Requantization& r = s.requantization;
    AlignedVector<float> scale(r.empty() ? 0 : round_up(s.kernels, 16) + 8);
    for (size_t o = 0; o < r.multiplier.size(); ++o) {
        scale[o] = std::ldexp(static_cast<float>(r.multiplier[o]), -r.shift[o]);
    }
    return scale;
}

bool requantizes_exactly(const LayerSpec& s) {
    if (s.requantization.empty()) return true;
    std::vector<int64_t> bound(s.kernels);
    const int64_t largest = s.input.dtype == DType::u8 ? 255 : 128;
    for (int row = 0; row < s.rows; ++row) {
        for (int o = 0; o < s.kernels; ++o) bound[o] += std::abs(weight_at(s, row, o)) * largest;
    }
    for (int o = 0; o < s.kernels; ++o) {
        if (s.bias) bound[o] += std::abs(int64_t{static_cast<const int32_t*>(s.bias)[o]});
        const double scale = std::ldexp(s.requantization.multiplier[o], -s.requantization.shift[o]);
        const bool is_exact = bound[o] < (1 << 24) || scale * (1 << 24) >= 256;
        if (!is_exact || static_cast<double>(bound[o]) * scale >= 1e9) return false;
    }
    return true;
}

}  // namespace cs
