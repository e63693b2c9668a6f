// Reads consecutive 64-bit words through AXI4: INCR bursts of at most 64 beats that never cross a 512-byte boundary.
//
// start_i takes address and count (not 0); the words leave in order, at the pace of ready_i. At most Outstanding bursts
// are under way, so that a slow consumer does not clog the interconnect. error_o is a pulse per bad response.
module cs_axi_reader #(
  parameter int Outstanding = 4
) (
  input  logic        clk_i,
  input  logic        rst_ni,
  input  logic        start_i,
  input  logic [63:0] address_i,
  input  logic [47:0] words_i,
  output logic        busy_o,
  output logic        error_o,
  output logic        valid_o,
  input  logic        ready_i,
  output logic [63:0] data_o,
  output logic        arvalid_o,
  input  logic        arready_i,
  output logic [63:0] araddr_o,
  output logic [7:0]  arlen_o,
  input  logic        rvalid_i,
  output logic        rready_o,
  input  logic [63:0] rdata_i,
  input  logic [1:0]  rresp_i,
  input  logic        rlast_i
);
  localparam int UnderWayBits = $clog2(Outstanding + 1);
  if (Outstanding < 1) $error("cs_axi_reader: Outstanding is at least 1");

  logic [63:0]             address_q;
  logic [47:0]             words_q;     // not asked for yet
  logic [UnderWayBits-1:0] under_way_q;
  logic [6:0]              room, beats;
  logic                    asks, ends;
  assign room  = 7'd64 - 7'(address_q[8:3]);
  assign beats = words_q < 48'(room) ? 7'(words_q) : room;
  assign asks  = !arvalid_o && words_q != '0 && int'(under_way_q) < Outstanding;
  assign ends  = rvalid_i && rready_o && rlast_i;
  assign busy_o   = words_q != '0 || under_way_q != '0;
  assign error_o  = rvalid_i && rready_o && rresp_i != '0;
  assign valid_o  = rvalid_i;
  assign data_o   = rdata_i;
  assign rready_o = ready_i;
  always_ff @(posedge clk_i) begin
    if (arready_i) arvalid_o <= 1'b0;
    if (asks) begin
      arvalid_o <= 1'b1;
      araddr_o  <= address_q;
      arlen_o   <= 8'(beats) - 8'd1;
      address_q <= address_q + 64'({beats, 3'b0});
      words_q   <= words_q - 48'(beats);
    end
    under_way_q <= under_way_q + UnderWayBits'(asks) - UnderWayBits'(ends);
    if (start_i) begin
      address_q <= address_i;
      words_q   <= words_i;
    end
    if (!rst_ni) begin
      arvalid_o   <= 1'b0;
      words_q     <= '0;
      under_way_q <= '0;
    end
  end
endmodule
