// Reading and writing of memory in vectors of kBytes. Included once per width, inside a namespace that has TIER and
// kBytes. All memory that is read holds 32-bit ones, so that a sum tells how much was read.

typedef int32_t Line __attribute__((vector_size(kBytes), may_alias));

constexpr int kSums = 8;  // vectors under way

TIER inline int64_t total(const Line* sums) {
    int64_t all = 0;
    for (int i = 0; i < kSums; ++i) {
        for (size_t lane = 0; lane < kBytes / sizeof(int32_t); ++lane) all += sums[i][lane];
    }
    return all;
}

// Adds what lies in `bytes`, a multiple of kSums * kBytes.
TIER inline void add_up(const std::byte* from, int64_t bytes, Line* sum) {
    for (const std::byte* end = from + bytes; from < end; from += kSums * kBytes) {
        UNROLL for (int i = 0; i < kSums; ++i) sum[i] += *reinterpret_cast<const Line*>(from + i * kBytes);
    }
}

// The sum of `bytes`, read straight so many times.
TIER int64_t read(const std::byte* from, int64_t bytes, int64_t times) {
    Line sum[kSums] = {};
    for (int64_t t = 0; t < times; ++t) {
        FORGET(from);
        add_up(from, bytes, sum);
    }
    return total(sum);
}

// The sum of rows of `bytes` each in the order given, each prefetched while the one kAhead before it is read: as the
// rows of active inputs are. order: has kAhead more.
TIER int64_t read_rows(const std::byte* from, int64_t bytes, const int32_t* order, int64_t count) {
    Line sum[kSums] = {};
    for (int64_t n = 0; n < count; ++n) {
        const std::byte* row = from + order[n] * bytes;
        const std::byte* next = from + order[n + kAhead] * bytes;
        for (int64_t i = 0; i < bytes; i += kSums * kBytes) {
            for (int line = 0; line < kSums * kBytes; line += 64) __builtin_prefetch(next + i + line);
            add_up(row + i, kSums * kBytes, sum);
        }
    }
    return total(sum);
}

// Writes `value` all over, so many times.
TIER void write(std::byte* to, int64_t bytes, int32_t value, int64_t times) {
    Line x = Line{} + value;
    HIDE(x);
    for (int64_t t = 0; t < times; ++t) {
        for (std::byte *at = to, *end = to + bytes; at < end; at += kSums * kBytes) {
            UNROLL for (int i = 0; i < kSums; ++i) * reinterpret_cast<Line*>(at + i * kBytes) = x;
        }
        FORGET(to);
    }
}

constexpr Memory kMemory = {read, read_rows, write};
