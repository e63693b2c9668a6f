// Everything between the buses and the pipeline: registers, AXI4 master, parameter loader, and one run after another.
//
// A run: load the image if asked, then stream the samples in while results stream out; done when the last result is
// acknowledged. For 300 clocks after a reset a start waits, so that the memories of the pipeline are cleared.
// error_q: 0 the image is of another shape or damaged, 1 no image is loaded, 2 read error, 3 write error.
module cs_shell #(
  parameter logic [63:0] ShapeId     = 0,
  parameter int          ImageWords  = 16,
  parameter int          InputBytes  = 64,
  parameter int          OutputBytes = 64
) (
  input  logic          ap_clk,
  input  logic          ap_rst_n,
  output logic          interrupt,
  input  logic          s_axi_control_awvalid,
  output logic          s_axi_control_awready,
  input  logic [11:0]   s_axi_control_awaddr,
  input  logic          s_axi_control_wvalid,
  output logic          s_axi_control_wready,
  input  logic [31:0]   s_axi_control_wdata,
  input  logic [3:0]    s_axi_control_wstrb,
  output logic          s_axi_control_bvalid,
  input  logic          s_axi_control_bready,
  output logic [1:0]    s_axi_control_bresp,
  input  logic          s_axi_control_arvalid,
  output logic          s_axi_control_arready,
  input  logic [11:0]   s_axi_control_araddr,
  output logic          s_axi_control_rvalid,
  input  logic          s_axi_control_rready,
  output logic [31:0]   s_axi_control_rdata,
  output logic [1:0]    s_axi_control_rresp,
  output logic          m_axi_gmem_awvalid,
  input  logic          m_axi_gmem_awready,
  output logic [63:0]   m_axi_gmem_awaddr,
  output logic [0:0]    m_axi_gmem_awid,
  output logic [7:0]    m_axi_gmem_awlen,
  output logic [2:0]    m_axi_gmem_awsize,
  output logic [1:0]    m_axi_gmem_awburst,
  output logic          m_axi_gmem_awlock,
  output logic [3:0]    m_axi_gmem_awcache,
  output logic [2:0]    m_axi_gmem_awprot,
  output logic [3:0]    m_axi_gmem_awqos,
  output logic          m_axi_gmem_wvalid,
  input  logic          m_axi_gmem_wready,
  output logic [63:0]   m_axi_gmem_wdata,
  output logic [7:0]    m_axi_gmem_wstrb,
  output logic          m_axi_gmem_wlast,
  input  logic          m_axi_gmem_bvalid,
  output logic          m_axi_gmem_bready,
  input  logic [1:0]    m_axi_gmem_bresp,
  input  logic [0:0]    m_axi_gmem_bid,
  output logic          m_axi_gmem_arvalid,
  input  logic          m_axi_gmem_arready,
  output logic [63:0]   m_axi_gmem_araddr,
  output logic [0:0]    m_axi_gmem_arid,
  output logic [7:0]    m_axi_gmem_arlen,
  output logic [2:0]    m_axi_gmem_arsize,
  output logic [1:0]    m_axi_gmem_arburst,
  output logic          m_axi_gmem_arlock,
  output logic [3:0]    m_axi_gmem_arcache,
  output logic [2:0]    m_axi_gmem_arprot,
  output logic [3:0]    m_axi_gmem_arqos,
  input  logic          m_axi_gmem_rvalid,
  output logic          m_axi_gmem_rready,
  input  logic [63:0]   m_axi_gmem_rdata,
  input  logic [1:0]    m_axi_gmem_rresp,
  input  logic          m_axi_gmem_rlast,
  input  logic [0:0]    m_axi_gmem_rid,
  // the pipeline
  output cs_pkg::load_t load_o,
  output logic          x_valid_o,
  input  logic          x_ready_i,
  output logic [63:0]   x_data_o,
  input  logic          y_valid_i,
  output logic          y_ready_o,
  input  logic [63:0]   y_data_i,
  input  logic [7:0]    y_strobe_i
);
  localparam int XWords  = 8 * cs_pkg::ceil_div(InputBytes, 64);
  localparam int YWords  = cs_pkg::ceil_div(OutputBytes, 8);
  localparam int YStride = 64 * cs_pkg::ceil_div(OutputBytes, 64);
  localparam int Settle  = 300;  // clocks; longer than any memory is cleared
  if (InputBytes < 1 || OutputBytes < 1) $error("cs_shell: samples have at least one byte");

  typedef enum logic [2:0] { Settling, Idle, Header, Body, Start, Run, Done } state_e;
  state_e      state_q;
  logic        start, load, loaded_q, loading, begins, idle;
  logic [63:0] x, y, image;
  logic [31:0] samples, cycles_q;
  logic [8:0]  settle_q;
  logic [3:0]  error_q;

  assign idle = state_q == Idle || state_q == Settling;
  cs_control u_control (
    .clk_i(ap_clk), .rst_ni(ap_rst_n), .awvalid_i(s_axi_control_awvalid), .awready_o(s_axi_control_awready),
    .awaddr_i(s_axi_control_awaddr), .wvalid_i(s_axi_control_wvalid), .wready_o(s_axi_control_wready),
    .wdata_i(s_axi_control_wdata), .wstrb_i(s_axi_control_wstrb), .bvalid_o(s_axi_control_bvalid),
    .bready_i(s_axi_control_bready), .bresp_o(s_axi_control_bresp), .arvalid_i(s_axi_control_arvalid),
    .arready_o(s_axi_control_arready), .araddr_i(s_axi_control_araddr), .rvalid_o(s_axi_control_rvalid),
    .rready_i(s_axi_control_rready), .rdata_o(s_axi_control_rdata), .rresp_o(s_axi_control_rresp),
    .interrupt_o(interrupt), .start_o(start), .done_i(state_q == Done), .idle_i(idle && !start), .x_o(x),
    .y_o(y), .image_o(image), .samples_o(samples), .load_o(load), .cycles_i(cycles_q), .shape_i(ShapeId),
    .error_i(error_q)
  );

  // ---- memory
  logic        read_start, read_busy, read_error, read_valid, write_start, write_busy, write_error;
  logic [63:0] read_address;
  logic [47:0] read_words;
  cs_axi_reader u_reader (
    .clk_i(ap_clk), .rst_ni(ap_rst_n), .start_i(read_start), .address_i(read_address), .words_i(read_words),
    .busy_o(read_busy), .error_o(read_error), .valid_o(read_valid), .ready_i(loading || x_ready_i), .data_o(x_data_o),
    .arvalid_o(m_axi_gmem_arvalid), .arready_i(m_axi_gmem_arready), .araddr_o(m_axi_gmem_araddr),
    .arlen_o(m_axi_gmem_arlen), .rvalid_i(m_axi_gmem_rvalid), .rready_o(m_axi_gmem_rready),
    .rdata_i(m_axi_gmem_rdata), .rresp_i(m_axi_gmem_rresp), .rlast_i(m_axi_gmem_rlast)
  );
  cs_axi_writer #(.Words(YWords), .Stride(YStride)) u_writer (
    .clk_i(ap_clk), .rst_ni(ap_rst_n), .start_i(write_start), .address_i(y), .samples_i(samples), .busy_o(write_busy),
    .error_o(write_error), .valid_i(y_valid_i), .ready_o(y_ready_o), .data_i(y_data_i), .strobe_i(y_strobe_i),
    .awvalid_o(m_axi_gmem_awvalid), .awready_i(m_axi_gmem_awready), .awaddr_o(m_axi_gmem_awaddr),
    .awlen_o(m_axi_gmem_awlen), .wvalid_o(m_axi_gmem_wvalid), .wready_i(m_axi_gmem_wready),
    .wdata_o(m_axi_gmem_wdata), .wstrb_o(m_axi_gmem_wstrb), .wlast_o(m_axi_gmem_wlast),
    .bvalid_i(m_axi_gmem_bvalid), .bready_o(m_axi_gmem_bready), .bresp_i(m_axi_gmem_bresp)
  );
  assign {m_axi_gmem_awid, m_axi_gmem_arid}         = '0;
  assign {m_axi_gmem_awsize, m_axi_gmem_arsize}     = {3'd3, 3'd3};      // 8 bytes
  assign {m_axi_gmem_awburst, m_axi_gmem_arburst}   = {2'b01, 2'b01};    // INCR
  assign {m_axi_gmem_awlock, m_axi_gmem_arlock}     = '0;
  assign {m_axi_gmem_awcache, m_axi_gmem_arcache}   = {4'b0011, 4'b0011};  // bufferable, modifiable
  assign {m_axi_gmem_awprot, m_axi_gmem_arprot}     = '0;
  assign {m_axi_gmem_awqos, m_axi_gmem_arqos}       = '0;
  logic unused;
  assign unused = &{1'b0, m_axi_gmem_bid, m_axi_gmem_rid};  // one id only

  // ---- parameters
  logic header, header_good, loader_done, good, image_start;
  assign loading   = state_q == Header || state_q == Body;
  assign x_valid_o = read_valid && state_q == Run;
  cs_loader #(.ShapeId(ShapeId), .Words(ImageWords)) u_loader (
    .clk_i(ap_clk), .rst_ni(ap_rst_n), .start_i(image_start), .valid_i(read_valid && loading), .data_i(x_data_o),
    .header_o(header), .header_good_o(header_good), .done_o(loader_done), .good_o(good), .load_o
  );

  // ---- a run
  assign begins      = state_q == Idle && start;
  assign image_start = begins && load;
  assign write_start = state_q == Start && samples != '0;
  assign read_start  = image_start || write_start || (header && header_good);
  always_comb begin
    read_address = x;
    read_words   = 48'(samples) * 48'(XWords);
    if (image_start) begin
      read_address = image;
      read_words   = 48'd8;
    end else if (header) begin
      read_address = image + 64'd64;
      read_words   = 48'(ImageWords - 8);
    end
  end
  always_ff @(posedge ap_clk) begin
    settle_q <= settle_q + 9'd1;
    if (state_q != Idle && state_q != Done && state_q != Settling && cycles_q != '1) cycles_q <= cycles_q + 32'd1;
    if (read_error) error_q[2] <= 1'b1;
    if (write_error) error_q[3] <= 1'b1;
    unique case (state_q)
      Settling: if (settle_q == 9'(Settle)) state_q <= Idle;
      Idle:
        if (start) begin
          cycles_q <= 32'd1;
          error_q  <= '0;
          state_q  <= load ? Header : loaded_q ? Start : Done;
          if (load) loaded_q <= 1'b0;
          else error_q[1] <= !loaded_q;
        end
      Header:
        if (header) begin
          error_q[0] <= !header_good;
          state_q    <= header_good ? Body : Done;
        end
      Body:
        if (loader_done) begin
          error_q[0] <= !good;
          loaded_q   <= good && !error_q[2];
          state_q    <= good && !error_q[2] ? Start : Done;
        end
      Start: state_q <= samples == '0 ? Done : Run;
      Run:   if (!read_busy && !write_busy) state_q <= Done;
      default: state_q <= Idle;  // Done
    endcase
    if (!ap_rst_n) begin
      state_q  <= Settling;
      settle_q <= '0;
      loaded_q <= 1'b0;
      cycles_q <= '0;
      error_q  <= '0;
    end
  end
endmodule
