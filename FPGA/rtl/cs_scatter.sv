// value[index] = value of each {index, value} of a word, 0 elsewhere: the dense form of k-WTA's winners.
// Latency 1 clock, one word per clock.
module cs_scatter #(
  parameter int Channels = 64,
  parameter int K        = 8,
  localparam int EntryBits = 8 + cs_pkg::bits(Channels)
) (
  input  logic                        clk_i,
  input  logic                        rst_ni,
  input  logic                        valid_i,
  input  logic [K-1:0][EntryBits-1:0] word_i,
  output logic                        valid_o,
  output logic [Channels-1:0][7:0]    value_o
);
  if (K < 1 || K > Channels) $error("cs_scatter: K is 1 to Channels");

  logic [Channels-1:0][7:0] value;
  always_comb begin
    value = '0;
    for (int i = 0; i < K; i++) value[word_i[i][EntryBits-1:8]] = word_i[i][7:0];
  end
  always_ff @(posedge clk_i) begin
    value_o <= value;
    valid_o <= valid_i && rst_ni;
  end
endmodule
