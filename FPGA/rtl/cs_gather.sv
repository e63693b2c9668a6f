// Collects the Beats beats of a position into the vector of its channels, in the order of the model's file.
//
// Place (beat * Columns + column) holds channel ChannelOf[16 * place +: 16]; Channels or more means nothing.
// Latency 1 clock after the last beat; the vector holds until the next position's first beat.
module cs_gather #(
  parameter int Columns  = 1,
  parameter int Beats    = 1,
  parameter int Channels = 1,
  parameter logic [16*Beats*Columns-1:0] ChannelOf = '0
) (
  input  logic                     clk_i,
  input  logic                     rst_ni,
  input  logic                     valid_i,
  input  logic [Columns-1:0][7:0]  value_i,
  output logic                     valid_o,
  output logic [Channels-1:0][7:0] value_o
);
  localparam int BeatBits = cs_pkg::bits(Beats);
  if (Channels > Beats * Columns) $error("cs_gather: more channels than places");

  logic [BeatBits-1:0] beat_q;
  always_ff @(posedge clk_i) begin
    valid_o <= valid_i && int'(beat_q) == Beats - 1;
    if (valid_i) beat_q <= int'(beat_q) == Beats - 1 ? '0 : beat_q + 1'b1;
    if (!rst_ni) begin
      valid_o <= 1'b0;
      beat_q  <= '0;
    end
  end
  for (genvar b = 0; b < Beats; b++) begin : g_beat
    for (genvar c = 0; c < Columns; c++) begin : g_column
      localparam int Channel = int'(ChannelOf[16*(b*Columns+c)+:16]);
      if (Channel < Channels) begin : g_channel
        always_ff @(posedge clk_i) if (valid_i && int'(beat_q) == b) value_o[Channel] <= value_i[c];
      end else begin : g_nothing
        logic unused;
        assign unused = &{1'b0, value_i[c]};
      end
    end
  end
endmodule
