"""Mutants of valid packed files: each is refused with a `ModelFormatError`, or it is a valid model that runs.

    CSENGINE_FUZZ_SEED=7 CSENGINE_FUZZ_MUTANTS=100000 python -m pytest tests/test_fuzz.py
    python tests/test_fuzz.py SEED COUNT

Mutant n of a seed is always the same, so a failure names all that is needed to see it again.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from files import PackedFile, container, small_model
from graphs import random_graph, random_input

from csengine import reference
from csengine.backends import cpp
from csengine.container import Model, load, save
from csengine.errors import ModelFormatError
from csengine.graph import AveragePool, Conv2d, Dequantize, Graph, Linear, MaxPool
from csengine.packing import NOBODY, PackedMatrix

logger = logging.getLogger("csengine.fuzz")

MUTANTS = 8000
SECONDS = 5.0  # that reading one small file may take
MEMORY = 4 << 30  # bytes that it may take
#: A model whose layers and tensors are larger than this is not run.
SMALL = 2**18

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    47,
    48,
    127,
    255,
    256,
    2**15,
    2**16,
    2**28,
    2**31 - 1,
    2**31,
    -(2**31),
    2**63,
    2**64,
    10**400,
)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-40, 1e-30, 1e28, 1e38, 1e300, 5e-324, float("nan"), float("inf"))
TEXTS = (
    "",
    "x",
    "\ud800",
    "a\nb",
    "float32",
    "uint8",
    "int8",
    "int32",
    "NHWC",
    "NCHW",
    "local",
    "global",
    "input",
    "relu",
)
SHAPES = ([], [0], [1], [1, 1], [2, 0], [0, 2**40], [2**62, 0, 3], [2**40, 0, 1, 4], [0, 2**64 - 1], [1] * 70)
TYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "U32",
    "BOOL",
    "F8_E4M3",
    "F4",
    "C64",
    "Q8",
)


@dataclass
class Outcome:
    """What became of the mutants."""

    accepted: int = 0
    run: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


def run_mutants(seed: int, count: int) -> Outcome:
    """Try `count` mutants; raises AssertionError, which names the mutant, if one is not treated as it should."""
    logger.info("fuzz seed %d, %d mutants", seed, count)
    outcome = Outcome()
    with tempfile.NamedTemporaryFile() as file, limited_memory(), np.errstate(all="ignore"):
        for number in range(count):
            file.seek(0)
            file.write(mutant(seed, number))
            file.truncate()
            file.flush()
            try:
                try_mutant(Path(file.name), outcome)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic in Rust is no Exception
                raise AssertionError(f"mutant({seed}, {number}): {type(error).__name__}: {error}") from error
    return outcome


def try_mutant(path: Path, outcome: Outcome) -> None:
    start = time.perf_counter()
    try:
        model = load(path)
    except ModelFormatError as error:
        kind = str(error).removeprefix(f"{path}: ")
        assert len(kind) <= 500, "the message is too long to read"
        kind.encode()  # printable
        outcome.refusals["".join(c for c in kind if c.isalpha() or c == " ")[:60]] += 1
    else:
        outcome.accepted += 1
        outcome.run += check_model(model)
    elapsed = time.perf_counter() - start
    outcome.slowest = max(outcome.slowest, elapsed)
    assert elapsed < SECONDS, f"took {elapsed:.1f} s"


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let what would take all memory raise MemoryError instead."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


# --- what an accepted model has to be --------------------------------------------------------------------------------


def check_model(model: Model) -> bool:
    """Check ranges without the help of `graph.py`, and run the model if it is small; returns whether it ran."""
    graph = Graph(model.graph.nodes, model.graph.layout)
    assert graph.types == model.graph.types
    assert all(isinstance(label, str) for label in model.labels)
    json.dumps([model.preprocessing, model.accuracy], allow_nan=False)
    for node in graph.nodes:
        q = getattr(node, "requantization", None)
        if q is not None:
            assert q.dtype in ("uint8", "int8")
            assert q.shift.min() >= 1
            assert q.shift.max() <= 47
            assert q.multiplier.max() >= 2**15
        scale = graph.types[node.name].scale
        assert scale is None or (isfinite(scale) and scale > 0)
        if isinstance(node, Dequantize):
            assert np.isfinite(node.scale).all()
            assert (node.scale > 0).all()
        if isinstance(node, (Conv2d, Linear)):
            check_layer(graph, node)
    if not is_small(graph):
        return False
    x = random_input(graph, 6, 0)
    traced = reference.trace(graph, x)
    for name, values in traced.items():
        assert values.dtype == graph.types[name].dtype
        assert values.shape == (6, *graph.types[name].shape)
    check_kernels(graph, x, traced[graph.output.name])
    return True


def check_kernels(graph: Graph, x: np.ndarray, expected: np.ndarray) -> None:
    """The kernels of every tier that runs here give the same integers. float32 may be beyond any tolerance, or NaN."""
    for tier in (name for name, runs in cpp.tiers().items() if runs):
        got = cpp.compile(graph, "auto", 1, tier=tier, measure=False).run(x)
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        if expected.dtype.kind != "f":
            assert np.array_equal(got, expected), tier


def check_layer(graph: Graph, node: Conv2d | Linear) -> None:
    (source,) = graph.input_types(node)
    if isinstance(node.weight, PackedMatrix):
        kid, members = node.weight.kid, node.weight.members
        assert ((kid == NOBODY) | (kid < members.shape[1])).all()
        assert (members >= -1).all()
        assert (members < node.weight.kernel_blocks).all()
    if node.rows * node.kernels > SMALL:
        return
    weight = node.dense_weight
    assert weight.shape == (node.rows, node.kernels)
    assert np.isfinite(weight).all()
    if source.is_integer:
        extreme = {"uint8": (0, 255), "int8": (-128, 127)}[source.dtype]
        bias = 0 if node.bias is None else node.bias.astype(object)
        positive, negative = np.maximum(weight, 0).astype(object), np.minimum(weight, 0).astype(object)
        highest = positive.sum(axis=0) * extreme[1] + negative.sum(axis=0) * extreme[0] + bias
        lowest = positive.sum(axis=0) * extreme[0] + negative.sum(axis=0) * extreme[1] + bias
        assert max(highest) < 2**31
        assert min(lowest) >= -(2**31)


def is_small(graph: Graph) -> bool:
    work = 0
    for node in graph.nodes:
        result = graph.types[node.name]
        work += result.size + node.dense_macs(result)
        if isinstance(node, (Conv2d, MaxPool, AveragePool)):
            (source,) = graph.input_types(node)
            extents = zip(source.shape[:2], node.padding[:2], node.padding[2:], strict=True)
            work += prod(node.kernel) * result.size + prod(map(sum, extents)) * source.channels
        if isinstance(node, (Conv2d, Linear)):
            work += node.rows * node.kernels
    return work <= SMALL


# --- mutants ---------------------------------------------------------------------------------------------------------


@cache
def originals() -> tuple[bytes, ...]:
    """Small valid files: integer and float, packed and dense."""
    models = [small_model()]
    for start, integer, weights in (
        (3, True, "packed"),
        (5, True, "dense"),
        (8, False, "packed"),
        (13, False, "dense"),
    ):
        drawn = (random_graph(s, integer=integer, length=3, weights=weights) for s in itertools.count(start))  # type: ignore[arg-type]
        models.append(Model(next(graph for graph in drawn if _has_weights(graph))))
    graphs = (random_graph(seed, integer=True, length=8) for seed in range(100))
    models.append(Model(max(filter(_has_weights, graphs), key=lambda graph: len({type(node) for node in graph.nodes}))))
    contents = []
    with tempfile.TemporaryDirectory() as directory:
        for model in models:
            save(model, Path(directory) / "model")
            contents.append((Path(directory) / "model").read_bytes())
    return tuple(contents)


def _has_weights(graph: Graph) -> bool:
    return any(isinstance(node, (Conv2d, Linear)) for node in graph.nodes)


def mutant(seed: int, number: int) -> bytes:
    """The bytes of one mutant."""
    choices = random.Random(f"{seed}/{number}")
    content = choices.choice(originals())
    mutate = choices.choice([mutate_bytes, mutate_header, mutate_document, mutate_document, mutate_tensors])
    return mutate(choices, content)


def mutate_bytes(choices: random.Random, content: bytes) -> bytes:
    """Flip, overwrite, cut, insert, double or splice bytes."""
    data = bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(choices.choice([1, 1, 1, 2, 4, 16])):
        at = choices.randrange(choices.choice([8, header, len(data)]))
        size = choices.choice([1, 2, 8, 64])
        match choices.randrange(7):
            case 0 | 1:
                data[at] ^= 1 << choices.randrange(8)
            case 2:
                data[at] = choices.choice([0, 1, 127, 128, 254, 255, ord("9"), ord('"'), ord("]")])
            case 3:
                data[at : at + size] = choices.randbytes(size)
            case 4:
                other = choices.choice(originals())
                data[at : at + size] = other[at : at + size]
            case 5:
                data[at:at] = data[at : at + size]
            case _:
                del data[at : at + size]
        if len(data) < 8:
            break
        header = min(header, len(data))
    return bytes(data[: choices.randrange(len(data) + 1)] if choices.random() < 0.1 else data)


def mutate_header(choices: random.Random, content: bytes) -> bytes:
    """Change types, shapes and offsets of tensors, or anything in the JSON of the container."""
    length = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:length]), content[length:]
    for _ in range(choices.choice([1, 1, 2, 3])):
        name = choices.choice([name for name in header if name != "__metadata__"] or ["__metadata__"])
        entry = header.get(name)  # nothing may be left
        if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list) or choices.random() < 0.2:
            mutate_json(choices, header)
            continue
        match choices.randrange(5):
            case 0:
                entry["dtype"] = choices.choice(TYPES)
            case 1:
                entry["shape"] = choices.choice([*SHAPES, entry["shape"][::-1], [*entry["shape"], 1]])
            case 2:
                start = choices.choice([0, len(body), *NUMBERS])
                entry["data_offsets"] = choices.choice([[start, start], [start, len(body)], [0, start]])
            case 3:
                other = choices.choice([other for other in header if other != "__metadata__"] or [name])
                header[name], header[other] = header[other], header[name]
            case _:
                header[f"{name}_"] = header.pop(name)
    try:
        return container(header, body)
    except ValueError:  # Python writes no integer of so many digits
        return container({}, body)


def mutate_document(choices: random.Random, content: bytes) -> bytes:
    """Change the graph: values, members, elements; rarely its text."""
    file = PackedFile.read(content)
    for _ in range(choices.choice([1, 1, 1, 2, 3])):
        mutate_json(choices, file.document)
    text = json.dumps(file.document)
    if choices.random() < 0.1:
        at = choices.randrange(len(text))
        text = text[:at] + choices.choice(["", "[", "}", "NaN", "1e999", "\\ud800", '"', "[" * 600]) + text[at + 1 :]
    return file.write_text(text)


def mutate_json(choices: random.Random, document: Any) -> None:
    """Change one place, in place: replace, nudge, delete, double, swap, rename, nest."""
    places = list(_places(document))
    if not places:
        return
    holder, key = choices.choice(places)
    value = holder[key]
    match choices.randrange(8):
        case 0 | 1 | 2:
            holder[key] = _value(choices, places)
        case 3 if isinstance(value, (int, float)):
            real = float(value) if abs(value) < 1e308 else float("inf")  # an integer may be larger than any float
            holder[key] = choices.choice([value + 1, value - 1, -value, value * 2, real, str(value)])
        case 3 | 4:
            del holder[key]
        case 5 if isinstance(holder, list):
            holder.insert(key, value)
        case 5 | 6:
            other, place = choices.choice(places)
            holder[key], other[place] = _copy(other[place]), _copy(value)
        case _:
            if isinstance(holder, dict):
                holder[choices.choice([*TEXTS, *(k for _, k in places if isinstance(k, str))])] = holder.pop(key)
            else:
                holder[key] = [value]


def _value(choices: random.Random, places: list[tuple[Any, Any]]) -> Any:
    """Something that may stand anywhere."""
    holder, key = choices.choice(places)
    other = _copy(holder[key])
    kinds: list[Callable[[], Any]] = [
        lambda: choices.choice(NUMBERS[:-1]),
        lambda: choices.choice(NUMBERS[:9]),
        lambda: choices.choice(FLOATS),
        lambda: choices.choice(TEXTS),
        lambda: choices.choice([None, True, False, [], {}, [[]]]),
        lambda: _copy(choices.choice(SHAPES)),
        lambda: {choices.choice(["tensor", "packed", "requantization"]): other},
        lambda: other,
    ]
    return choices.choice(kinds)()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every member and element below a JSON value, as its holder and key."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in list(members):
        yield value, key
        yield from _places(member)


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def mutate_tensors(choices: random.Random, content: bytes) -> bytes:
    """Change the content, type and shape of tensors so that the container stays valid."""
    file = PackedFile.read(content)
    names = list(file.tensors)
    for _ in range(choices.choice([1, 1, 2, 4])):
        name = choices.choice(names)
        kind, shape, data = file.tensors[name]
        match choices.randrange(6):
            case 0 | 1 | 2 if data:
                array = file.array(name).reshape(-1)
                whole = array.dtype.kind != "f"
                extremes = [np.iinfo(array.dtype).min, np.iinfo(array.dtype).max, 0, 1, 2] if whole else FLOATS
                at = choices.randrange(array.size)
                array[at : at + choices.choice([1, 1, array.size])] = choices.choice(extremes)
                file.replace(name, array.reshape(shape))
            case 3:
                other = choices.choice(names)
                file.tensors[name], file.tensors[other] = file.tensors[other], file.tensors[name]
            case 4:
                file.tensors[name] = choices.choice(["U8", "I8"]) if kind in ("U8", "I8") else kind, shape[::-1], data
            case _:
                half = len(data) // 2
                file.tensors[name] = "U8", [half], data[:half]
    return file.write()


# --- the tests -------------------------------------------------------------------------------------------------------


def test_originals_are_valid(tmp_path: Path) -> None:
    for content in originals():
        (tmp_path / "model").write_bytes(content)
        assert check_model(load(tmp_path / "model"))
        (tmp_path / "again").write_bytes(PackedFile.read(content).write())
        assert check_model(load(tmp_path / "again"))


def test_mutants_are_reproducible() -> None:
    assert [mutant(1, n) for n in range(50)] == [mutant(1, n) for n in range(50)]
    assert mutant(1, 0) != mutant(2, 0)


def test_mutants_are_refused_or_valid() -> None:
    seed = int(os.environ.get("CSENGINE_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    count = int(os.environ.get("CSENGINE_FUZZ_MUTANTS") or MUTANTS)
    outcome = run_mutants(seed, count)
    logger.info("%d accepted, %d run, %.3f s the slowest", outcome.accepted, outcome.run, outcome.slowest)
    # The mutants are worth something: they get past the container, in many ways, and some all the way.
    assert outcome.run > count / 50
    assert len(outcome.refusals) > min(40, count / 100)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    found = run_mutants(int(sys.argv[1]), int(sys.argv[2]))
    logger.info("%d accepted, %d run, %.3f s the slowest", found.accepted, found.run, found.slowest)
    for refusal, times in found.refusals.most_common():
        logger.info("%6d %s", times, refusal)
