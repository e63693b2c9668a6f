// sum = d[0] + ... + d[Terms-1], signed, exact.
//
// One registered level per halving. Latency ceil(log2 Terms) clocks (0 for one term); one sum per clock.
module cs_adder_tree #(
  parameter int Terms = 4,
  parameter int Width = 16,
  localparam int Levels = $clog2(Terms),
  localparam int SumBits = Width + Levels
) (
  input  logic                        clk_i,
  input  logic [Terms-1:0][Width-1:0] d_i,
  output logic [SumBits-1:0]          sum_o
);
  if (Terms < 1 || Width < 1) $error("cs_adder_tree: Terms and Width are at least 1");

  for (genvar l = 0; l <= Levels; l++) begin : g_level
    localparam int Count = cs_pkg::ceil_div(Terms, 1 << l);
    logic [Count-1:0][Width+l-1:0] sum;
    if (l == 0) begin : g_first
      logic unused_clk;
      assign unused_clk = clk_i;
      assign sum = d_i;
    end else begin : g_add
      localparam int Below = cs_pkg::ceil_div(Terms, 1 << (l - 1));
      for (genvar i = 0; i < Count; i++) begin : g_pair
        if (2 * i + 1 < Below) begin : g_two
          always_ff @(posedge clk_i) begin
            sum[i] <= (Width + l)'($signed(g_level[l-1].sum[2*i])) + (Width + l)'($signed(g_level[l-1].sum[2*i+1]));
          end
        end else begin : g_one
          always_ff @(posedge clk_i) sum[i] <= (Width + l)'($signed(g_level[l-1].sum[2*i]));
        end
      end
    end
  end
  assign sum_o = g_level[Levels].sum[0];
endmodule
