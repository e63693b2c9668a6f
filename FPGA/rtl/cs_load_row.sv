// The write port of a parameter memory: gathers the 64-bit words of one row.
//
// A row of Bits bits is ceil(Bits / 64) words on the bus, the least significant first. we_o follows the last word by a
// clock.
module cs_load_row #(
  parameter logic [7:0] Stage = 0,
  parameter int         Bits  = 64
) (
  input  logic            clk_i,
  input  logic            rst_ni,
  input  cs_pkg::load_t   load_i,
  output logic            we_o,
  output logic [15:0]     unit_o,
  output logic [23:0]     row_o,
  output logic [Bits-1:0] data_o
);
  localparam int Width = 64 * cs_pkg::ceil_div(Bits, 64);
  if (Bits < 1) $error("cs_load_row: Bits is at least 1");

  logic             mine;
  logic [Width-1:0] row_q;
  assign mine = load_i.valid && load_i.stage == Stage;
  always_ff @(posedge clk_i) begin
    if (mine) begin
      row_q  <= Width'({load_i.data, row_q} >> 64);
      unit_o <= load_i.unit;
      row_o  <= load_i.row;
    end
    we_o <= mine && load_i.last && rst_ni;
  end
  assign data_o = row_q[Bits-1:0];

  if (Width > Bits) begin : g_padding
    logic unused;
    assign unused = &{1'b0, row_q[Width-1:Bits]};
  end
endmodule
