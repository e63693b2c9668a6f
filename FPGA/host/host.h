// Runs batches on every compute unit that holds a `csengine_top`, through XRT's native API.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "xrt/xrt_bo.h"
#include "xrt/xrt_device.h"
#include "xrt/xrt_kernel.h"

namespace csengine::host {

// A device that does not answer in time, or answers wrongly.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Seconds = std::chrono::duration<double>;

// Bytes of one sample on the host; on the device each starts at a multiple of `kAlignment`.
struct SampleSize {
    size_t x;
    size_t y;
};
constexpr size_t kAlignment = 64;

// Contiguous samples on the host, taken in chunks.
class Batch {
  public:
    struct Chunk {
        const char* x;
        char* y;
        size_t samples;  // 0: none are left
    };
    Batch(const char* x, char* y, size_t samples, SampleSize size);
    Chunk take(size_t most);

  private:
    const char* x_;
    char* y_;
    size_t samples_;
    SampleSize size_;
};

// One compute unit and its two pairs of buffers: while one pair is computed on, the other is filled or emptied.
class Unit {
  public:
    Unit(const xrt::device& device, const xrt::uuid& xclbin, const std::string& name, SampleSize size,
         size_t samples_per_chunk, Seconds timeout);

    const std::string& name() const { return name_; }
    uint64_t shape_id();
    // Raise DeviceError unless the device's memory returns what it was given.
    void check_memory();
    void load(const char* image, size_t bytes);
    // Clock cycles of the whole batch.
    uint64_t run(Batch batch);

  private:
    struct Slot {
        xrt::bo x, y;
        char* x_map;
        const char* y_map;
        xrt::run run;
    };

    Slot make_slot(const xrt::device& device, size_t samples) const;
    void upload(Slot& slot, const Batch::Chunk& chunk);
    void download(Slot& slot, const Batch::Chunk& chunk);
    void start(Slot& slot, size_t samples, bool loads);
    uint64_t wait(Slot& slot);

    xrt::device device_;
    std::string name_;
    xrt::kernel kernel_;
    SampleSize size_, stride_;
    size_t samples_per_chunk_;
    Seconds timeout_;
    std::array<Slot, 2> slots_;
    xrt::bo image_;
};

// Some devices with the same xclbin. Calls take turns; one that fails leaves the devices in an unknown state, and all
// later ones are refused.
class Host {
  public:
    // devices: indices or BDFs; empty takes all that XRT reports. samples_per_chunk: of one run of a unit. timeout: of
    // every wait.
    Host(const std::vector<std::string>& devices, const std::string& xclbin, SampleSize size, size_t samples_per_chunk,
         Seconds timeout);
    ~Host();
    Host(const Host&) = delete;
    Host& operator=(const Host&) = delete;

    SampleSize size() const { return size_; }
    std::vector<std::string> units() const;
    std::vector<uint64_t> shape_ids();
    void load(const char* image, size_t bytes);
    // Every unit computes an equal share; clock cycles of the one that worked longest.
    uint64_t run(const char* x, char* y, size_t samples);
    void close();

  private:
    template <class Function>
    auto guarded(Function function);
    uint64_t run_on_all(const std::vector<Batch>& shares);

    std::mutex mutex_;
    SampleSize size_;
    std::string failure_;
    std::vector<std::unique_ptr<Unit>> units_;
};

}  // namespace csengine::host
