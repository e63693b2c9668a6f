// Samples from memory into the first layer's positions.
//
// A sample is Bytes bytes in NHWC order, in 64-bit words, the first byte in the least significant bits, padded to a
// multiple of 64 bytes. One byte per clock, padding included. Channels bytes make a position.
// The credit protocol is that of cs_sequencer.
module cs_input #(
  parameter int Positions = 16,
  parameter int Channels  = 1,
  localparam int Bytes        = Positions * Channels,
  localparam int PositionBits = cs_pkg::bits(Positions)
) (
  input  logic                     clk_i,
  input  logic                     rst_ni,
  input  logic                     valid_i,
  output logic                     ready_o,
  input  logic [63:0]              data_i,
  input  logic                     free_i,
  output logic                     valid_o,
  output logic [PositionBits-1:0]  position_o,
  output logic [Channels-1:0][7:0] data_o,
  output logic                     last_o
);
  localparam int Stride      = 64 * cs_pkg::ceil_div(Bytes, 64);
  localparam int ByteBits    = $clog2(Stride);
  localparam int ChannelBits = cs_pkg::bits(Channels);
  if (Positions < 1 || Channels < 1) $error("cs_input: every count is at least 1");

  logic [63:0]            word_q;
  logic [3:0]             left_q;   // bytes of the word
  logic [ByteBits-1:0]    byte_q;   // of the sample
  logic [ChannelBits-1:0] channel_q;
  logic [1:0]             credit_q;
  logic                   takes, starts, is_data;
  assign starts  = left_q != '0 && byte_q == '0;
  assign takes   = left_q != '0 && (byte_q != '0 || credit_q != '0);
  assign is_data = takes && int'(byte_q) < Bytes;
  assign ready_o = left_q == '0 || (takes && left_q == 4'd1);
  always_ff @(posedge clk_i) begin
    if (takes) begin
      word_q <= {8'b0, word_q[63:8]};
      left_q <= left_q - 4'd1;
      byte_q <= int'(byte_q) == Stride - 1 ? '0 : byte_q + 1'b1;
    end
    if (valid_i && ready_o) begin
      word_q <= data_i;
      left_q <= 4'd8;
    end
    valid_o <= 1'b0;
    last_o  <= 1'b0;
    if (valid_o) position_o <= last_o ? '0 : position_o + 1'b1;
    if (is_data) begin
      data_o    <= (8 * Channels)'({word_q[7:0], data_o} >> 8);
      channel_q <= channel_q + 1'b1;
      if (int'(channel_q) == Channels - 1) begin
        channel_q <= '0;
        valid_o   <= 1'b1;
        last_o    <= int'(byte_q) == Bytes - 1;
      end
    end
    credit_q <= credit_q - 2'(starts && takes) + 2'(free_i);
    if (!rst_ni) begin
      left_q     <= '0;
      byte_q     <= '0;
      channel_q  <= '0;
      position_o <= '0;
      valid_o    <= 1'b0;
      last_o     <= 1'b0;
      credit_q   <= 2'd2;
    end
  end
endmodule
