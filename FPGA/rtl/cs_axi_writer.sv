// Writes samples of Words 64-bit words through AXI4: INCR bursts of at most 64 beats that never cross a 512-byte
// boundary. Sample i begins at address + i * Stride bytes.
//
// A burst's address is sent when its first word is there, so that the bus never waits for the pipeline's start.
// busy_o falls when all samples are written and acknowledged. error_o is a pulse per bad response.
module cs_axi_writer #(
  parameter int Words  = 6,
  parameter int Stride = 64
) (
  input  logic        clk_i,
  input  logic        rst_ni,
  input  logic        start_i,
  input  logic [63:0] address_i,
  input  logic [31:0] samples_i,
  output logic        busy_o,
  output logic        error_o,
  input  logic        valid_i,
  output logic        ready_o,
  input  logic [63:0] data_i,
  input  logic [7:0]  strobe_i,
  output logic        awvalid_o,
  input  logic        awready_i,
  output logic [63:0] awaddr_o,
  output logic [7:0]  awlen_o,
  output logic        wvalid_o,
  input  logic        wready_i,
  output logic [63:0] wdata_o,
  output logic [7:0]  wstrb_o,
  output logic        wlast_o,
  input  logic        bvalid_i,
  output logic        bready_o,
  input  logic [1:0]  bresp_i
);
  localparam int WordBits = $clog2(Words + 1);
  if (Words < 1 || Stride % 64 != 0 || Stride < 8 * Words) $error("cs_axi_writer: Stride is a multiple of 64, enough");

  logic [63:0]         sample_q, address_q;  // addresses of the next sample, of the next burst
  logic [31:0]         samples_q, waiting_q; // not begun; bursts not acknowledged
  logic [WordBits-1:0] words_q;              // of the sample, not asked for yet
  logic [6:0]          room, beats, left_q;  // beats of the burst to come
  logic                asks, taken;
  assign room  = 7'd64 - 7'(address_q[8:3]);
  assign beats = int'(words_q) < int'(room) ? 7'(words_q) : room;
  assign asks  = valid_i && words_q != '0 && left_q == '0 && !awvalid_o;
  assign taken = wvalid_o && wready_i;
  assign wvalid_o = left_q != '0 && !awvalid_o && valid_i;
  assign wdata_o  = data_i;
  assign wstrb_o  = strobe_i;
  assign wlast_o  = left_q == 7'd1;
  assign ready_o  = taken;
  assign bready_o = 1'b1;
  assign busy_o   = samples_q != '0 || words_q != '0 || left_q != '0 || waiting_q != '0;
  assign error_o  = bvalid_i && bresp_i != '0;
  always_ff @(posedge clk_i) begin
    if (awready_i) awvalid_o <= 1'b0;
    if (taken) left_q <= left_q - 7'd1;
    if (asks) begin
      awvalid_o <= 1'b1;
      awaddr_o  <= address_q;
      awlen_o   <= 8'(beats) - 8'd1;
      left_q    <= beats;
      address_q <= address_q + 64'({beats, 3'b0});
      words_q   <= words_q - WordBits'(beats);
    end
    if (words_q == '0 && samples_q != '0) begin
      samples_q <= samples_q - 32'd1;
      words_q   <= WordBits'(Words);
      address_q <= sample_q;
      sample_q  <= sample_q + 64'(Stride);
    end
    waiting_q <= waiting_q + 32'(asks) - 32'(bvalid_i);
    if (start_i) begin
      sample_q  <= address_i;
      samples_q <= samples_i;
    end
    if (!rst_ni) begin
      awvalid_o <= 1'b0;
      samples_q <= '0;
      words_q   <= '0;
      left_q    <= '0;
      waiting_q <= '0;
    end
  end
endmodule
