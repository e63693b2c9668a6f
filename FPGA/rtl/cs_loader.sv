// The parameter image, 64-bit words from memory, onto the parameter bus.
//
//   word 0     magic, the bytes "CSIMAGE1"
//   word 1     shape id
//   word 2     words of the image, these eight included
//   word 3     sum of all words from the ninth on, modulo 2^64
//   words 4-7  0
//   sections   {rows[63:40], words per row[39:24], unit[23:8], stage[7:0]}, then the rows
//
// start_i begins an image. After eight words, header_o is a pulse and header_good_o tells whether the image is this
// shape's; after the last, done_o is a pulse and good_o tells whether the sum is right. One word per clock.
module cs_loader #(
  parameter logic [63:0] ShapeId = 0,
  parameter int          Words   = 16
) (
  input  logic          clk_i,
  input  logic          rst_ni,
  input  logic          start_i,
  input  logic          valid_i,
  input  logic [63:0]   data_i,
  output logic          header_o,
  output logic          header_good_o,
  output logic          done_o,
  output logic          good_o,
  output cs_pkg::load_t load_o
);
  localparam logic [63:0] Magic = "1EGAMISC";  // little-endian
  if (Words < 16) $error("cs_loader: an image has at least 16 words");

  logic [31:0] word_q;
  logic [63:0] sum_q, wanted_sum_q;
  logic [7:0]  stage_q;
  logic [15:0] unit_q, width_q, column_q;
  logic [23:0] row_q, rows_q;
  logic        in_section_q, fits;
  always_comb begin
    unique case (word_q)
      32'd0:   fits = data_i == Magic;
      32'd1:   fits = data_i == ShapeId;
      32'd2:   fits = data_i == 64'(Words);
      default: fits = 1'b1;
    endcase
  end
  assign good_o = sum_q == wanted_sum_q;
  always_ff @(posedge clk_i) begin
    header_o     <= valid_i && word_q == 32'd7;
    done_o       <= valid_i && word_q == 32'(Words - 1);
    load_o.valid <= 1'b0;
    if (valid_i) begin
      word_q <= word_q + 32'd1;
      if (word_q == 32'd3) wanted_sum_q <= data_i;
      header_good_o <= (header_good_o || word_q == '0) && fits;
      if (word_q >= 32'd8) begin
        sum_q <= sum_q + data_i;
        if (!in_section_q) begin
          {rows_q, width_q, unit_q, stage_q} <= data_i;
          row_q        <= '0;
          column_q     <= '0;
          in_section_q <= 1'b1;
        end else begin
          load_o   <= '{valid: 1'b1, stage: stage_q, unit: unit_q, row: row_q, last: column_q == width_q - 16'd1,
                        data: data_i};
          column_q <= column_q + 16'd1;
          if (column_q == width_q - 16'd1) begin
            column_q <= '0;
            row_q    <= row_q + 24'd1;
            if (row_q == rows_q - 24'd1) in_section_q <= 1'b0;
          end
        end
      end
    end
    if (start_i || !rst_ni) begin
      word_q       <= '0;
      sum_q        <= '0;
      in_section_q <= 1'b0;
      header_o     <= 1'b0;
      done_o       <= 1'b0;
      load_o.valid <= 1'b0;
    end
  end
endmodule
