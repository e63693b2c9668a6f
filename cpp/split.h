// A layer in parts, so that several threads can share one sample.
#pragma once

#include <memory>
#include <vector>

#include "kernels/kernel.h"

namespace cs {

// Convolutions are split by rows of results, linear layers by kernels: either way a part is a smaller layer that reads
// and writes a contiguous piece of a sample, and the kernel that runs it need not know.
class SplitStep final : public Step {
  public:
    struct Part {
        std::shared_ptr<const Step> step;  // parts of the same shape share it
        size_t input_offset, output_offset;
        size_t scratch_offset;
    };

    SplitStep(const Tensor& input, const Tensor& output, std::vector<Part> parts);

    // All parts, one after the other.
    void run(const Call& call) const noexcept override;
    void run_part(const Call& call, int64_t part) const noexcept;

    size_t scratch_bytes() const override { return scratch_bytes_; }
    int64_t parts() const { return static_cast<int64_t>(parts_.size()); }

  private:
    Tensor input_, output_;
    std::vector<Part> parts_;
    size_t scratch_bytes_ = 0;
};

// The layer in up to `parts` parts, all run by `kernel`; null if it cannot be split, or the kernel cannot run a part.
std::unique_ptr<SplitStep> split_layer(const LayerSpec& spec, const Kernel<LayerSpec>& kernel, int parts);

}  // namespace cs
