"""The engine: load a packed model, run it."""

from __future__ import annotations

import importlib
import json
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csengine import container, reference
from csengine.backends import MODES, KernelChoice, Mode, Program
from csengine.container import Model
from csengine.errors import BackendUnavailableError, ShapeError
from csengine.plan import LayerPlan, count_macs, plan
from csengine.resources import default_threads

Backend: TypeAlias = Literal["auto", "cpp", "numba", "reference", "fpga"]
BACKENDS: tuple[Backend, ...] = ("cpp", "numba", "reference", "fpga")
_AUTOMATIC: tuple[Backend, ...] = ("cpp", "numba", "reference")
_MODULES = {
    "cpp": "csengine.backends.cpp",
    "numba": "csengine.backends.numba",
    "reference": "csengine.backends.reference",
    "fpga": "csengine.backends.fpga",
}

Array = NDArray[Any]
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class LayerProfile:
    """Measured time of one step, with the fused layers before it.

    seconds: for the whole batch, median of the passes. macs_dense, macs_done: multiply-accumulates of the batch, every
    weight and activation counted, and those really done. cycles: clock cycles per sample, where the hardware counts
    them.
    """

    name: str
    kernel: str
    tier: str
    mode: str
    seconds: float
    macs_dense: int
    macs_done: int
    cycles: float | None = None

    @property
    def effective_rate(self) -> float:
        """Dense-equivalent multiply-accumulates per second."""
        return self.macs_dense / self.seconds if self.seconds else 0.0

    @property
    def real_rate(self) -> float:
        """Multiply-accumulates done per second."""
        return self.macs_done / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """What `Engine.profile` measured."""

    batch: int
    layers: tuple[LayerProfile, ...]

    @property
    def seconds(self) -> float:
        """Sum over the steps."""
        return sum(layer.seconds for layer in self.layers)

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open."""
        events, start = [], 0.0
        for layer in self.layers:
            event = {"name": layer.name, "cat": layer.mode or "operation", "ph": "X", "pid": 1, "tid": 1}
            events.append({**event, "ts": start * 1e6, "dur": layer.seconds * 1e6, "args": asdict(layer)})
            start += layer.seconds
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))


class Engine:
    """A packed model, compiled and ready; may be used from many threads at once."""

    def __init__(
        self,
        model: Model,
        *,
        backend: Backend = "auto",
        threads: int | None = None,
        mode: Mode = "auto",
        kernels: Mapping[str, str] | None = None,
        plan_cache: str | os.PathLike[str] | None = None,
        emulate: bool | None = None,
        xclbin: str | os.PathLike[str] | None = None,
        device: int | str | Sequence[int | str] | None = None,
    ) -> None:
        """Compile a model that is in memory; see `load`."""
        self.model = model
        self.threads = _resolve_threads(threads)
        self.mode = _resolve_mode(mode)
        options = {
            "cpp": _cpp_options(kernels, plan_cache),
            "fpga": {"emulate": emulate, "xclbin": xclbin, "device": device},
        }
        self.backend, self._program = _compile(model, _resolve_backend(backend), self.mode, self.threads, options)
        graph = model.graph
        self._is_as_given = graph.layout == "NHWC" or len(graph.input.shape) == 1
        self._is_as_made = graph.layout == "NHWC" or len(graph.output_type.shape) == 1
        self._own_type = np.dtype(graph.input.dtype)
        self._input_shape = graph.outside(graph.input.shape)
        self._inside_shape = (-1, *graph.input.shape)
        self._is_in_order = graph.keeps_order(graph.input.shape)
        self._output_shape = graph.outside(graph.output_type.shape)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: Backend = "auto",
        threads: int | None = None,
        mode: Mode = "auto",
        kernels: Mapping[str, str] | None = None,
        plan_cache: str | os.PathLike[str] | None = None,
        emulate: bool | None = None,
        xclbin: str | os.PathLike[str] | None = None,
        device: int | str | Sequence[int | str] | None = None,
    ) -> Engine:
        """Load a packed file and compile it.

        backend: "cpp", "numba", "reference" or "fpga"; "auto" takes `CSENGINE_BACKEND`, else the first of cpp, numba
        and reference that runs here. threads: None takes `CSENGINE_NUM_THREADS`, else the physical cores that affinity
        and container quota allow. mode: which sparsity may be used: "dense" none, "sparse-dense" that of the weights,
        "sparse-sparse" (and "auto") that of the activations, too; each layer takes the fastest kernel this allows.
        `CSENGINE_ISA` forces the instruction set of the C++ kernels. `CSENGINE_PLANNER=model` chooses without
        measuring, the same on every machine: layers take exactly the mode, "auto" the cheapest by a cost model.

        kernels: the C++ kernels of some layers by name, instead of a choice (`plan()` lists what was tried).
        plan_cache: a file that keeps what was measured, so that the next load need not; None takes
        `CSENGINE_PLAN_CACHE`, or keeps nothing.
        For the backend "fpga" only, each with a variable `CSENGINE_FPGA_...` for what is not given: xclbin: the
        hardware, built for the shape of this model. device: index or BDF of a card, or several that share batches;
        None takes all. emulate: run the hardware's RTL behind XRT in processes of its own; the first time for a shape
        this builds it, which takes a minute or two.

        Raises FileNotFoundError, PermissionError, ModelFormatError (a damaged file), BackendUnavailableError (what was
        asked for is not here), DeviceError (an FPGA fails, or its hardware is for another shape), ValueError (an
        argument out of range).
        """
        return cls(
            container.load(path),
            backend=backend,
            threads=threads,
            mode=mode,
            kernels=kernels,
            plan_cache=plan_cache,
            emulate=emulate,
            xclbin=xclbin,
            device=device,
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input sample, as the source model had it."""
        return self._input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one result, as the source model had it."""
        return self._output_shape

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs, or empty."""
        return self.model.labels

    def run(self, x: ArrayLike) -> Array:
        """The result for one sample (`input_shape`) or a batch `[B, *input_shape]` of any size, 0 included.

        x: real numbers, which become float32, or the model's own integer type (`model.graph.input.dtype`).
        Raises ShapeError for another shape or type, or a value that is not finite.
        """
        batch, is_single = self._to_batch(x)
        y = self._program.run(batch)
        y = y if self._is_as_made else self.model.graph.to_caller(y)
        return y[0] if is_single else y

    def trace(self, x: ArrayLike) -> Mapping[str, Array]:
        """Every node's tensor `[B, ...]` in NHWC, for one sample or a batch; an FPGA shows only its result."""
        return self._program.trace(self._to_batch(x)[0])

    def plan(self) -> tuple[LayerPlan, ...]:
        """Per layer: the kernel chosen, its mode, multiply-accumulates dense and done, bytes."""
        return plan(self.model.graph, self._program.choices())

    def choices(self) -> Mapping[str, KernelChoice]:
        """The kernel of every step that runs."""
        return self._program.choices()

    def profile(self, x: ArrayLike, passes: int = 20) -> Profile:
        """Time every step on one sample or a batch; medians of so many passes after a warm-up, on one thread."""
        batch, _ = self._to_batch(x)
        self._program.profile(batch)
        runs = [self._program.profile(batch) for _ in range(max(1, passes))]
        seconds = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
        return Profile(len(batch), self._layer_profiles(batch, seconds))

    def __reduce__(self) -> str:
        raise TypeError(
            "an Engine holds code compiled for this process and can be neither copied nor pickled; share it between "
            "threads, and in every process load the file, or make Engine(model) of its `model`, which can be pickled"
        )

    def _layer_profiles(self, batch: Array, seconds: Mapping[str, float]) -> tuple[LayerProfile, ...]:
        graph, choices = self.model.graph, self._program.choices()
        rows = {row.name: row for row in self.plan()}
        tensors = self._program.trace(batch)
        if len(tensors) < len(graph.nodes):  # a hardware pipeline does not show what is inside
            tensors = reference.trace(graph, batch)
        done = count_macs(graph, tensors, {name: row.mode for name, row in rows.items()})
        layers, pending_dense, pending_done = [], 0, 0
        for node in graph.nodes:
            pending_dense += rows[node.name].macs_dense * len(batch)
            pending_done += done.get(node.name, 0)
            if (choice := choices.get(node.name)) is not None:
                measured = (seconds[node.name], pending_dense, pending_done, choice.cycles)
                layers.append(LayerProfile(node.name, choice.kernel, choice.tier, choice.mode, *measured))
                pending_dense = pending_done = 0
        return tuple(layers)

    def _to_batch(self, x: ArrayLike) -> tuple[Array, bool]:
        """A contiguous NHWC batch of a type that programs take, and whether x was one sample."""
        try:
            array = np.asarray(x)
        except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, tensors with gradients
            raise ShapeError(
                f"input is a {type(x).__name__} that NumPy cannot take ({error}); expected an array, or what "
                "np.asarray makes one of (of a PyTorch tensor x: x.detach().cpu().float())"
            ) from error
        if array.dtype is not _FLOAT32 and array.dtype != self._own_type:
            array = self._to_float(array)
        shape = array.shape
        is_single = shape == self._input_shape
        if is_single:
            array = array[None]
        elif shape[1:] != self._input_shape or not shape:
            one, many = _shown(self._input_shape), _shown(("B", *self._input_shape))
            raise ShapeError(f"input has shape {shape}; expected {one} for one sample or {many} for a batch")
        if not self._is_in_order:
            return self.model.graph.from_caller(array), is_single
        array = np.ascontiguousarray(array)
        return array if self._is_as_given else array.reshape(self._inside_shape), is_single

    def _to_float(self, array: Array) -> Array:
        """Real numbers of any type as float32. Raises ShapeError for other types, and for integers of another type."""
        if array.dtype.kind not in "fiub":
            raise ShapeError(f"input has type {array.dtype}; expected real numbers or {self._own_type}")
        if array.dtype.kind != "f" and self._own_type.kind != "f":
            raise ShapeError(
                f"input has integer type {array.dtype}; expected {self._own_type} (quantized values) "
                "or float32 (real values, which the model quantizes)"
            )
        with np.errstate(over="ignore"):  # a double too large for float32 is reported as not finite
            return array.astype(np.float32)


def _shown(shape: tuple[object, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _resolve_backend(backend: str) -> str:
    """The backend asked for by argument, else by environment, else "auto"."""
    chosen, source = backend, "backend"
    if backend == "auto":
        chosen, source = os.environ.get("CSENGINE_BACKEND") or "auto", "CSENGINE_BACKEND: backend"
    if chosen not in ("auto", *BACKENDS):
        raise ValueError(f"{source} is {chosen!r}; expected auto, {', '.join(BACKENDS)}")
    return chosen


def _resolve_threads(threads: int | None) -> int:
    """The number asked for by argument, else by environment, else as many as there are cores."""
    given: object = threads
    source = "threads"
    if threads is None:
        given, source = os.environ.get("CSENGINE_NUM_THREADS") or None, "CSENGINE_NUM_THREADS"
    if given is None:
        return default_threads()
    try:
        count = int(given) if isinstance(given, str) and threads is None else operator.index(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= 1024:
        raise ValueError(f"{source} is {given!r}; expected a whole number from 1 to 1024")
    return count


def _resolve_mode(mode: str) -> Mode:
    for known in MODES:
        if mode == known:
            return known
    raise ValueError(f"mode is {mode!r}; expected {', '.join(MODES)}")


def _resolve_planner() -> str:
    planner = os.environ.get("CSENGINE_PLANNER") or "measure"
    if planner not in ("measure", "model"):
        raise ValueError(f"CSENGINE_PLANNER is {planner!r}; expected measure or model")
    return planner


def _cpp_options(kernels: Mapping[str, str] | None, plan_cache: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What only the C++ backend takes, from arguments and environment."""
    cache = plan_cache or os.environ.get("CSENGINE_PLAN_CACHE") or None
    return {
        "tier": os.environ.get("CSENGINE_ISA") or None,
        "measure": _resolve_planner() == "measure",
        "kernels": dict(kernels or {}),
        "cache": None if cache is None else Path(cache),
    }


def _compile(
    model: Model, backend: str, mode: Mode, threads: int, options: Mapping[str, dict[str, Any]]
) -> tuple[Backend, Program]:
    """The program, and the backend that it is for; "auto" tries them in order and says why none works."""
    given = [name for name, value in options["fpga"].items() if value is not None]
    if given and backend != "fpga":
        raise ValueError(f"{', '.join(given)} is for backend='fpga'; backend is {backend!r}")
    wanted = tuple(name for name in BACKENDS if name == backend)
    if backend == "auto":
        wanted = ("cpp",) if options["cpp"]["tier"] or options["cpp"]["kernels"] else _AUTOMATIC
    reasons = []
    for name in wanted:
        try:
            return name, _compile_for(name, model, mode, threads, options)
        except BackendUnavailableError as error:
            reasons.append(f"{name}: {error}")
    raise BackendUnavailableError("; ".join(reasons))


def _compile_for(
    name: Backend, model: Model, mode: Mode, threads: int, options: Mapping[str, dict[str, Any]]
) -> Program:
    if name != "cpp" and options["cpp"]["kernels"]:
        raise ValueError(f"kernels are given for backend {name!r}; only 'cpp' has several to choose from")
    module = importlib.import_module(_MODULES[name])
    program: Program = module.compile(model.graph, mode, threads, **options.get(name, {}))
    return program
