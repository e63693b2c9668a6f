// The K largest of a sample's Channels values: strict k-WTA by (value descending, index ascending).
//
// A histogram of the 8-bit values is counted while they come, in any order of channels, one per clock. Then the bin of
// the K-th largest value is found, 16 coarse bins first, 16 fine ones next; then the values are read in the order of
// channels: those above the threshold win, and of those equal to it the first that are needed.
// Dense = 0: K positions {channel, value} leave, numbered from 0. Dense = 1: all values, the losers 0, as position =
// channel. Two banks: a sample is counted while another is scanned. Channels + 40 clocks per sample at most.
// The credit protocol is that of cs_sequencer, but a bank is given back Lead clocks before it is free: the producer
// must take longer from its start to its first value. The histograms are empty 256 clocks after a reset.
module cs_kwta_global #(
  parameter int Channels = 1500,
  parameter int K        = 150,
  parameter bit Signed   = 0,
  parameter bit Dense    = 0,
  parameter int Lead     = 0,
  localparam int ChannelBits  = cs_pkg::bits(Channels),
  localparam int Positions    = Dense ? Channels : K,
  localparam int PositionBits = cs_pkg::bits(Positions),
  localparam int EntryBits    = 8 + (Dense ? 0 : ChannelBits)
) (
  input  logic                    clk_i,
  input  logic                    rst_ni,
  input  logic                    valid_i,
  input  logic [ChannelBits-1:0]  channel_i,
  input  logic [7:0]              value_i,
  input  logic                    last_i,
  output logic                    free_o,
  input  logic                    free_i,
  output logic                    valid_o,
  output logic [PositionBits-1:0] position_o,
  output logic [EntryBits-1:0]    entry_o,
  output logic                    last_o
);
  localparam int CountBits = $clog2(Channels + 1);
  localparam logic [7:0] Flip = Signed ? 8'h80 : 8'h00;  // makes the order unsigned
  if (K < 1 || K > Channels) $error("cs_kwta_global: K is 1 to Channels");
  if (Lead != 0 && Channels < 256 + Lead) $error("cs_kwta_global: the histogram is not cleared Lead clocks early");

  typedef enum logic [2:0] { Clear, Wait, Coarse, Fine, Scan, Flush } state_e;
  state_e                 state_q;
  logic                   write_bank_q, read_bank_q, scan_end, freed;
  logic [1:0]             full_q, credit_q;
  logic [3:0]             high_q, low_q;
  logic [CountBits-1:0]   need_q;
  logic [8:0]             sweep_q;     // bins to clear while scanning
  logic [ChannelBits-1:0] channel_q;
  logic [7:0]             key;
  assign key = value_i ^ Flip;

  // ---- histograms
  logic [CountBits-1:0] coarse_q [2][16];
  logic [CountBits-1:0] fine [2];
  for (genvar b = 0; b < 2; b++) begin : g_bank
    (* ram_style = "distributed" *) logic [CountBits-1:0] histogram [256];
    logic       counts, clears;
    logic [7:0] address;
    assign counts  = valid_i && write_bank_q == 1'(b);
    assign clears  = !sweep_q[8] && (state_q == Clear || read_bank_q == 1'(b));
    assign address = counts ? key : clears ? sweep_q[7:0] : {high_q, low_q};
    assign fine[b] = histogram[address];
    always_ff @(posedge clk_i) begin
      if (counts || clears) histogram[address] <= counts ? fine[b] + 1'b1 : '0;
      if (counts) coarse_q[b][key[7:4]] <= coarse_q[b][key[7:4]] + 1'b1;
      if (!rst_ni || (scan_end && read_bank_q == 1'(b))) coarse_q[b] <= '{default: '0};
    end
  end

  // ---- values
  (* ram_style = "block" *) logic [7:0] values [2 << ChannelBits];
  logic [7:0]             key_q, value;
  logic                   read_q, read_last_q, wins;
  logic [ChannelBits-1:0] read_channel_q;
  always_ff @(posedge clk_i) begin
    if (valid_i) values[{write_bank_q, channel_i}] <= key;
    key_q          <= values[{read_bank_q, channel_q}];
    read_channel_q <= channel_q;
    read_q         <= state_q == Scan && rst_ni;
    read_last_q    <= state_q == Scan && int'(channel_q) == Channels - 1 && rst_ni;
  end
  assign value    = key_q ^ Flip;
  assign wins     = key_q > {high_q, low_q} || (key_q == {high_q, low_q} && need_q != '0);
  assign scan_end = read_last_q;
  assign freed    = state_q == Flush && sweep_q[8];
  assign free_o   = Lead == 0 ? freed : state_q == Scan && int'(channel_q) == Channels - Lead;

  // ---- control
  always_ff @(posedge clk_i) begin
    if (last_i) begin
      full_q[write_bank_q] <= 1'b1;
      write_bank_q         <= !write_bank_q;
    end
    if (!sweep_q[8]) sweep_q <= sweep_q + 1'b1;
    credit_q <= credit_q + 2'(free_i);
    unique case (state_q)
      Clear: if (sweep_q[8]) state_q <= Wait;
      Wait: begin
        high_q    <= '1;
        low_q     <= '1;
        need_q    <= CountBits'(K);
        channel_q <= '0;
        if (full_q[read_bank_q] && credit_q != '0 && sweep_q[8]) begin
          state_q  <= Coarse;
          credit_q <= credit_q - 2'd1 + 2'(free_i);
        end
      end
      Coarse:
        if (coarse_q[read_bank_q][high_q] < need_q) begin
          need_q <= need_q - coarse_q[read_bank_q][high_q];
          high_q <= high_q - 1'b1;
        end else begin
          state_q <= Fine;
        end
      Fine:
        if (fine[read_bank_q] < need_q) begin
          need_q <= need_q - fine[read_bank_q];
          low_q  <= low_q - 1'b1;
        end else begin
          state_q <= Scan;
          sweep_q <= '0;
        end
      Scan: begin
        channel_q <= channel_q + 1'b1;
        if (int'(channel_q) == Channels - 1) state_q <= Flush;
      end
      default: if (freed) state_q <= Wait;  // Flush: the last value is judged, the last bins are cleared
    endcase
    if (read_q && key_q == {high_q, low_q} && need_q != '0) need_q <= need_q - 1'b1;
    if (freed) begin
      full_q[read_bank_q] <= 1'b0;
      read_bank_q         <= !read_bank_q;
    end
    if (!rst_ni) begin
      state_q      <= Clear;
      full_q       <= '0;
      write_bank_q <= 1'b0;
      read_bank_q  <= 1'b0;
      credit_q     <= 2'd2;
      sweep_q      <= '0;
    end
  end

  // ---- out
  logic [PositionBits-1:0] position_q;
  always_ff @(posedge clk_i) begin
    valid_o    <= read_q && (Dense || wins) && rst_ni;
    last_o     <= read_last_q && rst_ni;
    position_o <= position_q;
    if (Dense) entry_o <= EntryBits'(wins ? value : 8'h00);
    else       entry_o <= EntryBits'({read_channel_q, value});
    if (read_q && (Dense || wins)) position_q <= position_q + 1'b1;
    if (read_last_q || !rst_ni) position_q <= '0;
  end
endmodule
