// The walk of a convolution over a memory of positions; every layer is one.
//
// The memory holds two samples of InHeight x InWidth positions. The word of a position holds Entries x {index?, value},
// the first in the least significant bits: winners with their channel (Indexed), or the values of all channels.
// A linear layer after an H x W x C tensor is an H x W convolution with one output position; after a global k-WTA it is
// a 1 x k image with one indexed entry per position.
//
// For every output position, for every pass: Interval clocks, of which the first TapBeats * EntryBeats feed the engine.
// Lane (p, q) takes tap n = beat * TapLanes + p and entry m = beat * EntryLanes + q. Its row in the engine's memory is
//   pass * PassStride + tap beat * TapStride + (Indexed ? index : entry beat).
// Taps and entries beyond the last read anything: their rows must hold weight 0 (or be missing by divisibility).
//
// With Pool = 2 the positions of each 2 x 2 window follow one another, and windows follow in raster order, so that
// pooling needs no line memory. A sample takes OutHeight * OutWidth * Passes * Interval + 1 clocks.
// The sequencer starts a sample when it is complete here and the next stage has promised a free bank (free_i gives one
// back; two at first); free_o gives back its own.
module cs_sequencer #(
  parameter int InHeight     = 8,
  parameter int InWidth      = 8,
  parameter int Entries      = 1,
  parameter bit Indexed      = 0,
  parameter int IndexBits    = 1,
  parameter bit Signed       = 0,
  parameter int KernelHeight = 3,
  parameter int KernelWidth  = 3,
  parameter int Stride       = 1,
  parameter int OutHeight    = 6,   // positions computed: multiples of Pool
  parameter int OutWidth     = 6,
  parameter int Pool         = 1,
  parameter int TapLanes     = 1,
  parameter int EntryLanes   = 1,
  parameter int Passes       = 1,
  parameter int TapStride    = 1,
  parameter int PassStride   = 9,
  parameter int Rows         = 9,
  parameter int Interval     = 9,
  localparam int Lanes     = TapLanes * EntryLanes,
  localparam int EntryBits = 8 + (Indexed ? IndexBits : 0),
  localparam int Positions = InHeight * InWidth,
  localparam int PosBits   = cs_pkg::bits(Positions),
  localparam int RowBits   = cs_pkg::bits(Rows)
) (
  input  logic                              clk_i,
  input  logic                              rst_ni,
  // positions of a sample; last may come without a position
  input  logic                              write_valid_i,
  input  logic [PosBits-1:0]                write_position_i,
  input  logic [Entries-1:0][EntryBits-1:0] write_data_i,
  input  logic                              write_last_i,
  output logic                              free_o,
  // the next stage
  input  logic                              free_i,
  // the engine
  output logic                              valid_o,
  output logic                              last_o,
  output logic [Lanes-1:0][8:0]             value_o,
  output logic [Lanes-1:0][RowBits-1:0]     row_o
);
  localparam int Taps       = KernelHeight * KernelWidth;
  localparam int TapBeats   = cs_pkg::ceil_div(Taps, TapLanes);
  localparam int EntryBeats = cs_pkg::ceil_div(Entries, EntryLanes);
  localparam int Beats      = TapBeats * EntryBeats;
  localparam int PoolHeight = OutHeight / Pool;
  localparam int PoolWidth  = OutWidth / Pool;
  localparam int ReadDelay  = 3;  // clocks until the last read of a sample has left the memory
  localparam int TapBits    = cs_pkg::bits(TapBeats);
  localparam int EntryBeatBits = cs_pkg::bits(EntryBeats);
  localparam int BeatBits   = cs_pkg::bits(Interval);

  if (Pool != 1 && Pool != 2) $error("cs_sequencer: Pool is 1 or 2");
  if (OutHeight % Pool != 0 || OutWidth % Pool != 0) $error("cs_sequencer: the output is no multiple of Pool");
  if ((OutHeight - 1) * Stride + KernelHeight > InHeight) $error("cs_sequencer: the last window leaves the input");
  if ((OutWidth - 1) * Stride + KernelWidth > InWidth) $error("cs_sequencer: the last window leaves the input");
  if (Interval < Beats) $error("cs_sequencer: Interval is shorter than the beats of a pass");
  if (OutHeight * OutWidth * Passes * Interval <= ReadDelay) $error("cs_sequencer: a sample is too short");

  // ---- banks and credits
  logic       write_bank_q, read_bank_q, busy_q, start, done, freed;
  logic [1:0] full_q, credit_q;
  assign start  = !busy_q && full_q[read_bank_q] && credit_q != '0;
  assign free_o = freed;
  cs_delay #(.Depth(ReadDelay)) u_free (.clk_i, .rst_ni, .d_i(done), .q_o(freed));
  always_ff @(posedge clk_i) begin
    if (write_last_i) begin
      full_q[write_bank_q] <= 1'b1;
      write_bank_q         <= !write_bank_q;
    end
    if (freed) full_q[!read_bank_q] <= 1'b0;  // the bank read before
    if (start) busy_q <= 1'b1;
    if (done) begin
      busy_q      <= 1'b0;
      read_bank_q <= !read_bank_q;
    end
    credit_q <= credit_q - 2'(start) + 2'(free_i);
    if (!rst_ni) begin
      write_bank_q <= 1'b0;
      read_bank_q  <= 1'b0;
      full_q       <= '0;
      busy_q       <= 1'b0;
      credit_q     <= 2'd2;
    end
  end

  // ---- beats of a pass, passes of a position
  logic [BeatBits-1:0]                beat_q;
  logic [TapBits-1:0]                 tap_q;
  logic [EntryBeatBits-1:0]           entry_q;
  logic [cs_pkg::bits(Passes)-1:0]    pass_q;
  logic [RowBits-1:0]                 row_q, pass_row_q;  // of the tap beat, of the pass
  logic                               active, tap_end, pass_end, position_end;
  assign active       = busy_q && int'(beat_q) < Beats;
  assign tap_end      = int'(entry_q) == EntryBeats - 1;
  assign pass_end     = busy_q && int'(beat_q) == Interval - 1;
  assign position_end = pass_end && int'(pass_q) == Passes - 1;
  always_ff @(posedge clk_i) begin
    if (busy_q) beat_q <= beat_q + 1'b1;
    if (active) begin
      entry_q <= entry_q + 1'b1;
      if (tap_end) begin
        entry_q <= '0;
        tap_q   <= tap_q + 1'b1;
        row_q   <= row_q + RowBits'(TapStride);
      end
    end
    if (pass_end) begin
      beat_q     <= '0;
      entry_q    <= '0;
      tap_q      <= '0;
      pass_q     <= pass_q + 1'b1;
      pass_row_q <= pass_row_q + RowBits'(PassStride);
      row_q      <= pass_row_q + RowBits'(PassStride);
    end
    if (position_end || !rst_ni) begin
      pass_q     <= '0;
      pass_row_q <= '0;
      row_q      <= '0;
    end
    if (!rst_ni) begin
      beat_q  <= '0;
      entry_q <= '0;
      tap_q   <= '0;
    end
  end

  // ---- the window's origin, moved by constants (modulo the address)
  localparam int StepX    = Stride;
  localparam int StepDown = Stride * InWidth - Stride * (Pool - 1);
  localparam int StepNext = Stride - Stride * InWidth * (Pool - 1);
  localparam int StepRow  = Stride * InWidth - Stride * (OutWidth - 1);
  logic                                dx_q, dy_q, dx_end, dy_end, x_end, y_end;
  logic [cs_pkg::bits(PoolWidth)-1:0]  x_q;
  logic [cs_pkg::bits(PoolHeight)-1:0] y_q;
  logic [PosBits-1:0]                  origin_q;
  assign dx_end = int'(dx_q) == Pool - 1;
  assign dy_end = int'(dy_q) == Pool - 1;
  assign x_end  = int'(x_q) == PoolWidth - 1;
  assign y_end  = int'(y_q) == PoolHeight - 1;
  assign done   = position_end && dx_end && dy_end && x_end && y_end;
  always_ff @(posedge clk_i) begin
    if (position_end) begin
      dx_q <= !dx_end;
      if (!dx_end) begin
        origin_q <= origin_q + PosBits'(StepX);
      end else begin
        dy_q <= !dy_end;
        if (!dy_end) begin
          origin_q <= origin_q + PosBits'(StepDown);
        end else begin
          x_q      <= x_end ? '0 : x_q + 1'b1;
          origin_q <= origin_q + (x_end ? PosBits'(StepRow) : PosBits'(StepNext));
          if (x_end) y_q <= y_q + 1'b1;
        end
      end
    end
    if (done || !rst_ni) begin
      dx_q     <= 1'b0;
      dy_q     <= 1'b0;
      x_q      <= '0;
      y_q      <= '0;
      origin_q <= '0;
    end
  end

  // ---- position, word, entry: three clocks
  logic [1:0]               valid_q, last_q;
  logic [EntryBeatBits-1:0] entry_q1, entry_q2;
  logic [RowBits-1:0]       row_q1, row_q2;
  always_ff @(posedge clk_i) begin
    valid_q  <= {valid_q[0], active};
    last_q   <= {last_q[0], active && int'(beat_q) == Beats - 1};
    valid_o  <= valid_q[1];
    last_o   <= last_q[1];
    entry_q1 <= entry_q;
    entry_q2 <= entry_q1;
    row_q1   <= row_q;
    row_q2   <= row_q1;
    if (!rst_ni) begin
      valid_q <= '0;
      last_q  <= '0;
      valid_o <= 1'b0;
      last_o  <= 1'b0;
    end
  end

  for (genvar p = 0; p < TapLanes; p++) begin : g_tap
    // Taps read at once, each from a copy of the memory.
    logic [Entries-1:0][EntryBits-1:0] memory [2 << PosBits];
    logic [PosBits-1:0]                offset, position_q;
    logic                              bank_q;
    logic [Entries-1:0][EntryBits-1:0] word_q;
    if (KernelHeight == 1 || KernelWidth == InWidth) begin : g_straight  // taps are neighbours in memory
      assign offset = PosBits'(int'(tap_q) * TapLanes + p);
    end else begin : g_window
      logic [PosBits-1:0] offsets [TapBeats];
      for (genvar b = 0; b < TapBeats; b++) begin : g_offset
        localparam int Tap = b * TapLanes + p < Taps ? b * TapLanes + p : 0;
        assign offsets[b] = PosBits'(Tap / KernelWidth * InWidth + Tap % KernelWidth);
      end
      assign offset = offsets[tap_q];
    end
    always_ff @(posedge clk_i) begin
      if (write_valid_i) memory[{write_bank_q, write_position_i}] <= write_data_i;
      position_q <= origin_q + offset;
      bank_q     <= read_bank_q;
      word_q     <= memory[{bank_q, position_q}];
    end

    logic [EntryBeats*EntryLanes-1:0][EntryBits-1:0] entries;  // with zeros in the place of missing ones
    assign entries = (EntryBeats * EntryLanes * EntryBits)'(word_q);
    for (genvar q = 0; q < EntryLanes; q++) begin : g_entry
      localparam int Lane = p * EntryLanes + q;
      logic [EntryBeats-1:0][EntryBits-1:0] own;
      logic [EntryBits-1:0]                 entry;
      for (genvar b = 0; b < EntryBeats; b++) begin : g_own
        assign own[b] = entries[b*EntryLanes+q];
      end
      assign entry = own[entry_q2];
      always_ff @(posedge clk_i) begin
        value_o[Lane] <= {Signed && entry[7], entry[7:0]};
        if (Indexed) row_o[Lane] <= row_q2 + RowBits'(entry >> 8);
        else         row_o[Lane] <= row_q2 + RowBits'(entry_q2);
      end
    end
  end
endmodule
