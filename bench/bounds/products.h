// Sums of products of integers. Included once per tier that multiplies them in an instruction of its own, inside its
// namespace, after `Lanes` of vectors.h and the tier's `add_products`.

// What a sum of products takes at least.
TIER bool add_all_products(int64_t times) {
    Integers sum[kChains], x = fill(1), weight = fill(1);
    UNROLL for (auto& s : sum) s = fill(0);
    for (int64_t t = 0; t < times; ++t) {
        HIDE(weight);
        UNROLL for (auto& s : sum) {
            HIDE(x);
            s = add_products(s, x, weight);
            HIDE(s);
        }
    }
    return Lanes(sum).are(times);
}

// The same in a tile of registers: a weight is loaded once for all positions, each input is broadcast from memory.
TIER bool tile(int64_t times) {
    alignas(64) int32_t inputs[kChains], weights[kLanes];
    for (int i = 0; i < kChains; ++i) inputs[i] = i + 1;
    std::fill_n(weights, kLanes, 1);
    Integers sum[kChains];
    UNROLL for (auto& s : sum) s = fill(0);
    for (int64_t t = 0; t < times; ++t) {
        FORGET(inputs);
        FORGET(weights);
        const Integers weight = load(weights);
        UNROLL for (int i = 0; i < kChains; ++i) sum[i] = add_products(sum[i], broadcast(inputs + i), weight);
    }
    return Lanes(sum).are(times, times);
}
