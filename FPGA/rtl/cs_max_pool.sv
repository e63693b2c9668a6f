// Largest value of each 2 x 2 window, per channel. A position comes as Beats beats of Columns values; the four
// positions of a window follow one another (see cs_sequencer), so that one running maximum per channel suffices.
// Latency 1 clock after the fourth position's beat; one beat per clock.
module cs_max_pool #(
  parameter int Columns = 1,
  parameter int Beats   = 1,
  parameter bit Signed  = 0
) (
  input  logic                    clk_i,
  input  logic                    rst_ni,
  input  logic                    valid_i,
  input  logic [Columns-1:0][7:0] value_i,
  output logic                    valid_o,
  output logic [Columns-1:0][7:0] value_o
);
  localparam int BeatBits = cs_pkg::bits(Beats);
  localparam logic [7:0] Flip = Signed ? 8'h80 : 8'h00;  // makes the order unsigned
  if (Columns < 1 || Beats < 1) $error("cs_max_pool: every count is at least 1");

  (* ram_style = "distributed" *) logic [Columns-1:0][7:0] largest [Beats];
  logic [Columns-1:0][7:0] old, now;
  logic [BeatBits-1:0]     beat_q;
  logic [1:0]              position_q;
  assign old = largest[beat_q];
  always_comb begin
    for (int c = 0; c < Columns; c++) begin
      now[c] = position_q == '0 || (value_i[c] ^ Flip) > (old[c] ^ Flip) ? value_i[c] : old[c];
    end
  end
  always_ff @(posedge clk_i) begin
    value_o <= now;
    valid_o <= valid_i && position_q == '1;
    if (valid_i) begin
      largest[beat_q] <= now;
      beat_q          <= beat_q + 1'b1;
      if (int'(beat_q) == Beats - 1) begin
        beat_q     <= '0;
        position_q <= position_q + 1'b1;
      end
    end
    if (!rst_ni) begin
      valid_o    <= 1'b0;
      beat_q     <= '0;
      position_q <= '0;
    end
  end
endmodule
