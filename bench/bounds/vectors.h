// Loops of the instructions that bound kernels, in vectors of any width. Included once per tier, inside its namespace,
// after the tier's vocabulary: TIER, Integers, Floats, kLanes and the functions that the loops call.
//
// Each loop repeats one instruction, or one step of a kernel, on kChains independent values, and returns whether their
// result is right. The compiler must neither drop nor merge what is repeated: HIDE makes a value unknown to it, FORGET
// all memory that it can reach through a pointer. Neither is an instruction.

// The lanes of all chains, as memory: an array of vectors would else be kept there throughout.
struct Lanes {
    int32_t lane[kChains][kLanes];

    TIER explicit Lanes(const Integers (&x)[kChains]) { UNROLL for (int i = 0; i < kChains; ++i) store(lane[i], x[i]); }

    TIER explicit Lanes(const Floats (&x)[kChains]) {
        UNROLL for (int i = 0; i < kChains; ++i) store(lane[i], to_integers(x[i]));
    }

    // Whether every lane of chain i is first + i * step, modulo 2**32.
    bool are(int64_t first, int64_t step = 0) const {
        bool right = true;
        for (int i = 0; i < kChains; ++i) {
            for (int32_t found : lane[i]) right &= found == static_cast<int32_t>(first + i * step);
        }
        return right;
    }
};

// VPADDD.
TIER bool add_integers(int64_t times) {
    Integers sum[kChains], one = fill(1);
    UNROLL for (auto& s : sum) s = fill(0);
    HIDE(one);
    for (int64_t t = 0; t < times; ++t) {
        UNROLL for (auto& s : sum) {
            s = add(s, one);
            HIDE(s);
        }
    }
    return Lanes(sum).are(times);
}

// VPMADDWD. The pairs (-1, 0) change the sign each time.
TIER bool multiply(int64_t times) {
    Integers x[kChains], weight = fill(0xffff);
    HIDE(weight);
    UNROLL for (int i = 0; i < kChains; ++i) x[i] = fill(i + 1);
    for (int64_t t = 0; t < times; ++t) {
        UNROLL for (auto& one : x) {
            one = multiply_pairs(one, weight);
            HIDE(one);
        }
    }
    const int sign = times % 2 ? -1 : 1;
    return Lanes(x).are(sign, sign);
}

#include "products.h"

// The step of a packed row: weights of a byte each are widened, multiplied by one input, added to sums in memory.
TIER bool packed_row(int64_t times) {
    constexpr int kEntries = 4 * kChains;
    alignas(64) int32_t sums[kEntries * kLanes] = {};
    alignas(64) int8_t weights[kEntries * kLanes];
    std::fill_n(weights, kEntries * kLanes, int8_t{3});
    Integers x = fill(1);
    HIDE(x);
    for (int64_t t = 0; t < times; ++t) {
        for (int entry = 0; entry < kEntries; entry += kChains) {
            FORGET(sums);
            FORGET(weights);
            UNROLL for (int i = 0; i < kChains; ++i) {
                const int place = (entry + i) * kLanes;
                store(sums + place, add(load(sums + place), multiply_pairs(x, widen(weights + place))));
            }
        }
    }
    return std::all_of(sums, sums + kEntries * kLanes, [=](int32_t s) { return s == static_cast<int32_t>(3 * times); });
}

// Fused multiply-add of float32. Sums are exact up to 2**24.
TIER bool multiply_add_floats(int64_t times) {
    Floats sum[kChains], x = fill_floats(1), weight = fill_floats(1);
    UNROLL for (auto& s : sum) s = fill_floats(0);
    HIDE(x);
    HIDE(weight);
    for (int64_t t = 0; t < times; ++t) {
        UNROLL for (auto& s : sum) {
            s = multiply_add_floats(s, x, weight);
            HIDE(s);
        }
    }
    return Lanes(sum).are(std::min(times, kMostExact));
}

TIER bool tile_of_floats(int64_t times) {
    alignas(64) float inputs[kChains], weights[kLanes];
    std::fill_n(inputs, kChains, 1.0f);
    std::fill_n(weights, kLanes, 1.0f);
    Floats sum[kChains];
    UNROLL for (auto& s : sum) s = fill_floats(0);
    for (int64_t t = 0; t < times; ++t) {
        FORGET(inputs);
        FORGET(weights);
        const Floats weight = load_floats(weights);
        UNROLL for (int i = 0; i < kChains; ++i) {
            sum[i] = multiply_add_floats(sum[i], broadcast_float(inputs + i), weight);
        }
    }
    return Lanes(sum).are(std::min(times, kMostExact));
}

// VPSHUFD, which exchanges neighbours.
TIER bool shuffle(int64_t times) {
    int32_t lanes[kLanes];
    std::iota(lanes, lanes + kLanes, 0);
    Integers x[kChains];
    UNROLL for (auto& one : x) one = load(lanes);
    for (int64_t t = 0; t < times; ++t) {
        UNROLL for (auto& one : x) {
            one = exchange_neighbours(one);
            HIDE(one);
        }
    }
    bool right = true;
    for (const auto& chain : Lanes(x).lane) {
        for (int i = 0; i < kLanes; ++i) right &= chain[i] == (i ^ static_cast<int>(times % 2));
    }
    return right;
}

// VCVTDQ2PS and back: two conversions.
TIER bool convert(int64_t times) {
    Integers x[kChains];
    UNROLL for (int i = 0; i < kChains; ++i) x[i] = fill(i + 1);
    for (int64_t t = 0; t < times; ++t) {
        UNROLL for (auto& one : x) {
            Floats f = to_floats(one);
            HIDE(f);
            one = to_integers(f);
            HIDE(one);
        }
    }
    return Lanes(x).are(1, 1);
}

// Vectors made of what lies in the first-level cache: as it is, or widened by VPMOVSXBD.
template <class Number, Integers (*from_memory)(const Number*)>
TIER bool load_all(int64_t times) {
    alignas(64) Number numbers[kChains * kLanes];
    for (int i = 0; i < kChains * kLanes; ++i) numbers[i] = static_cast<Number>(i / kLanes + 1);
    Integers x[kChains];
    UNROLL for (auto& one : x) one = fill(0);
    for (int64_t t = 0; t < times; ++t) {
        FORGET(numbers);
        UNROLL for (int i = 0; i < kChains; ++i) {
            x[i] = from_memory(numbers + i * kLanes);
            HIDE(x[i]);
        }
    }
    return Lanes(x).are(1, 1);
}

TIER bool store_vectors(int64_t times) {
    alignas(64) int32_t lanes[kChains * kLanes] = {};
    Integers x = fill(7);
    HIDE(x);
    for (int64_t t = 0; t < times; ++t) {
        UNROLL for (int i = 0; i < kChains; ++i) store(lanes + i * kLanes, x);
        FORGET(lanes);
    }
    return std::all_of(lanes, lanes + kChains * kLanes, [](int32_t lane) { return lane == 7; });
}

// A store, a load of what it stored, and an addition, each waiting for the one before: the sums of one kernel.
TIER bool store_then_load(int64_t times) {
    alignas(64) int32_t lanes[kLanes] = {};
    Integers one = fill(1);
    HIDE(one);
    for (int64_t t = 0; t < times; ++t) {
        store(lanes, add(load(lanes), one));
        FORGET(lanes);
    }
    return std::all_of(lanes, lanes + kLanes, [=](int32_t lane) { return lane == static_cast<int32_t>(times); });
}

constexpr Loop kVectorLoops[] = {
    {"VPADDD", "", 0, kChains, add_integers},
    {"VPMADDWD", "int8", 2 * kLanes, kChains, multiply},
    {"VPMADDWD + VPADDD", "int8", 2 * kLanes, kChains, add_all_products},
    {"VPMADDWD + VPADDD, a factor broadcast by a load: a register tile", "int8", 2 * kLanes, kChains, tile},
    {"VPMADDWD + VPADDD, weights widened by a load, sums in memory: a packed row", "int8", kLanes, 4 * kChains,
     packed_row},
    {"VFMADDPS", "float32", kLanes, kChains, multiply_add_floats},
    {"VFMADDPS, a factor broadcast by a load: a register tile", "float32", kLanes, kChains, tile_of_floats},
    {"VPSHUFD", "", 0, kChains, shuffle},
    {"VCVTDQ2PS or VCVTPS2DQ", "", 0, 2 * kChains, convert},
    {"VPMOVSXBD from the first cache", "", 0, kChains, load_all<int8_t, widen>},
    {"load from the first cache", "", 0, kChains, load_all<int32_t, load>},
    {"store to the first cache", "", 0, kChains, store_vectors},
    {"store, load of the same, VPADDD, each waiting for the one before", "", 0, 1, store_then_load},
};
