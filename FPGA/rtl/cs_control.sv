// The AXI4-Lite slave: ap_ctrl_hs and the arguments of the kernel.
//
//   0x00 control: 0 ap_start, 1 ap_done, 2 ap_idle, 3 ap_ready, 7 auto_restart; reading clears 1 and 3
//   0x04 GIE  0x08 IER  0x0C ISR (toggles on write)
//   0x10 x  0x1C y  0x28 image (64 bits each)  0x34 samples  0x3C load
//   0x44 cycles  0x4C shape (64 bits)  0x54 error   read-only
//
// start_o stays until done_i. Write address and data are taken together; a response may wait for its taker.
module cs_control (
  input  logic        clk_i,
  input  logic        rst_ni,
  input  logic        awvalid_i,
  output logic        awready_o,
  input  logic [11:0] awaddr_i,
  input  logic        wvalid_i,
  output logic        wready_o,
  input  logic [31:0] wdata_i,
  input  logic [3:0]  wstrb_i,
  output logic        bvalid_o,
  input  logic        bready_i,
  output logic [1:0]  bresp_o,
  input  logic        arvalid_i,
  output logic        arready_o,
  input  logic [11:0] araddr_i,
  output logic        rvalid_o,
  input  logic        rready_i,
  output logic [31:0] rdata_o,
  output logic [1:0]  rresp_o,
  output logic        interrupt_o,
  output logic        start_o,
  input  logic        done_i,
  input  logic        idle_i,
  output logic [63:0] x_o,
  output logic [63:0] y_o,
  output logic [63:0] image_o,
  output logic [31:0] samples_o,
  output logic        load_o,
  input  logic [31:0] cycles_i,
  input  logic [63:0] shape_i,
  input  logic [3:0]  error_i
);
  localparam logic [11:0] Control = 12'h00, Gie = 12'h04, Ier = 12'h08, Isr = 12'h0C;
  localparam logic [11:0] X = 12'h10, Y = 12'h1C, Image = 12'h28, Samples = 12'h34, Load = 12'h3C;
  localparam logic [11:0] Cycles = 12'h44, Shape = 12'h4C, Error = 12'h54;

  logic        start_q, restart_q, done_q, ready_q, gie_q, writes, reads;
  logic [1:0]  ier_q, isr_q;
  logic [31:0] load_q;
  logic [11:0] write_address, read_address;
  assign writes        = awvalid_i && wvalid_i && (!bvalid_o || bready_i);
  assign reads         = arvalid_i && (!rvalid_o || rready_i);
  assign write_address = {awaddr_i[11:2], 2'b0};
  assign read_address  = {araddr_i[11:2], 2'b0};
  assign awready_o     = writes;
  assign wready_o      = writes;
  assign arready_o     = reads;
  assign bresp_o       = 2'b00;
  assign rresp_o       = 2'b00;
  assign start_o       = start_q;
  assign load_o        = load_q[0];
  assign interrupt_o   = gie_q && isr_q != '0;
  logic unused;
  assign unused = &{1'b0, awaddr_i[1:0], araddr_i[1:0], load_q[31:1]};

  function automatic logic [31:0] merged(input logic [31:0] old, input logic [31:0] data, input logic [3:0] strobe);
    for (int i = 0; i < 4; i++) merged[8*i+:8] = strobe[i] ? data[8*i+:8] : old[8*i+:8];
  endfunction

  always_ff @(posedge clk_i) begin
    if (writes) bvalid_o <= 1'b1;
    else if (bready_i) bvalid_o <= 1'b0;
    if (reads) rvalid_o <= 1'b1;
    else if (rready_i) rvalid_o <= 1'b0;

    if (reads) begin
      unique case (read_address)
        Control:         rdata_o <= {24'b0, restart_q, 3'b0, ready_q, idle_i, done_q, start_q};
        Gie:             rdata_o <= {31'b0, gie_q};
        Ier:             rdata_o <= {30'b0, ier_q};
        Isr:             rdata_o <= {30'b0, isr_q};
        X:               rdata_o <= x_o[31:0];
        X + 12'd4:       rdata_o <= x_o[63:32];
        Y:               rdata_o <= y_o[31:0];
        Y + 12'd4:       rdata_o <= y_o[63:32];
        Image:           rdata_o <= image_o[31:0];
        Image + 12'd4:   rdata_o <= image_o[63:32];
        Samples:         rdata_o <= samples_o;
        Load:            rdata_o <= load_q;
        Cycles:          rdata_o <= cycles_i;
        Shape:           rdata_o <= shape_i[31:0];
        Shape + 12'd4:   rdata_o <= shape_i[63:32];
        Error:           rdata_o <= {28'b0, error_i};
        default:         rdata_o <= '0;
      endcase
    end

    if (writes) begin
      unique case (write_address)
        X:             x_o[31:0]      <= merged(x_o[31:0], wdata_i, wstrb_i);
        X + 12'd4:     x_o[63:32]     <= merged(x_o[63:32], wdata_i, wstrb_i);
        Y:             y_o[31:0]      <= merged(y_o[31:0], wdata_i, wstrb_i);
        Y + 12'd4:     y_o[63:32]     <= merged(y_o[63:32], wdata_i, wstrb_i);
        Image:         image_o[31:0]  <= merged(image_o[31:0], wdata_i, wstrb_i);
        Image + 12'd4: image_o[63:32] <= merged(image_o[63:32], wdata_i, wstrb_i);
        Samples:       samples_o      <= merged(samples_o, wdata_i, wstrb_i);
        Load:          load_q         <= merged(load_q, wdata_i, wstrb_i);
        Gie:           if (wstrb_i[0]) gie_q <= wdata_i[0];
        Ier:           if (wstrb_i[0]) ier_q <= wdata_i[1:0];
        default:       ;
      endcase
    end

    if (reads && read_address == Control) begin
      done_q  <= 1'b0;
      ready_q <= 1'b0;
    end
    if (writes && write_address == Isr && wstrb_i[0]) isr_q <= isr_q ^ wdata_i[1:0];
    if (done_i) begin
      done_q  <= 1'b1;
      ready_q <= 1'b1;
      start_q <= restart_q;
      if (ier_q[0]) isr_q[0] <= 1'b1;
      if (ier_q[1]) isr_q[1] <= 1'b1;
    end
    if (writes && write_address == Control && wstrb_i[0]) begin
      if (wdata_i[0]) start_q <= 1'b1;
      restart_q <= wdata_i[7];
    end

    if (!rst_ni) begin
      bvalid_o  <= 1'b0;
      rvalid_o  <= 1'b0;
      start_q   <= 1'b0;
      restart_q <= 1'b0;
      done_q    <= 1'b0;
      ready_q   <= 1'b0;
      gie_q     <= 1'b0;
      ier_q     <= '0;
      isr_q     <= '0;
      x_o       <= '0;
      y_o       <= '0;
      image_o   <= '0;
      samples_o <= '0;
      load_q    <= '0;
    end
  end
endmodule
