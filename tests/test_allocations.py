"""A run allocates nothing but its result: networks of any length as often as one that only copies its input.

Every allocation of the process is counted by a library that comes before the C library. Counting needs a C compiler
and glibc; without them the test is a visible skip.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import random_graph, random_input

from csengine.backends import cpp
from csengine.graph import Graph, Input

COUNTER = """
#include <stdatomic.h>
#include <stddef.h>
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
static atomic_long count;
long allocations(void) { return count; }
void* malloc(size_t size) { ++count; return __libc_malloc(size); }
void* calloc(size_t number, size_t size) { ++count; return __libc_calloc(number, size); }
void* realloc(void* memory, size_t size) { ++count; return __libc_realloc(memory, size); }
void* aligned_alloc(size_t alignment, size_t size) { ++count; return __libc_memalign(alignment, size); }
void* memalign(size_t alignment, size_t size) { ++count; return __libc_memalign(alignment, size); }
"""
RUNS = 50


def test_runs_allocate_nothing_but_their_result(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs a C compiler and glibc")
    (tmp_path / "counter.c").write_text(COUNTER)
    library = tmp_path / "counter.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, tmp_path / "counter.c"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def allocations_of_runs(graph: Graph, x: np.ndarray, tier: str, threads: int) -> int:
    counter = ctypes.CDLL(None).allocations
    counter.restype = ctypes.c_long
    program = cpp.compile(graph, "auto", threads, tier=tier, measure=False)
    for _ in range(5):
        program.run(x)
    before = counter()
    for _ in range(RUNS):
        program.run(x)
    return int(counter() - before)


def copying(graph: Graph) -> Graph:
    """A network that gives as much as another one and computes nothing."""
    kind = graph.output_type
    as_it_is = {"uint8": ("uint8", 1.0), "int8": ("int8", 1.0)}
    dtype, scale = as_it_is.get(kind.dtype, ("float32", None))  # an int32 is as large
    return Graph((Input(name="x", inputs=(), shape=kind.shape, dtype=dtype, scale=scale),))  # type: ignore[arg-type]


def main() -> None:
    ctypes.CDLL(None).allocations()  # fails unless the counter is there
    tiers = [name for name, runs in cpp.tiers().items() if runs]
    for seed in range(24):
        graph = random_graph(seed, integer=seed % 3 != 0)
        tier, threads, batch = tiers[seed % len(tiers)], 1 + seed % 2, (1, 3, 40)[seed % 3]
        expected = allocations_of_runs(copying(graph), random_input(copying(graph), batch, seed), tier, threads)
        got = allocations_of_runs(graph, random_input(graph, batch, seed), tier, threads)
        assert expected > 0  # the counter counts
        memory = threads - 1  # of a chunk that had never been under way at the same time as the others before
        assert got <= expected + memory, (seed, tier, threads, batch, got, expected)


if __name__ == "__main__":
    main()
