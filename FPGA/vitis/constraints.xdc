# Clock of the kernel when it is synthesized by itself; 250 MHz is what csengine's figures assume, not what was reached.
create_clock -name ap_clk -period 4.000 [get_ports ap_clk]
