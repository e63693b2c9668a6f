// product[c] = value * weight[c]: the paper's Multiply step for one row of packed weights.
//
// value is 9-bit signed, so that it holds both uint8 and int8; weights are int8; products of these fit 16 bits
// (-128 * 255 = -32640). Two weights share one 27 x 18 multiplier, because they share the activation:
// (w1 * 2^18 + w0) * value; the upper product lacks 1 where the lower one is negative.
// Latency 1 clock, one row per clock.
module cs_multiply #(
  parameter int Columns = 2
) (
  input  logic                     clk_i,
  input  logic [8:0]               value_i,
  input  logic [Columns-1:0][7:0]  weight_i,
  output logic [Columns-1:0][15:0] product_o
);
  if (Columns < 1) $error("cs_multiply: Columns is at least 1");

  for (genvar c = 0; c < Columns; c += 2) begin : g_pair
    if (c + 1 < Columns) begin : g_two
      logic signed [26:0] weights;
      logic signed [44:0] both_q;
      assign weights = $signed({weight_i[c+1][7], weight_i[c+1], 18'b0}) + 27'($signed(weight_i[c]));
      always_ff @(posedge clk_i) both_q <= weights * 18'($signed(value_i));
      assign product_o[c]   = both_q[15:0];
      assign product_o[c+1] = both_q[33:18] + 16'(both_q[17]);
      logic unused;
      assign unused = &{1'b0, both_q[44:34], both_q[16]};  // copies of the sign
    end else begin : g_one
      always_ff @(posedge clk_i) product_o[c] <= 16'($signed(value_i) * $signed(weight_i[c]));
    end
  end
endmodule
