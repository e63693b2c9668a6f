// q(t) = d(t - Depth). Depth may be 0. Flags need the reset, data does not care.
module cs_delay #(
  parameter int Width = 1,
  parameter int Depth = 1
) (
  input  logic             clk_i,
  input  logic             rst_ni,
  input  logic [Width-1:0] d_i,
  output logic [Width-1:0] q_o
);
  if (Width < 1 || Depth < 0) $error("cs_delay: Width is at least 1, Depth at least 0");

  if (Depth == 0) begin : g_wire
    logic unused;
    assign unused = &{1'b0, clk_i, rst_ni};
    assign q_o = d_i;
  end else begin : g_shift
    logic [Depth-1:0][Width-1:0] stage_q;
    always_ff @(posedge clk_i) begin
      stage_q <= (Depth * Width)'({stage_q, d_i});
      if (!rst_ni) stage_q <= '0;
    end
    assign q_o = stage_q[Depth-1];
  end
endmodule
