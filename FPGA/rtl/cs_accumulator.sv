// total[kid] += product: the paper's Route and Sum for one column of one set. The kernel id *is* the address, so that
// routing needs no network.
//
// Two memories of Slots totals take turns: one accumulates, the other is drained slot by slot, and what is drained
// becomes 0. Both have one port only. Memory reads are asynchronous (look-up table RAM), so that a kernel may own
// rows that follow one another: read, add and write take one clock.
// drain_i: total_o shows the slot one clock later. clear_i writes 0 to the slot of both memories.
module cs_accumulator #(
  parameter int Slots = 2,
  parameter int Bits  = 24,
  localparam int KidBits = cs_pkg::bits(Slots)
) (
  input  logic               clk_i,
  input  logic               clear_i,
  input  logic               half_i,     // the memory that accumulates
  input  logic               add_i,
  input  logic [KidBits-1:0] kid_i,
  input  logic [15:0]        product_i,
  input  logic               drain_i,
  input  logic [KidBits-1:0] slot_i,
  output logic [Bits-1:0]    total_o
);
  if (Slots < 2 || Bits < 16) $error("cs_accumulator: Slots is at least 2, Bits at least 16");

  logic [Bits-1:0] product;
  assign product = Bits'($signed(product_i));

  logic [1:0][Bits-1:0] old;
  logic [Bits-1:0]      sum;
  assign sum = old[half_i] + product;
  for (genvar h = 0; h < 2; h++) begin : g_half
    (* ram_style = "distributed" *) logic [Bits-1:0] total [Slots];
    logic               accumulates, we;
    logic [KidBits-1:0] address;
    assign accumulates = half_i == 1'(h) && !clear_i;
    assign address     = accumulates ? kid_i : slot_i;
    assign we          = clear_i || (accumulates ? add_i : drain_i);
    assign old[h]      = total[address];
    always_ff @(posedge clk_i) if (we) total[address] <= accumulates ? sum : '0;
  end
  always_ff @(posedge clk_i) if (drain_i) total_o <= old[!half_i];
endmodule
