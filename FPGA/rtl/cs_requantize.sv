// y = clamp(((sum + bias) * M + 2^(s-1)) >> s), exactly, with M < 2^16 and 1 <= s <= 47; uint8 or int8.
//
// floor((p + 2^(s-1)) / 2^s) = floor((floor(p / 2^(s-1)) + 1) / 2): shift by s - 1, add 1, halve, clamp.
// sum + bias must fit TotalBits: 27 take one 27 x 18 multiplier, 32 hold every legal model.
// Latency 6 clocks, one value per clock.
module cs_requantize #(
  parameter int SumBits   = 24,
  parameter int TotalBits = 32,
  parameter bit Signed    = 0
) (
  input  logic               clk_i,
  input  logic [SumBits-1:0] sum_i,
  input  logic [31:0]        bias_i,
  input  logic [15:0]        multiplier_i,
  input  logic [5:0]         shift_i,
  output logic [7:0]         value_o
);
  localparam int ProductBits = TotalBits + 17;
  localparam int Low  = Signed ? -128 : 0;
  localparam int High = Signed ? 127 : 255;
  if (TotalBits < 16 || TotalBits > 32 || SumBits > TotalBits) $error("cs_requantize: SumBits <= TotalBits, 16 to 32");

  logic signed [TotalBits-1:0]   total_q;
  logic [15:0]                   multiplier_q;
  logic [5:0]                    shift_q, shift_q2;
  logic signed [ProductBits-1:0] product_q, coarse_q, fine_q;
  logic [2:0]                    shift_q3;
  logic signed [10:0]            near_q;  // far beyond the limits is as good as any
  logic signed [10:0]            rounded;
  localparam logic signed [ProductBits-1:0] Far = ProductBits'(512);

  assign rounded = (near_q + 11'sd1) >>> 1;
  always_ff @(posedge clk_i) begin
    total_q      <= TotalBits'($signed(sum_i)) + TotalBits'($signed(bias_i));
    multiplier_q <= multiplier_i;
    shift_q      <= shift_i - 6'd1;

    product_q <= ProductBits'(total_q) * ProductBits'($signed({1'b0, multiplier_q}));
    shift_q2  <= shift_q;

    coarse_q <= product_q >>> {shift_q2[5:3], 3'b0};
    shift_q3 <= shift_q2[2:0];

    fine_q <= coarse_q >>> shift_q3;

    near_q <= fine_q > Far ? 11'sd512 : fine_q < -Far ? -11'sd512 : fine_q[10:0];

    value_o <= rounded > 11'(High) ? 8'(High) : rounded < 11'(Low) ? 8'(Low) : rounded[7:0];
  end
  if (TotalBits < 32) begin : g_narrow
    logic unused;
    assign unused = &{1'b0, bias_i[31:TotalBits]};  // the image builder proves that they are copies of the sign
  end
endmodule
