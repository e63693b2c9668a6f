"""The packed file: what is written comes back, and every kind of damage is refused by name."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import PackedFile, container, small_model, write
from graphs import graphs, random_graph, random_input
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open

from csengine import reference
from csengine.container import ALIGNMENT, PRODUCER, VERSION, Model, load, save
from csengine.errors import CsengineError, GraphError, ModelFormatError
from csengine.graph import (
    KWTA,
    Affine,
    Conv2d,
    Dequantize,
    Graph,
    Input,
    Linear,
    Packing,
    Relu,
    Requantization,
)
from csengine.packing import NOBODY, PackedMatrix, pack

Damage = Callable[[PackedFile], object]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save(small_model(), path)
    return path.read_bytes()


@pytest.fixture
def packed_file(content: bytes) -> PackedFile:
    return PackedFile.read(content)


def parts(value: object) -> Iterator[tuple[str, object]]:
    """Every leaf below a model, by its path."""
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from ((f"[{number}]{path}", leaf) for path, leaf in parts(item))
    elif isinstance(value, (PackedMatrix, Requantization, Graph, Model)) or type(value).__module__ == "csengine.graph":
        yield "", type(value)
        for item in fields(value):  # type: ignore[arg-type]
            yield from ((f".{item.name}{path}", leaf) for path, leaf in parts(getattr(value, item.name)))
    else:
        yield "", value


def assert_same(got: Model, expected: Model) -> None:
    """Every field equal, every array bit for bit."""
    for (path, a), (expected_path, b) in zip(parts(got), parts(expected), strict=True):
        assert path == expected_path
        if isinstance(b, np.ndarray):
            assert isinstance(a, np.ndarray), path
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path
            assert a.flags.c_contiguous, path
        else:
            assert a == b, path


def reject(directory: Path, content: bytes, message: str) -> None:
    """The file is refused with this message, which begins with its path."""
    path = write(directory, content)
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


# --- round trip ------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs())
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, graph: Graph) -> None:
    model = Model(graph, (), {"kind": "none"}, {"accuracy": 0.5}, "somebody")
    path = tmp_path / "model.safetensors"
    save(model, path)
    found = load(path)
    assert_same(found, model)
    x = random_input(graph, 2, 0)
    np.testing.assert_array_equal(reference.run(found.graph, x), reference.run(graph, x))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs())
def test_every_tensor_starts_64_byte_aligned_and_any_reader_opens_the_file(tmp_path: Path, graph: Graph) -> None:
    path = tmp_path / "model.safetensors"
    save(Model(graph), path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    for name, entry in header.items():
        is_fill = name.startswith("fill.")
        assert is_fill or (8 + length + entry["data_offsets"][0]) % ALIGNMENT == 0, name
        assert not is_fill or (
            entry["dtype"] == "U8" and entry["data_offsets"][1] - entry["data_offsets"][0] < ALIGNMENT
        )
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(header)
        for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            assert list(file.get_tensor(name).shape) == header[name]["shape"]


@pytest.mark.parametrize("integer", [True, False])
def test_bytes_are_deterministic(tmp_path: Path, integer: bool) -> None:
    for seed in range(10):
        contents = []
        for number in range(2):
            save(Model(random_graph(seed, integer=integer)), tmp_path / str(number))
            contents.append((tmp_path / str(number)).read_bytes())
        save(load(tmp_path / "0"), tmp_path / "again")
        assert contents[0] == contents[1] == (tmp_path / "again").read_bytes()


def test_everything_beside_the_graph_comes_back(tmp_path: Path) -> None:
    model = small_model()
    save(model, tmp_path / "model")
    found = load(str(tmp_path / "model"))
    assert_same(found, model)
    assert (found.labels, found.producer, found.graph.layout) == (model.labels, PRODUCER, "NCHW")
    assert (found.preprocessing, found.accuracy) == (model.preprocessing, model.accuracy)


def test_file_holds_version_and_packing_statistics(packed_file: PackedFile) -> None:
    assert packed_file.document["version"] == [1, 0]  # the oldest that has all of it
    statistics = packed_file.document["packing"]
    assert statistics.keys() == {"conv"}
    conv = small_model().graph.nodes[1]
    assert isinstance(conv, Conv2d)
    assert statistics["conv"]["nonzeros"] == np.count_nonzero(conv.dense_weight)


def test_the_packing_that_a_layer_wants_is_not_kept(tmp_path: Path) -> None:
    model = small_model()
    nodes = [replace(n, packing=Packing((1, 16))) if isinstance(n, Linear) else n for n in model.graph.nodes]
    save(replace(model, graph=Graph(tuple(nodes), "NCHW")), tmp_path / "model")
    assert_same(load(tmp_path / "model"), model)


def test_saves_attributes_that_are_numpy_scalars(tmp_path: Path) -> None:
    nodes = (
        Input(name="x", inputs=(), shape=(np.int64(5),), dtype="int8", scale=np.float32(0.5)),  # type: ignore[arg-type]
        KWTA(name="y", inputs=("x",), k=np.int32(2), scope="local"),  # type: ignore[arg-type]
    )
    save(Model(Graph(nodes)), tmp_path / "model")
    assert load(tmp_path / "model").graph.types["y"] == Graph(nodes).types["y"]


def test_saves_arrays_that_are_not_contiguous(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.int8).reshape(3, 4).T
    nodes = (source(4), Linear(name="y", inputs=("x",), weight=weight))
    save(Model(Graph(nodes)), tmp_path / "model")
    found = load(tmp_path / "model").graph.output
    assert isinstance(found, Linear)
    np.testing.assert_array_equal(found.dense_weight, weight)


def source(*shape: int) -> Input:
    return Input(name="x", inputs=(), shape=shape, dtype="uint8", scale=1.0)


def test_nodes_whose_tensors_would_share_a_name_keep_their_own(tmp_path: Path) -> None:
    q = Requantization(np.array([40000, 40000], np.uint16), np.array([20, 21], np.uint8), "int8", 0.1)
    nodes = (
        source(4),
        Linear(name="a", inputs=("x",), weight=np.ones((4, 2), np.int8), requantization=q),
        Dequantize(name="b", inputs=("a",), scale=np.ones(2)),
        Affine(name="a.requantization", inputs=("b",), scale=np.float32([3, 4]), shift=np.float32([5, 6])),
    )
    model = Model(Graph(nodes))
    save(model, tmp_path / "model")
    assert_same(load(tmp_path / "model"), model)


@pytest.mark.parametrize("name", ["fill.0", "fill", "__metadata__", "größer", 'a"b\\', "/conv1/Conv", "𝄞"])
def test_unusual_names_come_back(tmp_path: Path, name: str) -> None:
    nodes = (source(4), Linear(name=name, inputs=("x",), weight=np.ones((4, 2), np.int8)))
    save(Model(Graph(nodes)), tmp_path / "model")
    assert load(tmp_path / "model").graph.output.name == name


def test_saving_replaces_the_file_only_when_complete(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match="JSON"):
        save(replace(small_model(), accuracy={"test": float("nan")}), path)
    with pytest.raises(TypeError):
        save(replace(small_model(), accuracy={"test": object()}), path)
    assert path.read_bytes() == content
    save(Model(random_graph(1, integer=True)), path)
    assert path.read_bytes() != content
    assert os.listdir(tmp_path) == [path.name]


def test_saving_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OSError, match="model"):
        save(small_model(), tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


# --- not this format at all ------------------------------------------------------------------------------------------


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model file"):
        load(tmp_path / "missing")


def test_a_directory_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model file"):
        load(tmp_path)


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    reject(tmp_path, b"", "not a readable safetensors file")


@pytest.mark.parametrize("text", [b"hello, world", b"\x80\x04\x95pickle", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_refuses_what_is_not_safetensors(tmp_path: Path, text: bytes) -> None:
    reject(tmp_path, text, "not a readable safetensors file")


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_refuses_a_wrong_header_length(tmp_path: Path, content: bytes, length: int) -> None:
    reject(tmp_path, length.to_bytes(8, "little") + content[8:], "not a readable safetensors file")


def test_refuses_a_header_that_is_not_utf8(tmp_path: Path) -> None:
    reject(tmp_path, (8).to_bytes(8, "little") + b'{"\xff": 1}', "not a readable safetensors file")


def test_refuses_a_file_truncated_anywhere(tmp_path: Path, content: bytes) -> None:
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    ends = itertools.chain.from_iterable(e["data_offsets"] for e in header.values() if "data_offsets" in e)
    borders = {0, 8, length, len(content), *(length + end for end in ends)}
    places = {border + step for border in borders for step in (-1, 0, 1)} | set(range(0, len(content), 97))
    for place in sorted(place for place in places if 0 <= place < len(content)):
        reject(tmp_path, content[:place], "not a readable safetensors file")


def test_refuses_bytes_after_the_last_tensor(tmp_path: Path, content: bytes) -> None:
    reject(tmp_path, content + b"\0", "not a readable safetensors file")


def test_refuses_tensors_that_overlap_or_leave_holes(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [1]}
    for offsets in ([1, 2], [0, 2], [1, 1], [0, 2**63], [2, 1]):
        reject(
            tmp_path, container({"a": {**entry, "data_offsets": offsets}}, b"\0\0"), "not a readable safetensors file"
        )
    both = {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "b": {**entry, "data_offsets": [1, 2]}}
    reject(tmp_path, container(both, b"\0\0"), "not a readable safetensors file")


def test_refuses_safetensors_without_a_model(tmp_path: Path) -> None:
    reject(tmp_path, container({}, b""), "no csengine model")
    reject(tmp_path, container({"__metadata__": {"format": "pt"}}, b""), "no csengine model")


def test_refuses_metadata_that_is_no_text(tmp_path: Path) -> None:
    reject(tmp_path, container({"__metadata__": {"csengine": {"version": [0, 1]}}}, b""), "not a readable safetensors")


# --- the JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "broken JSON"),
        ("{", "broken JSON"),
        ('{"version": [0, 1]} trailing', "broken JSON"),
        ("{'version': [0, 1]}", "broken JSON"),
        ('{"version": [0, 1], "a": NaN}', "NaN is not allowed"),
        ('{"version": [0, 1], "a": Infinity}', "Infinity is not allowed"),
        ('{"version": [0, 1], "a": -Infinity}', "-Infinity is not allowed"),
        ('{"version": [0, 1], "a": 1e999}', "1e999 is not allowed"),
        ('{"version": [0, 1], "version": [0, 1]}', "two members of the same name"),
        ("[]", "JSON of type list"),
        ("null", "JSON of type NoneType"),
        ("7", "JSON of type int"),
        ('"text"', "JSON of type str"),
        ("9" * 5000, "broken JSON"),
        ('{"version": [0, ' + "9" * 4000 + "]}", "version"),
    ],
)
def test_refuses_bad_json(tmp_path: Path, packed_file: PackedFile, text: str, message: str) -> None:
    reject(tmp_path, packed_file.write_text(text), message)


@pytest.mark.parametrize("depth", [300, 450, 600, 900, 1100, 100_000])
@pytest.mark.parametrize("place", ["document", "labels", "version", "node", "field"])
def test_refuses_json_nested_too_deeply(tmp_path: Path, packed_file: PackedFile, depth: int, place: str) -> None:
    nested = "[" * depth + "]" * depth
    document: dict[str, Any] = {**packed_file.document}
    node = {"op": "relu", "name": "z", "inputs": "MARK"}
    changes: dict[str, Any] = {"node": {"nodes": ["MARK"]}, "field": {"nodes": [*document["nodes"], node]}}
    text = json.dumps(document | changes.get(place, {place: "MARK"})).replace('"MARK"', nested)
    reject(tmp_path, packed_file.write_text(nested if place == "document" else text), "has|node")


def test_accepts_or_refuses_nesting_in_free_fields_but_never_crashes(tmp_path: Path, packed_file: PackedFile) -> None:
    for depth in range(50, 1100, 50):
        text = json.dumps(packed_file.document).replace('"log-mel"', "[" * depth + "]" * depth)
        path = write(tmp_path, packed_file.write_text(text))
        try:
            found = load(path)
        except ModelFormatError as error:
            assert "nested too deeply" in str(error)  # noqa: PT017 (either outcome is right)
        else:
            save(found, path)


def test_refuses_huge_json(tmp_path: Path, packed_file: PackedFile) -> None:
    text = json.dumps(packed_file.document) + " " * 16 * 2**20
    reject(tmp_path, packed_file.write_text(text), "bytes of JSON; expected at most")


def damage(message: str, **cases: Damage) -> Any:
    """A test for each case: the file with that damage is refused with the message."""

    @pytest.mark.parametrize("case", cases.values(), ids=list(cases))
    def test(tmp_path: Path, packed_file: PackedFile, case: Damage) -> None:
        case(packed_file)
        reject(tmp_path, packed_file.write(), message)

    return test


def document_of(**changes: Any) -> Damage:
    return lambda file: file.document.update(changes)


def node_of(name: str, /, **changes: Any) -> Damage:
    return lambda file: file.node(name).update(changes)


def without(name: str, field: str) -> Damage:
    return lambda file: file.node(name).pop(field)


def tensor_of(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda file: file.replace(name, change(file.array(name)))


def element_of(name: str, index: Any, value: Any) -> Damage:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return tensor_of(name, change)


def packed_of(**changes: Any) -> Damage:
    return lambda file: file.node("conv")["weight"]["packed"].update(changes)


def requantization_of(**changes: Any) -> Damage:
    return lambda file: file.node("conv")["requantization"]["requantization"].update(changes)


NUMBERS: dict[str, Any] = {"nothing": None, "text": "1", "truth": True, "list": [1], "object": {}}
BAD_SCALES: dict[str, Any] = {
    "zero": 0,
    "negative": -0.5,
    "tiny": 1e-40,
    "huge": 1e299,
    "huge_int": 10**40,
    "beyond_double": 10**400,
}

test_refuses_a_document_without_version = damage("has version None", version=lambda file: file.document.pop("version"))
test_refuses_a_bad_version = damage(
    "has version",
    number=document_of(version=1),
    text=document_of(version="0.1"),
    one=document_of(version=[0]),
    three=document_of(version=[0, 1, 2]),
    float=document_of(version=[0.0, 1]),
    truth=document_of(version=[False, True]),
    negative=document_of(version=[-1, 1]),
    huge=document_of(version=[10**30, 0]),
)
test_refuses_a_newer_major_version = damage(
    "newer than 1.2: update csengine",
    next=document_of(version=[VERSION[0] + 1, 0]),
    later=document_of(version=[99, 99]),
)
test_refuses_nodes_that_are_no_list = damage(
    "no list of nodes",
    missing=lambda file: file.document.pop("nodes"),
    object=document_of(nodes={}),
    text=document_of(nodes="nodes"),
)
test_refuses_a_network_without_nodes = damage("must begin with its input", empty=document_of(nodes=[]))
test_refuses_a_node_that_is_no_object = damage(
    "has a node of type", **{kind: document_of(nodes=[value]) for kind, value in NUMBERS.items() if kind != "object"}
)
test_refuses_an_unknown_operation = damage(
    "unknown operation",
    unknown=node_of("pool", op="min_pool"),
    upper_case=node_of("pool", op="MAX_POOL"),
    missing=without("pool", "op"),
    nothing=node_of("pool", op=None),
    list=node_of("pool", op=["max_pool"]),
    object=node_of("pool", op={"max_pool": 1}),
)
test_refuses_an_unknown_field = damage(
    "unknown field",
    new=node_of("pool", dilation=[1, 1]),
    packing=node_of("conv", packing=None),
    arity=node_of("pool", arity=1),
    packed=packed_of(block=[4, 1]),
    requantization=requantization_of(zero_point=0),
)
test_refuses_a_missing_field = damage(
    "lacks the field",
    name=without("pool", "name"),
    inputs=without("pool", "inputs"),
    kernel=without("pool", "kernel"),
    weight=without("conv", "weight"),
    shape=without("flat", "shape"),
    scope=without("winners", "scope"),
    packed=lambda file: file.node("conv")["weight"]["packed"].pop("kid"),
    requantization=lambda file: file.node("conv")["requantization"]["requantization"].pop("scale"),
)
test_refuses_a_field_of_the_wrong_type = damage(
    "; expected",
    **{f"k_{kind}": node_of("winners", k=value) for kind, value in NUMBERS.items()},
    **{f"scale_{kind}": node_of("input", scale=value) for kind, value in NUMBERS.items() if kind != "nothing"},
    **{f"rows_{kind}": packed_of(rows=value) for kind, value in NUMBERS.items()},
    k_float=node_of("winners", k=2.0),
    k_huge=node_of("winners", k=10**100),
    name=node_of("pool", name=7),
    inputs_text=node_of("pool", inputs="sum"),
    inputs_number=node_of("pool", inputs=[1]),
    kernel_one=node_of("pool", kernel=[2]),
    kernel_three=node_of("pool", kernel=[2, 2, 2]),
    kernel_float=node_of("pool", kernel=[2, 2.5]),
    padding_two=node_of("pool", padding=[0, 0]),
    dtype=node_of("input", dtype="float16"),
    dtype_tensor=node_of("input", dtype={"tensor": "conv.bias"}),
    scope_tensor=node_of("winners", scope={"tensor": "winners.factor"}),
    weight_text=node_of("conv", weight="conv.weight"),
    weight_list=node_of("conv", weight=[[1, 2], [3, 4]]),
    weight_requantization=lambda file: file.node("conv").update(weight=file.node("conv")["requantization"]),
    bias_packed=lambda file: file.node("conv").update(bias=file.node("conv")["weight"]),
    requantization_tensor=node_of("conv", requantization={"tensor": "conv.bias"}),
    multiplier_list=requantization_of(multiplier=[40000] * 4),
    target=requantization_of(dtype="int32"),
)
test_refuses_an_object_that_means_nothing = damage(
    "expected tensor, packed or requantization",
    empty=node_of("conv", bias={}),
    unknown=node_of("conv", bias={"array": "conv.bias"}),
    two=node_of("conv", bias={"tensor": "conv.bias", "other": 1}),
    no_name=node_of("conv", bias={"tensor": 7}),
    packed=node_of("conv", weight={"packed": "conv.weight"}),
)
test_refuses_a_reference_to_a_missing_tensor = damage(
    "which the file does not hold",
    renamed=node_of("conv", bias={"tensor": "nothing"}),
    removed=lambda file: file.tensors.pop("winners.factor"),
    metadata=node_of("conv", bias={"tensor": "__metadata__"}),
)
test_refuses_a_bad_layout = damage("has layout", unknown=document_of(layout="CHWN"), list=document_of(layout=["NHWC"]))
test_refuses_bad_labels = damage(
    "has labels|labels for",
    text=document_of(labels="abc"),
    numbers=document_of(labels=[1, 2, 3]),
    object=document_of(labels={}),
    nothing=document_of(labels=None),
    too_few=document_of(labels=["yes", "no"]),
    too_many=document_of(labels=["a", "b", "c", "d"]),
    control=document_of(labels=["a", "b", "\x1b[2J"]),
    surrogate=document_of(labels=["a", "b", "\ud800"]),
)
test_refuses_descriptions_of_the_wrong_type = damage(
    "; expected dict|; expected str",
    preprocessing=document_of(preprocessing=[]),
    accuracy=document_of(accuracy=0.97),
    producer=document_of(producer={"name": "csengine"}),
)

# --- the graph -------------------------------------------------------------------------------------------------------

test_refuses_a_forward_reference = damage(
    "no earlier node", later=node_of("conv", inputs=["winners"]), unknown=node_of("conv", inputs=["nothing"])
)
test_refuses_a_cycle = damage("no earlier node", itself=node_of("pool", inputs=["pool"]))
test_refuses_duplicate_names = damage("taken", same=node_of("winners", name="conv"))
test_refuses_bad_names = damage(
    "empty, not printable",
    empty=node_of("probabilities", name=""),
    surrogate=node_of("probabilities", name="\ud800"),
    control=node_of("probabilities", name="a\nb"),
)
test_refuses_a_wrong_number_of_inputs = damage(
    "tensors; expected",
    none=node_of("pool", inputs=[]),
    two=node_of("pool", inputs=["sum", "sum"]),
    one=node_of("sum", inputs=["conv"]),
    input=node_of("input", inputs=["conv"]),
)
test_refuses_a_second_input = damage(
    "second input", twice=lambda file: file.document["nodes"].append({**file.document["nodes"][0], "name": "again"})
)
test_refuses_a_bad_scale = damage(
    "scale",
    **{f"input_{kind}": node_of("input", scale=value) for kind, value in BAD_SCALES.items()},
    **{f"requantization_{kind}": requantization_of(scale=value) for kind, value in BAD_SCALES.items()},
    **{
        f"output_{kind}": element_of("logits.scale", 1, value)
        for kind, value in {
            "nan": np.nan,
            "inf": np.inf,
            "zero": 0,
            "negative": -1,
            "tiny": 1e-40,
            "huge": 1e40,
        }.items()
    },
    missing=node_of("input", scale=None),
    on_float=node_of("input", dtype="float32"),
)
test_refuses_a_huge_dimension = damage(
    "elements|reshapes",
    input=node_of("input", shape=[2**30, 4, 2]),
    product=node_of("input", shape=[2**20, 2**20, 2]),
    reshape=node_of("flat", shape=[2**30]),
    kernels=packed_of(kernels=2**30),
    rows=packed_of(rows=2**30),
)
test_refuses_a_huge_window = damage(
    "window larger|larger than its padded|padded input",
    kernel=node_of("pool", kernel=[2**20, 2]),
    stride=node_of("pool", stride=[1, 2**31 - 1]),
    padding=node_of("conv", padding=[2**15, 2**15, 2**15, 2**15]),
)
test_refuses_extents_below_one = damage(
    "expected|do not divide",
    input=node_of("input", shape=[0, 4, 2]),
    negative=node_of("input", shape=[-4, -4, 2]),
    kernel=node_of("pool", kernel=[0, 0]),
    stride=node_of("pool", stride=[0, 0]),
    padding=node_of("conv", padding=[-1, 0, 0, 0]),
    k=node_of("winners", k=0),
    groups=node_of("conv", groups=0),
    rows=packed_of(rows=0),
    kernels=packed_of(kernels=-1),
)

# --- the tensors -----------------------------------------------------------------------------------------------------

test_refuses_a_tensor_of_the_wrong_type = damage(
    " of type | weights; expected|is .*; expected|type that is not used",
    weight_unsigned=tensor_of("classes.weight", lambda a: a.view(np.uint8)),
    weight_float=tensor_of("classes.weight", lambda a: a.astype(np.float32)),
    bias=tensor_of("conv.bias", lambda a: a.astype(np.float32)),
    factor=tensor_of("winners.factor", lambda a: a.astype(np.float64)),
    scale=tensor_of("logits.scale", lambda a: a.astype(np.float32)),
    multiplier=tensor_of("conv.requantization.multiplier", lambda a: a.astype(np.int32)),
    shift=tensor_of("conv.requantization.shift", lambda a: a.astype(np.int8)),
    packed_weights=tensor_of("conv.weight.weights", lambda a: a.view(np.uint8)),
    packed_float=tensor_of("conv.weight.weights", lambda a: a.astype(np.float32)),
    kid=tensor_of("conv.weight.kid", lambda a: a.view(np.int8)),
    members=tensor_of("conv.weight.members", lambda a: a.astype(np.uint16)),
)
test_refuses_a_tensor_of_a_type_that_numpy_lacks = damage(
    "type that is not used here| of type ",
    **{
        kind: lambda file, kind=kind, size=size: file.tensors.update(  # type: ignore[misc]
            {"conv.bias": (kind, [4], bytes(int(4 * size)))}
        )
        for kind, size in {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 0.5, "F6_E2M3": 0.75}.items()
    },
)
test_refuses_an_unknown_type_of_tensor = damage(
    "not a readable safetensors file", unknown=lambda file: file.tensors.update({"conv.bias": ("I128", [1], bytes(16))})
)
test_refuses_a_tensor_of_the_wrong_shape = damage(
    "of shape|no matrix|dimensions|do not have|inputs; expected|weight: has shape",
    weight_transposed=tensor_of("classes.weight", lambda a: a.T.copy()),
    weight_flat=tensor_of("classes.weight", np.ravel),
    weight_scalar=tensor_of("classes.weight", lambda a: a[0, 0]),
    weight_no_kernels=tensor_of("classes.weight", lambda a: a[:, :0]),
    bias_short=tensor_of("conv.bias", lambda a: a[1:]),
    bias_column=tensor_of("conv.bias", lambda a: a[:, None]),
    factor=tensor_of("winners.factor", lambda a: a[:3]),
    scale=tensor_of("logits.scale", lambda a: a[:2]),
    multiplier=tensor_of("conv.requantization.multiplier", lambda a: a[:2]),
    shift=tensor_of("sum.requantization.shift", lambda a: np.repeat(a, 2)),
    packed_weights=tensor_of("conv.weight.weights", lambda a: a[1:]),
    packed_axes=tensor_of("conv.weight.weights", lambda a: a[0]),
    kid=tensor_of("conv.weight.kid", lambda a: a[:, :1]),
    kid_axes=tensor_of("conv.weight.kid", np.ravel),
    members=tensor_of("conv.weight.members", lambda a: a[:1]),
    members_axes=tensor_of("conv.weight.members", np.ravel),
    rows=packed_of(rows=13),
    kernels=packed_of(kernels=5),
)
test_refuses_a_huge_block = damage(
    "padded weight",
    block=lambda file: (
        file.replace("conv.weight.kid", np.zeros((5, 0), np.uint8)),
        file.replace("conv.weight.members", np.zeros((0, 2), np.int32)),
        file.replace("conv.weight.weights", np.zeros((5, 0, 2**40, 4), np.int8)),
    ),
)


def owned(file: PackedFile) -> tuple[int, int]:
    """A place of the packed weight that somebody owns."""
    row, t = np.argwhere(file.array("conv.weight.kid") != NOBODY)[0]
    return int(row), int(t)


def make_nobody_own_a_weight(file: PackedFile) -> None:
    kid = file.array("conv.weight.kid")
    kid[owned(file)] = NOBODY
    file.replace("conv.weight.kid", kid)


def fill_the_padding(file: PackedFile) -> None:
    kid, weights = file.array("conv.weight.kid"), file.array("conv.weight.weights")
    weights[-1, kid[-1] != NOBODY, :, 2:] = 1
    file.replace("conv.weight.weights", weights)


def make_two_sets_own_one_block(file: PackedFile) -> None:
    for name in ("weights", "kid"):
        array = file.array(f"conv.weight.{name}")
        file.replace(f"conv.weight.{name}", np.concatenate([array, array[:, :1]], axis=1))
    members = file.array("conv.weight.members")
    file.replace("conv.weight.members", np.concatenate([members, members[:1]]))


test_refuses_a_kernel_id_out_of_range = damage(
    "kernel id is beyond the set size",
    one_past=element_of("conv.weight.kid", (0, 0), 2),
    largest=element_of("conv.weight.kid", (0, 0), NOBODY - 1),
)
test_refuses_a_kernel_id_of_an_empty_slot = damage("empty slot", emptied=element_of("conv.weight.members", ..., -1))
test_refuses_a_member_out_of_range = damage(
    "outside 0 to 3",
    one_past=element_of("conv.weight.members", (0, 0), 4),
    below=element_of("conv.weight.members", (0, 0), -2),
    largest=element_of("conv.weight.members", (0, 0), 2**31 - 1),
    smallest=element_of("conv.weight.members", (0, 0), -(2**31)),
)
test_refuses_a_member_twice_in_a_set = damage("same kernel block twice", same=element_of("conv.weight.members", 0, 1))
test_refuses_weights_that_nobody_owns = damage("no kernel owns", nobody=make_nobody_own_a_weight)
test_refuses_a_block_with_two_owners = damage("two sets own", twice=make_two_sets_own_one_block)
test_refuses_weights_in_the_padding = damage("padding below row", below=fill_the_padding)
test_refuses_a_set_size_out_of_range = damage(
    "set size is",
    zero=tensor_of("conv.weight.members", lambda a: a[:, :0]),
    large=tensor_of("conv.weight.members", lambda a: np.pad(a, ((0, 0), (0, 254)), constant_values=-1)),
)
test_refuses_a_multiplier_out_of_range = damage(
    "multiplier is below 2",
    zero=element_of("conv.requantization.multiplier", 3, 0),
    one_below=element_of("conv.requantization.multiplier", 0, 2**15 - 1),
    both_of_a_sum=element_of("sum.requantization.multiplier", ..., 2**15 - 1),
)
test_refuses_a_shift_out_of_range = damage(
    "shift is outside 1..47",
    zero=element_of("conv.requantization.shift", 3, 0),
    large=element_of("conv.requantization.shift", 0, 48),
    largest=element_of("sum.requantization.shift", 0, 255),
)
test_refuses_a_factor_out_of_range = damage(
    "factor",
    **{
        kind: element_of("winners.factor", 2, value)
        for kind, value in {
            "nan": np.nan,
            "inf": np.inf,
            "zero": 0,
            "negative": -1,
            "tiny": 1e-40,
            "huge": 1e38,
        }.items()
    },
)
test_refuses_accumulators_that_could_overflow = damage(
    "could overflow its 32-bit accumulator",
    packed=element_of("conv.bias", 1, 2**31 - 1),
    dense=element_of("classes.bias", 0, -(2**31)),
)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("packed", [True, False])
def test_refuses_float_weights_that_are_not_finite(tmp_path: Path, value: float, packed: bool) -> None:
    weight = np.ones((4, 2), np.float32)
    nodes = (Input(name="x", inputs=(), shape=(4,)), Linear(name="y", inputs=("x",), weight=weight))
    if packed:
        nodes = (nodes[0], replace(nodes[1], weight=pack(weight)))
    save(Model(Graph(nodes)), tmp_path / "model.safetensors")
    file = PackedFile.read((tmp_path / "model.safetensors").read_bytes())
    element_of("y.weight.weights" if packed else "y.weight", 0, value)(file)
    reject(tmp_path, file.write(), "not finite|NaN or infinity")


# --- what is accepted ------------------------------------------------------------------------------------------------


def accept(directory: Path, file: PackedFile) -> Model:
    return load(write(directory, file.write()))


def test_accepts_the_file_as_other_writers_would_lay_it_out(tmp_path: Path, packed_file: PackedFile) -> None:
    packed_file.tensors = {
        name: tensor for name, tensor in reversed(packed_file.tensors.items()) if not name.startswith("fill.")
    }
    assert_same(accept(tmp_path, packed_file), small_model())


def test_accepts_a_newer_minor_version_and_ignores_what_it_adds(tmp_path: Path, packed_file: PackedFile) -> None:
    packed_file.document |= {"version": [VERSION[0], VERSION[1] + 7], "novelty": {"a": [1, 2.5, None, True]}}
    packed_file.tensors["novelty"] = "F32", [1], bytes(4)
    assert_same(accept(tmp_path, packed_file), small_model())


def test_accepts_a_file_without_optional_parts(tmp_path: Path, packed_file: PackedFile) -> None:
    for key in ("producer", "layout", "labels", "preprocessing", "accuracy", "packing"):
        del packed_file.document[key]
    found = accept(tmp_path, packed_file)
    assert (found.labels, found.preprocessing, found.accuracy) == ((), {}, {})
    assert (found.producer, found.graph.layout) == ("unknown", "NHWC")


def test_accepts_a_tensor_that_two_nodes_share(tmp_path: Path, packed_file: PackedFile) -> None:
    packed_file.node("logits")["scale"] = {"tensor": "logits.scale"}
    again = {"op": "affine", "name": "again", "inputs": ["probabilities"]}
    packed_file.tensors["shared"] = "F32", [3], np.ones(3, np.float32).tobytes()
    packed_file.document["nodes"].append(again | {"scale": {"tensor": "shared"}, "shift": {"tensor": "shared"}})
    found = accept(tmp_path, packed_file).graph.output
    assert isinstance(found, Affine)
    np.testing.assert_array_equal(found.scale, found.shift)


def test_accepts_integers_where_numbers_are_wanted(tmp_path: Path, packed_file: PackedFile) -> None:
    packed_file.node("input")["scale"] = 10**20
    assert accept(tmp_path, packed_file).graph.input.scale == 1e20


def test_errors_of_the_graph_are_format_errors_of_a_file(tmp_path: Path, packed_file: PackedFile) -> None:
    packed_file.node("winners")["k"] = 0
    with pytest.raises(ModelFormatError) as caught:
        accept(tmp_path, packed_file)
    assert isinstance(caught.value, CsengineError)
    assert isinstance(caught.value.__cause__.__cause__, GraphError)  # type: ignore[union-attr]


def test_relu_of_a_loaded_model_still_runs(tmp_path: Path) -> None:
    nodes = (source(3), Relu(name="y", inputs=("x",)))
    save(Model(Graph(nodes)), tmp_path / "model")
    x = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(reference.run(load(tmp_path / "model").graph, x), x)
