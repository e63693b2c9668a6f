// sum[slot] += the products of all lanes whose kernel id is that slot: Route and Sum for one column of one set, by
// select. For few slots: a product takes Slots small adders here, where memories of totals (cs_accumulator) would
// stand almost empty in every lane.
//
// Per slot, products of other slots become 0, an adder tree sums the lanes, and one register the clocks of a vector.
// The totals leave one per step_i, the first with first_i, which takes all of them and makes the registers 0.
// A product's sum is in its total 2 + ceil(log2 Lanes) clocks later. Totals are 0 as many clocks after a reset.
module cs_select #(
  parameter int Lanes = 2,
  parameter int Slots = 2,
  parameter int Bits  = 24,  // of a total
  localparam int KidBits = cs_pkg::bits(Slots),
  localparam int Levels  = $clog2(Lanes)
) (
  input  logic                          clk_i,
  input  logic                          rst_ni,
  input  logic                          add_i,
  input  logic [Lanes-1:0][KidBits-1:0] kid_i,
  input  logic [Lanes-1:0][15:0]        product_i,
  input  logic                          first_i,
  input  logic                          step_i,
  output logic [Bits-1:0]               total_o
);
  if (Lanes < 1 || Slots < 1) $error("cs_select: every count is at least 1");
  if (Bits < 16 + Levels) $error("cs_select: a total is narrower than the sum of the lanes");

  logic settled;  // nothing of before the reset is on its way
  cs_delay #(.Depth(1 + Levels)) u_settled (.clk_i, .rst_ni, .d_i(1'b1), .q_o(settled));

  logic [Slots-1:0][Bits-1:0] total_q, left_q;
  for (genvar s = 0; s < Slots; s++) begin : g_slot
    logic [Lanes-1:0][15:0] own_q;
    logic [15+Levels:0]     sum;
    for (genvar l = 0; l < Lanes; l++) begin : g_lane
      always_ff @(posedge clk_i) own_q[l] <= add_i && int'(kid_i[l]) == s ? product_i[l] : '0;
    end
    cs_adder_tree #(.Terms(Lanes), .Width(16)) u_tree (.clk_i, .d_i(own_q), .sum_o(sum));
    always_ff @(posedge clk_i) begin
      total_q[s] <= (first_i ? '0 : total_q[s]) + Bits'($signed(sum));
      if (!settled) total_q[s] <= '0;
    end
  end
  always_ff @(posedge clk_i) if (step_i) left_q <= first_i ? total_q : (Slots * Bits)'(left_q >> Bits);
  assign total_o = left_q[0];
endmodule
