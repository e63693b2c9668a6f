// The way out of a linear layer: one value per clock, in the order of the engine, each with its channel.
//
// Beats (pass, slot) of Columns sums come at least Columns clocks apart. Value n = beat * Columns + column of a sample
// has the parameters of row n, two words: {shift[53:48], M[47:32], bias[31:0]}, {owned[16], channel[15:0]}. Places that
// nobody owns give no value, but count: last_o ends the sample with row Rows - 1 = Beats * Columns - 1.
// Requantize: uint8 or int8 in value_o[7:0]; else sum + bias in 32 bits. Latency 9 clocks, or 3.
module cs_linear_post #(
  parameter logic [7:0] Stage      = 0,
  parameter int         Columns    = 1,
  parameter int         Beats      = 1,  // of a sample
  parameter int         Channels   = 1,
  parameter int         SumBits    = 24,
  parameter int         TotalBits  = 32,
  parameter bit         Requantize = 1,
  parameter bit         Signed     = 0,
  localparam int ChannelBits = cs_pkg::bits(Channels),
  localparam int ValueBits   = Requantize ? 8 : 32
) (
  input  logic                            clk_i,
  input  logic                            rst_ni,
  input  cs_pkg::load_t                   load_i,
  input  logic                            valid_i,
  input  logic [Columns-1:0][SumBits-1:0] sum_i,
  output logic                            valid_o,
  output logic [ChannelBits-1:0]          channel_o,
  output logic [ValueBits-1:0]            value_o,
  output logic                            last_o
);
  localparam int Rows     = Beats * Columns;
  localparam int RowBits  = cs_pkg::bits(Rows);
  localparam int LeftBits = $clog2(Columns + 1);
  localparam int Latency  = Requantize ? 6 : 1;
  localparam int Owned    = 64 + 16;
  if (Columns < 1 || Beats < 1) $error("cs_linear_post: every count is at least 1");
  if (Channels > 1 << 16) $error("cs_linear_post: a channel has 16 bits");

  logic             we;
  logic [23:0]      load_row;
  logic [Owned:0]   load_data;
  logic [15:0]      unused_unit;
  cs_load_row #(.Stage(Stage), .Bits(Owned + 1)) u_load (
    .clk_i, .rst_ni, .load_i, .we_o(we), .unit_o(unused_unit), .row_o(load_row), .data_o(load_data)
  );

  // ---- one sum per clock
  logic [Columns-1:0][SumBits-1:0] sums_q;
  logic [LeftBits-1:0]             left_q;
  logic                            serve;
  assign serve = left_q != '0;
  always_ff @(posedge clk_i) begin
    if (serve) begin
      sums_q <= (Columns * SumBits)'(sums_q >> SumBits);
      left_q <= left_q - 1'b1;
    end
    if (valid_i) begin
      sums_q <= sum_i;
      left_q <= LeftBits'(Columns);
    end
    if (!rst_ni) left_q <= '0;
  end

  // ---- with its parameters
  (* ram_style = "block" *) logic [ChannelBits+54:0] parameters [Rows];  // {owned, channel, shift, M, bias}
  logic [ChannelBits+54:0] own_q;
  logic [RowBits-1:0]      row_q;
  logic [SumBits-1:0]      sum_q;
  logic                    end_q, serve_q;
  always_ff @(posedge clk_i) begin
    if (we) begin
      parameters[load_row[RowBits-1:0]] <= {load_data[Owned], load_data[64+:ChannelBits], load_data[53:0]};
    end
    own_q   <= parameters[row_q];
    sum_q   <= sums_q[0];
    serve_q <= serve;
    end_q   <= serve && int'(row_q) == Rows - 1;
    if (serve) row_q <= int'(row_q) == Rows - 1 ? '0 : row_q + 1'b1;
    if (!rst_ni) begin
      row_q   <= '0;
      serve_q <= 1'b0;
      end_q   <= 1'b0;
    end
  end
  cs_delay #(.Depth(Latency)) u_valid (
    .clk_i, .rst_ni, .d_i(serve_q && own_q[ChannelBits+54]), .q_o(valid_o)
  );
  cs_delay #(.Depth(Latency)) u_last (.clk_i, .rst_ni, .d_i(end_q), .q_o(last_o));
  cs_delay #(.Width(ChannelBits), .Depth(Latency)) u_channel (
    .clk_i, .rst_ni, .d_i(own_q[54+:ChannelBits]), .q_o(channel_o)
  );

  if (Requantize) begin : g_requantize
    cs_requantize #(.SumBits(SumBits), .TotalBits(TotalBits), .Signed(Signed)) u_requantize (
      .clk_i, .sum_i(sum_q), .bias_i(own_q[31:0]), .multiplier_i(own_q[47:32]), .shift_i(own_q[53:48]),
      .value_o(value_o)
    );
  end else begin : g_sum
    always_ff @(posedge clk_i) value_o <= 32'($signed(sum_q)) + own_q[31:0];
    logic unused;
    assign unused = &{1'b0, own_q[53:32]};
  end
  logic unused_load;
  assign unused_load = &{1'b0, unused_unit, load_row, load_data};
endmodule
