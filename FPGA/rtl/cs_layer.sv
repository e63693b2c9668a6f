// A layer up to its sums: sequencer and engine. See there for parameters, layouts and times.
module cs_layer #(
  parameter logic [7:0] Stage  = 0,
  parameter int InHeight       = 8,
  parameter int InWidth        = 8,
  parameter int Entries        = 1,
  parameter bit Indexed        = 0,
  parameter int IndexBits      = 1,
  parameter bit Signed         = 0,
  parameter int KernelHeight   = 3,
  parameter int KernelWidth    = 3,
  parameter int Stride         = 1,
  parameter int OutHeight      = 6,
  parameter int OutWidth       = 6,
  parameter int Pool           = 1,
  parameter int TapLanes       = 1,
  parameter int EntryLanes     = 1,
  parameter int Passes         = 1,
  parameter int TapStride      = 1,
  parameter int PassStride     = 9,
  parameter int Rows           = 9,
  parameter int Interval       = 9,
  parameter int Sets           = 1,
  parameter int Columns        = 1,
  parameter int Slots          = 2,
  parameter int DrainStep      = 1,
  parameter int LaneBits       = 24,
  parameter bit Select         = 1,
  parameter     RamStyle       = "auto",
  localparam int Lanes     = TapLanes * EntryLanes,
  localparam int EntryBits = 8 + (Indexed ? IndexBits : 0),
  localparam int PosBits   = cs_pkg::bits(InHeight * InWidth),
  localparam int RowBits   = cs_pkg::bits(Rows),
  localparam int SumBits   = LaneBits + $clog2(Lanes)
) (
  input  logic                                  clk_i,
  input  logic                                  rst_ni,
  input  cs_pkg::load_t                         load_i,
  input  logic                                  write_valid_i,
  input  logic [PosBits-1:0]                    write_position_i,
  input  logic [Entries-1:0][EntryBits-1:0]     write_data_i,
  input  logic                                  write_last_i,
  output logic                                  free_o,
  input  logic                                  free_i,
  output logic                                  valid_o,
  output logic [Sets*Columns-1:0][SumBits-1:0]  sum_o
);
  if (Interval < Slots * DrainStep) $error("cs_layer: Interval is shorter than the drain");

  logic                          valid, last;
  logic [Lanes-1:0][8:0]         value;
  logic [Lanes-1:0][RowBits-1:0] row;
  cs_sequencer #(
    .InHeight(InHeight), .InWidth(InWidth), .Entries(Entries), .Indexed(Indexed), .IndexBits(IndexBits),
    .Signed(Signed), .KernelHeight(KernelHeight), .KernelWidth(KernelWidth), .Stride(Stride), .OutHeight(OutHeight),
    .OutWidth(OutWidth), .Pool(Pool), .TapLanes(TapLanes), .EntryLanes(EntryLanes), .Passes(Passes),
    .TapStride(TapStride), .PassStride(PassStride), .Rows(Rows), .Interval(Interval)
  ) u_sequencer (
    .clk_i, .rst_ni, .write_valid_i, .write_position_i, .write_data_i, .write_last_i, .free_o, .free_i,
    .valid_o(valid), .last_o(last), .value_o(value), .row_o(row)
  );
  cs_engine #(
    .Stage(Stage), .Lanes(Lanes), .Rows(Rows), .Sets(Sets), .Columns(Columns), .Slots(Slots), .DrainStep(DrainStep),
    .LaneBits(LaneBits), .Select(Select), .RamStyle(RamStyle)
  ) u_engine (
    .clk_i, .rst_ni, .load_i, .valid_i(valid), .last_i(last), .value_i(value), .row_i(row),
    .valid_o, .sum_o
  );
endmodule
