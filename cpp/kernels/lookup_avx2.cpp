// Tables of 256 bytes, avx2 tier.
//
// Why it is fast: VPSHUFB looks 32 bytes up among 16, and gives 0 where the top bit of an index is set. A saturating
// addition sets that bit of every index beyond the 16 entries of a row, so 16 rows in turn need no comparison and no
// blend: four instructions each, for 64 bytes a row that is loaded once.
#include <cstring>

#include "arithmetic.h"
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs::avx2 {
namespace {

constexpr int kBytes = 32, kRow = 16;

// Adds the entries that lie in one row; an index is what is left of it below the rows before.
CS_AVX2 inline __m256i with_row(__m256i found, __m256i index, __m256i row) {
    return _mm256_or_si256(found, _mm256_shuffle_epi8(row, _mm256_adds_epu8(index, _mm256_set1_epi8(0x70))));
}

// Reads whole vectors: there is slack behind every tensor.
CS_AVX2 void look_up(const uint8_t* table, const uint8_t* x, int64_t size, uint8_t* out) {
    const __m256i step = _mm256_set1_epi8(kRow);
    for (int64_t i = 0; i < size; i += 2 * kBytes) {
        __m256i index[2], found[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        index[0] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
        index[1] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i + (i + kBytes < size ? kBytes : 0)));
        for (int r = 0; r < 256; r += kRow) {
            const __m256i row =
                _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + r)));
            for (int j = 0; j < 2; ++j) {
                found[j] = with_row(found[j], index[j], row);
                index[j] = _mm256_sub_epi8(index[j], step);
            }
        }
        if (i + 2 * kBytes <= size) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), found[0]);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i + kBytes), found[1]);
        } else {
            std::memcpy(out + i, found, size - i);
        }
    }
}

class Lookup final : public Step {
  public:
    explicit Lookup(const LookupSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            look_up(spec_.table.data(), sample<uint8_t>(call.inputs[0], spec_.input, n), spec_.input.size(),
                    sample<uint8_t>(call.output, spec_.output, n));
        }
    }

  private:
    LookupSpec spec_;
};

}  // namespace

std::unique_ptr<Step> lookup(const LookupSpec& spec) { return std::make_unique<Lookup>(spec); }

}  // namespace cs::avx2
