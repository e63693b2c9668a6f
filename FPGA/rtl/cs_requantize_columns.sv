// Requantizes the beats of an engine, every column by its own unit.
//
// Parameters: unit = column, row = beat (pass * Slots + slot), one word {shift[53:48], M[47:32], bias[31:0]}.
// Latency 7 clocks, one beat per clock. Beats count from 0 after the reset.
module cs_requantize_columns #(
  parameter logic [7:0] Stage     = 0,
  parameter int         Columns   = 1,
  parameter int         Beats     = 1,  // of a position
  parameter int         SumBits   = 24,
  parameter int         TotalBits = 32,
  parameter bit         Signed    = 0
) (
  input  logic                            clk_i,
  input  logic                            rst_ni,
  input  cs_pkg::load_t                   load_i,
  input  logic                            valid_i,
  input  logic [Columns-1:0][SumBits-1:0] sum_i,
  output logic                            valid_o,
  output logic [Columns-1:0][7:0]         value_o
);
  localparam int BeatBits = cs_pkg::bits(Beats);
  localparam int Latency  = 7;
  if (Columns < 1 || Beats < 1) $error("cs_requantize_columns: every count is at least 1");

  logic        we;
  logic [15:0] load_column;
  logic [23:0] load_beat;
  logic [53:0] load_data;
  cs_load_row #(.Stage(Stage), .Bits(54)) u_load (
    .clk_i, .rst_ni, .load_i, .we_o(we), .unit_o(load_column), .row_o(load_beat), .data_o(load_data)
  );
  logic unused;
  assign unused = &{1'b0, load_beat[23:BeatBits]};

  logic [BeatBits-1:0] beat_q;
  always_ff @(posedge clk_i) begin
    if (valid_i) beat_q <= int'(beat_q) == Beats - 1 ? '0 : beat_q + 1'b1;
    if (!rst_ni) beat_q <= '0;
  end

  for (genvar c = 0; c < Columns; c++) begin : g_column
    (* ram_style = "distributed" *) logic [53:0] parameters [Beats];
    logic [53:0]        own_q;
    logic [SumBits-1:0] sum_q;
    always_ff @(posedge clk_i) begin
      if (we && load_column == 16'(c)) parameters[load_beat[BeatBits-1:0]] <= load_data;
      own_q <= parameters[beat_q];
      sum_q <= sum_i[c];
    end
    cs_requantize #(.SumBits(SumBits), .TotalBits(TotalBits), .Signed(Signed)) u_requantize (
      .clk_i, .sum_i(sum_q), .bias_i(own_q[31:0]), .multiplier_i(own_q[47:32]), .shift_i(own_q[53:48]),
      .value_o(value_o[c])
    );
  end
  cs_delay #(.Depth(Latency)) u_valid (.clk_i, .rst_ni, .d_i(valid_i), .q_o(valid_o));
endmodule
