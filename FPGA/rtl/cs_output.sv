// Results of a sample, in any order, into the 64-bit words that memory receives, in NHWC order.
//
// An element of ElementBytes (1 or 4) belongs at its channel. Two banks: a sample is collected while another is sent.
// The last word's strobe covers the sample's own bytes only. One word per clock at most.
module cs_output #(
  parameter int Channels     = 12,
  parameter int ElementBytes = 4,
  localparam int ChannelBits = cs_pkg::bits(Channels)
) (
  input  logic                      clk_i,
  input  logic                      rst_ni,
  input  logic                      valid_i,
  input  logic [ChannelBits-1:0]    channel_i,
  input  logic [8*ElementBytes-1:0] value_i,
  input  logic                      last_i,
  output logic                      free_o,
  output logic                      valid_o,
  input  logic                      ready_i,
  output logic [63:0]               data_o,
  output logic [7:0]                strobe_o
);
  localparam int PerWord  = 8 / ElementBytes;
  localparam int Words    = cs_pkg::ceil_div(Channels, PerWord);
  localparam int WordBits = cs_pkg::bits(Words);
  localparam int Tail     = Channels * ElementBytes - 8 * (Words - 1);  // bytes of the last word
  if (ElementBytes != 1 && ElementBytes != 4) $error("cs_output: an element has 1 or 4 bytes");

  logic [63:0]         memory [2 << WordBits];
  logic                write_bank_q, read_bank_q, load, is_last;
  logic [1:0]          full_q;
  logic [WordBits-1:0] word, next_q;
  logic [7:0]          enable;
  assign word    = WordBits'(int'(channel_i) / PerWord);
  assign enable  = 8'((1 << ElementBytes) - 1) << (int'(channel_i) % PerWord * ElementBytes);
  assign load    = full_q[read_bank_q] && (!valid_o || ready_i);
  assign is_last = int'(next_q) == Words - 1;
  assign free_o  = load && is_last;
  always_ff @(posedge clk_i) begin
    for (int b = 0; b < 8; b++) begin
      if (valid_i && enable[b]) memory[{write_bank_q, word}][8*b+:8] <= value_i[8*(b%ElementBytes)+:8];
    end
    if (last_i) begin
      full_q[write_bank_q] <= 1'b1;
      write_bank_q         <= !write_bank_q;
    end
    if (ready_i) valid_o <= 1'b0;
    if (load) begin
      valid_o  <= 1'b1;
      data_o   <= memory[{read_bank_q, next_q}];
      strobe_o <= is_last ? 8'((1 << Tail) - 1) : '1;
      next_q   <= next_q + 1'b1;
      if (is_last) begin
        next_q              <= '0;
        full_q[read_bank_q] <= 1'b0;
        read_bank_q         <= !read_bank_q;
      end
    end
    if (!rst_ni) begin
      write_bank_q <= 1'b0;
      read_bank_q  <= 1'b0;
      full_q       <= '0;
      next_q       <= '0;
      valid_o      <= 1'b0;
    end
  end
endmodule
