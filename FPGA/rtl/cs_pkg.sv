// What the modules share: widths, and the bus that carries parameters to the memories of all layers.
package cs_pkg;

  // Bits that hold 0 .. n-1; at least one, because SystemVerilog has no empty vectors.
  function automatic int bits(input int n);
    return n > 1 ? $clog2(n) : 1;
  endfunction

  function automatic int ceil_div(input int a, input int b);
    return (a + b - 1) / b;
  endfunction

  // One 64-bit word of a parameter memory's row. Every memory listens for its own stage; `unit` tells its lane or
  // column. The words of a row follow one another, the least significant first.
  typedef struct packed {
    logic        valid;
    logic [7:0]  stage;
    logic [15:0] unit;
    logic [23:0] row;
    logic        last;   // of the row
    logic [63:0] data;
  } load_t;

endpackage
