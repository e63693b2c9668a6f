#include "host.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

#include "experimental/xrt_system.h"
#include "experimental/xrt_xclbin.h"

namespace csengine::host {
namespace {

constexpr const char* kKernel = "csengine_top";
// Arguments of the kernel by number, and its registers that XRT does not know of.
enum Argument { kX, kY, kImage, kSamples, kLoad };
constexpr uint32_t kCycles = 0x44, kShapeIdLow = 0x4c, kShapeIdHigh = 0x50, kErrors = 0x54;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Puts back the handlers of signals that XRT's software emulation takes for itself when it loads an xclbin.
class SignalHandlers {
  public:
    SignalHandlers() {
        for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], nullptr, &actions_[i]);
    }
    ~SignalHandlers() {
        for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &actions_[i], nullptr);
    }

  private:
    static constexpr std::array kSignals = {SIGSEGV, SIGFPE, SIGABRT, SIGUSR1, SIGCHLD};
    std::array<struct sigaction, kSignals.size()> actions_;
};

xrt::device open_device(const std::string& name) {
    const bool is_index = !name.empty() && name.find_first_not_of("0123456789") == std::string::npos;
    return is_index ? xrt::device(static_cast<unsigned>(std::stoul(name))) : xrt::device(name);
}

// The devices of these names, or all that XRT counts (emulated ones it does not count).
std::vector<xrt::device> open_devices(const std::vector<std::string>& names) {
    std::vector<xrt::device> devices;
    for (const auto& name : names) devices.push_back(open_device(name));
    if (!names.empty()) return devices;
    for (unsigned i = 0; i < xrt::system::enumerate_devices(); ++i) devices.emplace_back(i);
    if (devices.empty()) throw DeviceError("XRT reports no device");
    return devices;
}

// What the kernel's error register says.
std::string explain(uint32_t errors) {
    static constexpr std::array kFlags = {
        "the parameters are of another shape or damaged",
        "no parameters were loaded",
        "a read from global memory failed",
        "a write to global memory failed",
    };
    std::string text;
    for (unsigned bit = 0; bit < 32; ++bit) {
        if (!(errors >> bit & 1)) continue;
        if (!text.empty()) text += ", ";
        text += bit < kFlags.size() ? kFlags[bit] : "error flag " + std::to_string(bit);
    }
    return text;
}

// Names of the compute units, as `xrt::kernel` takes them.
std::vector<std::string> unit_names(const std::string& path) {
    const xrt::xclbin xclbin(path);
    std::vector<std::string> names;
    for (const auto& kernel : xclbin.get_kernels()) {
        if (kernel.get_name() != kKernel) continue;
        for (const auto& unit : kernel.get_cus()) {
            const std::string name = unit.get_name();  // "kernel:unit"
            names.push_back(std::string(kKernel) + ":{" + name.substr(name.find(':') + 1) + "}");
        }
    }
    if (names.empty()) throw DeviceError("the xclbin holds no kernel " + std::string(kKernel) + ": " + path);
    return names;
}

}  // namespace

// --- batches ---------------------------------------------------------------------------------------------------------

Batch::Batch(const char* x, char* y, size_t samples, SampleSize size) : x_(x), y_(y), samples_(samples), size_(size) {}

Batch::Chunk Batch::take(size_t most) {
    const Chunk chunk = {x_, y_, std::min(most, samples_)};
    x_ += chunk.samples * size_.x;
    y_ += chunk.samples * size_.y;
    samples_ -= chunk.samples;
    return chunk;
}

// --- one unit --------------------------------------------------------------------------------------------------------

Unit::Unit(const xrt::device& device, const xrt::uuid& xclbin, const std::string& name, SampleSize size,
           size_t samples_per_chunk, Seconds timeout)
    : device_(device),
      name_(name),
      // Exclusive: the parameters that a unit was loaded with are ours, and so are its registers.
      kernel_(device, xclbin, name, xrt::kernel::cu_access_mode::exclusive),
      size_(size),
      stride_{aligned(size.x), aligned(size.y)},
      samples_per_chunk_(samples_per_chunk),
      timeout_(timeout),
      slots_{make_slot(device, samples_per_chunk), make_slot(device, samples_per_chunk)} {}

Unit::Slot Unit::make_slot(const xrt::device& device, size_t samples) const {
    Slot slot;
    slot.x = xrt::bo(device, samples * stride_.x, kernel_.group_id(kX));
    slot.y = xrt::bo(device, samples * stride_.y, kernel_.group_id(kY));
    slot.x_map = slot.x.map<char*>();
    slot.y_map = slot.y.map<char*>();
    slot.run = xrt::run(kernel_);
    // XRT keeps the time limit of a wait only where it has somebody to call when the run ends.
    slot.run.add_callback(ERT_CMD_STATE_COMPLETED, [](const void*, ert_cmd_state, void*) {}, nullptr);
    slot.run.set_arg(kX, slot.x);
    slot.run.set_arg(kY, slot.y);
    return slot;
}

uint64_t Unit::shape_id() {
    return kernel_.read_register(kShapeIdLow) | uint64_t(kernel_.read_register(kShapeIdHigh)) << 32;
}

void Unit::check_memory() {
    Slot& slot = slots_[0];
    const size_t bytes = slot.x.size();
    for (size_t i = 0; i < bytes; ++i) slot.x_map[i] = static_cast<char>(i * 131 + i / 4093);
    slot.x.sync(XCL_BO_SYNC_BO_TO_DEVICE);
    std::memset(slot.x_map, 0, bytes);
    slot.x.sync(XCL_BO_SYNC_BO_FROM_DEVICE);
    for (size_t i = 0; i < bytes; ++i) {
        if (slot.x_map[i] == static_cast<char>(i * 131 + i / 4093)) continue;
        throw DeviceError(name_ + ": the device's memory returned another value than was written, at byte " +
                          std::to_string(i) + " of " + std::to_string(bytes));
    }
}

void Unit::load(const char* image, size_t bytes) {
    image_ = xrt::bo(device_, aligned(std::max<size_t>(bytes, 1)), kernel_.group_id(kImage));
    std::memcpy(image_.map<char*>(), image, bytes);
    image_.sync(XCL_BO_SYNC_BO_TO_DEVICE);
    for (Slot& slot : slots_) slot.run.set_arg(kImage, image_);
    start(slots_[0], 0, true);
    wait(slots_[0]);
}

uint64_t Unit::run(Batch batch) {
    uint64_t cycles = 0;
    Batch::Chunk running = batch.take(samples_per_chunk_);
    if (running.samples) {
        upload(slots_[0], running);
        start(slots_[0], running.samples, false);
    }
    for (size_t slot = 0; running.samples; slot ^= 1) {
        const Batch::Chunk next = batch.take(samples_per_chunk_);
        if (next.samples) upload(slots_[slot ^ 1], next);  // while the other slot is computed on
        cycles += wait(slots_[slot]);
        if (next.samples) start(slots_[slot ^ 1], next.samples, false);
        download(slots_[slot], running);  // while the next is computed on
        running = next;
    }
    return cycles;
}

// The maps are the memory that XRT transfers from and to; there is no further copy on the host.
void Unit::upload(Slot& slot, const Batch::Chunk& chunk) {
    for (size_t i = 0; i < chunk.samples; ++i) {
        std::memcpy(slot.x_map + i * stride_.x, chunk.x + i * size_.x, size_.x);
    }
    slot.x.sync(XCL_BO_SYNC_BO_TO_DEVICE, chunk.samples * stride_.x, 0);
}

void Unit::download(Slot& slot, const Batch::Chunk& chunk) {
    slot.y.sync(XCL_BO_SYNC_BO_FROM_DEVICE, chunk.samples * stride_.y, 0);
    for (size_t i = 0; i < chunk.samples; ++i) {
        std::memcpy(chunk.y + i * size_.y, slot.y_map + i * stride_.y, size_.y);
    }
}

void Unit::start(Slot& slot, size_t samples, bool loads) {
    slot.run.set_arg(kSamples, static_cast<uint32_t>(samples));
    slot.run.set_arg(kLoad, static_cast<uint32_t>(loads));
    slot.run.start();
}

// Wait until a run ends; its clock cycles.
uint64_t Unit::wait(Slot& slot) {
    using std::chrono::milliseconds;
    const auto limit = std::max(std::chrono::duration_cast<milliseconds>(timeout_), milliseconds(1));  // 0: no limit
    if (slot.run.wait(limit) == ERT_CMD_STATE_TIMEOUT || slot.run.state() < ERT_CMD_STATE_COMPLETED) {
        throw DeviceError(name_ + ": a run did not end within " + std::to_string(limit.count()) + " ms");
    }
    if (const auto state = slot.run.state(); state != ERT_CMD_STATE_COMPLETED) {
        throw DeviceError(name_ + ": a run ended in state " + std::to_string(state) + " instead of completed");
    }
    if (const uint32_t errors = kernel_.read_register(kErrors)) {
        throw DeviceError(name_ + ": the kernel reports that " + explain(errors));
    }
    return kernel_.read_register(kCycles);
}

// --- all units -------------------------------------------------------------------------------------------------------

Host::Host(const std::vector<std::string>& devices, const std::string& xclbin, SampleSize size,
           size_t samples_per_chunk, Seconds timeout)
    : size_(size) {
    const SignalHandlers kept;
    for (xrt::device& device : open_devices(devices)) {
        const xrt::uuid id = device.load_xclbin(xclbin);
        for (const auto& unit : unit_names(xclbin)) {
            units_.push_back(std::make_unique<Unit>(device, id, unit, size, samples_per_chunk, timeout));
            units_.back()->check_memory();
        }
    }
}

template <class Function>
auto Host::guarded(Function function) {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw DeviceError("the device failed before (" + failure_ + "); open it again");
    if (units_.empty()) throw DeviceError("the device is closed; open it again");
    try {
        return function();
    } catch (const std::exception& error) {
        failure_ = error.what();
        throw;
    }
}

Host::~Host() { close(); }

std::vector<std::string> Host::units() const {
    std::vector<std::string> names;
    for (const auto& unit : units_) names.push_back(unit->name());
    return names;
}

std::vector<uint64_t> Host::shape_ids() {
    return guarded([&] {
        std::vector<uint64_t> ids;
        for (const auto& unit : units_) ids.push_back(unit->shape_id());
        return ids;
    });
}

void Host::load(const char* image, size_t bytes) {
    guarded([&] {
        for (const auto& unit : units_) unit->load(image, bytes);
    });
}

uint64_t Host::run(const char* x, char* y, size_t samples) {
    return guarded([&] {
        Batch batch(x, y, samples, size_);
        std::vector<Batch> shares;
        for (size_t i = 0; i < units_.size(); ++i) {
            const auto share = batch.take((samples + i) / units_.size());
            shares.emplace_back(share.x, share.y, share.samples, size_);
        }
        return run_on_all(shares);
    });
}

uint64_t Host::run_on_all(const std::vector<Batch>& shares) {
    std::vector<uint64_t> cycles(units_.size());
    std::vector<std::exception_ptr> failures(units_.size());
    const auto run = [&](size_t i) {
        try {
            cycles[i] = units_[i]->run(shares[i]);
        } catch (...) {
            failures[i] = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    for (size_t i = 1; i < units_.size(); ++i) threads.emplace_back(run, i);
    run(0);
    for (auto& thread : threads) thread.join();
    for (const auto& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
    return *std::max_element(cycles.begin(), cycles.end());
}

void Host::close() {
    const std::lock_guard lock(mutex_);
    // XRT may wait for ever for what a failed device still owes; the process gives it all back when it ends.
    if (!failure_.empty()) {
        for (auto& unit : units_) static_cast<void>(unit.release());
    }
    units_.clear();
}

}  // namespace csengine::host
