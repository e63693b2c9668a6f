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
    input  logic [11:0] s_axi_control_awaddr,
    input  logic        s_axi_control_awvalid,
    output logic        s_axi_control_awready,
    input  logic [31:0] s_axi_control_wdata,
    input  logic [ 3:0] s_axi_control_wstrb,
    input  logic        s_axi_control_wvalid,
    output logic        s_axi_control_wready,
    output logic [ 1:0] s_axi_control_bresp,
    output logic        s_axi_control_bvalid,
    input  logic        s_axi_control_bready,
    input  logic [11:0] s_axi_control_araddr,
    input  logic        s_axi_control_arvalid,
    output logic        s_axi_control_arready,
    output logic [31:0] s_axi_control_rdata,
    output logic [ 1:0] s_axi_control_rresp,
    output logic        s_axi_control_rvalid,
    input  logic        s_axi_control_rready,
    // Global memory: AXI4
    output logic [63:0] m_axi_gmem_awaddr,
    output logic        m_axi_gmem_awid,
    output logic        m_axi_gmem_awlock,
    output logic [ 3:0] m_axi_gmem_awcache,
    output logic [ 2:0] m_axi_gmem_awprot,
    output logic [ 3:0] m_axi_gmem_awqos,
    output logic [ 7:0] m_axi_gmem_awlen,
    output logic [ 2:0] m_axi_gmem_awsize,
    output logic [ 1:0] m_axi_gmem_awburst,
    output logic        m_axi_gmem_awvalid,
    input  logic        m_axi_gmem_awready,
    output logic [DataBits-1:0] m_axi_gmem_wdata,
    output logic [DataBits/8-1:0] m_axi_gmem_wstrb,
    output logic        m_axi_gmem_wlast,
    output logic        m_axi_gmem_wvalid,
    input  logic        m_axi_gmem_wready,
    input  logic [ 1:0] m_axi_gmem_bresp,
    input  logic        m_axi_gmem_bid,
    input  logic        m_axi_gmem_bvalid,
    output logic        m_axi_gmem_bready,
    output logic [63:0] m_axi_gmem_araddr,
    output logic        m_axi_gmem_arid,
    output logic        m_axi_gmem_arlock,
    output logic [ 3:0] m_axi_gmem_arcache,
    output logic [ 2:0] m_axi_gmem_arprot,
    output logic [ 3:0] m_axi_gmem_arqos,
    output logic [ 7:0] m_axi_gmem_arlen,
    output logic [ 2:0] m_axi_gmem_arsize,
    output logic [ 1:0] m_axi_gmem_arburst,
    output logic        m_axi_gmem_arvalid,
    input  logic        m_axi_gmem_arready,
    input  logic [DataBits-1:0] m_axi_gmem_rdata,
    input  logic [ 1:0] m_axi_gmem_rresp,
    input  logic        m_axi_gmem_rid,
    input  logic        m_axi_gmem_rlast,
    input  logic        m_axi_gmem_rvalid,
    output logic        m_axi_gmem_rready
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
  assign s_axi_control_awready = !aw_full_q;
  assign s_axi_control_wready = !w_full_q;
  assign s_axi_control_arready = !s_axi_control_rvalid;
  assign s_axi_control_bresp = 2'b00;
  assign s_axi_control_rresp = 2'b00;

  wire do_write = aw_full_q && w_full_q && !s_axi_control_bvalid;
  wire do_read = s_axi_control_arvalid && s_axi_control_arready;

  always_ff @(posedge ap_clk) begin
    if (!ap_rst_n) begin
      {aw_full_q, w_full_q, start_q, done_q} <= '0;
      {s_axi_control_bvalid, s_axi_control_rvalid} <= '0;
      {x_q, y_q, image_q, samples_q, load_q} <= '0;
    end else begin
      if (s_axi_control_awvalid && s_axi_control_awready) {aw_full_q, aw_q} <= {1'b1, s_axi_control_awaddr};
      if (s_axi_control_wvalid && s_axi_control_wready) {w_full_q, w_q} <= {1'b1, s_axi_control_wdata};
      if (s_axi_control_bvalid && s_axi_control_bready) s_axi_control_bvalid <= 1'b0;
      if (s_axi_control_rvalid && s_axi_control_rready) s_axi_control_rvalid <= 1'b0;
      if (do_read && s_axi_control_araddr == 12'h00) done_q <= 1'b0;
      if (finish) {start_q, done_q} <= 2'b01;
      if (do_write) begin
        {aw_full_q, w_full_q, s_axi_control_bvalid} <= 3'b001;
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
        s_axi_control_rvalid <= 1'b1;
        case (s_axi_control_araddr)
          12'h00:  s_axi_control_rdata <= {28'd0, done_q, !start_q, done_q, start_q};
          12'h44:  s_axi_control_rdata <= cycles_q;
          12'h4C:  s_axi_control_rdata <= ShapeId[31:0];
          12'h50:  s_axi_control_rdata <= ShapeId[63:32];
          12'h54:  s_axi_control_rdata <= errors_q;
          default: s_axi_control_rdata <= '0;
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

  assign m_axi_gmem_arvalid = state_q == LoadAddress || (state_q == ReadAddress && !no_samples_left);
  assign m_axi_gmem_araddr = state_q == LoadAddress ? image_q : x_q + sample_offset;
  assign m_axi_gmem_arlen = BurstLen;
  assign m_axi_gmem_arsize = BurstSize;
  assign m_axi_gmem_arburst = 2'b01;
  assign {m_axi_gmem_arid, m_axi_gmem_arlock, m_axi_gmem_arcache, m_axi_gmem_arprot, m_axi_gmem_arqos} = '0;
  assign m_axi_gmem_rready = state_q == Load || state_q == Read;
  assign m_axi_gmem_awvalid = state_q == Write && !address_sent_q;
  assign m_axi_gmem_awaddr = y_q + sample_offset;
  assign m_axi_gmem_awlen = BurstLen;
  assign m_axi_gmem_awsize = BurstSize;
  assign m_axi_gmem_awburst = 2'b01;
  assign {m_axi_gmem_awid, m_axi_gmem_awlock, m_axi_gmem_awcache, m_axi_gmem_awprot, m_axi_gmem_awqos} = '0;
  assign m_axi_gmem_wvalid = state_q == Write && address_sent_q;
  assign m_axi_gmem_wdata = sample_q[beat_q[BeatBits-1:0]];
  assign m_axi_gmem_wstrb = '1;
  assign m_axi_gmem_wlast = is_last_beat;
  assign m_axi_gmem_bready = state_q == Acknowledge;
  assign finish = state_q == ReadAddress && no_samples_left;

  function automatic logic [DataBits-1:0] plus(logic [DataBits-1:0] bytes, logic [7:0] added);
    for (int i = 0; i < DataBits / 8; i++) plus[8*i+:8] = bytes[8*i+:8] + added;
  endfunction

  // The first words of the image, whatever the width of the bus: beat 0 has c, beat 0 or 1 the rest.
  task automatic take_image();
    if (beat_q == 0) add_q <= m_axi_gmem_rdata[63:0];
    if (DataBits > 64 && beat_q == 0) {report_q, stall_q} <= m_axi_gmem_rdata[DataBits > 64 ? 64 : 0 +: 64];
    if (DataBits == 64 && beat_q == 1) {report_q, stall_q} <= m_axi_gmem_rdata[63:0];
  endtask

  always_ff @(posedge ap_clk) begin
    if (!ap_rst_n) begin
      state_q <= Idle;
      {cycles_q, errors_q, stall_q, report_q, add_q} <= '0;
    end else begin
      if (state_q != Idle) cycles_q <= cycles_q + 1;
      if (m_axi_gmem_rvalid && m_axi_gmem_rresp != 0) errors_q[2] <= 1'b1;
      if (m_axi_gmem_bvalid && m_axi_gmem_bresp != 0) errors_q[3] <= 1'b1;
      case (state_q)
        Idle: begin
          {done_samples_q, beat_q} <= '0;
          if (start_q && !done_q) begin
            {cycles_q, errors_q} <= '0;
            state_q <= load_q[0] ? LoadAddress : ReadAddress;
          end
        end
        LoadAddress: if (m_axi_gmem_arready) state_q <= Load;
        Load:
          if (m_axi_gmem_rvalid) begin
            take_image();
            beat_q <= is_last_beat ? '0 : beat_q + 1;
            if (is_last_beat) state_q <= ReadAddress;
          end
        ReadAddress: begin
          if (no_samples_left) begin
            errors_q <= errors_q | report_q;
            state_q <= Idle;
          end else if (m_axi_gmem_arready) begin
            state_q <= Read;
          end
        end
        Read:
          if (m_axi_gmem_rvalid) begin
            sample_q[beat_q[BeatBits-1:0]] <= plus(m_axi_gmem_rdata, add_q[7:0]);
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
          if (m_axi_gmem_awready && !address_sent_q) address_sent_q <= 1'b1;
          if (m_axi_gmem_wvalid && m_axi_gmem_wready) begin
            beat_q <= is_last_beat ? '0 : beat_q + 1;
            if (is_last_beat) state_q <= Acknowledge;
          end
        end
        Acknowledge:
          if (m_axi_gmem_bvalid) begin
            done_samples_q <= done_samples_q + 1;
            state_q <= ReadAddress;
          end
        default: state_q <= Idle;
      endcase
    end
  end
endmodule
