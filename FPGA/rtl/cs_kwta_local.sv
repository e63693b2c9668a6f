// The K largest of Channels values with their indices: strict k-WTA by (value descending, index ascending).
//
// Radix select: from the highest bit down, the candidates with that bit set are counted. Fewer than are still needed:
// they all win, and the candidates without the bit remain. Else these are out. After the lowest bit the candidates are
// equal, and the first of them fill the places left. Three registered steps per bit, a vector per clock; then the
// winners are peeled off one per clock, so that vectors must come at least K clocks apart.
// word_o[i] = {index, value}, in no particular order. Latency 3 * Bits + K + 4 clocks.
//
// OnlyNonZero ranks every value but 0 alike: a compaction of at most K non-zero values, whatever their sign.
module cs_kwta_local #(
  parameter int Channels    = 64,
  parameter int K           = 8,
  parameter bit Signed      = 0,
  parameter bit OnlyNonZero = 0,
  localparam int IndexBits = cs_pkg::bits(Channels),
  localparam int EntryBits = 8 + IndexBits
) (
  input  logic                        clk_i,
  input  logic                        rst_ni,
  input  logic                        valid_i,
  input  logic [Channels-1:0][7:0]    value_i,
  output logic                        valid_o,
  output logic [K-1:0][EntryBits-1:0] word_o
);
  localparam int Bits      = OnlyNonZero ? 1 : 8;
  localparam int CountBits = $clog2(Channels + 1);
  localparam int LeftBits  = $clog2(K + 1);
  if (K < 1 || K > Channels) $error("cs_kwta_local: K is 1 to Channels");

  function automatic logic [CountBits-1:0] count(input logic [Channels-1:0] flags);
    count = '0;
    for (int i = 0; i < Channels; i++) count += CountBits'(flags[i]);
  endfunction

  // ---- select
  logic [Channels-1:0]      winners    [Bits+1];
  logic [Channels-1:0]      candidates [Bits+1];
  logic [CountBits-1:0]     need       [Bits+1];
  logic [Channels-1:0][7:0] value      [Bits+1];
  logic [Bits:0]            valid;
  assign winners[0]    = '0;
  assign candidates[0] = '1;
  assign need[0]       = CountBits'(K);
  assign value[0]      = value_i;
  assign valid[0]      = valid_i;
  for (genvar s = 0; s < Bits; s++) begin : g_bit
    logic [Channels-1:0]      key, ones_q, ones_q2, winners_q, winners_q2, candidates_q, candidates_q2;
    logic [CountBits-1:0]     count_q, need_q, need_q2;
    logic [Channels-1:0][7:0] value_q, value_q2;
    logic                     valid_q, valid_q2, all_win;
    for (genvar i = 0; i < Channels; i++) begin : g_key
      if (OnlyNonZero) assign key[i] = value[s][i] != '0;
      else             assign key[i] = value[s][i][7-s] ^ (Signed && s == 0);
    end
    assign all_win = count_q < need_q2;
    always_ff @(posedge clk_i) begin
      ones_q       <= candidates[s] & key;
      winners_q    <= winners[s];
      candidates_q <= candidates[s];
      need_q       <= need[s];
      value_q      <= value[s];
      valid_q      <= valid[s];

      count_q       <= count(ones_q);
      ones_q2       <= ones_q;
      winners_q2    <= winners_q;
      candidates_q2 <= candidates_q;
      need_q2       <= need_q;
      value_q2      <= value_q;
      valid_q2      <= valid_q;

      winners[s+1]    <= all_win ? winners_q2 | ones_q2 : winners_q2;
      candidates[s+1] <= all_win ? candidates_q2 & ~ones_q2 : ones_q2;
      need[s+1]       <= all_win ? need_q2 - count_q : need_q2;
      value[s+1]      <= value_q2;
      valid[s+1]      <= valid_q2;
      if (!rst_ni) begin
        valid_q    <= 1'b0;
        valid_q2   <= 1'b0;
        valid[s+1] <= 1'b0;
      end
    end
  end

  // ---- peel: the lowest set bit of the sure winners, then of the candidates (a carry chain), one per clock
  logic [Channels-1:0]      sure_q, tied_q, from, lowest_q;
  logic [Channels-1:0][7:0] held_q, taken_q;
  logic [LeftBits-1:0]      left_q, sure_left_q;
  logic                     peel, peel_q, last_q, last_q2, begun_q;
  logic [EntryBits-1:0]     entry_q;
  assign peel = left_q != '0;
  assign from = sure_left_q != '0 ? sure_q : tied_q;
  always_ff @(posedge clk_i) begin
    if (peel) begin
      left_q <= left_q - 1'b1;
      if (sure_left_q != '0) begin
        sure_q      <= sure_q & (sure_q - 1'b1);
        sure_left_q <= sure_left_q - 1'b1;
      end else begin
        tied_q <= tied_q & (tied_q - 1'b1);
      end
    end
    if (valid[Bits]) begin
      sure_q      <= winners[Bits];
      tied_q      <= candidates[Bits];
      left_q      <= LeftBits'(K);
      sure_left_q <= LeftBits'(K) - LeftBits'(need[Bits]);
    end
    held_q <= value[Bits];  // one clock behind the masks, in step with lowest_q
    if (begun_q) taken_q <= held_q;
    begun_q  <= valid[Bits];
    lowest_q <= from & (~from + 1'b1);
    peel_q   <= peel;
    last_q   <= left_q == LeftBits'(1);
    last_q2  <= last_q;
    if (peel_q) word_o <= (K * EntryBits)'({entry_q, word_o} >> EntryBits);
    if (!rst_ni) begin
      left_q  <= '0;
      begun_q <= 1'b0;
      peel_q  <= 1'b0;
      last_q  <= 1'b0;
      last_q2 <= 1'b0;
    end
  end
  always_comb begin
    entry_q = '0;
    for (int i = 0; i < Channels; i++) begin
      if (lowest_q[i]) entry_q |= {IndexBits'(i), taken_q[i]};
    end
  end
  assign valid_o = last_q2;
endmodule
