// A Verilated `csengine_top` as a `Kernel`: drives its clock and its AXI4-Lite slave, and answers its AXI4 master.
//
// The memory behind the master is a plain one: read bursts are answered in order, `kReadLatency` clocks after their
// address and one beat per clock; writes take one beat per clock and are acknowledged after `kWriteLatency`. An access
// outside of the allocated buffers answers DECERR, as a card's interconnect does. A burst that AXI4 forbids ends the
// process: it is an error of the RTL, which a card may not survive.

#include "kernel.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>

#include "Vcsengine_top.h"
#include "verilated.h"

namespace csengine::emulation {
namespace {

constexpr unsigned kReadLatency = 64;
constexpr unsigned kWriteLatency = 32;
constexpr size_t kOutstandingReads = 16;
constexpr unsigned kRegisterPatience = 1000;  // clocks
constexpr uint8_t kOkay = 0, kDecodeError = 3, kIncrementing = 1;
constexpr uint64_t kPage = 4096;  // no burst may cross

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "emulated kernel: %s\n", what);
    std::fflush(stderr);
    std::abort();
}

struct Burst {
    uint64_t address;
    unsigned beats;
    unsigned id;
    uint64_t due;  // clock
};

struct Response {
    uint64_t due;
    unsigned id;
    uint8_t code;
};

class VerilatedKernel final : public Kernel {
  public:
    explicit VerilatedKernel(Memory& memory) : memory_(memory), top_(std::make_unique<Vcsengine_top>(&context_)) {
        top_->ap_clk = 0;
        top_->ap_rst_n = 0;
        top_->s_axi_control_awvalid = top_->s_axi_control_wvalid = top_->s_axi_control_arvalid = 0;
        top_->s_axi_control_bready = top_->s_axi_control_rready = 1;
        top_->m_axi_gmem_rvalid = top_->m_axi_gmem_bvalid = 0;
        drive_memory();
        top_->eval();
        step(16);
        top_->ap_rst_n = 1;
        step(16);
    }

    ~VerilatedKernel() override { top_->final(); }

    void write_register(uint32_t offset, uint32_t value) override {
        auto& top = *top_;
        top.s_axi_control_awaddr = offset;
        top.s_axi_control_awvalid = 1;
        top.s_axi_control_wdata = value;
        top.s_axi_control_wstrb = 0xf;
        top.s_axi_control_wvalid = 1;
        for (unsigned clock = 0; clock < kRegisterPatience; ++clock) {
            top.eval();
            const bool address_taken = top.s_axi_control_awready, data_taken = top.s_axi_control_wready;
            const bool is_answered = top.s_axi_control_bvalid;
            tick();
            if (address_taken) top.s_axi_control_awvalid = 0;
            if (data_taken) top.s_axi_control_wvalid = 0;
            if (is_answered) return;
        }
        fail("no answer to a write on s_axi_control");
    }

    uint32_t read_register(uint32_t offset) override {
        auto& top = *top_;
        top.s_axi_control_araddr = offset;
        top.s_axi_control_arvalid = 1;
        for (unsigned clock = 0; clock < kRegisterPatience; ++clock) {
            top.eval();
            const bool address_taken = top.s_axi_control_arready, is_answered = top.s_axi_control_rvalid;
            const uint32_t value = top.s_axi_control_rdata;
            tick();
            if (address_taken) top.s_axi_control_arvalid = 0;
            if (is_answered) return value;
        }
        fail("no answer to a read on s_axi_control");
    }

    void step(unsigned clocks) override {
        top_->eval();
        while (clocks--) tick();
    }

  private:
    static constexpr size_t kWidth = sizeof(Vcsengine_top::m_axi_gmem_rdata);  // bytes: of 64 or of 512 bits
    static constexpr unsigned kSize = __builtin_ctz(kWidth);                   // as AxSIZE has it
    static_assert(sizeof(Vcsengine_top::m_axi_gmem_wdata) == kWidth);

    // One clock; all outputs have settled before and after.
    void tick() {
        auto& top = *top_;
        const bool reads = top.m_axi_gmem_arvalid && top.m_axi_gmem_arready;
        const bool writes = top.m_axi_gmem_awvalid && top.m_axi_gmem_awready;
        const bool has_data = top.m_axi_gmem_wvalid && top.m_axi_gmem_wready;
        const bool read_taken = top.m_axi_gmem_rvalid && top.m_axi_gmem_rready;
        const bool response_taken = top.m_axi_gmem_bvalid && top.m_axi_gmem_bready;
        if (reads) accept_read();
        if (writes) accept_write();
        if (has_data) accept_data();
        top.ap_clk = 1;
        top.eval();
        ++clock_;
        if (read_taken) {
            reads_.front().address += kWidth;
            if (--reads_.front().beats == 0) reads_.pop_front();
        }
        if (response_taken) responses_.pop_front();
        drive_memory();
        top.ap_clk = 0;
        top.eval();
    }

    // The memory's side of the master, as it stands after a clock edge.
    void drive_memory() {
        auto& top = *top_;
        const bool has_read = !reads_.empty() && reads_.front().due <= clock_;
        top.m_axi_gmem_arready = reads_.size() < kOutstandingReads;
        top.m_axi_gmem_rvalid = has_read;
        if (has_read) {
            const bool is_there = memory_.read(reads_.front().address, &top.m_axi_gmem_rdata, kWidth);
            top.m_axi_gmem_rresp = is_there ? kOkay : kDecodeError;
            top.m_axi_gmem_rlast = reads_.front().beats == 1;
            top.m_axi_gmem_rid = reads_.front().id;
        }
        top.m_axi_gmem_awready = write_.beats == 0;
        top.m_axi_gmem_wready = write_.beats != 0;
        top.m_axi_gmem_bvalid = !responses_.empty() && responses_.front().due <= clock_;
        if (responses_.empty()) return;
        top.m_axi_gmem_bresp = responses_.front().code;
        top.m_axi_gmem_bid = responses_.front().id;
    }

    void accept_read() {
        const auto& top = *top_;
        const Burst burst = {top.m_axi_gmem_araddr, top.m_axi_gmem_arlen + 1u, top.m_axi_gmem_arid,
                             clock_ + kReadLatency};
        check(burst, top.m_axi_gmem_arsize, top.m_axi_gmem_arburst);
        reads_.push_back(burst);
    }

    void accept_write() {
        const auto& top = *top_;
        write_ = {top.m_axi_gmem_awaddr, top.m_axi_gmem_awlen + 1u, top.m_axi_gmem_awid, 0};
        write_code_ = kOkay;
        check(write_, top.m_axi_gmem_awsize, top.m_axi_gmem_awburst);
    }

    void accept_data() {
        const auto& top = *top_;
        uint64_t strobe = 0;
        std::memcpy(&strobe, &top.m_axi_gmem_wstrb, sizeof top.m_axi_gmem_wstrb);
        if (!memory_.write(write_.address, &top.m_axi_gmem_wdata, kWidth, strobe)) write_code_ = kDecodeError;
        write_.address += kWidth;
        --write_.beats;
        if (bool(top.m_axi_gmem_wlast) != (write_.beats == 0)) fail("WLAST is not at the end of its burst");
        if (write_.beats == 0) responses_.push_back({clock_ + kWriteLatency, write_.id, write_code_});
    }

    static void check(const Burst& burst, unsigned size, unsigned kind) {
        if (size != kSize) fail("a burst is narrower than the data bus");
        if (kind != kIncrementing) fail("a burst is not of type INCR");
        if (burst.address % kWidth) fail("a burst is not aligned to the data bus");
        const uint64_t last = burst.address + burst.beats * kWidth - 1;
        if (burst.address / kPage != last / kPage) fail("a burst crosses a 4 KiB boundary");
    }

    Memory& memory_;
    VerilatedContext context_;
    std::unique_ptr<Vcsengine_top> top_;
    uint64_t clock_ = 0;
    std::deque<Burst> reads_;
    Burst write_ = {};
    uint8_t write_code_ = kOkay;
    std::deque<Response> responses_;
};

}  // namespace
}  // namespace csengine::emulation

extern "C" __attribute__((visibility("default"))) csengine::emulation::Kernel* csengine_kernel_1(
    csengine::emulation::Memory& memory) {
    return new csengine::emulation::VerilatedKernel(memory);
}
