"""Run the shipped networks under valgrind and print what it says of csengine's own code; fails if that is anything.

    python tools/memcheck.py     # needs valgrind; a minute

Valgrind knows no AVX-512, so this covers the avx2 and scalar tiers, the planner, and all that is around kernels. Python
itself is not made for valgrind; complaints whose stack never passes through our extension are not shown.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_RUN = """
import numpy as np
from csengine import Engine
from csengine.cli import shipped

for name in shipped.model_names():
    model = shipped.load_model(name).model
    engine = Engine(model, backend="cpp", threads=1)
    x = np.random.default_rng(1).random((3, *engine.input_shape), dtype=np.float32)
    np.testing.assert_array_equal(engine.run(x), Engine(model, backend="reference").run(x))
    print(name, sorted({choice.tier for choice in engine.choices().values()}))
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        command = ["valgrind", "--num-callers=40", f"--log-file={log}", sys.executable, "-c", _RUN]
        subprocess.run(command, env={**os.environ, "PYTHONMALLOC": "malloc"}, check=True, timeout=1800)
        complaints = re.sub(r"==\d+== ?", "", log.read_text()).split("\n\n")
    ours = [text for text in complaints if "_native" in text]
    print(*ours, f"{len(ours)} of valgrind's {len(complaints)} paragraphs are about csengine", sep="\n\n")
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
