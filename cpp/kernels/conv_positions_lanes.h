// Convolution, sparse-dense, int8 and float32, with positions in lanes: one body for the tiers without 8-bit dot
// products. A file that includes it includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h).
//
// Why it is fast: every kernel has a list of its own, so that weights of any pattern cost what they are worth. The
// image is turned to planes, one for each unit of inputs (two int8, or one float32), and its lines follow upon one
// another: a weight is broadcast once and multiplied by vectors of neighbouring positions straight from memory, up to
// 12 vectors (28 with 32 registers), whose sums stay in registers. What falls between the lines is computed, too, and
// left out.
#pragma once

#include <limits>

#include "conv_lanes.h"

namespace cs {
namespace {

// Eight lines of eight numbers, so many numbers apart, to lines of what were columns.
CS_TIER inline void transpose8(const int32_t* from, int64_t from_row, int32_t* to, int64_t to_row) {
    __m256 half[8];  // of columns 0 to 3, and of 4 to 7: lines 0 and 4, 1 and 5, ...
    for (int i = 0; i < 4; ++i) {
        const __m256 upper = _mm256_loadu_ps(reinterpret_cast<const float*>(from + i * from_row));
        const __m256 lower = _mm256_loadu_ps(reinterpret_cast<const float*>(from + (i + 4) * from_row));
        half[i] = _mm256_permute2f128_ps(upper, lower, 0x20);
        half[i + 4] = _mm256_permute2f128_ps(upper, lower, 0x31);
    }
    for (int i = 0; i < 8; i += 4) {  // within halves: four lines of four numbers
        const __m256 low01 = _mm256_unpacklo_ps(half[i], half[i + 1]);
        const __m256 high01 = _mm256_unpackhi_ps(half[i], half[i + 1]);
        const __m256 low23 = _mm256_unpacklo_ps(half[i + 2], half[i + 3]);
        const __m256 high23 = _mm256_unpackhi_ps(half[i + 2], half[i + 3]);
        auto* column = reinterpret_cast<float*>(to + i * to_row);
        _mm256_storeu_ps(column, _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(1, 0, 1, 0)));
        _mm256_storeu_ps(column + to_row, _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(3, 2, 3, 2)));
        _mm256_storeu_ps(column + 2 * to_row, _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(1, 0, 1, 0)));
        _mm256_storeu_ps(column + 3 * to_row, _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(3, 2, 3, 2)));
    }
}

// The same of as many lines and numbers as a vector has lanes.
CS_TIER inline void transpose_lanes(const int32_t* from, int64_t from_row, int32_t* to, int64_t to_row) {
    for (int y = 0; y < kLanes; y += 8) {
        for (int x = 0; x < kLanes; x += 8) transpose8(from + y * from_row + x, from_row, to + x * to_row + y, to_row);
    }
}

template <class P>
struct KernelUnit {
    int32_t offset;  // in bytes, from where a window begins in the first plane
    typename P::Weight weight[P::kInputs];
};

// Sums of one kernel at VECTORS * kLanes positions.
template <class P, int VECTORS>
CS_TIER void sum_positions(const KernelUnit<P>* unit, const KernelUnit<P>* end, const std::byte* from,
                           const int32_t* bias, int32_t* sums) {
    typename P::Vector sum[VECTORS];
    CS_UNROLL for (auto& one : sum) one = P::broadcast(bias);
    for (; unit < end; ++unit) {
        const auto weight = P::broadcast(unit->weight);
        const std::byte* input = from + unit->offset;
        CS_UNROLL for (int v = 0; v < VECTORS; ++v) {
            sum[v] = P::multiply_add(sum[v], P::load(input + v * kLanes * 4), weight);
        }
    }
    CS_UNROLL for (int v = 0; v < VECTORS; ++v) P::store(sums + v * kLanes, sum[v]);
}

template <class P>
using SumPositions = void (*)(const KernelUnit<P>*, const KernelUnit<P>*, const std::byte*, const int32_t*, int32_t*);

template <class P, int... kCounts>
SumPositions<P> sum_positions_of(int vectors, std::integer_sequence<int, kCounts...>) {
    static constexpr SumPositions<P> all[] = {sum_positions<P, kCounts + 1>...};
    return all[vectors - 1];
}

// Rows of results that are computed together, so that tiles are full.
constexpr int kTogether = 2 * kTile * kLanes;  // positions, about

template <class P>
class ConvPositions final : public Step {
  public:
    explicit ConvPositions(const LayerSpec& s)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          kernels_(s.kernels),
          pool_(s.pool_h),
          height_(padded_height(s)),
          width_(padded_width(s)),
          planes_(static_cast<int>(round_up((input_.channels + P::kInputs - 1) / P::kInputs, kLanes))),
          units_(kernels_),
          bias_(padded_bias(s)),
          scale_(padded_scale(s)),
          in_float_(requantizes_in_float(s)) {
        list_units(s);
        rows_ = std::clamp(kTogether / width_ / pool_, 1, output_.height);
        const int vectors = (rows_ * pool_ * width_ + kLanes - 1) / kLanes;
        tiles_ = (vectors + kTile - 1) / kTile;
        tile_ = (vectors + tiles_ - 1) / tiles_;
        sum_positions_ = sum_positions_of<P>(tile_, std::make_integer_sequence<int, kTile>());
    }

    size_t scratch_bytes() const override { return layout().end; }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(in_float_);
        const Layout at = layout();
        auto* by_kernel = reinterpret_cast<int32_t*>(call.scratch + at.by_kernel);
        auto* by_position = reinterpret_cast<int32_t*>(call.scratch + at.by_position);
        for (int64_t n = 0; n < call.samples; ++n) {
            turn(sample<std::byte>(call.inputs[0], input_, n), call.scratch + at.line, call.scratch);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int first = 0; first < output_.height; first += rows_) {
                const int y = std::min(first, output_.height - rows_);  // the last ones begin early
                const std::byte* from = call.scratch + int64_t{y} * pool_ * width_ * 4;
                for (int kernel = 0; kernel < kernels_; kernel += kLanes) {
                    sum_kernels(kernel, from, by_kernel);
                    turn_sums(by_kernel, by_position);
                    write_rows(by_position, y, kernel, out);
                }
            }
        }
    }

  private:
    using Input = typename P::Input;

    int together() const { return tiles_ * tile_ * kLanes; }  // positions
    // Squares may end behind the image; planes begin at whole vectors.
    int64_t plane_size() const { return round_up(int64_t{height_} * width_, kLanes) + kLanes; }
    size_t line_bytes() const { return round_up(input_.width, kLanes) * planes_ * 4; }

    // Where its parts lie in the scratch memory, behind the planes.
    struct Layout {
        size_t line, by_kernel, by_position, end;
    };

    Layout layout() const {
        Layout at;
        const int64_t beyond = together() + int64_t{window_.kernel_h} * width_;  // what the last tile may read
        at.line = round_up((planes_ * plane_size() + beyond) * 4, kAlignment);
        at.by_kernel = at.line + round_up(line_bytes(), kAlignment);
        at.by_position = at.by_kernel + round_up(sizeof(int32_t) * together() * kLanes, kAlignment);
        at.end = at.by_position + sizeof(int32_t) * together() * kLanes;
        return at;
    }

    void list_units(const LayerSpec& s) {
        const auto* dense = static_cast<const typename P::Source*>(s.dense);
        for (int first = 0; first < input_.channels; first += P::kInputs) {
            const int inputs = std::min(P::kInputs, input_.channels - first);
            for (int tap = 0; tap < window_.kernel_h * window_.kernel_w; ++tap) {
                const int64_t position = int64_t{tap} / window_.kernel_w * width_ + tap % window_.kernel_w;
                const int64_t offset = (first / P::kInputs * plane_size() + position) * 4;
                const auto* row = dense + (int64_t{tap} * input_.channels + first) * kernels_;
                for (int kernel = 0; kernel < kernels_; ++kernel) {
                    KernelUnit<P> unit{static_cast<int32_t>(offset), {}};
                    bool any = false;
                    for (int i = 0; i < inputs; ++i) {
                        unit.weight[i] = row[int64_t{i} * kernels_ + kernel];
                        any |= unit.weight[i] != 0;
                    }
                    if (any) units_[kernel].push_back(unit);
                }
            }
        }
    }

    // Image to planes [planes, height, width, kInputs].
    void turn(const std::byte* image, std::byte* line, std::byte* planes) const {
        const bool is_padded = height_ > input_.height || width_ > input_.width;
        const size_t written = is_padded ? 0 : planes_ * plane_size() * 4;
        std::memset(planes + written, 0, layout().line - written);
        std::memset(line, 0, line_bytes());
        with_elements<P>(image, input_.dtype, [&](const auto* x) { turn_lines(x, line, planes); });
    }

    // By way of a line [width, planes, kInputs], in squares, the last of which bring zeros behind the line.
    template <class X>
    CS_TIER void turn_lines(const X* image, std::byte* line, std::byte* planes) const {
        auto* to = reinterpret_cast<int32_t*>(planes) + int64_t{window_.pad_top} * width_ + window_.pad_left;
        for (int y = 0; y < input_.height; ++y, to += width_) {
            auto* position = reinterpret_cast<Input*>(line);
            for (int x = 0; x < input_.width; ++x, position += planes_ * P::kInputs, image += input_.channels) {
                for (int c = 0; c < input_.channels; ++c) position[c] = image[c];
            }
            for (int x = 0; x < input_.width; x += kLanes) {
                for (int plane = 0; plane < planes_; plane += kLanes) {
                    transpose_lanes(reinterpret_cast<int32_t*>(line) + int64_t{x} * planes_ + plane, planes_,
                                    to + plane * plane_size() + x, plane_size());
                }
            }
        }
    }

    // Sums of as many kernels as a vector has lanes: [kLanes, together()].
    void sum_kernels(int first, const std::byte* from, int32_t* sums) const {
        for (int kernel = first; kernel < std::min(first + kLanes, kernels_); ++kernel) {
            const auto* unit = units_[kernel].data();
            const auto* end = unit + units_[kernel].size();
            for (int tile = 0; tile < tiles_; ++tile, sums += tile_ * kLanes) {
                sum_positions_(unit, end, from + int64_t{tile} * tile_ * kLanes * 4, &bias_[kernel], sums);
            }
        }
    }

    // To [together(), kLanes]. What is there of kernels that do not exist is not used.
    CS_TIER void turn_sums(const int32_t* by_kernel, int32_t* by_position) const {
        for (int i = 0; i < together(); i += kLanes) {
            transpose_lanes(by_kernel + i, together(), by_position + int64_t{i} * kLanes, kLanes);
        }
    }

    // Rows of results, from y on.
    CS_TIER void write_rows(int32_t* sums, int y, int kernel, std::byte* out) const {
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        const int64_t pixel = kernels_ * element;
        Destination to{out + y * int64_t{output_.width} * pixel + kernel * element,
                       pixel,
                       std::min(kLanes, kernels_ - kernel),
                       scale_.empty() ? nullptr : scale_.data() + kernel,
                       output_.dtype,
                       in_float_};
        for (int i = 0; i < rows_; ++i, to.output += output_.width * pixel, sums += int64_t{pool_} * width_ * kLanes) {
            if (pool_ == 2) pool_row(sums);
            finish<P, 1>(reinterpret_cast<const typename P::Vector*>(sums), output_.width, to);
        }
    }

    // The largest of each 2 x 2 sums, in place of the first ones.
    CS_TIER void pool_row(int32_t* sums) const {
        const int32_t* from = sums;
        const int64_t line = int64_t{width_} * kLanes;
        for (int x = 0; x < output_.width; ++x, from += 2 * kLanes, sums += kLanes) {
            const auto upper = P::max(P::load(from), P::load(from + kLanes));
            P::store(sums, P::max(upper, P::max(P::load(from + line), P::load(from + line + kLanes))));
        }
    }

    Tensor input_, output_;
    Window window_;
    int kernels_, pool_;
    int height_, width_;  // of the image with its padding
    int planes_;
    int rows_;  // of results that are computed together, in tiles_ tiles of tile_ vectors
    int tiles_, tile_;
    std::vector<std::vector<KernelUnit<P>>> units_;  // of each kernel
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
    bool in_float_;
    SumPositions<P> sum_positions_;
};

std::unique_ptr<Step> make_conv_positions(const LayerSpec& s) {
    if (!s.packed || s.packed->v >= kLanes) return nullptr;  // vectors of kernels suit wide blocks better
    if (is_linear(s) || s.groups > 1 || s.pool_h != s.pool_w || s.pool_h > 2) return nullptr;
    if (s.window.stride_h * s.window.stride_w > 1) return nullptr;
    // Offsets into the planes have 32 bits.
    const int64_t width = s.conv_width + s.window.kernel_w, height = s.conv_height + s.window.kernel_h;
    const int64_t planes = s.input.channels + kLanes;
    if (planes * (width * height + 2 * kLanes) * 4 > std::numeric_limits<int32_t>::max()) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<ConvPositions<Floats>>(s);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<ConvPositions<Pairs>>(s) : nullptr;
}

}  // namespace
}  // namespace cs
