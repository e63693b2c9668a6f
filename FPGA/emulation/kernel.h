// What the device process and a Verilated kernel know of each other. The kernel is a shared object, which an xclbin
// carries where a card's carries its bitstream.
#pragma once

#include <cstddef>
#include <cstdint>

namespace csengine::emulation {

// Global memory, as the kernel's AXI4 master sees it. Both return false where no buffer was allocated.
class Memory {
  public:
    virtual ~Memory() = default;
    virtual bool read(uint64_t address, void* data, size_t size) = 0;
    // Bit i of `strobe` says whether byte i is written; size <= 64.
    virtual bool write(uint64_t address, const void* data, size_t size, uint64_t strobe) = 0;
};

// One compute unit, out of reset.
class Kernel {
  public:
    virtual ~Kernel() = default;
    virtual void write_register(uint32_t offset, uint32_t value) = 0;
    virtual uint32_t read_register(uint32_t offset) = 0;
    virtual void step(unsigned clocks) = 0;
};

// The one symbol of the shared object; its name is the version of this interface.
constexpr const char* kKernelFactory = "csengine_kernel_1";
using KernelFactory = Kernel* (*)(Memory&);

}  // namespace csengine::emulation
