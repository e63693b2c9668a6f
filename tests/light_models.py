"""The networks that the `onnx` package carries without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def light(name: str) -> Any:
    """A network of the onnx package with random weights in place of its constant ones."""
    rng = np.random.default_rng(0)
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = {n.input[1] for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
    kept = []
    for made in model.graph.node:
        if made.op_type == "ConstantOfShape" and made.output[0] in layers:
            shape = shapes[made.input[0]]
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), made.output[0]))
        else:
            kept.append(made)
    model.ir_version = 8  # initializers need not be inputs
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model
