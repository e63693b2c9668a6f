"""Builds csengine's C++ kernels, and its FPGA host where XRT is; everything else is declared in pyproject.toml."""

import os
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

ParallelCompile("CSENGINE_BUILD_JOBS", default=0).install()

# The baseline is the plain architecture, so that one build runs anywhere; faster tiers are chosen at run time.
native = Pybind11Extension(
    "csengine._native",
    sorted(glob("cpp/*.cpp") + glob("cpp/kernels/*.cpp")),
    depends=sorted(glob("cpp/*.h") + glob("cpp/kernels/*.h")),
    cxx_std=17,
    # Python is built with -fwrapv, which keeps int indices from becoming addresses: 2 % of a word.
    # GCC 12 takes the undefined vectors of its own intrinsics for uninitialized variables.
    extra_compile_args=[
        *("-O3", "-ffp-contract=off", "-fno-wrapv", "-fvisibility=hidden"),
        *("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
)

# XRT of a distribution, or AMD's own package.
xrt = next(
    (
        p
        for p in (os.environ.get("XILINX_XRT", "") + "/include", "/opt/xilinx/xrt/include", "/usr/include/xrt")
        if Path(p, "xrt/xrt_device.h").is_file()
    ),
    None,
)
libraries = [] if xrt is None or xrt.startswith("/usr/") else [str(Path(xrt).parent / "lib")]
host = Pybind11Extension(
    "csengine._xrt",
    sorted(glob("FPGA/host/*.cpp")),
    depends=sorted(glob("FPGA/host/*.h")),
    cxx_std=17,
    include_dirs=[xrt or ""],
    library_dirs=libraries,
    runtime_library_dirs=libraries,
    libraries=["xrt_coreutil"],
    extra_compile_args=["-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
    optional=True,
)

setup(ext_modules=[native, *([host] if xrt else [])])
