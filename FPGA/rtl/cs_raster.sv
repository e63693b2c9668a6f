// Numbers the positions of a sample: the write port of cs_sequencer for producers that follow raster order.
// Combinational but for the count.
module cs_raster #(
  parameter int Positions = 16,
  localparam int PosBits = cs_pkg::bits(Positions)
) (
  input  logic               clk_i,
  input  logic               rst_ni,
  input  logic               valid_i,
  output logic [PosBits-1:0] position_o,
  output logic               last_o
);
  if (Positions < 1) $error("cs_raster: Positions is at least 1");

  assign last_o = valid_i && int'(position_o) == Positions - 1;
  always_ff @(posedge clk_i) begin
    if (valid_i) position_o <= last_o ? '0 : position_o + 1'b1;
    if (!rst_ni) position_o <= '0;
  end
endmodule
