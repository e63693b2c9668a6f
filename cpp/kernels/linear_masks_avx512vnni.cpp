// Sparse-sparse linear layers packed as in the paper (U = V = 1), avx512vnni tier: route by comparing kernel ids.
//
// Why it is fast: every stored weight has a kernel of its own to go to, so that route by address would cost a load, an
// add and a store per product. Here the lanes are sets instead, 16 at a time, and the sums of slot s of all of them are
// one register. Four active rows are interleaved to four bytes per lane; for each slot, a comparison of the kernel ids
// with s makes the mask (port 5) under which the weights stay (ports 0, 5), and VPDPBUSD adds their products (port 0):
// three instructions for 64 weights and one slot, no memory. The cost per product grows with S, 0.6 cycles at S = 25.
#include <cmath>
#include <cstring>
#include <utility>

#include "../aligned.h"
#include "arithmetic.h"
#include "avx512vnni.h"
#include "avx512vnni_math.h"
#include "dot_layout.h"
#include "set_layout.h"

namespace cs::avx512vnni {
namespace {

constexpr int kGroup = 16;     // sets per vector
constexpr int kMaxSlots = 26;  // sums in registers
constexpr int kEntry = 32;     // bytes of one row and group: 16 weights, then 16 kernel ids

struct ActiveRows {
    const int32_t* row;    // [quads * 4]
    const uint8_t* value;  // [quads * 4]
    int quads;
};

// Two entries of 32 bytes, side by side.
CS_AVX512VNNI inline __m512i load_two(const int8_t* low, const int8_t* high) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// Four entries, 32 bytes each, as bytes [set][row] of weights and of kernel ids.
CS_AVX512VNNI inline void interleave(const int8_t* const (&entry)[4], __m512i& weight_s8x64, __m512i& kid_u8x64) {
    const __m512i first = load_two(entry[0], entry[1]), second = load_two(entry[2], entry[3]);
    // [w0 k0 w1 k1], [w2 k2 w3 k3] to [w0 w1 w2 w3] and [k0 k1 k2 k3], 16 bytes each, then to [set][row].
    const __m512i weights = _mm512_shuffle_i32x4(first, second, 0x88), kids = _mm512_shuffle_i32x4(first, second, 0xdd);
    const __m512i transpose_u8x64 = _mm512_set_epi32(
        0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a, 0x39291909, 0x38281808,  //
        0x37271707, 0x36261606, 0x35251505, 0x34241404, 0x33231303, 0x32221202, 0x31211101, 0x30201000);
    weight_s8x64 = _mm512_permutexvar_epi8(transpose_u8x64, weights);
    kid_u8x64 = _mm512_permutexvar_epi8(transpose_u8x64, kids);
}

// Sums [SLOTS, 16] of one group of sets, slots first_slot and on.
template <int SLOTS>
CS_AVX512VNNI void sum_group(const int8_t* group, int64_t row_bytes, const ActiveRows& active, int first_slot,
                             int32_t* sums) {
    __m512i sum_s32x16[SLOTS];
    for (auto& sum : sum_s32x16) sum = _mm512_setzero_si512();
    const __m512i first_u8x64 = _mm512_set1_epi8(static_cast<char>(first_slot));
    for (int n = 0; n < active.quads; ++n) {
        const int8_t* entry[4];
        for (int i = 0; i < 4; ++i) {
            entry[i] = group + active.row[4 * n + i] * row_bytes;
            _mm_prefetch(reinterpret_cast<const char*>(entry[i] + 2 * kEntry), _MM_HINT_T0);
        }
        __m512i weight_s8x64, kid_u8x64;
        interleave(entry, weight_s8x64, kid_u8x64);
        kid_u8x64 = _mm512_sub_epi8(kid_u8x64, first_u8x64);
        int32_t values;
        std::memcpy(&values, active.value + 4 * n, sizeof values);
        const __m512i input_u8x64 = _mm512_set1_epi32(values);
        for (int s = 0; s < SLOTS; ++s) {
            const __mmask64 owned = _mm512_cmpeq_epi8_mask(kid_u8x64, _mm512_set1_epi8(static_cast<char>(s)));
            const __m512i routed_s8x64 = _mm512_maskz_mov_epi8(owned, weight_s8x64);
            sum_s32x16[s] = _mm512_dpbusd_epi32(sum_s32x16[s], input_u8x64, routed_s8x64);
        }
    }
    for (int s = 0; s < SLOTS; ++s) _mm512_store_si512(sums + s * kGroup, sum_s32x16[s]);
}

using SumGroup = void (*)(const int8_t*, int64_t, const ActiveRows&, int, int32_t*);

template <int... kCounts>
SumGroup sum_group_of(int slots, std::integer_sequence<int, kCounts...>) {
    static constexpr SumGroup table[] = {sum_group<kCounts + 1>...};
    return table[slots - 1];
}

// The results of 16 kernels at a time: bias, the sum at each kernel's place, and on their way out.
CS_AVX512VNNI void write_out(const int32_t* sums, const int32_t* place, const int32_t* bias, const float* scale,
                             int kernels, DType dtype, std::byte* out) {
    for (int o = 0; o < kernels; o += 16) {
        const auto mask = static_cast<__mmask16>(kernels - o < 16 ? (1u << (kernels - o)) - 1 : 0xffff);
        const __m512i gathered = _mm512_i32gather_epi32(_mm512_loadu_si512(place + o), sums, 4);
        const __m512i total = _mm512_add_epi32(gathered, _mm512_loadu_si512(bias + o));
        if (!scale) {
            _mm512_mask_storeu_epi32(out + 4 * o, mask, total);
        } else {
            const __m512i result = requantize16(total, _mm512_loadu_ps(scale + o));
            _mm_mask_storeu_epi8(out + o, mask, narrow16(result, dtype == DType::u8));
        }
    }
}

// The active inputs, padded to fours with inputs of value 0.
CS_AVX512VNNI int select(const uint8_t* x, int count, int32_t* row, uint8_t* value) {
    int found = 0;
    for (int i = 0; i < count; i += 64) {
        const __m512i inputs = _mm512_loadu_si512(x + i);
        uint64_t any = _mm512_test_epi8_mask(inputs, inputs);
        if (count - i < 64) any &= (uint64_t{1} << (count - i)) - 1;
        for (; any; any &= any - 1) {
            row[found] = i + __builtin_ctzll(any);
            value[found] = x[row[found]];
            ++found;
        }
    }
    for (; found % 4; ++found) row[found] = value[found] = 0;
    return found;
}

class LinearMasks final : public Step {
  public:
    explicit LinearMasks(const LayerSpec& s)
        : input_(s.input),
          output_(s.output),
          kernels_(s.kernels),
          passes_((s.packed->slots + kMaxSlots - 1) / kMaxSlots),
          slots_((s.packed->slots + passes_ - 1) / passes_),
          sum_group_(sum_group_of(slots_, std::make_integer_sequence<int, kMaxSlots>())),
          sets_(set_layout(s, kGroup, passes_ * slots_, int64_t{groups_of_sets(s, kGroup)} * kEntry)),
          bias_(padded_bias(s)),
          scale_(padded_scale(s)) {}

    size_t scratch_bytes() const override {
        return rows_offset() + (sizeof(int32_t) + 1) * (round_up(input_.size(), 4) + kAlignment);
    }

    void run(const Call& call) const noexcept override {
        auto* sums = reinterpret_cast<int32_t*>(call.scratch);
        auto* row = reinterpret_cast<int32_t*>(call.scratch + rows_offset());
        auto* value = reinterpret_cast<uint8_t*>(row + round_up(input_.size(), 4));
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* x = sample<uint8_t>(call.inputs[0], input_, n);
            const ActiveRows active{row, value, select(x, static_cast<int>(input_.size()), row, value) / 4};
            for (int g = 0; g < sets_.groups; ++g) {
                for (int p = 0; p < passes_; ++p) {
                    int32_t* to = sums + (int64_t{g} * passes_ + p) * slots_ * kGroup;
                    sum_group_(sets_.entry.data() + g * kEntry, sets_.row_bytes, active, p * slots_, to);
                }
            }
            sums[sets_.sums()] = 0;  // the place of kernels that no set has
            for (const SetLayout::Extra& extra : sets_.extras) sums[sets_.place[extra.kernel]] += sums[extra.place];
            const float* scale = scale_.empty() ? nullptr : scale_.data();
            write_out(sums, sets_.place.data(), bias_.data(), scale, kernels_, output_.dtype,
                      sample<std::byte>(call.output, output_, n));
        }
    }

  private:
    size_t rows_offset() const { return round_up(sizeof(int32_t) * (sets_.sums() + 16), kAlignment); }

    Tensor input_, output_;
    int kernels_, passes_, slots_;
    SumGroup sum_group_;
    SetLayout sets_;
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
};

}  // namespace

std::unique_ptr<Step> linear_masks(const LayerSpec& s) {
    if (!has_single_weights(s) || s.input.dtype != DType::u8 || !requantizes_exactly(s)) return nullptr;
    return std::make_unique<LinearMasks>(s);
}

}  // namespace cs::avx512vnni
