"""From a packed model to an FPGA: the plan of its pipeline, the hardware and its parameters, builds, XRT."""
