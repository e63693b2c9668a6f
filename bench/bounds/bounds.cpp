// What one core can do at best: how often it begins the instructions that bound kernels, and how fast it reads and
// writes each level of its memory.
//
//     bounds L1 L2 L3 PASSES     # bytes of the data caches; prints JSON. bench/bounds.py builds and runs it
//
// All loops take turns in so many passes; of each the fastest run counts, because only interruptions make one slower.
// A loop whose result is wrong ends the program.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "aligned.h"
#include "cpu_features.h"

#define UNROLL _Pragma("GCC unroll 32")
#define FORGET(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

namespace {

constexpr double kRun = 1e-3;                     // seconds of a run, at least
constexpr int kChains = 12;                       // more than any latency times instructions a cycle
constexpr int64_t kMostExact = int64_t{1} << 24;  // a float32 that counts stops there
constexpr int kRows = 4, kKernels = 1500;         // of the scalar loop: weights in the first-level cache
constexpr int kAhead = 4;                         // rows that are prefetched

// `count` times a step, so many times over; returns whether the result is right.
struct Loop {
    const char* name;
    const char* dtype;  // of the products, or "" if it multiplies nothing
    int products;       // of one step
    int count;
    bool (*run)(int64_t times);
};

struct Memory {
    int64_t (*read)(const std::byte*, int64_t, int64_t);
    int64_t (*read_rows)(const std::byte*, int64_t, const int32_t*, int64_t);
    void (*write)(std::byte*, int64_t, int32_t, int64_t);
};

// --- any processor --------------------------------------------------------------------------------------------------

// Additions that wait for one another, one a cycle. Not of a constant, which some processors do while they rename.
bool count_cycles(int64_t times) {
    uint64_t sum = 0, one = 1;
    for (int64_t t = 0; t < times; ++t) {
        UNROLL for (int i = 0; i < 32; ++i) {
            __asm__ volatile("" : "+r"(one));
            sum += one;
            __asm__ volatile("" : "+r"(sum));
        }
    }
    return sum == static_cast<uint64_t>(32 * times);
}

// What the compiler makes of the scalar tier's loop: rows of weights times one input each, added to all sums.
template <class Input, class Weight, class Sum>
__attribute__((noinline)) void add_rows(const Input* x, const Weight* weight, int rows, Sum* __restrict sums,
                                        int kernels) {
    for (int row = 0; row < rows; ++row, weight += kernels) {
        const auto value = static_cast<Sum>(x[row]);
        for (int i = 0; i < kernels; ++i) sums[i] += value * weight[i];
    }
}

template <class Input, class Weight, class Sum>
bool multiply_rows(int64_t times) {
    const std::vector<Input> inputs(kRows, 1);
    const std::vector<Weight> weights(kRows * kKernels, 1);
    std::vector<Sum> sums(kKernels);
    for (int64_t t = 0; t < times; ++t) add_rows(inputs.data(), weights.data(), kRows, sums.data(), kKernels);
    const Sum expected = static_cast<Sum>(kRows * times);
    return std::all_of(sums.begin(), sums.end(), [=](Sum sum) { return sum == expected; });
}

namespace plain {

#define HIDE(x) __asm__ volatile("" : "+m"(x))
#define TIER
constexpr int kBytes = 16;
#include "memory.h"
#undef HIDE
#undef TIER

constexpr Loop kLoops[] = {
    {"add, each waiting for the one before", "", 0, 32, count_cycles},
    {"multiply-add loop as compiled", "int8", 1, kRows * kKernels, multiply_rows<uint8_t, int8_t, int32_t>},
    {"multiply-add loop as compiled", "float32", 1, kRows * kKernels, multiply_rows<float, float, float>},
};

}  // namespace plain
}  // namespace

#if defined(__x86_64__)
#include "kernels/amx_tiles.h"
#include "kernels/intrinsics.h"

#if defined(CS_EMULATE_AVX512)
#define HIDE(x) __asm__ volatile("" : "+m"(x))
#else
#define HIDE(x) __asm__ volatile("" : "+v"(x))
#endif

namespace {

// --- 256 bits -------------------------------------------------------------------------------------------------------

namespace avx2 {

#define TIER CS_TARGET("avx2,fma")
using Integers = __m256i;
using Floats = __m256;
constexpr int kBytes = 32, kLanes = 8;

TIER inline Integers fill(int32_t x) { return _mm256_set1_epi32(x); }
TIER inline Floats fill_floats(float x) { return _mm256_set1_ps(x); }
TIER inline Integers load(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
TIER inline Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
TIER inline void store(int32_t* to, Integers x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
TIER inline Integers broadcast(const int32_t* from) { return _mm256_set1_epi32(*from); }
TIER inline Floats broadcast_float(const float* from) { return _mm256_broadcast_ss(from); }
TIER inline Integers add(Integers a, Integers b) { return _mm256_add_epi32(a, b); }
TIER inline Integers multiply_pairs(Integers a, Integers b) { return _mm256_madd_epi16(a, b); }
TIER inline Integers add_products(Integers sum, Integers a, Integers b) { return add(sum, multiply_pairs(a, b)); }
TIER inline Floats multiply_add_floats(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(a, b, sum); }
TIER inline Integers exchange_neighbours(Integers x) { return _mm256_shuffle_epi32(x, 0xb1); }
TIER inline Floats to_floats(Integers x) { return _mm256_cvtepi32_ps(x); }
TIER inline Integers to_integers(Floats x) { return _mm256_cvtps_epi32(x); }
TIER inline Integers widen(const int8_t* from) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

#include "memory.h"
#include "vectors.h"
#undef TIER

}  // namespace avx2

// --- 512 bits -------------------------------------------------------------------------------------------------------

namespace avx512 {

#define TIER CS_TARGET("avx512f,avx512bw,avx512dq,avx512vl")
using Integers = __m512i;
using Floats = __m512;
constexpr int kBytes = 64, kLanes = 16;

TIER inline Integers fill(int32_t x) { return _mm512_set1_epi32(x); }
TIER inline Floats fill_floats(float x) { return _mm512_set1_ps(x); }
TIER inline Integers load(const int32_t* from) { return _mm512_loadu_si512(from); }
TIER inline Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
TIER inline void store(int32_t* to, Integers x) { _mm512_storeu_si512(to, x); }
TIER inline Integers broadcast(const int32_t* from) { return _mm512_set1_epi32(*from); }
TIER inline Floats broadcast_float(const float* from) { return _mm512_set1_ps(*from); }
TIER inline Integers add(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
TIER inline Integers multiply_pairs(Integers a, Integers b) { return _mm512_madd_epi16(a, b); }
TIER inline Integers add_products(Integers sum, Integers a, Integers b) { return add(sum, multiply_pairs(a, b)); }
TIER inline Floats multiply_add_floats(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
TIER inline Integers exchange_neighbours(Integers x) { return _mm512_shuffle_epi32(x, _MM_PERM_CDAB); }
TIER inline Floats to_floats(Integers x) {
    return _mm512_cvt_roundepi32_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
TIER inline Integers to_integers(Floats x) { return _mm512_cvtps_epi32(x); }
TIER inline Integers widen(const int8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

#include "memory.h"
#include "vectors.h"
#undef TIER

}  // namespace avx512

// --- dot products of bytes ------------------------------------------------------------------------------------------

namespace avx512vnni {

using avx512::broadcast;
using avx512::fill;
using avx512::Integers;
using avx512::kLanes;
using avx512::Lanes;
using avx512::load;
#define TIER CS_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

TIER inline Integers add_products(Integers sum, Integers x, Integers weight) {
    return _mm512_dpbusd_epi32(sum, x, weight);
}

#include "products.h"
#undef TIER

constexpr Loop kLoops[] = {
    {"VPDPBUSD", "int8", 64, kChains, add_all_products},
    {"VPDPBUSD, a factor broadcast by a load: a register tile", "int8", 64, kChains, tile},
};

}  // namespace avx512vnni

// --- tiles ----------------------------------------------------------------------------------------------------------

namespace amx {

using namespace cs::amx;

constexpr int kSumTiles = 6;

// Tiles 0 to 5 hold sums, 6 inputs, 7 weights.
CS_AMX inline void configure(int rows) {
    TileConfiguration configuration;
    for (int tile = 0; tile <= kSumTiles; ++tile) configuration.set(tile, rows);
    configuration.set(kSumTiles + 1, kTileRows);
    configure_tiles(configuration);
}

template <class Value>
bool are_all(const std::vector<Value>& values, Value expected) {
    return std::all_of(values.begin(), values.end(), [=](Value value) { return value == expected; });
}

// TDPBUSD of ROWS positions, 64 inputs and 16 kernels.
template <int ROWS>
CS_AMX bool multiply(int64_t times) {
    const std::vector<uint8_t> ones(kTileBytes, 1);
    std::vector<int32_t> sums(kSumTiles * ROWS * kTileKernels);
    configure(ROWS);
    load_tile<6>(ones.data(), kRowBytes);
    load_tile<7>(ones.data(), kRowBytes);
    clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>(), clear_tile<4>(), clear_tile<5>();
    for (int64_t t = 0; t < times; ++t) {
        multiply_tiles<0, 6, 7, false>();
        multiply_tiles<1, 6, 7, false>();
        multiply_tiles<2, 6, 7, false>();
        multiply_tiles<3, 6, 7, false>();
        multiply_tiles<4, 6, 7, false>();
        multiply_tiles<5, 6, 7, false>();
    }
    int32_t* to = sums.data();
    store_tile<0>(to, kRowBytes), to += ROWS * kTileKernels;
    store_tile<1>(to, kRowBytes), to += ROWS * kTileKernels;
    store_tile<2>(to, kRowBytes), to += ROWS * kTileKernels;
    store_tile<3>(to, kRowBytes), to += ROWS * kTileKernels;
    store_tile<4>(to, kRowBytes), to += ROWS * kTileKernels;
    store_tile<5>(to, kRowBytes);
    release_tiles();
    return are_all(sums, static_cast<int32_t>(64 * times));
}

CS_AMX bool load_tiles(int64_t times) {
    const std::vector<uint8_t> ones(kTileBytes, 1);
    std::vector<uint8_t> loaded(kTileBytes);
    configure(kTileRows);
    for (int64_t t = 0; t < times; ++t) {
        load_tile<0>(ones.data(), kRowBytes);
        load_tile<1>(ones.data(), kRowBytes);
        load_tile<2>(ones.data(), kRowBytes);
        load_tile<3>(ones.data(), kRowBytes);
    }
    store_tile<3>(loaded.data(), kRowBytes);
    release_tiles();
    return are_all(loaded, uint8_t{1});
}

CS_AMX bool store_tiles(int64_t times) {
    const std::vector<uint8_t> ones(kTileBytes, 1);
    std::vector<uint8_t> stored(4 * kTileBytes);
    configure(kTileRows);
    load_tile<0>(ones.data(), kRowBytes);
    for (int64_t t = 0; t < times; ++t) {
        store_tile<0>(stored.data(), kRowBytes);
        store_tile<0>(stored.data() + kTileBytes, kRowBytes);
        store_tile<0>(stored.data() + 2 * kTileBytes, kRowBytes);
        store_tile<0>(stored.data() + 3 * kTileBytes, kRowBytes);
    }
    release_tiles();
    return are_all(stored, uint8_t{1});
}

constexpr Loop kLoops[] = {
    {"TDPBUSD of 16 rows", "int8", 16 * 64 * 16, kSumTiles, multiply<16>},
    {"TDPBUSD of 10 rows", "int8", 10 * 64 * 16, kSumTiles, multiply<10>},
    {"TILELOADD of 16 rows", "", 0, 4, load_tiles},
    {"TILESTORED of 16 rows", "", 0, 4, store_tiles},
};

}  // namespace amx
}  // namespace
#endif

namespace {

// --- measuring ------------------------------------------------------------------------------------------------------

void require(bool right, const std::string& what) {
    if (right) return;
    std::fprintf(stderr, "bounds: wrong result of: %s\n", what.c_str());
    std::exit(1);
}

// Something that is repeated, its facts as JSON, and how much of it one repetition does.
struct Measured {
    std::string list, facts;
    double amount;
    std::function<bool(int64_t)> run;
    int64_t times = 1;
    double best = std::numeric_limits<double>::infinity();  // seconds of a repetition

    double seconds() const {
        const auto start = std::chrono::steady_clock::now();
        const bool right = run(times);
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        require(right, facts);
        return taken.count();
    }

    void warm_up() {
        while (seconds() < kRun) times *= 2;
    }

    void take_turn() { best = std::min(best, seconds() / static_cast<double>(times)); }
};

template <size_t kCount>
void add_loops(cs::Tier tier, const Loop (&loops)[kCount], std::vector<Measured>& all) {
    if (!cs::is_available(tier)) return;
    for (const Loop& loop : loops) {
        const std::string facts = "\"tier\": \"" + std::string(cs::name(tier)) + "\", \"name\": \"" + loop.name +
                                  "\", \"dtype\": \"" + loop.dtype +
                                  "\", \"products\": " + std::to_string(loop.products);
        all.push_back({"loops", facts, static_cast<double>(loop.count), loop.run});
    }
}

Memory widest() {
#if defined(__x86_64__)
    if (cs::is_available(cs::Tier::avx512)) return avx512::kMemory;
    if (cs::is_available(cs::Tier::avx2)) return avx2::kMemory;
#endif
    return plain::kMemory;
}

struct Level {
    const char* name;
    int64_t bytes;  // that are read or written
};

// Half of each cache; far more than the last one for memory.
std::vector<Level> levels(int64_t l1, int64_t l2, int64_t l3) {
    constexpr int64_t kUnit = 1 << 14, kMost = int64_t{1} << 29;
    return {{"L1", l1 / 2 / kUnit * kUnit},
            {"L2", l2 / 2 / kUnit * kUnit},
            {"L3", std::min(l3 / 2, 8 * l2) / kUnit * kUnit},
            {"memory", std::min(4 * l3, kMost) / kUnit * kUnit}};
}

std::string facts_of(const char* access, const Level& level, int64_t row_bytes) {
    return "\"access\": \"" + std::string(access) + "\", \"level\": \"" + level.name +
           "\", \"row_bytes\": " + std::to_string(row_bytes) + ", \"of_bytes\": " + std::to_string(level.bytes);
}

// Rows in a random order, kAhead more than there are.
std::vector<int32_t> random_order(int64_t rows) {
    std::vector<int32_t> order(rows);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::minstd_rand(1));
    order.insert(order.end(), order.begin(), order.begin() + std::min<int64_t>(kAhead, rows));
    return order;
}

// Goes on with the next rows from call to call, so that a large memory stays out of the caches.
Measured reading_of_rows(const Memory& memory, const Level& level, int64_t row_bytes, const std::byte* ones) {
    const int64_t rows = level.bytes / row_bytes, each = std::min<int64_t>(rows, (1 << 20) / row_bytes);
    auto order = std::make_shared<std::vector<int32_t>>(random_order(rows));
    auto first = std::make_shared<int64_t>(0);
    const auto run = [=](int64_t times) {
        int64_t sum = 0;
        for (int64_t t = 0; t < times; ++t, *first += each) {
            if (*first + each > rows) *first = 0;
            sum += memory.read_rows(ones, row_bytes, order->data() + *first, each);
        }
        return sum == times * each * row_bytes / 4;
    };
    return {"memory", facts_of("read", level, row_bytes), static_cast<double>(each * row_bytes), run};
}

void add_memory(const std::vector<Level>& levels, const std::byte* ones, std::byte* written,
                std::vector<Measured>& all) {
    const Memory memory = widest();
    for (const Level& level : levels) {
        const auto bytes = static_cast<double>(level.bytes);
        all.push_back({"memory", facts_of("read", level, 0), bytes, [=](int64_t times) {
                           return memory.read(ones, level.bytes, times) == times * level.bytes / 4;
                       }});
        all.push_back({"memory", facts_of("write", level, 0), bytes, [=](int64_t times) {
                           memory.write(written, level.bytes, static_cast<int32_t>(times), times);
                           const auto* values = reinterpret_cast<const int32_t*>(written);
                           return values[0] == times && values[level.bytes / 4 - 1] == times;
                       }});
        if (std::strcmp(level.name, "L1") == 0) continue;  // rows there are at hand anyway
        for (int64_t row_bytes = 512; row_bytes <= 1 << 14; row_bytes *= 2) {
            all.push_back(reading_of_rows(memory, level, row_bytes, ones));
        }
    }
}

void print_list(const std::vector<Measured>& all, const std::string& list, const char* unit) {
    std::printf("\"%s\": [", list.c_str());
    const char* comma = "\n";
    for (const Measured& m : all) {
        if (m.list != list) continue;
        std::printf("%s  {%s, \"%s\": %.4f}", comma, m.facts.c_str(), unit, m.amount / m.best * 1e-9);
        comma = ",\n";
    }
    std::printf("\n]");
}

void measure(int64_t l1, int64_t l2, int64_t l3, int64_t passes) {
    std::vector<Measured> all;
    add_loops(cs::Tier::scalar, plain::kLoops, all);
#if defined(__x86_64__)
    add_loops(cs::Tier::avx2, avx2::kVectorLoops, all);
    add_loops(cs::Tier::avx512, avx512::kVectorLoops, all);
    add_loops(cs::Tier::avx512vnni, avx512vnni::kLoops, all);
    add_loops(cs::Tier::amx, amx::kLoops, all);
#endif
    const auto found = levels(l1, l2, l3);
    const cs::AlignedVector<int32_t> ones(found.back().bytes / 4, 1);  // in such pages as weights are
    cs::AlignedVector<int32_t> written(ones.size());
    add_memory(found, reinterpret_cast<const std::byte*>(ones.data()), reinterpret_cast<std::byte*>(written.data()),
               all);
    for (Measured& m : all) m.warm_up();
    for (int pass = 0; pass < passes; ++pass) {
        for (Measured& m : all) m.take_turn();
    }
    std::printf("{");
    print_list(all, "loops", "per_ns");
    std::printf(", ");
    print_list(all, "memory", "bytes_per_ns");
    std::printf("}\n");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) {
        std::fprintf(stderr,
                     "usage: bounds L1 L2 L3 PASSES: bytes of the data caches, and how often all is measured\n");
        return 2;
    }
    measure(std::atoll(arguments[1]), std::atoll(arguments[2]), std::atoll(arguments[3]), std::atoll(arguments[4]));
}
