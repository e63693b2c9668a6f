"""Builds csengine's C++ kernels; everything else is declared in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

ParallelCompile("CSENGINE_BUILD_JOBS", default=0).install()

# The baseline is the plain architecture, so that one build runs anywhere; faster tiers are chosen at run time.
native = Pybind11Extension(
    "csengine._native",
    sorted(glob("cpp/*.cpp") + glob("cpp/kernels/*.cpp")),
    depends=sorted(glob("cpp/*.h") + glob("cpp/kernels/*.h")),
    cxx_std=17,
    # GCC 12 takes the undefined vectors of its own intrinsics for uninitialized variables.
    extra_compile_args=[
        *("-O3", "-ffp-contract=off", "-fvisibility=hidden"),
        *("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
)

setup(ext_modules=[native])
