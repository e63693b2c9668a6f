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
#include <algorithm>
#include <array>
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
    int inputs;              // of a row block: 4 or 1
    int entries;             // per row block
    int blocks;              // of 16 kernels
    int count;               // row blocks
    const int8_t* weight;    // [count, entries, 16, inputs]
    const uint16_t* target;  // [count, entries]: block of 16 sums; entries of nobody go to a spare one
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

// As select_quads(), of single inputs, 64 at a time.
CS_AVX512VNNI int select_inputs(const uint8_t* x, int count, int32_t* active) {
    alignas(64) static constexpr auto kPlaces = [] {
        std::array<uint8_t, 64> places{};
        for (int i = 0; i < 64; ++i) places[i] = static_cast<uint8_t>(i);
        return places;
    }();
    const __m512i places_u8x64 = _mm512_load_si512(kPlaces.data());
    int found = 0;
    for (int i = 0; i < count; i += 64) {
        const __m512i inputs = _mm512_maskz_loadu_epi8(first64(count - i), x + i);
        const __mmask64 any = _mm512_test_epi8_mask(inputs, inputs);
        const __m512i active_u8x64 = _mm512_maskz_compress_epi8(any, places_u8x64), first = _mm512_set1_epi32(i);
        const int number = static_cast<int>(_mm_popcnt_u64(any));
        alignas(64) uint8_t bytes[64];
        _mm512_store_si512(bytes, active_u8x64);
        for (int n = 0; n < number; n += 16) {
            const __m128i sixteen = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes + n));
            _mm512_storeu_si512(active + found + n, _mm512_add_epi32(first, _mm512_cvtepu8_epi32(sixteen)));
        }
        found += number;
    }
    return found;
}

// 16 sums += x * 16 weights, one or four inputs each.
template <int kInputs>
CS_AVX512VNNI inline void add_entry(const int8_t* weight, __m512i input_u8x64, int32_t* sum) {
    __m512i weight_s8x64;
    if constexpr (kInputs == 4) {
        weight_s8x64 = _mm512_loadu_si512(weight);
    } else {
        weight_s8x64 = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight)));
    }
    _mm512_store_si512(sum, _mm512_dpbusd_epi32(_mm512_load_si512(sum), input_u8x64, weight_s8x64));
}

inline void prefetch(const void* from) { __builtin_prefetch(from); }

// Sums += x * weights, for the row blocks listed. The list goes on for kPrefetch row blocks that are only prefetched.
template <int kInputs>
CS_AVX512VNNI void multiply_route_sum(const Rows& m, const uint8_t* x, const int32_t* active, int count,
                                      int32_t* sums) {
    constexpr int kEntryBytes = 16 * kInputs, kPerLine = kAlignment / kEntryBytes;
    const int64_t row_bytes = int64_t{m.entries} * kEntryBytes;
    for (int n = 0; n < count; ++n) {
        const int64_t row = active[n], ahead = active[n + kPrefetch];
        const int8_t *weight = m.weight + row * row_bytes, *next = m.weight + ahead * row_bytes;
        const uint16_t* target = m.target + row * m.entries;
        prefetch(m.target + ahead * m.entries);
        uint32_t quad = 0;
        std::memcpy(&quad, x + row * kInputs, kInputs);
        const __m512i input_u8x64 = _mm512_set1_epi32(static_cast<int32_t>(quad));
        int t = 0;
        for (; t + kPerLine <= m.entries; t += kPerLine) {
            prefetch(next + t * kEntryBytes);
            for (int i = t; i < t + kPerLine; ++i) {
                add_entry<kInputs>(weight + i * kEntryBytes, input_u8x64, sums + 16 * target[i]);
            }
        }
        prefetch(next + t * kEntryBytes);
        for (; t < m.entries; ++t) add_entry<kInputs>(weight + t * kEntryBytes, input_u8x64, sums + 16 * target[t]);
    }
}

constexpr int kNarrow = 4;  // blocks of 16 kernels, at most, whose sums stay in registers

// The same for a dense matrix of few kernels: sums stay in registers, several of each, because one alone would be a
// chain of latencies.
template <int BLOCKS>
CS_AVX512VNNI void multiply_sum_narrow(const Rows& m, const uint8_t* x, int32_t* sums) {
    constexpr int kChains = 8 / BLOCKS;
    __m512i sum_s32x16[kChains][BLOCKS] = {};
    const int8_t* weight = m.weight;
    int row = 0;
    const auto add_row = [&](int chain) CS_AVX512VNNI {
        int32_t quad;
        std::memcpy(&quad, x + int64_t{row++} * 4, sizeof quad);
        for (int b = 0; b < BLOCKS; ++b, weight += 64) {
            sum_s32x16[chain][b] = _mm512_dpbusd_epi32(sum_s32x16[chain][b], _mm512_set1_epi32(quad),  //
                                                       _mm512_load_si512(weight));
        }
    };
    while (row + kChains <= m.count) {
        for (int chain = 0; chain < kChains; ++chain) add_row(chain);
    }
    while (row < m.count) add_row(0);
    for (int b = 0; b < BLOCKS; ++b) {
        __m512i total_s32x16 = _mm512_load_si512(sums + 16 * b);
        for (int chain = 0; chain < kChains; ++chain) {
            total_s32x16 = _mm512_add_epi32(total_s32x16, sum_s32x16[chain][b]);
        }
        _mm512_store_si512(sums + 16 * b, total_s32x16);
    }
}

using MultiplySum = void (*)(const Rows&, const uint8_t*, int32_t*);

// Null for a matrix that is not dense or not narrow.
MultiplySum narrow_of(const Rows& m, bool is_dense) {
    static constexpr MultiplySum table[kNarrow] = {multiply_sum_narrow<1>, multiply_sum_narrow<2>,
                                                   multiply_sum_narrow<3>, multiply_sum_narrow<4>};
    return is_dense && m.inputs == 4 && m.blocks <= kNarrow ? table[m.blocks - 1] : nullptr;
}

CS_AVX512VNNI inline __m512i result16(const int32_t* sums, const float* scale) {
    return requantize16(_mm512_load_si512(sums), _mm512_load_ps(scale));
}

// scale: null for int32 results.
CS_AVX512VNNI void write_out(const int32_t* sums, int kernels, const float* scale, DType dtype, std::byte* out) {
    int o = 0;
    for (; scale && o + 64 <= kernels; o += 64) {
        const __m512i result_s32x16[4] = {result16(sums + o, scale + o), result16(sums + o + 16, scale + o + 16),
                                          result16(sums + o + 32, scale + o + 32),
                                          result16(sums + o + 48, scale + o + 48)};
        _mm512_storeu_si512(out + o, narrow64(result_s32x16, dtype == DType::u8));
    }
    for (; o < kernels; o += 16) {
        const __mmask16 mask = first16(kernels - o);
        if (!scale) {
            _mm512_mask_storeu_epi32(out + 4 * o, mask, _mm512_load_si512(sums + o));
        } else {
            _mm_mask_storeu_epi8(out + o, mask, narrow16(result16(sums + o, scale + o), dtype == DType::u8));
        }
    }
}

CS_AVX512VNNI void shift_to_unsigned(const std::byte* x, int64_t size, uint8_t* to) {
    for (int64_t i = 0; i < size; ++i) to[i] = static_cast<uint8_t>(x[i]) ^ 0x80;
}

class Linear final : public Step {
  public:
    // entries: [row block] of [entry] of first kernel, or -1 for nobody.
    // select: read only the rows of active inputs. is_dense: entry t of every row is the t-th block of 16 kernels.
    Linear(const LayerSpec& spec, bool select, bool is_dense, int inputs, int row_blocks, int entries)
        : input_(spec.input),
          output_(spec.output),
          select_(select),
          kernels_(spec.kernels),
          padded_(static_cast<int>(round_up(spec.kernels, 16))),
          rows_{inputs, entries, padded_ / 16, row_blocks, nullptr, nullptr},
          narrow_(narrow_of(rows_, is_dense && !select)),
          weight_(int64_t{row_blocks} * entries * 16 * inputs),
          target_(int64_t{row_blocks} * entries, static_cast<uint16_t>(padded_ / 16)),
          every_row_(row_blocks + kPrefetch),
          bias_(padded_bias(spec)),
          scale_(padded_scale(spec)) {
        for (int row = 0; row < row_blocks; ++row) every_row_[row] = row;
        rows_.weight = weight_.data();
        rows_.target = target_.data();
    }

    // Where the weights [16, inputs] of an entry go, and the first of the 16 kernels that they belong to.
    int8_t* place(int row, int entry, int first_kernel) {
        const int64_t index = int64_t{row} * rows_.entries + entry;
        target_[index] = static_cast<uint16_t>(first_kernel / 16);
        return weight_.data() + index * 16 * rows_.inputs;
    }

    // With int8 inputs shifted by 128, every kernel's sum is off by 128 times the sum of its weights.
    void correct_bias(const std::vector<int32_t>& row_sum) {
        if (input_.dtype != DType::s8) return;
        for (int o = 0; o < kernels_; ++o) bias_[o] -= 128 * row_sum[o];
    }

    size_t scratch_bytes() const override { return active_offset() + sizeof(int32_t) * (rows_.count + 64); }

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
            const int32_t* listed = select_ ? active : every_row_.data();
            if (narrow_) {
                narrow_(rows_, x, sums);
            } else if (rows_.inputs == 4) {
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
        const int count =
            rows_.inputs == 4 ? select_quads(x, rows_.count, active) : select_inputs(x, rows_.count, active);
        std::fill_n(active + count, kPrefetch, 0);
        return count;
    }

    size_t shifted_offset() const { return sizeof(int32_t) * (padded_ + 16); }
    size_t active_offset() const { return shifted_offset() + round_up(input_.stride() + kSlack, kAlignment); }

    Tensor input_, output_;
    bool select_;
    int kernels_, padded_;
    Rows rows_;
    MultiplySum narrow_;
    AlignedVector<int8_t> weight_;
    std::vector<uint16_t> target_;
    std::vector<int32_t> every_row_;  // for prefetching, kPrefetch more
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
};

bool fits(const LayerSpec& s) {
    return is_linear(s) && s.input.dtype != DType::f32 && s.kernels < 16 * 65535 && requantizes_exactly(s);
}

std::vector<int32_t> row_sums(const LayerSpec& s) {
    std::vector<int32_t> sums(s.kernels);
    const auto* weight = static_cast<const int8_t*>(s.dense);
    for (int64_t i = 0; i < int64_t{s.rows} * s.kernels; ++i) sums[i % s.kernels] += weight[i];
    return sums;
}

std::unique_ptr<Step> make_dense(const LayerSpec& s, bool select) {
    if (!fits(s) || (select && s.input.dtype == DType::s8)) return nullptr;
    const DotBlocks blocks = dot_blocks(s, 16, true);
    auto step = std::make_unique<Linear>(s, select, true, 4, blocks.quads, blocks.blocks);
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
    auto step = std::make_unique<Linear>(s, select, false, p.u, p.row_blocks, p.sets * parts);
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
