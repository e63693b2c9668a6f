"""The packed file: a valid safetensors file whose metadata key `csengine` holds the graph as JSON.

`docs/format.md` documents it byte for byte. Reading trusts nothing: the safetensors package checks the container, then
every field is checked against the type that `graph.py` declares, then `Graph` checks every shape, range and order, all
before any kernel sees a byte. Each kind of damage is a `ModelFormatError` that says what and where.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from csengine.errors import GraphError, ModelFormatError
from csengine.graph import OPERATION_NAMES, OPERATIONS, Conv2d, Graph, Linear, Node, Packing, Requantization
from csengine.packing import PackedMatrix

#: Newest version of the file format. Version 1 is frozen: `docs/format.md` says what a minor version may add. A reader
#: refuses a newer major version; a writer says the oldest version that has all that a file holds.
VERSION = (1, 2)
#: Operations and layouts that came after version 1.0.
_SINCE: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("NWC", "gelu", "layer_norm", "matmul", "transpose", "local_response_norm", "quantize"), (1, 1)),
    **dict.fromkeys(("NCW", "activation", "product"), (1, 2)),
}
PRODUCER = "csengine 0.1.0"
ALIGNMENT = 64
_METADATA_KEY = "csengine"
_MAX_JSON_BYTES = 16 * 2**20
_SAFETENSORS_TYPES = {
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "uint16": "U16",
}
#: The declared type of every field that a file may hold.
_HINTS = {kind: typing.get_type_hints(kind) for kind in (*OPERATIONS.values(), PackedMatrix, Requantization)}

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Model:
    """What a packed file holds.

    graph: the network. labels: names of the outputs, or empty. preprocessing: how raw input becomes the network's
    (`{"kind": "log-mel", ...}`), or empty. accuracy: as measured when the model was made, or empty.
    """

    graph: Graph
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    producer: str = PRODUCER


# --- writing ---------------------------------------------------------------------------------------------------------


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write the packed file; replaces an older one only when the new one is complete."""
    tensors: dict[str, Array] = {}
    document = {
        "version": list(_version_of(model.graph)),
        "producer": model.producer,
        "layout": model.graph.layout,
        "labels": list(model.labels),
        "preprocessing": dict(model.preprocessing),
        "accuracy": dict(model.accuracy),
        "packing": _packing_statistics(model.graph),
        "nodes": [_encode_node(node, tensors) for node in model.graph.nodes],
    }
    content = _serialize(tensors, json.dumps(document, separators=(",", ":"), allow_nan=False))
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {target.parent}")
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def _version_of(graph: Graph) -> tuple[int, int]:
    """The oldest version that has all that a network needs."""
    needs = (graph.layout, *(OPERATION_NAMES[type(node)] for node in graph.nodes))
    return max(_SINCE.get(name, (1, 0)) for name in needs)


def _packing_statistics(graph: Graph) -> dict[str, dict[str, float | int]]:
    """What packing achieved, per packed layer."""
    return {
        node.name: {item.name: getattr(statistics, item.name) for item in fields(statistics)}
        for node in graph.nodes
        if isinstance(node, (Conv2d, Linear)) and isinstance(node.weight, PackedMatrix)
        for statistics in [node.weight.statistics()]
    }


def _encode_node(node: Node, tensors: dict[str, Array]) -> dict[str, Any]:
    """A node as JSON; its arrays go to `tensors` under the node's name."""
    encoded: dict[str, Any] = {"op": OPERATION_NAMES[type(node)]}
    for item in fields(node):
        value = getattr(node, item.name)
        if not isinstance(value, Packing) and not _is_default(item, value):
            encoded[item.name] = _encode(value, f"{node.name}.{item.name}", tensors)
    return encoded


def _is_default(item: Any, value: object) -> bool:
    return item.default is not MISSING and not isinstance(value, np.ndarray) and value == item.default


def _encode(value: object, name: str, tensors: dict[str, Array]) -> Any:
    if isinstance(value, np.ndarray):
        while name in tensors:  # "a" + ".b.c" and "a.b" + ".c"
            name += "_"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, (PackedMatrix, Requantization)):
        kind = "packed" if isinstance(value, PackedMatrix) else "requantization"
        parts = {i.name: _encode(getattr(value, i.name), f"{name}.{i.name}", tensors) for i in fields(value)}
        return {kind: parts}
    if isinstance(value, tuple):
        return [_encode(item, name, tensors) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _serialize(tensors: Mapping[str, Array], document: str) -> bytes:
    """A safetensors file in which every tensor starts at a multiple of 64 bytes.

    safetensors forbids holes between tensors, so small uint8 tensors fill them, and spaces fill the header.
    """
    header: dict[str, Any] = {"__metadata__": {_METADATA_KEY: document}}
    body = bytearray()

    def append(name: str, array: Array) -> None:
        start = len(body)
        body.extend(array.tobytes())
        kind = _SAFETENSORS_TYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, len(body)]}

    for number, (name, array) in enumerate(tensors.items()):
        append(name, array)
        if gap := -len(body) % ALIGNMENT:
            append(f"fill.{number}", np.zeros(gap, np.uint8))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + bytes(body)


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> Model:
    """Read and check a packed file.

    Raises FileNotFoundError, PermissionError, or ModelFormatError for anything in the file that is damaged or not
    understood.
    """
    if sys.byteorder != "little":
        raise ModelFormatError("packed files are little-endian; this machine is not")
    path = Path(path)
    _require_readable(path)
    try:
        with safe_open(path, framework="numpy") as file:
            document = _read_document(file.metadata())
            return _decode_model(document, file.get_tensor, frozenset(file.keys()))
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error!s:.500}") from error
    except RecursionError as error:
        raise ModelFormatError(f"{path}: has JSON that is nested too deeply") from error
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(f"{path}: not a readable safetensors file ({error!s:.200}); {_remedy(path)}") from error


def _require_readable(path: Path) -> None:
    """Raise what says more than the safetensors package does of a file that cannot be opened."""
    if path.is_dir():
        raise FileNotFoundError(f"no such model file: {path} is a directory; expected a packed file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no such model file: {path}; expected the path of a packed file")
    with path.open("rb"):  # a PermissionError names the file
        pass


def _remedy(path: Path) -> str:
    """What to do about a file that is no safetensors file, by its name."""
    if path.suffix == ".onnx":
        return f"turn an ONNX model into a packed file first: csengine convert {path} -o model.safetensors --float"
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return "turn a PyTorch module into a packed file first: csengine.importers.torch.load, csengine.convert.convert"
    return "expected a packed file that csengine wrote; if this is one, it is cut off or damaged: copy or make it again"


def _read_document(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The JSON of the metadata key, with its version checked."""
    text = (metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise ModelFormatError(
            "is safetensors but holds no csengine model (no metadata key 'csengine'); import the network "
            "that its weights belong to (csengine convert, or csengine.importers.torch.load)"
        )
    if len(text) > _MAX_JSON_BYTES:
        raise ModelFormatError(f"has {len(text)} bytes of JSON; expected at most {_MAX_JSON_BYTES}")
    try:
        document = json.loads(text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise ModelFormatError(f"has broken JSON in its metadata ({error})") from error
    if not isinstance(document, dict):
        raise ModelFormatError(f"has JSON of type {type(document).__name__}; expected an object")
    version = _freeze(document.get("version"))
    if not _matches(version, tuple[int, int]) or min(version) < 0:
        raise ModelFormatError(f"has version {version!r:.80}; expected [major, minor]")
    if version[0] > VERSION[0]:
        newest = ".".join(map(str, VERSION))
        raise ModelFormatError(f"has format version {version[0]}.{version[1]}, newer than {newest}: update csengine")
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.80} is not allowed")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has two members of the same name")
    return found


def _decode_model(document: Mapping[str, Any], get: Callable[[str], Array], known: frozenset[str]) -> Model:
    @cache
    def tensor(name: str) -> Array:
        if name not in known:
            raise ModelFormatError(f"refers to tensor {name!r:.80}, which the file does not hold")
        try:
            return get(name)
        except (SafetensorError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise ModelFormatError(f"has a tensor {name!r} of a type that is not used here ({error})") from error

    nodes = document.get("nodes")
    if not isinstance(nodes, list):
        raise ModelFormatError("has no list of nodes")
    decoded = tuple(_decode_node(node, tensor) for node in nodes)
    layout = document.get("layout", "NHWC")
    labels = _freeze(document.get("labels", []))
    if not _matches(labels, tuple[str, ...]) or not all(map(str.isprintable, labels)):
        raise ModelFormatError("has labels that are not a list of printable strings")
    try:
        graph = Graph(decoded, layout)
    except GraphError as error:
        raise ModelFormatError(str(error)) from error
    if labels and len(labels) != graph.output_type.size:
        raise ModelFormatError(f"has {len(labels)} labels for {graph.output_type.size} outputs")
    preprocessing, accuracy = (_member(document, key, {}) for key in ("preprocessing", "accuracy"))
    return Model(graph, labels, preprocessing, accuracy, _member(document, "producer", "unknown"))


def _member(document: Mapping[str, Any], key: str, default: Any) -> Any:
    """A member of the document, which has to be of its default's type."""
    value = document.get(key, default)
    if not isinstance(value, type(default)):
        raise ModelFormatError(f"has {key} of type {type(value).__name__}; expected {type(default).__name__}")
    return value


def _decode_node(encoded: object, tensor: Callable[[str], Array]) -> Node:
    """A node from JSON, every field checked against its declared type."""
    if not isinstance(encoded, dict):
        raise ModelFormatError(f"has a node of type {type(encoded).__name__}; expected an object")
    operation = encoded.get("op")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        known = ", ".join(OPERATIONS)
        raise ModelFormatError(f"has a node of unknown operation {operation!r:.80}; this version knows {known}")
    owner = f"node {encoded.get('name')!r:.80}"
    values = {key: _decode(value, owner, tensor) for key, value in encoded.items() if key != "op"}
    node: Node = _construct(OPERATIONS[operation], values, owner)
    return node


def _decode(value: object, owner: str, tensor: Callable[[str], Array]) -> Any:
    """JSON to Python: tagged objects become arrays, packed matrices and requantizations; lists become tuples."""
    if not isinstance(value, dict):
        return _freeze(value)
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "tensor" and isinstance(content, str):
            return tensor(content)
        kind = {"packed": PackedMatrix, "requantization": Requantization}.get(tag)
        if kind is not None and isinstance(content, dict):
            parts = {key: _decode(part, owner, tensor) for key, part in content.items()}
            return _construct(kind, parts, f"{owner}, {tag}")
    found = f"{sorted(value)}"
    raise ModelFormatError(f"{owner}: has an object of {found:.80}; expected tensor, packed or requantization")


def _construct(kind: type[Any], values: Mapping[str, Any], owner: str) -> Any:
    """Call a dataclass with fields whose types were checked."""
    hints = _HINTS[kind]
    declared = {item.name: item for item in fields(kind) if item.init and item.name != "packing"}
    for name in values.keys() - declared.keys():
        raise ModelFormatError(f"{owner}: has an unknown field {name!r:.80}")
    for name, item in declared.items():
        if name not in values:
            if item.default is MISSING:
                raise ModelFormatError(f"{owner}: lacks the field {name!r}")
        elif not _matches(values[name], hints[name]):
            raise ModelFormatError(f"{owner}: has {name} = {values[name]!r:.80}; expected {item.type}")
    return kind(**values)


def _freeze(value: object) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _matches(value: object, hint: Any) -> bool:
    """Whether a decoded value is of an annotated type (the kinds of annotation that `graph.py` uses)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in arguments)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_matches(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_matches, value, arguments))
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return isinstance(value, origin or hint)
