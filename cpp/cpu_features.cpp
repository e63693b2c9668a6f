// CPUID says what the processor has; XGETBV says which registers the operating system saves. Both must agree.
#include "cpu_features.h"

#include <array>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace cs {
namespace {

constexpr std::array<const char*, 5> kTierNames = {"scalar", "avx2", "avx512", "avx512vnni", "amx"};
constexpr std::array<const char*, 4> kModeNames = {"", "dense", "sparse-dense", "sparse-sparse"};

#if defined(__x86_64__)

// See kernels/intrinsics.h.
#if defined(CS_EMULATE_AVX512)
constexpr bool kEmulatesAvx512 = true;
#else
constexpr bool kEmulatesAvx512 = false;
#endif

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool has(unsigned word, std::initializer_list<int> bits) {
    for (int bit : bits) {
        if (!(word >> bit & 1)) return false;
    }
    return true;
}

uint64_t enabled_state() {
    if (!has(Leaf(1, 0).c, {27})) return 0;  // OSXSAVE
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
}

bool saves(uint64_t mask) { return (enabled_state() & mask) == mask; }

// AVX2, FMA, BMI1, BMI2, POPCNT, LZCNT.
bool has_avx2() {
    return saves(0x6) && has(Leaf(1, 0).c, {12, 23, 28}) && has(Leaf(7, 0).b, {3, 5, 8}) &&
           has(Leaf(0x80000001, 0).c, {5});
}

// AVX-512 F, DQ, CD, BW, VL.
bool has_avx512() { return has_avx2() && saves(0xe6) && has(Leaf(7, 0).b, {16, 17, 28, 30, 31}); }

// AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ, and GFNI: Ice Lake and later.
bool has_avx512vnni() { return has_avx512() && has(Leaf(7, 0).c, {1, 6, 8, 11, 12, 14}); }

// AMX-TILE and AMX-INT8, saved by the system and permitted to this process.
bool has_amx() {
#if defined(__linux__)
    constexpr int kArchRequestPermission = 0x1023, kTileData = 18;
    return has_avx512vnni() && has(Leaf(7, 0).d, {24, 25}) && saves(0x60000) &&
           syscall(SYS_arch_prctl, kArchRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

std::array<bool, 5> detect() {
    if (kEmulatesAvx512 && has_avx2()) return {true, true, true, true, true};
    return {true, has_avx2(), has_avx512(), has_avx512vnni(), has_amx()};
}

#else

std::array<bool, 5> detect() { return {true, false, false, false, false}; }

#endif

template <class Names>
size_t index_of(const Names& names, const std::string& name, const char* what) {
    for (size_t i = 0; i < names.size(); ++i) {
        if (name == names[i]) return i;
    }
    throw std::invalid_argument("unknown " + std::string(what) + " '" + name + "'");
}

}  // namespace

const char* name(Tier tier) { return kTierNames[static_cast<size_t>(tier)]; }
const char* name(Mode mode) { return kModeNames[static_cast<size_t>(mode)]; }
Tier tier_from_name(const std::string& name) { return static_cast<Tier>(index_of(kTierNames, name, "tier")); }
Mode mode_from_name(const std::string& name) { return static_cast<Mode>(index_of(kModeNames, name, "mode")); }

bool is_available(Tier tier) {
    static const std::array<bool, 5> available = detect();
    return available[static_cast<size_t>(tier)];
}

Tier best_tier() {
    Tier best = Tier::scalar;
    for (Tier tier : {Tier::avx2, Tier::avx512, Tier::avx512vnni, Tier::amx}) {
        if (is_available(tier)) best = tier;
    }
    return best;
}

}  // namespace cs
