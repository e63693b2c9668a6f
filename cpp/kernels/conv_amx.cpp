// Convolution with int8 weights, dense and sparse-dense, amx tier.
//
// Why it is fast: TDPBUSD multiplies a tile of up to 16 positions x 64 inputs by a tile of 64 inputs x 16 kernels in as
// many cycles as there are positions, and loads of tiles run beside it. The rows of an input tile are windows of
// neighbouring positions, read from the image where they lie: the inputs of one window line are contiguous, and where
// they are no multiple of 64 the rest of the tile meets zero weights. The sums of up to six tiles of positions stay in
// tile registers over the whole window, so that every tile of weights is loaded once for all six.
//
// Tiles of weights that are all zero are not in the list: with 64 channels a tile is one tap for 16 kernels, and blocks
// of 64 x 8 or 64 x 16 save multiplications in proportion to their sparsity.
#include <algorithm>
#include <array>

#include "amx.h"
#include "amx_math.h"
#include "arithmetic.h"
#include "padded_image.h"

namespace cs::amx {
namespace {

constexpr int kMaxGroup = 6;  // tiles of positions whose sums are in registers: tile i is i, then inputs, weights
constexpr int kInput = 6, kWeight = 7;

constexpr int64_t kSumsBytes = 32 * 1024;
constexpr size_t kLargeWeights = 128 * 1024;

// What the inner loop needs, plain.
struct Block {
    std::array<const std::byte*, kMaxGroup> input;  // first window of each tile of positions
    int64_t position_bytes;                         // from one window to the next
    const int64_t* offset;                          // of each listed tile of inputs from the window's first
    const int8_t* weight;                           // [count] tiles
    int count;
};

template <int TILE, int GROUP, bool kSigned>
CS_AMX inline void multiply(const Block& b, int64_t offset) {
    if constexpr (TILE < GROUP) {
        load_tile<kInput>(b.input[TILE] + offset, b.position_bytes);
        multiply_tiles<TILE, kInput, kWeight, kSigned>();
    }
}

template <int TILE, int GROUP>
CS_AMX inline void store(std::byte* to, int64_t tile_bytes, int64_t stride) {
    if constexpr (TILE < GROUP) store_tile<TILE>(to + TILE * tile_bytes, stride);
}

// Sums of GROUP tiles of positions for one tile of kernels, to `sums` and `tile_bytes` after each other.
template <int GROUP, bool kSigned>
CS_AMX void run_block(const Block& b, std::byte* sums, int64_t tile_bytes, int64_t stride) {
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
    clear_tile<4>();
    clear_tile<5>();
    for (int n = 0; n < b.count; ++n) {
        load_tile<kWeight>(b.weight + int64_t{n} * kTileBytes, kRowBytes);
        multiply<0, GROUP, kSigned>(b, b.offset[n]);
        multiply<1, GROUP, kSigned>(b, b.offset[n]);
        multiply<2, GROUP, kSigned>(b, b.offset[n]);
        multiply<3, GROUP, kSigned>(b, b.offset[n]);
        multiply<4, GROUP, kSigned>(b, b.offset[n]);
        multiply<5, GROUP, kSigned>(b, b.offset[n]);
    }
    store<0, GROUP>(sums, tile_bytes, stride);
    store<1, GROUP>(sums, tile_bytes, stride);
    store<2, GROUP>(sums, tile_bytes, stride);
    store<3, GROUP>(sums, tile_bytes, stride);
    store<4, GROUP>(sums, tile_bytes, stride);
    store<5, GROUP>(sums, tile_bytes, stride);
}

using RunBlock = void (*)(const Block&, std::byte*, int64_t, int64_t);

RunBlock run_block_of(int group, bool is_signed) {
    static constexpr RunBlock table[2][kMaxGroup] = {{run_block<1, false>, run_block<2, false>, run_block<3, false>,  //
                                                      run_block<4, false>, run_block<5, false>, run_block<6, false>},
                                                     {run_block<1, true>, run_block<2, true>, run_block<3, true>,  //
                                                      run_block<4, true>, run_block<5, true>, run_block<6, true>}};
    return table[is_signed][group - 1];
}

// Tiles of weights [16 quads of inputs][16 kernels][4 inputs]; for each tile of kernels, those that are listed.
struct WeightTiles {
    std::vector<int32_t> begin;   // [tiles of kernels + 1]
    std::vector<int64_t> offset;  // of the tile's inputs from the first input of a window
    AlignedVector<int8_t> weight;

    size_t size() const { return offset.size(); }
};

// all: list every tile, as a dense layer does. A window has lines of `line_inputs` inputs, `line_bytes` apart.
WeightTiles lay_out(const LayerSpec& s, int line_inputs, int64_t line_bytes, bool all) {
    const auto* dense = static_cast<const int8_t*>(s.dense);
    WeightTiles out;
    out.begin.push_back(0);
    for (int first = 0; first < s.kernels; first += kTileKernels) {
        const int kernels = std::min(kTileKernels, s.kernels - first);
        for (int line = 0; line < s.window.kernel_h; ++line) {
            for (int input = 0; input < line_inputs; input += kRowBytes) {
                std::array<int8_t, kTileBytes> tile{};
                bool any = all;
                for (int i = 0; i < std::min(kRowBytes, line_inputs - input); ++i) {
                    const int64_t row = int64_t{line} * line_inputs + input + i;
                    for (int o = 0; o < kernels; ++o) {
                        const int8_t weight = dense[row * s.kernels + first + o];
                        tile[i / 4 * kRowBytes + o * 4 + i % 4] = weight;
                        any |= weight != 0;
                    }
                }
                if (!any) continue;
                out.weight.insert(out.weight.end(), tile.begin(), tile.end());
                out.offset.push_back(line * line_bytes + input);
            }
        }
        out.begin.push_back(static_cast<int32_t>(out.size()));
    }
    return out;
}

// Where a tile of positions begins.
struct Place {
    int y, x;
};

// Without padding and strides a 1 x 1 convolution sees the image as one line of positions.
bool is_flat(const LayerSpec& s) {
    const Window& w = s.window;
    return w.kernel_h * w.kernel_w == 1 && w.stride_h * w.stride_w == 1 && s.pool_h == 1 &&
           s.conv_height == s.input.height && s.conv_width == s.input.width;
}

class Conv final : public Step {
  public:
    Conv(const LayerSpec& s, const PaddedImage& image, WeightTiles tiles)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          image_(image),
          pooled_(s.pool_h == 2),
          tiles_(std::move(tiles)),
          way_out_(s),
          kernels_(s.kernels) {
        if (is_flat(s)) {
            output_.width *= output_.height;
            output_.height = 1;
        }
        place_tiles();
        for (int tile = 0; tile < kWeight; ++tile) configuration_.set(tile, positions_);
        configuration_.set(kWeight, kTileRows);
    }

    size_t scratch_bytes() const override { return image_.bytes() + kMaxGroup * tile_bytes(); }

    CS_AMX void run(const Call& call) const noexcept override {
        configure_tiles(configuration_);
        std::byte* sums = call.scratch + image_.bytes();
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            image = image_.fill(input_, window_, image, call.scratch);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (size_t first = 0; first < places_.size(); first += group_) {
                const int count = static_cast<int>(std::min<size_t>(group_, places_.size() - first));
                multiply_group(image, &places_[first], count, sums);
                write_group(sums, &places_[first], count, out);
            }
        }
        release_tiles();
    }

  private:
    int64_t tile_bytes() const { return positions_ * way_out_.position_bytes(); }

    // Tiles of nearly equal width; the last of a row begins early rather than end beyond it. Pooled rows come in pairs.
    void place_tiles() {
        const int rows = pooled_ ? 2 : 1, columns = output_.width * rows;
        const int across = (columns + kTileRows - 1) / kTileRows;
        positions_ = static_cast<int>(round_up((columns + across - 1) / across, rows));
        for (int y = 0; y < output_.height * rows; y += rows) {
            for (int tile = 0; tile < across; ++tile) {
                const int x = std::min(tile * positions_, columns - positions_);
                for (int row = 0; row < rows; ++row) places_.push_back({y + row, x});
            }
        }
        // The sums of a group should stay in the first-level cache, unless the weights, which every group reads once,
        // are larger than that themselves.
        const int64_t fitting = tiles_.weight.size() < kLargeWeights ? kSumsBytes / tile_bytes() : kMaxGroup;
        const size_t units = places_.size() / rows, most = std::clamp<int64_t>(fitting, rows, kMaxGroup) / rows;
        const size_t groups = (units + most - 1) / most;
        group_ = (units + groups - 1) / groups * rows;
    }

    CS_AMX void multiply_group(const std::byte* image, const Place* places, int count, std::byte* sums) const {
        Block block{};
        block.position_bytes = int64_t{window_.stride_w} * input_.channels;
        for (int i = 0; i < count; ++i) {
            block.input[i] = image + int64_t{places[i].y} * window_.stride_h * image_.line_bytes() +
                             places[i].x * block.position_bytes;
        }
        const RunBlock run = run_block_of(count, input_.dtype == DType::s8);
        for (size_t k = 0; k + 1 < tiles_.begin.size(); ++k, sums += kTileKernels * sizeof(int32_t)) {
            const int begin = tiles_.begin[k];
            block.offset = tiles_.offset.data() + begin;
            block.weight = tiles_.weight.data() + int64_t{begin} * kTileBytes;
            block.count = tiles_.begin[k + 1] - begin;
            run(block, sums, tile_bytes(), way_out_.position_bytes());
        }
    }

    CS_AMX void write_group(const std::byte* sums, const Place* places, int count, std::byte* out) const {
        const int64_t position = way_out_.position_bytes();
        for (int i = 0; i < count; i += pooled_ ? 2 : 1, sums += tile_bytes()) {
            if (pooled_) {
                const std::byte* lower = sums + tile_bytes();
                const std::byte* corners[] = {sums, sums + position, lower, lower + position};
                way_out_.write(corners, 2 * position, positions_ / 2, pixel(out, places[i].y / 2, places[i].x / 2));
                sums = lower;
            } else {
                const std::byte* corners[] = {sums};
                way_out_.write(corners, position, positions_, pixel(out, places[i].y, places[i].x));
            }
        }
    }

    std::byte* pixel(std::byte* out, int y, int x) const {
        return out + (int64_t{y} * output_.width + x) * kernels_ * static_cast<int64_t>(element_bytes(output_.dtype));
    }

    Tensor input_, output_;
    Window window_;
    PaddedImage image_;
    bool pooled_;
    WeightTiles tiles_;
    WayOut way_out_;
    int kernels_, positions_ = 0;
    std::vector<Place> places_;
    size_t group_ = 1;
    TileConfiguration configuration_;
};

bool fits(const LayerSpec& s) {
    const bool is_image = !is_linear(s) && s.groups == 1 && s.input.dtype != DType::f32;
    const bool poolable = s.pool_h == s.pool_w && s.pool_h <= 2;
    return is_image && poolable && requantizes_exactly(s);
}

std::unique_ptr<Step> make(const LayerSpec& s, bool all) {
    const PaddedImage image(s, false);
    const int line_inputs = s.window.kernel_w * s.input.channels;
    WeightTiles tiles = lay_out(s, line_inputs, image.line_bytes(), all);
    const size_t every = int64_t{s.window.kernel_h} * ((line_inputs + kRowBytes - 1) / kRowBytes) *
                         ((s.kernels + kTileKernels - 1) / kTileKernels);
    if (!all && tiles.size() > 0.9 * static_cast<double>(every)) return nullptr;  // that is the dense kernel
    return std::make_unique<Conv>(s, image, std::move(tiles));
}

}  // namespace

std::unique_ptr<Step> conv_dense(const LayerSpec& s) { return fits(s) ? make(s, true) : nullptr; }
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec& s) { return s.packed && fits(s) ? make(s, false) : nullptr; }

}  // namespace cs::amx
