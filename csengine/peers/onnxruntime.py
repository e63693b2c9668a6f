"""ONNX Runtime at its best: bound input and output, threads set, every optimization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from csengine.container import Model
from csengine.peers import functions, onnx_form
from csengine.peers.runtime import Loaded, Source

_FORMS: dict[str, tuple[onnx_form.Form, onnx_form.Selection]] = {
    "fp32": ("float", "threshold"),
    "fp32-scatter": ("float", "scatter"),
    "int8": ("qdq", "scatter"),
    "int8-integer": ("integer", "scatter"),
    "int4": ("int4", "scatter"),
}


def load(model: Model, variant: str, batches: Sequence[NDArray[Any]], threads: int) -> Loaded:
    """See `csengine.peers.runtime`."""
    form, selection = _FORMS[variant]
    graph = model.graph
    direct = form in ("qdq", "integer") and batches[0].dtype != np.float32
    bits = onnx_form.exact_weight_bits()
    written = onnx_form.write(graph, form, len(batches[0]), selection=selection, direct=direct, weight_bits=bits)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(written.model.SerializeToString(), options, ["CPUExecutionProvider"])
    source = Source(functions.peers_input(graph, batches, direct=direct))
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(source.buffer))
    result = ort.OrtValue.ortvalue_from_shape_and_type(session.get_outputs()[0].shape, np.dtype(written.output_type))
    binding.bind_ortvalue_output("result", result)

    def output() -> NDArray[Any]:
        y = functions.as_the_user_sees(graph, result.numpy())
        return functions.real_values(graph, y) if written.output_type != "float32" else y

    return Loaded(source.feed, lambda: session.run_with_iobinding(binding), output)
