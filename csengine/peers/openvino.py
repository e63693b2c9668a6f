"""OpenVINO at its best: one stream, threads set, input and output by reference, AMX precisions, sparse weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from csengine.container import Model
from csengine.peers import functions, onnx_form
from csengine.peers.runtime import Loaded, Source

_FORMS: dict[str, tuple[onnx_form.Form, onnx_form.Selection, str]] = {
    "fp32": ("float", "threshold", "f32"),
    "fp32-scatter": ("float", "scatter", "f32"),
    "bf16": ("float", "threshold", "bf16"),
    "int8": ("qdq", "scatter", "f32"),
    "int8-sparse": ("qdq", "scatter", "bf16"),
}
_SPARSE_FROM = 0.8  # share of zeros from which weights are stored sparse
_SPARSE_MULTIPLE = 64  # the property does nothing for other numbers of outputs


def load(model: Model, variant: str, batches: Sequence[NDArray[Any]], threads: int) -> Loaded:
    """See `csengine.peers.runtime`."""
    form, selection, precision = _FORMS[variant]
    graph = functions.padded(model.graph, _SPARSE_MULTIPLE) if variant == "int8-sparse" else model.graph
    direct = form == "qdq" and batches[0].dtype != np.float32
    bits = onnx_form.exact_weight_bits()
    written = onnx_form.write(graph, form, len(batches[0]), selection=selection, direct=direct, weight_bits=bits)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": False,  # the worker is pinned already
    }
    if variant == "int8-sparse":
        settings["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = _SPARSE_FROM
    core = ov.Core()
    compiled = core.compile_model(core.read_model(written.model.SerializeToString()), "CPU", settings)
    request = compiled.create_infer_request()
    source = Source(functions.peers_input(graph, batches, direct=direct))
    tensor = ov.Tensor(source.buffer, shared_memory=True)
    request.set_input_tensor(tensor)

    def output(alive: object = (source, tensor)) -> NDArray[Any]:
        y = functions.as_the_user_sees(model.graph, np.array(request.get_output_tensor().data))
        return functions.real_values(model.graph, y) if written.output_type != "float32" else y

    return Loaded(source.feed, request.infer, output)
