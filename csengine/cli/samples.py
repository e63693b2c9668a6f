"""Inputs for a network: from .npy, .npz and WAV files, or random; and what its outputs say."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.container import Model
from csengine.engine import Engine
from csengine.errors import ShapeError, UnsupportedModelError
from csengine.graph import Softmax

Array = NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """A batch `[B, *input_shape]` with the name of every sample. is_single: it came as one sample without a batch."""

    values: Array
    names: tuple[str, ...]
    is_single: bool = False


@dataclass(frozen=True)
class Answer:
    """One output of a classifier. confidence: softmax over the outputs; None where the outputs are integers."""

    label: str
    index: int
    value: float
    confidence: float | None


def read_samples(paths: Sequence[str], engine: Engine, array: str | None = None) -> Samples:
    """All samples of some files, joined.

    Raises FileNotFoundError, ValueError (ShapeError included), UnsupportedModelError (a WAV file for a model that does
    not say how sound becomes its input).
    """
    parts = [_read(path, engine, array) for path in paths]
    if len({part.values.dtype for part in parts}) > 1:
        raise ShapeError(f"inputs are of types {', '.join(str(p.values.dtype) for p in parts)}; expected one type")
    names = tuple(name for part in parts for name in part.names)
    return Samples(np.concatenate([p.values for p in parts]), names, len(parts) == 1 and parts[0].is_single)


def _read(path: str, engine: Engine, array: str | None) -> Samples:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such input file: {path}")
    suffix = Path(path).suffix.lower()
    if suffix == ".wav":
        return Samples(read_recording(path, engine.model, engine.input_shape), (path,))
    if suffix not in (".npy", ".npz"):
        raise ValueError(f"{path}: has suffix {suffix or '(none)'}; expected .npy, .npz or .wav")
    values = read_array(path, array)
    if values.shape == engine.input_shape:
        return Samples(values[None], (path,), is_single=True)
    if values.ndim == 0 or values.shape[1:] != engine.input_shape:
        shape = ", ".join(map(str, engine.input_shape))
        raise ShapeError(
            f"{path}: has shape {values.shape}; expected ({shape}) for one sample or (B, {shape}) for a batch"
        )
    return Samples(values, tuple(f"{path}[{i}]" for i in range(len(values))))


def read_array(path: str, name: str | None) -> Array:
    """The array of a .npy file, or one of a .npz file. Never unpickles. Raises ValueError, OSError."""
    try:
        content: Any = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable NumPy file ({error})") from error
    if isinstance(content, np.ndarray):
        return content
    with content:
        wanted = name or (content.files[0] if len(content.files) == 1 else None)
        if wanted not in content.files:
            raise ValueError(f"{path}: holds {', '.join(content.files) or 'no arrays'}; choose one with --array")
        try:
            found: Array = content[wanted]
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: has a damaged array {wanted!r} ({error})") from error
    return found


def read_recording(path: Any, model: Model, input_shape: tuple[int, ...]) -> Array:
    """A WAV file as a batch of one, prepared as the model asks."""
    kind, rate = model.preprocessing.get("kind"), model.preprocessing.get("sample_rate", 16000)
    if kind != "log-mel":
        raise UnsupportedModelError(
            f"{path}: the model does not take sound (its preprocessing is {kind!r}; expected 'log-mel'); "
            "give a .npy file"
        )
    from csengine import audio  # SciPy's signal processing takes long to import

    x = audio.load_input(path)
    if rate != audio.SAMPLE_RATE or x.shape[1:] != input_shape:
        raise UnsupportedModelError(
            f"the model takes sound at {rate} Hz as {input_shape}; "
            f"this version makes {x.shape[1:]} at {audio.SAMPLE_RATE} Hz"
        )
    return x


def random_samples(engine: Engine, batch: int, seed: int) -> Array:
    """float32 `[B, *input_shape]` over the range that the input type holds; standard normal for float32."""
    rng = np.random.default_rng(seed)
    shape = (batch, *engine.input_shape)
    node = engine.model.graph.input
    if node.scale is None:
        return rng.standard_normal(shape, np.float32)
    limits = np.iinfo(node.dtype)
    return np.asarray(rng.uniform(limits.min * node.scale, limits.max * node.scale, shape), np.float32)


def samples_for(
    engine: Engine, batch: int | None, seed: int, path: str | None = None, array: str | None = None, random: int = 1
) -> Array:
    """A batch of that size: random, or the samples of a file, repeated as often as needed.

    batch: None takes all samples of the file, or `random` random ones.
    """
    if path is None:
        return random_samples(engine, batch or random, seed)
    values = read_samples([path], engine, array).values
    if not len(values):
        raise ShapeError(f"{path}: holds no samples; expected at least one")
    return values[np.arange(batch or len(values)) % len(values)]


def top_answers(engine: Engine, y: Array, count: int) -> list[Answer]:
    """The largest outputs of one sample `[n]`, largest first."""
    confidence = _softmax(y) if y.dtype.kind == "f" and engine.labels else None
    if isinstance(engine.model.graph.output, Softmax):
        confidence = y
    order = np.argsort(-y.astype(np.float64), kind="stable")[:count]
    return [
        Answer(
            engine.labels[i] if engine.labels else str(i),
            int(i),
            float(y[i]),
            None if confidence is None else float(confidence[i]),
        )
        for i in order
    ]


def _softmax(y: Array) -> Array:
    powers = np.exp(y.astype(np.float64) - y.max())
    return np.asarray(powers / powers.sum())
