// The emulated device: the process that XRT's software emulation starts in place of a card.
//
// It connects to the host's socket, answers its calls one by one, and between calls lets the clocks of the kernels that
// run go on. The kernels come as a Verilated shared object in the xclbin. `wire.h` has the calls, `kernel.cpp` the AXI
// buses. A failure ends the process by a signal: the host would wait for ever for one that exits.

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "memory.h"
#include "wire.h"

namespace csengine::emulation {
namespace {

constexpr unsigned kClocksPerTurn = 64;  // between two looks at the socket
constexpr uint32_t kStart = 1, kDone = 2, kIdle = 4;
constexpr uint32_t kFirstArgument = 0x10;

[[noreturn]] void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fputs("emulated device: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    std::fflush(stderr);
    signal(SIGABRT, SIG_DFL);
    std::abort();
}

// --- compute units ---------------------------------------------------------------------------------------------------

// A kernel, at its place in the register space of the device.
class Unit {
  public:
    Unit(uint64_t base, std::unique_ptr<Kernel> kernel) : base_(base), kernel_(std::move(kernel)) {}

    bool runs() const { return runs_; }
    void step() { kernel_->step(kClocksPerTurn); }
    std::optional<uint32_t> offset(uint64_t address) const {
        constexpr uint64_t kRange = 0x10000;
        if (address < base_ || address - base_ >= kRange) return std::nullopt;
        return static_cast<uint32_t>(address - base_);
    }

    uint32_t read(uint32_t offset) {
        const uint32_t value = kernel_->read_register(offset);
        if (offset == 0 && value & (kDone | kIdle)) runs_ = false;
        return value;
    }

    // The host writes the whole register map in one go, control word first. Arguments have to be there before the
    // start, and the interrupt registers are no part of it.
    void write(uint32_t offset, std::string_view data) {
        const bool is_map = data.size() > 4;
        for (size_t at = 0; at + 4 <= data.size(); at += 4) {
            const uint32_t place = offset + static_cast<uint32_t>(at);
            if (place >= kFirstArgument || (place != 0 && !is_map)) kernel_->write_register(place, word(data, at));
        }
        const uint32_t control = offset == 0 && data.size() >= 4 ? word(data, 0) : 0;
        if (control == 0) return;
        kernel_->write_register(0, control);
        runs_ = runs_ || control & kStart;
    }

  private:
    static uint32_t word(std::string_view data, size_t at) {
        uint32_t value;
        std::memcpy(&value, data.data() + at, sizeof value);
        return value;
    }

    uint64_t base_;
    std::unique_ptr<Kernel> kernel_;
    bool runs_ = false;
};

// Base addresses of the compute units, from the xclbin's metadata.
std::vector<uint64_t> unit_addresses(const std::string& xml_path) {
    std::ifstream file(xml_path, std::ios::binary);
    const std::string xml{std::istreambuf_iterator<char>(file), {}};
    const std::string mark = "<addrRemap base=\"";
    std::vector<uint64_t> found;
    for (size_t at = xml.find(mark); at != std::string::npos; at = xml.find(mark, at + 1)) {
        found.push_back(std::strtoull(xml.c_str() + at + mark.size(), nullptr, 0));
    }
    return found;
}

// --- the device ------------------------------------------------------------------------------------------------------

class Device {
  public:
    bool runs() const {
        for (const auto& unit : units_) {
            if (unit.runs()) return true;
        }
        return false;
    }
    void step() {
        for (auto& unit : units_) {
            if (unit.runs()) unit.step();
        }
    }

    Answer answer(Call call, const Fields& fields) {
        Answer answer;
        switch (call) {
            case Call::Close:
                units_.clear();
                return answer.number(1, 1);
            case Call::LoadBitstream:
                return answer.number(1, load(fields));
            case Call::Allocate:
                memory_.allocate(fields.number(1), fields.number(2));
                return answer.number(1, 1);
            case Call::Free:
                memory_.free(fields.number(1));
                return answer.number(1, 1);
            case Call::CopyToDevice:
                copy_in(fields.number(3), fields.bytes(4));
                return answer.number(1, fields.number(5));
            case Call::CopyToHost:
                return answer.number(1, fields.number(5)).bytes(2, copy_out(fields.number(4), fields.number(5)));
            case Call::SetupInstance:
                return answer.number(1, 1);
            case Call::WriteControl:
                write(fields.number(2), fields.bytes(4));
                return answer.number(1, 1);
            case Call::WriteRegister:
                write(fields.number(1) + fields.number(2), fields.bytes(3));
                return answer.number(1, 1);
            case Call::ReadControl:
                return read(answer, fields.number(2));
            case Call::ReadRegister:
                return read(answer, fields.number(1) + fields.number(2));
        }
        fail("XRT makes call %u, which is not known here", static_cast<unsigned>(call));
    }

  private:
    bool load(const Fields& fields) {
        const std::string xml(fields.bytes(1)), object(fields.bytes(2));
        units_.clear();
        // Shared objects are never closed: two of them may share what the C++ runtime keeps one of.
        void* handle = dlopen(object.c_str(), RTLD_NOW | RTLD_LOCAL);
        auto factory = handle ? reinterpret_cast<KernelFactory>(dlsym(handle, kKernelFactory)) : nullptr;
        if (!factory) {
            std::fprintf(stderr, "emulated device: %s\n", dlerror());
            return false;
        }
        for (const uint64_t base : unit_addresses(xml)) {
            units_.emplace_back(base, std::unique_ptr<Kernel>(factory(memory_)));
        }
        if (units_.empty()) std::fprintf(stderr, "emulated device: the xclbin names no compute unit\n");
        return !units_.empty();
    }

    void copy_in(uint64_t address, std::string_view data) {
        if (!memory_.copy_in(address, data.data(), data.size())) fail("a copy to %#lx leaves its buffer", address);
    }

    std::string copy_out(uint64_t address, uint64_t size) {
        std::string data(size, '\0');
        if (!memory_.read(address, data.data(), size)) fail("a copy from %#lx leaves its buffer", address);
        return data;
    }

    Unit& unit_at(uint64_t address) {
        for (auto& unit : units_) {
            if (unit.offset(address)) return unit;
        }
        fail("no compute unit has a register at %#lx", address);
    }

    void write(uint64_t address, std::string_view data) {
        Unit& unit = unit_at(address);
        unit.write(*unit.offset(address), data);
    }

    Answer& read(Answer& answer, uint64_t address) {
        Unit& unit = unit_at(address);
        const uint32_t value = unit.read(*unit.offset(address));
        return answer.number(1, 1).bytes(2, {reinterpret_cast<const char*>(&value), sizeof value});
    }

    GlobalMemory memory_;
    std::vector<Unit> units_;
};

// --- the host --------------------------------------------------------------------------------------------------------

// The connection to XRT in the host's process.
class Host {
  public:
    ~Host() { close(socket_); }

    // Where `libxrt_swemu` listens: it takes the name from EMULATION_SOCKETID only where USER is set.
    bool connect() {
        const char* user = std::getenv("USER");
        const char* name = std::getenv("EMULATION_SOCKETID");
        const std::string path =
            user ? std::string("/tmp/") + user + "/" + (name ? name : "xcl_sock") : "/tmp/xcl_sock";
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        if (path.size() >= sizeof address.sun_path) fail("the socket's path is too long: %s", path.c_str());
        path.copy(address.sun_path, path.size());
        for (int attempt = 0; attempt < 3000 && getppid() != 1; ++attempt) {
            socket_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return true;
            close(socket_);
            usleep(10000);
        }
        return false;
    }

    bool calls() const {
        pollfd wait = {socket_, POLLIN, 0};
        return poll(&wait, 1, 0) != 0;
    }

    // False when the host is gone.
    bool receive(Call& call, std::string& body) {
        unsigned char header[kCallHeader];
        if (!transfer(::read, header, sizeof header)) return false;
        if (header[0] != 0x09 || header[9] != 0x15) fail("XRT sends calls in another form than expected");
        uint64_t size;
        std::memcpy(&size, header + 1, sizeof size);
        std::memcpy(&call, header + 10, sizeof call);
        body.resize(size);
        return transfer(::read, body.data(), size);
    }

    bool reply(const Answer& answer) {
        const uint64_t size = answer.body().size();
        std::string message(kAnswerHeader, '\x09');
        std::memcpy(message.data() + 1, &size, sizeof size);
        message += answer.body();
        return transfer(::write, message.data(), message.size());
    }

  private:
    template <class Function, class Bytes>
    bool transfer(Function function, Bytes* bytes, size_t size) const {
        auto* place = reinterpret_cast<char*>(bytes);
        while (size) {
            const ssize_t count = function(socket_, place, size);
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) return false;
            place += count;
            size -= static_cast<size_t>(count);
        }
        return true;
    }

    int socket_ = -1;
};

int serve() {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // no device without its host
    signal(SIGPIPE, SIG_IGN);
    Host host;
    if (!host.connect()) fail("no host listens");
    Device device;
    std::string body;
    for (;;) {
        if (device.runs() && !host.calls()) {
            device.step();
            continue;
        }
        Call call;
        if (!host.receive(call, body)) return EXIT_SUCCESS;
        Fields fields;
        if (!fields.parse(body)) fail("call %u has a malformed body", static_cast<unsigned>(call));
        const bool is_last = call == Call::Close && fields.number(3);
        if (!host.reply(device.answer(call, fields)) || is_last) return EXIT_SUCCESS;
    }
}

}  // namespace
}  // namespace csengine::emulation

int main() { return csengine::emulation::serve(); }
