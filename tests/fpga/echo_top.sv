// A kernel with the ports and registers of every `csengine_top`, small enough to build in seconds: y = x + c, byte by
// byte, for samples of 64 bytes. It is what the tests of the host and of the emulated device run.
//
// The image holds three little-endian words: c (64 bits, the same byte eight times), the clocks that each sample takes
// besides its transfer (32 bits; 2**32 - 1 never ends), and the error flags to report (32 bits).

`timescale 1ns / 1ps
module csengine_top #(
    parameter int unsigned DataBits = 64,
    parameter logic [63:0] ShapeId  = 64'h0
) (
    input  logic        ap_clk,
    input  logic        ap_rst_n,
    output logic        interrupt,
    // Control: AXI4-Lite
    input  logic [11:0] s_axi_control_AWADDR,
    input  logic        s_axi_control_AWVALID,
    output logic        s_axi_control_AWREADY,
    input  logic [31:0] s_axi_control_WDATA,
    input  logic [ 3:0] s_axi_control_WSTRB,
    input  logic        s_axi_control_WVALID,
    output logic        s_axi_control_WREADY,
    output logic [ 1:0] s_axi_control_BRESP,
    output logic        s_axi_control_BVALID,
    input  logic        s_axi_control_BREADY,
    input  logic [11:0] s_axi_control_ARADDR,
    input  logic        s_axi_control_ARVALID,
    output logic        s_axi_control_ARREADY,
    output logic [31:0] s_axi_control_RDATA,
    output logic [ 1:0] s_axi_control_RRESP,
    output logic        s_axi_control_RVALID,
    input  logic        s_axi_control_RREADY,
    // Global memory: AXI4
    output logic [63:0] m_axi_gmem_AWADDR,
    output logic [ 7:0] m_axi_gmem_AWLEN,
    output logic [ 2:0] m_axi_gmem_AWSIZE,
    output logic [ 1:0] m_axi_gmem_AWBURST,
    output logic        m_axi_gmem_AWVALID,
    input  logic        m_axi_gmem_AWREADY,
    output logic [DataBits-1:0] m_axi_gmem_WDATA,
    output logic [DataBits/8-1:0] m_axi_gmem_WSTRB,
    output logic        m_axi_gmem_WLAST,
    output logic        m_axi_gmem_WVALID,
    input  logic        m_axi_gmem_WREADY,
    input  logic [ 1:0] m_axi_gmem_BRESP,
    input  logic        m_axi_gmem_BVALID,
    output logic        m_axi_gmem_BREADY,
    output logic [63:0] m_axi_gmem_ARADDR,
    output logic [ 7:0] m_axi_gmem_ARLEN,
    output logic [ 2:0] m_axi_gmem_ARSIZE,
    output logic [ 1:0] m_axi_gmem_ARBURST,
    output logic        m_axi_gmem_ARVALID,
    input  logic        m_axi_gmem_ARREADY,
    input  logic [DataBits-1:0] m_axi_gmem_RDATA,
    input  logic [ 1:0] m_axi_gmem_RRESP,
    input  logic        m_axi_gmem_RLAST,
    input  logic        m_axi_gmem_RVALID,
    output logic        m_axi_gmem_RREADY
);
  localparam int unsigned SampleBytes = 64;
  localparam int unsigned Beats = SampleBytes / (DataBits / 8);
  localparam int unsigned BeatBits = Beats > 1 ? $clog2(Beats) : 1;
  localparam logic [7:0] BurstLen = 8'(Beats - 1);
  localparam logic [2:0] BurstSize = 3'($clog2(DataBits / 8));
  localparam logic [31:0] Forever = '1;

  // --- control -------------------------------------------------------------------------------------------------------

  logic [63:0] x_q, y_q, image_q;
  logic [31:0] samples_q, load_q, cycles_q, errors_q;
  logic start_q, done_q, finish, aw_full_q, w_full_q;
  logic [11:0] aw_q;
  logic [31:0] w_q;

  assign interrupt = 1'b0;
  assign s_axi_control_AWREADY = !aw_full_q;
  assign s_axi_control_WREADY = !w_full_q;
  assign s_axi_control_ARREADY = !s_axi_control_RVALID;
  assign s_axi_control_BRESP = 2'b00;
  assign s_axi_control_RRESP = 2'b00;

  wire do_write = aw_full_q && w_full_q && !s_axi_control_BVALID;
  wire do_read = s_axi_control_ARVALID && s_axi_control_ARREADY;

  always_ff @(posedge ap_clk) begin
    if (!ap_rst_n) begin
      {aw_full_q, w_full_q, start_q, done_q} <= '0;
      {s_axi_control_BVALID, s_axi_control_RVALID} <= '0;
      {x_q, y_q, image_q, samples_q, load_q} <= '0;
    end else begin
      if (s_axi_control_AWVALID && s_axi_control_AWREADY) {aw_full_q, aw_q} <= {1'b1, s_axi_control_AWADDR};
      if (s_axi_control_WVALID && s_axi_control_WREADY) {w_full_q, w_q} <= {1'b1, s_axi_control_WDATA};
      if (s_axi_control_BVALID && s_axi_control_BREADY) s_axi_control_BVALID <= 1'b0;
      if (s_axi_control_RVALID && s_axi_control_RREADY) s_axi_control_RVALID <= 1'b0;
      if (do_read && s_axi_control_ARADDR == 12'h00) done_q <= 1'b0;
      if (finish) {start_q, done_q} <= 2'b01;
      if (do_write) begin
        {aw_full_q, w_full_q, s_axi_control_BVALID} <= 3'b001;
        case (aw_q)
          12'h00:  start_q <= start_q || w_q[0];
          12'h10:  x_q[31:0] <= w_q;
          12'h14:  x_q[63:32] <= w_q;
          12'h1C:  y_q[31:0] <= w_q;
          12'h20:  y_q[63:32] <= w_q;
          12'h28:  image_q[31:0] <= w_q;
          12'h2C:  image_q[63:32] <= w_q;
          12'h34:  samples_q <= w_q;
          12'h3C:  load_q <= w_q;
          default: ;
        endcase
      end
      if (do_read) begin
        s_axi_control_RVALID <= 1'b1;
        case (s_axi_control_ARADDR)
          12'h00:  s_axi_control_RDATA <= {28'd0, done_q, !start_q, done_q, start_q};
          12'h44:  s_axi_control_RDATA <= cycles_q;
          12'h4C:  s_axi_control_RDATA <= ShapeId[31:0];
          12'h50:  s_axi_control_RDATA <= ShapeId[63:32];
          12'h54:  s_axi_control_RDATA <= errors_q;
          default: s_axi_control_RDATA <= '0;
        endcase
      end
    end
  end

  // --- samples, one after the other ----------------------------------------------------------------------------------

  typedef enum logic [2:0] {Idle, LoadAddress, Load, ReadAddress, Read, Work, Write, Acknowledge} state_e;
  state_e state_q;
  logic [DataBits-1:0] sample_q [Beats];
  logic [7:0] beat_q;
  logic [31:0] done_samples_q, work_q, stall_q, report_q;
  logic [63:0] add_q;
  logic address_sent_q;

  wire is_last_beat = beat_q == BurstLen;
  wire no_samples_left = done_samples_q == samples_q;
  wire [63:0] sample_offset = {26'd0, done_samples_q, 6'd0};

  assign m_axi_gmem_ARVALID = state_q == LoadAddress || (state_q == ReadAddress && !no_samples_left);
  assign m_axi_gmem_ARADDR = state_q == LoadAddress ? image_q : x_q + sample_offset;
  assign m_axi_gmem_ARLEN = BurstLen;
  assign m_axi_gmem_ARSIZE = BurstSize;
  assign m_axi_gmem_ARBURST = 2'b01;
  assign m_axi_gmem_RREADY = state_q == Load || state_q == Read;
  assign m_axi_gmem_AWVALID = state_q == Write && !address_sent_q;
  assign m_axi_gmem_AWADDR = y_q + sample_offset;
  assign m_axi_gmem_AWLEN = BurstLen;
  assign m_axi_gmem_AWSIZE = BurstSize;
  assign m_axi_gmem_AWBURST = 2'b01;
  assign m_axi_gmem_WVALID = state_q == Write && address_sent_q;
  assign m_axi_gmem_WDATA = sample_q[beat_q[BeatBits-1:0]];
  assign m_axi_gmem_WSTRB = '1;
  assign m_axi_gmem_WLAST = is_last_beat;
  assign m_axi_gmem_BREADY = state_q == Acknowledge;
  assign finish = state_q == ReadAddress && no_samples_left;

  function automatic logic [DataBits-1:0] plus(logic [DataBits-1:0] bytes, logic [7:0] added);
    for (int i = 0; i < DataBits / 8; i++) plus[8*i+:8] = bytes[8*i+:8] + added;
  endfunction

  // The first words of the image, whatever the width of the bus: beat 0 has c, beat 0 or 1 the rest.
  task automatic take_image();
    if (beat_q == 0) add_q <= m_axi_gmem_RDATA[63:0];
    if (DataBits > 64 && beat_q == 0) {report_q, stall_q} <= m_axi_gmem_RDATA[DataBits > 64 ? 64 : 0 +: 64];
    if (DataBits == 64 && beat_q == 1) {report_q, stall_q} <= m_axi_gmem_RDATA[63:0];
  endtask

  always_ff @(posedge ap_clk) begin
    if (!ap_rst_n) begin
      state_q <= Idle;
      {cycles_q, errors_q, stall_q, report_q, add_q} <= '0;
    end else begin
      if (state_q != Idle) cycles_q <= cycles_q + 1;
      if (m_axi_gmem_RVALID && m_axi_gmem_RRESP != 0) errors_q[0] <= 1'b1;
      if (m_axi_gmem_BVALID && m_axi_gmem_BRESP != 0) errors_q[1] <= 1'b1;
      case (state_q)
        Idle: begin
          {done_samples_q, beat_q} <= '0;
          if (start_q && !done_q) begin
            {cycles_q, errors_q} <= '0;
            state_q <= load_q[0] ? LoadAddress : ReadAddress;
          end
        end
        LoadAddress: if (m_axi_gmem_ARREADY) state_q <= Load;
        Load:
          if (m_axi_gmem_RVALID) begin
            take_image();
            beat_q <= is_last_beat ? '0 : beat_q + 1;
            if (is_last_beat) state_q <= ReadAddress;
          end
        ReadAddress: begin
          if (no_samples_left) begin
            errors_q <= errors_q | report_q;
            state_q <= Idle;
          end else if (m_axi_gmem_ARREADY) begin
            state_q <= Read;
          end
        end
        Read:
          if (m_axi_gmem_RVALID) begin
            sample_q[beat_q[BeatBits-1:0]] <= plus(m_axi_gmem_RDATA, add_q[7:0]);
            beat_q <= is_last_beat ? '0 : beat_q + 1;
            work_q <= stall_q;
            if (is_last_beat) state_q <= Work;
          end
        Work: begin
          if (work_q != Forever) work_q <= work_q - 1;
          address_sent_q <= 1'b0;
          if (work_q == 0) state_q <= Write;
        end
        Write: begin
          if (m_axi_gmem_AWREADY && !address_sent_q) address_sent_q <= 1'b1;
          if (m_axi_gmem_WVALID && m_axi_gmem_WREADY) begin
            beat_q <= is_last_beat ? '0 : beat_q + 1;
            if (is_last_beat) state_q <= Acknowledge;
          end
        end
        Acknowledge:
          if (m_axi_gmem_BVALID) begin
            done_samples_q <= done_samples_q + 1;
            state_q <= ReadAddress;
          end
        default: state_q <= Idle;
      endcase
    end
  end
endmodule
