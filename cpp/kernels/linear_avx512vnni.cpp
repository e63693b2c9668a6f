// Linear layers with int8 weights, avx512vnni tier: dense, sparse-dense, and sparse-sparse.
//
// Why it is fast: the weights of a row block lie together, [T][16 kernels][4 inputs], so that an active quad of inputs
// costs one straight read. Per 16 kernels that is one VPDPBUSD between a load and a store of their sums: route by
// address, because the kernel block of an entry is where its sums lie. Inputs are selected 16 quads at a time, by a
// test for zero and a compressing store. The bound is one store a cycle, or the bytes of the weights where they exceed
// the second-level cache.
//
// The rows of a packed matrix need U = 1 or 4 and V a multiple of 16. With U = 1 the four bytes of a lane are the
// weight of one input and zeros, made by a widening load, and a quad is one input.
#include <cmath>
#include <cstring>

#include "../aligned.h"
#include "arithmetic.h"
#include "avx512vnni.h"
#include "avx512vnni_math.h"
#include "dot_layout.h"

namespace cs::avx512vnni {
namespace {

constexpr int kPrefetch = 4;  // row blocks ahead

// A matrix by rows: for every row block, `entries` blocks of 16 kernels.
struct Rows {
    int inputs;             // of a row block: 4 or 1
    int entries;            // per row block
    int blocks;             // of 16 kernels
    int count;              // row blocks
    const int8_t* weight;   // [count, entries, 16, inputs]
    const int32_t* target;  // [count, entries]: first of 16 sums; entries of nobody go to a spare block
};

// Indices of the row blocks that hold an active input; their number. x has slack to be read past its end.
CS_AVX512VNNI int select_quads(const uint8_t* x, int count, int32_t* active) {
    int found = 0;
    __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < count; i += 16) {
        const __m512i quads = _mm512_loadu_si512(x + 4 * i);
        const __mmask16 exists = count - i < 16 ? static_cast<__mmask16>((1u << (count - i)) - 1) : 0xffff;
        const __mmask16 any = _mm512_mask_test_epi32_mask(exists, quads, quads);
        _mm512_mask_compressstoreu_epi32(active + found, any, index);
        found += __builtin_popcount(any);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
    }
    return found;
}

CS_AVX512VNNI int select_inputs(const uint8_t* x, int count, int32_t* active) {
    int found = 0;
    for (int i = 0; i < count; i += 64) {
        const __m512i inputs = _mm512_loadu_si512(x + i);
        uint64_t any = _mm512_test_epi8_mask(inputs, inputs);
        if (count - i < 64) any &= (uint64_t{1} << (count - i)) - 1;
        for (; any; any &= any - 1) active[found++] = i + __builtin_ctzll(any);
    }
    return found;
}

// sums[target] += x * weights, for the row blocks listed, or for all.
template <int kInputs>
CS_AVX512VNNI void multiply_route_sum(const Rows& m, const uint8_t* x, const int32_t* active, int count,
                                      int32_t* sums) {
    const int64_t row_bytes = int64_t{m.entries} * 16 * kInputs;
    for (int n = 0; n < count; ++n) {
        const int row = active ? active[n] : n;
        const int8_t* weight = m.weight + row * row_bytes;
        const int32_t* target = m.target + int64_t{row} * m.entries;
        const int ahead = n + kPrefetch < count ? (active ? active[n + kPrefetch] : n + kPrefetch) : row;
        const int8_t* next = m.weight + ahead * row_bytes;
        int32_t quad = 0;
        std::memcpy(&quad, x + int64_t{row} * kInputs, kInputs);
        const __m512i input_u8x64 = _mm512_set1_epi32(quad);
        for (int t = 0; t < m.entries; ++t, weight += 16 * kInputs, next += 16 * kInputs) {
            _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
            __m512i weight_s8x64;
            if constexpr (kInputs == 4) {
                weight_s8x64 = _mm512_loadu_si512(weight);
            } else {
                weight_s8x64 = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight)));
            }
            int32_t* to = sums + target[t];
            _mm512_store_si512(to, _mm512_dpbusd_epi32(_mm512_load_si512(to), input_u8x64, weight_s8x64));
        }
    }
}

CS_AVX512VNNI void write_out(const int32_t* sums, int kernels, const float* scale, DType dtype, std::byte* out) {
    for (int o = 0; o < kernels; o += 16) {
        const auto mask = static_cast<__mmask16>(kernels - o < 16 ? (1u << (kernels - o)) - 1 : 0xffff);
        const __m512i sum = _mm512_load_si512(sums + o);
        if (!scale) {
            _mm512_mask_storeu_epi32(out + 4 * o, mask, sum);
        } else {
            const __m512i result = requantize16(sum, _mm512_loadu_ps(scale + o));
            _mm_mask_storeu_epi8(out + o, mask, narrow16(result, dtype == DType::u8));
        }
    }
}

CS_AVX512VNNI void shift_to_unsigned(const std::byte* x, int64_t size, uint8_t* to) {
    for (int64_t i = 0; i < size; ++i) to[i] = static_cast<uint8_t>(x[i]) ^ 0x80;
}

class Linear final : public Step {
  public:
    // entries: [row block] of [entry] of first kernel, or -1 for nobody.
    Linear(const LayerSpec& spec, bool select, int inputs, int row_blocks, int entries)
        : input_(spec.input),
          output_(spec.output),
          select_(select),
          kernels_(spec.kernels),
          padded_(static_cast<int>(round_up(spec.kernels, 16))),
          rows_{inputs, entries, padded_ / 16, row_blocks, nullptr, nullptr},
          weight_(int64_t{row_blocks} * entries * 16 * inputs),
          target_(int64_t{row_blocks} * entries, padded_),
          bias_(padded_bias(spec)),
          scale_(padded_scale(spec)) {
        rows_.weight = weight_.data();
        rows_.target = target_.data();
    }

    // Where the weights [16, inputs] of an entry go, and the first of the 16 kernels that they belong to.
    int8_t* place(int row, int entry, int first_kernel) {
        const int64_t index = int64_t{row} * rows_.entries + entry;
        target_[index] = first_kernel;
        return weight_.data() + index * 16 * rows_.inputs;
    }

    // With int8 inputs shifted by 128, every kernel's sum is off by 128 times the sum of its weights.
    void correct_bias(const std::vector<int32_t>& row_sum) {
        if (input_.dtype != DType::s8) return;
        for (int o = 0; o < kernels_; ++o) bias_[o] -= 128 * row_sum[o];
    }

    size_t scratch_bytes() const override { return active_offset() + sizeof(int32_t) * (rows_.count + 16); }

    void run(const Call& call) const noexcept override {
        auto* sums = reinterpret_cast<int32_t*>(call.scratch);
        auto* shifted = reinterpret_cast<uint8_t*>(call.scratch + shifted_offset());
        auto* active = reinterpret_cast<int32_t*>(call.scratch + active_offset());
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* x = sample<uint8_t>(call.inputs[0], input_, n);
            if (input_.dtype == DType::s8) {
                shift_to_unsigned(sample<std::byte>(call.inputs[0], input_, n), input_.size(), shifted);
                x = shifted;
            }
            std::memcpy(sums, bias_.data(), sizeof(int32_t) * padded_);
            const int count = select_ ? select(x, active) : rows_.count;
            const int32_t* listed = select_ ? active : nullptr;
            if (rows_.inputs == 4) {
                multiply_route_sum<4>(rows_, x, listed, count, sums);
            } else {
                multiply_route_sum<1>(rows_, x, listed, count, sums);
            }
            const float* scale = scale_.empty() ? nullptr : scale_.data();
            write_out(sums, kernels_, scale, output_.dtype, sample<std::byte>(call.output, output_, n));
        }
    }

  private:
    int select(const uint8_t* x, int32_t* active) const {
        return rows_.inputs == 4 ? select_quads(x, rows_.count, active) : select_inputs(x, rows_.count, active);
    }

    size_t shifted_offset() const { return sizeof(int32_t) * (padded_ + 16); }
    size_t active_offset() const { return shifted_offset() + round_up(input_.stride() + kSlack, kAlignment); }

    Tensor input_, output_;
    bool select_;
    int kernels_, padded_;
    Rows rows_;
    AlignedVector<int8_t> weight_;
    std::vector<int32_t> target_;
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
};

bool fits(const LayerSpec& s) { return is_linear(s) && s.input.dtype != DType::f32 && requantizes_exactly(s); }

std::vector<int32_t> row_sums(const LayerSpec& s) {
    std::vector<int32_t> sums(s.kernels);
    const auto* weight = static_cast<const int8_t*>(s.dense);
    for (int64_t i = 0; i < int64_t{s.rows} * s.kernels; ++i) sums[i % s.kernels] += weight[i];
    return sums;
}

std::unique_ptr<Step> make_dense(const LayerSpec& s, bool select) {
    if (!fits(s) || (select && s.input.dtype == DType::s8)) return nullptr;
    const DotBlocks blocks = dot_blocks(s, 16, true);
    auto step = std::make_unique<Linear>(s, select, 4, blocks.quads, blocks.blocks);
    for (int block = 0; block < blocks.blocks; ++block) {
        for (int quad = 0; quad < blocks.quads; ++quad) {
            const int8_t* from = blocks.weight.data() + (int64_t{block} * blocks.quads + quad) * 64;
            std::memcpy(step->place(quad, block, block * 16), from, 64);
        }
    }
    step->correct_bias(row_sums(s));
    return step;
}

std::unique_ptr<Step> make_packed(const LayerSpec& s, bool select) {
    if (!fits(s) || !s.packed || (select && s.input.dtype == DType::s8)) return nullptr;
    const PackedWeight& p = *s.packed;
    if ((p.u != 1 && p.u != 4) || p.v % 16) return nullptr;
    const int parts = p.v / 16;  // blocks of 16 kernels in a block of V
    auto step = std::make_unique<Linear>(s, select, p.u, p.row_blocks, p.sets * parts);
    const auto* weight = static_cast<const int8_t*>(p.weights);
    for (int row = 0; row < p.row_blocks; ++row) {
        for (int t = 0; t < p.sets; ++t) {
            const int owner = p.owner[int64_t{row} * p.sets + t];
            for (int part = 0; part < parts; ++part, weight += 16 * p.u) {
                const int first = owner * p.v + part * 16;
                if (owner < 0 || first >= s.kernels) continue;  // nobody's weights are zero, and stay out of the way
                std::memcpy(step->place(row, t * parts + part, first), weight, 16 * p.u);
            }
        }
    }
    step->correct_bias(row_sums(s));
    return step;
}

}  // namespace

std::unique_ptr<Step> linear_dense(const LayerSpec& s) { return make_dense(s, false); }
std::unique_ptr<Step> linear_dense_select(const LayerSpec& s) { return s.packed ? nullptr : make_dense(s, true); }
std::unique_ptr<Step> linear_sparse_dense(const LayerSpec& s) { return make_packed(s, false); }
std::unique_ptr<Step> linear_sparse_sparse(const LayerSpec& s) { return make_packed(s, true); }

}  // namespace cs::avx512vnni
