// y[set, column, kid[row, set]] += value * weight[row, set, column] over the rows of one vector: Multiply, Route, Sum.
//
// Each lane takes one (row, value) pair per clock and reads that row of its own memory. A row holds for each of the
// Sets, the first in the least significant bits, {weight[Columns-1] .. weight[0], kid}: the Columns kernels of a block
// share the kid. What a row is (an input, or a tap and a channel) the sequencer and the parameter image agree upon.
//
// Products are routed by select (cs_select), which is small where slots are few, or by address (cs_accumulator); both
// take the same clocks. RamStyle names the memory of the weights for the tools: "auto", or "ultra" for UltraRAM.
//
// last_i ends a vector; it may come with every clock but at least Slots * DrainStep clocks after the one before. The
// totals leave as Slots beats, one every DrainStep clocks, summed over the lanes: sum_o[set * Columns + column] of slot
// 0, 1, ... First beat 6 + ceil(log2 Lanes) clocks after last_i. A reset takes as long to clear all totals, or Slots clocks.
module cs_engine #(
  parameter logic [7:0] Stage     = 0,   // of the weights, on the parameter bus; unit = lane
  parameter int         Lanes     = 1,
  parameter int         Rows      = 16,  // per lane
  parameter int         Sets      = 1,
  parameter int         Columns   = 1,   // kernels of a block
  parameter int         Slots     = 2,   // kernel blocks of a set
  parameter int         DrainStep = 1,
  parameter int         LaneBits  = 24,  // of one lane's total
  parameter bit         Select    = 1,   // or by address, with two slots or more
  parameter             RamStyle  = "auto",
  localparam int        Outputs   = Sets * Columns,
  localparam int        RowBits   = cs_pkg::bits(Rows),
  localparam int        SumBits   = LaneBits + $clog2(Lanes)
) (
  input  logic                            clk_i,
  input  logic                            rst_ni,
  input  cs_pkg::load_t                   load_i,
  input  logic                            valid_i,
  input  logic                            last_i,
  input  logic [Lanes-1:0][8:0]           value_i,
  input  logic [Lanes-1:0][RowBits-1:0]   row_i,
  output logic                            valid_o,
  output logic [Outputs-1:0][SumBits-1:0] sum_o
);
  if (Lanes < 1 || Rows < 1 || Sets < 1 || DrainStep < 1) $error("cs_engine: every count is at least 1");
  if (Slots > 255) $error("cs_engine: a kernel id has 8 bits");

  localparam int KidBits = cs_pkg::bits(Slots);
  localparam int SetBits = KidBits + 8 * Columns;
  localparam int StepBits = cs_pkg::bits(DrainStep);
  localparam int Latency = 4;  // of a product: memory, its register, multiplier, its register
  localparam int Levels = $clog2(Lanes);

  // ---- parameters
  logic                         we;
  logic [15:0]                  load_lane;
  logic [23:0]                  load_row;
  logic [Sets-1:0][SetBits-1:0] load_data;
  cs_load_row #(.Stage(Stage), .Bits(Sets * SetBits)) u_load (
    .clk_i, .rst_ni, .load_i, .we_o(we), .unit_o(load_lane), .row_o(load_row), .data_o(load_data)
  );
  if (RowBits < 24) begin : g_short
    logic unused;
    assign unused = &{1'b0, load_row[23:RowBits]};
  end

  // ---- which memory accumulates, and the drain of the other; after a reset, both are cleared
  logic                half_q, clear_q, draining_q, add, last, drain;
  logic [KidBits-1:0]  slot_q;
  logic [StepBits-1:0] step_q;
  cs_delay #(.Depth(Latency)) u_add (.clk_i, .rst_ni, .d_i(valid_i), .q_o(add));
  cs_delay #(.Depth(Latency)) u_last (.clk_i, .rst_ni, .d_i(valid_i && last_i), .q_o(last));
  assign drain = draining_q && step_q == '0;
  always_ff @(posedge clk_i) begin
    if (draining_q || clear_q) begin
      step_q <= step_q + 1'b1;
      if (clear_q || int'(step_q) == DrainStep - 1) begin
        step_q <= '0;
        slot_q <= slot_q + 1'b1;
        if (int'(slot_q) == Slots - 1) begin
          slot_q     <= '0;
          draining_q <= 1'b0;
          clear_q    <= 1'b0;
        end
      end
    end
    if (last) begin
      half_q     <= !half_q;
      draining_q <= 1'b1;
      slot_q     <= '0;
      step_q     <= '0;
    end
    if (!rst_ni) begin
      half_q     <= 1'b0;
      clear_q    <= 1'b1;
      draining_q <= 1'b0;
      slot_q     <= '0;
      step_q     <= '0;
    end
  end

  // ---- lanes: multiply
  logic [Outputs-1:0][Lanes-1:0][15:0]     product;
  logic [Sets-1:0][Lanes-1:0][KidBits-1:0] kid_q;
  for (genvar l = 0; l < Lanes; l++) begin : g_lane
    (* ram_style = RamStyle *) logic [Sets-1:0][SetBits-1:0] weights [Rows];
    logic [Sets-1:0][SetBits-1:0] read_q, row_q;
    logic [8:0]                   value_q, value_q2;
    logic [Outputs-1:0][7:0]      weight;
    logic [Outputs-1:0][15:0]     own;
    always_ff @(posedge clk_i) begin
      if (we && load_lane == 16'(l)) weights[load_row[RowBits-1:0]] <= load_data;
      read_q   <= weights[row_i[l]];
      row_q    <= read_q;
      value_q  <= value_i[l];
      value_q2 <= value_q;
    end
    for (genvar t = 0; t < Sets; t++) begin : g_unpack
      assign weight[t*Columns+:Columns] = row_q[t][KidBits+:8*Columns];
      always_ff @(posedge clk_i) kid_q[t][l] <= row_q[t][KidBits-1:0];
    end
    cs_multiply #(.Columns(Outputs)) u_multiply (.clk_i, .value_i(value_q2), .weight_i(weight), .product_o(own));
    for (genvar o = 0; o < Outputs; o++) begin : g_product
      assign product[o][l] = own[o];
    end
  end

  // ---- route and sum
  if (Select) begin : g_select
    logic adds, first, step;
    cs_delay #(.Depth(Latency - 1)) u_adds (.clk_i, .rst_ni, .d_i(valid_i), .q_o(adds));
    cs_delay #(.Depth(Levels)) u_first (.clk_i, .rst_ni, .d_i(drain && slot_q == '0), .q_o(first));
    cs_delay #(.Depth(Levels)) u_step (.clk_i, .rst_ni, .d_i(drain), .q_o(step));
    for (genvar o = 0; o < Outputs; o++) begin : g_output
      cs_select #(.Lanes(Lanes), .Slots(Slots), .Bits(SumBits)) u_select (
        .clk_i, .rst_ni, .add_i(adds), .kid_i(kid_q[o/Columns]), .product_i(product[o]), .first_i(first),
        .step_i(step), .total_o(sum_o[o])
      );
    end
    logic unused;
    assign unused = &{1'b0, add, half_q};
  end else begin : g_address
    logic [Sets-1:0][Lanes-1:0][KidBits-1:0] kid_q2;
    always_ff @(posedge clk_i) kid_q2 <= kid_q;
    for (genvar o = 0; o < Outputs; o++) begin : g_output
      logic [Lanes-1:0][15:0]         product_q;
      logic [Lanes-1:0][LaneBits-1:0] total;
      always_ff @(posedge clk_i) product_q <= product[o];
      for (genvar l = 0; l < Lanes; l++) begin : g_lane
        cs_accumulator #(.Slots(Slots), .Bits(LaneBits)) u_accumulator (
          .clk_i, .clear_i(clear_q), .half_i(half_q), .add_i(add), .kid_i(kid_q2[o/Columns][l]),
          .product_i(product_q[l]), .drain_i(drain), .slot_i(slot_q), .total_o(total[l])
        );
      end
      cs_adder_tree #(.Terms(Lanes), .Width(LaneBits)) u_tree (.clk_i, .d_i(total), .sum_o(sum_o[o]));
    end
  end
  cs_delay #(.Depth(1 + Levels)) u_valid (.clk_i, .rst_ni, .d_i(drain), .q_o(valid_o));
endmodule
