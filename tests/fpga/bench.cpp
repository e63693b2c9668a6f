// A Verilated `csengine_top` for tests, as a C interface: its registers, its clock, and a memory behind its master that
// stalls at random, answers errors outside of its bytes, and checks what AXI4 demands.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>

#include "Vcsengine_top.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

namespace {

constexpr uint64_t kBase = 0x1'2345'0000'0000;  // needs all address bits
constexpr unsigned kBeat = 8;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "AXI rule broken: %s\n", what);
    std::abort();
}

void require(bool rule, const char* what) {
    if (!rule) fail(what);
}

struct Burst {
    uint64_t address;
    unsigned beats;
    uint64_t due;
};

// What a channel showed while it waited; it must not change before it is taken.
struct Held {
    bool waits = false;
    uint64_t payload = 0;
    void check(bool valid, bool ready, uint64_t now, const char* what) {
        if (waits) require(valid && payload == now, what);
        waits = valid && !ready;
        payload = now;
    }
};

class Bench {
  public:
    Bench(uint8_t* memory, uint64_t bytes, unsigned stall_percent, uint64_t seed)
        : memory_(memory), bytes_(bytes), stall_(stall_percent), random_(seed) {
        context_.traceEverOn(VM_TRACE);
        top_.reset(new Vcsengine_top(&context_));
        reset();
    }

    ~Bench() { top_->final(); }

#if VM_TRACE
    // Writes what happens from now on to a file.
    void trace(const char* path) {
        trace_.reset(new VerilatedVcdC);
        top_->trace(trace_.get(), 99);
        trace_->open(path);
    }
#endif

    void reset() {
        reads_.clear(), responses_.clear(), write_ = {};
        held_ar_ = held_aw_ = held_w_ = {};
        top_->s_axi_control_awvalid = top_->s_axi_control_wvalid = top_->s_axi_control_arvalid = 0;
        top_->s_axi_control_bready = top_->s_axi_control_rready = 1;
        top_->ap_rst_n = 0;
        for (int i = 0; i < 4; ++i) tick();
        reads_.clear(), responses_.clear(), write_ = {};
        top_->ap_rst_n = 1;
    }

    void write_register(uint32_t offset, uint32_t value) {
        auto& top = *top_;
        top.s_axi_control_awaddr = offset, top.s_axi_control_awvalid = 1;
        top.s_axi_control_wdata = value, top.s_axi_control_wstrb = 0xf, top.s_axi_control_wvalid = 1;
        for (int i = 0; i < 100; ++i) {
            top.eval();
            const bool taken = top.s_axi_control_awready && top.s_axi_control_wready,
                       answered = top.s_axi_control_bvalid;
            tick();
            if (taken) top.s_axi_control_awvalid = top.s_axi_control_wvalid = 0;
            if (answered) return;
        }
        fail("no answer to a write on s_axi_control");
    }

    uint32_t read_register(uint32_t offset) {
        auto& top = *top_;
        top.s_axi_control_araddr = offset, top.s_axi_control_arvalid = 1;
        for (int i = 0; i < 100; ++i) {
            top.eval();
            const bool taken = top.s_axi_control_arready, answered = top.s_axi_control_rvalid;
            const uint32_t value = top.s_axi_control_rdata;
            tick();
            if (taken) top.s_axi_control_arvalid = 0;
            if (answered) return value;
        }
        fail("no answer to a read on s_axi_control");
    }

    void step(uint64_t clocks) {
        while (clocks--) tick();
    }

    bool interrupt() const { return top_->__SYM__interrupt; }  // Verilator renames it

  private:
    bool stalls() { return stall_ && random_() % 100 < stall_; }

    void tick() {
        auto& top = *top_;
        drive();
        top.ap_clk = 0;
        top.eval();
#if VM_TRACE
        if (trace_) trace_->dump(clock_);
#endif
        const bool aw = top.m_axi_gmem_awvalid && top.m_axi_gmem_awready;
        const bool w = top.m_axi_gmem_wvalid && top.m_axi_gmem_wready;
        const bool ar = top.m_axi_gmem_arvalid && top.m_axi_gmem_arready;
        const bool r = top.m_axi_gmem_rvalid && top.m_axi_gmem_rready;
        const bool b = top.m_axi_gmem_bvalid && top.m_axi_gmem_bready;
        if (top.ap_rst_n) watch();
        if (ar)
            reads_.push_back(accepted(top.m_axi_gmem_araddr, top.m_axi_gmem_arlen, top.m_axi_gmem_arsize,
                                      top.m_axi_gmem_arburst, top.m_axi_gmem_arid));
        if (aw) {
            require(write_.beats == 0, "a write address before the data of the one before");
            write_ = accepted(top.m_axi_gmem_awaddr, top.m_axi_gmem_awlen, top.m_axi_gmem_awsize,
                              top.m_axi_gmem_awburst, top.m_axi_gmem_awid);
            write_error_ = false;
        }
        if (w) take_data();
        top.ap_clk = 1;
        top.eval();
        ++clock_;
        offers_read_ = offers_read_ && !r;
        offers_response_ = offers_response_ && !b;
        if (r) {
            reads_.front().address += kBeat;
            if (--reads_.front().beats == 0) reads_.pop_front();
        }
        if (b) responses_.pop_front();
    }

    // What waits must hold still.
    void watch() {
        auto& top = *top_;
        held_ar_.check(top.m_axi_gmem_arvalid, top.m_axi_gmem_arready,
                       top.m_axi_gmem_araddr ^ uint64_t{top.m_axi_gmem_arlen} << 56, "a read address that changes");
        held_aw_.check(top.m_axi_gmem_awvalid, top.m_axi_gmem_awready,
                       top.m_axi_gmem_awaddr ^ uint64_t{top.m_axi_gmem_awlen} << 56, "a write address that changes");
        held_w_.check(top.m_axi_gmem_wvalid, top.m_axi_gmem_wready,
                      top.m_axi_gmem_wdata ^ uint64_t{top.m_axi_gmem_wstrb} << 13 ^ top.m_axi_gmem_wlast,
                      "write data that changes");
    }

    Burst accepted(uint64_t address, unsigned len, unsigned size, unsigned burst, unsigned id) {
        require(size == 3 && burst == 1 && id == 0, "bursts are INCR, of 8 bytes a beat, with id 0");
        require(len < 64 && address % kBeat == 0, "bursts have 1 to 64 aligned beats");
        require(address / 512 == (address + len * kBeat) / 512, "no burst crosses 512 bytes");
        return {address, len + 1, clock_ + 20 + (stall_ ? random_() % 100 : 0)};
    }

    bool is_there(uint64_t address) const { return address >= kBase && address + kBeat <= kBase + bytes_; }

    void drive() {
        auto& top = *top_;
        if (!top.ap_rst_n) offers_read_ = offers_response_ = false;
        top.m_axi_gmem_arready = reads_.size() < 8 && !stalls();
        top.m_axi_gmem_awready = write_.beats == 0 && !stalls();
        top.m_axi_gmem_wready = write_.beats != 0 && !stalls();
        if (!offers_read_) offers_read_ = !reads_.empty() && reads_.front().due <= clock_ && !stalls();
        top.m_axi_gmem_rvalid = offers_read_;
        top.m_axi_gmem_rdata = random_();
        if (offers_read_) {
            const auto& burst = reads_.front();
            const bool there = is_there(burst.address);
            if (there) std::memcpy(&top.m_axi_gmem_rdata, memory_ + (burst.address - kBase), kBeat);
            top.m_axi_gmem_rresp = there ? 0 : 3;
            top.m_axi_gmem_rlast = burst.beats == 1;
        }
        if (!offers_response_) offers_response_ = !responses_.empty() && responses_.front().due <= clock_ && !stalls();
        top.m_axi_gmem_bvalid = offers_response_;
        if (offers_response_) top.m_axi_gmem_bresp = responses_.front().beats;
    }

    void take_data() {
        auto& top = *top_;
        require(write_.beats != 0, "write data without an address");
        require(bool(top.m_axi_gmem_wlast) == (write_.beats == 1), "wlast is wrong");
        if (!is_there(write_.address)) write_error_ = true;
        for (unsigned i = 0; i < kBeat && is_there(write_.address); ++i) {
            if (top.m_axi_gmem_wstrb >> i & 1) memory_[write_.address - kBase + i] = top.m_axi_gmem_wdata >> 8 * i;
        }
        write_.address += kBeat;
        if (--write_.beats == 0) responses_.push_back({0, write_error_ ? 3u : 0u, write_.due});
    }

    uint8_t* memory_;
    uint64_t bytes_;
    unsigned stall_;
    std::mt19937_64 random_;
    VerilatedContext context_;
    std::unique_ptr<Vcsengine_top> top_;
#if VM_TRACE
    std::unique_ptr<VerilatedVcdC> trace_;
#endif
    uint64_t clock_ = 0;
    std::deque<Burst> reads_, responses_;  // of a response, beats is its code
    Burst write_{};
    bool write_error_ = false, offers_read_ = false, offers_response_ = false;
    Held held_ar_, held_aw_, held_w_;
};

}  // namespace

extern "C" {
Bench* bench_new(uint8_t* memory, uint64_t bytes, unsigned stall_percent, uint64_t seed) {
    return new Bench(memory, bytes, stall_percent, seed);
}
void bench_delete(Bench* bench) { delete bench; }
#if VM_TRACE
void bench_trace(Bench* bench, const char* path) { bench->trace(path); }
#endif
void bench_reset(Bench* bench) { bench->reset(); }
void bench_step(Bench* bench, uint64_t clocks) { bench->step(clocks); }
void bench_write(Bench* bench, uint32_t offset, uint32_t value) { bench->write_register(offset, value); }
uint32_t bench_read(Bench* bench, uint32_t offset) { return bench->read_register(offset); }
int bench_interrupt(Bench* bench) { return bench->interrupt(); }
uint64_t bench_base() { return kBase; }
}
