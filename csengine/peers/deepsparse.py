"""DeepSparse: fast on ConvInteger and MatMulInteger and on sparse float32; quantization by QDQ it would not see."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepsparse
import onnx
from numpy.typing import NDArray

from csengine.container import Model
from csengine.peers import functions, onnx_form
from csengine.peers.runtime import Loaded, Source


def load(model: Model, variant: str, batches: Sequence[NDArray[Any]], threads: int) -> Loaded:
    """See `csengine.peers.runtime`."""
    graph = model.graph
    form: onnx_form.Form = "float" if variant == "fp32" else "integer"
    written = onnx_form.write(graph, form, len(batches[0]), selection="threshold")  # no pattern begins with integers
    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place) / "model.onnx")
        onnx.save(written.model, path)
        engine = deepsparse.compile_model(path, batch_size=len(batches[0]), num_cores=threads)
    source = Source(functions.peers_input(graph, batches))
    results: list[Any] = []

    def call() -> None:
        results[:] = engine.run([source.buffer], val_inp=False)

    def output() -> NDArray[Any]:
        y = functions.as_the_user_sees(graph, results[0])
        return functions.real_values(graph, y) if written.output_type != "float32" else y

    return Loaded(source.feed, call, output)
