"""Mutants of small ONNX models: each is refused with a reason, or computes what ONNX Runtime does."""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra csengine[onnx]")
pytest.importorskip("onnxruntime", reason="compares with ONNX Runtime")

import test_import_onnx as sources  # noqa: E402
from onnx import AttributeProto, TensorProto, helper  # noqa: E402

from csengine.errors import ModelFormatError, UnsupportedModelError  # noqa: E402
from csengine.importers.check import check  # noqa: E402
from csengine.importers.onnx import read  # noqa: E402
from csengine.importers.onnx_operations import OPERATIONS as KNOWN  # noqa: E402

MUTANTS = 400


def _read(nodes: list[Any], constants: dict[str, Any]) -> dict[str, Any]:
    """The constants that some nodes read."""
    names = {name for made in nodes for name in made.input}
    return {name: values for name, values in constants.items() if name in names}


SOURCES = [([made], constants) for made, constants in sources.OPERATIONS.values()]
SOURCES += [(nodes, constants) for nodes, constants, _ in sources.REFUSED]
SOURCES += list(sources.SIGNALS.values())
SOURCES += [(nodes, _read(nodes, sources.CHAIN_CONSTANTS)) for nodes in sources.CHAINS.values()]
SOURCES += [(nodes, _read(nodes, sources.WINNER_CONSTANTS)) for nodes in sources.WINNERS.values()]


@pytest.mark.parametrize("seed", range(4))
def test_mutants_are_refused_or_equal_onnx_runtime(seed: int) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(MUTANTS):
        choices = random.Random(f"{seed}/{number}")
        model = mutant(choices)
        if model is not None:
            outcomes[outcome(model, f"mutant {seed}/{number}")] += 1
    assert min(outcomes["refused"], outcomes["equal"]) > MUTANTS / 20, outcomes


def outcome(model: Any, label: str) -> str:
    try:
        imported = read(model)
    except UnsupportedModelError:
        return "refused"
    x = np.random.default_rng(0).standard_normal((2, *imported.graph.input.shape)).astype(np.float32)
    try:
        found = check(model, imported, x)
    except ModelFormatError:  # ONNX Runtime refuses it
        return "not valid"
    assert found.result.relative_error < 1e-4, (label, [made.op_type for made in model.graph.node])
    return "equal"


def mutant(choices: random.Random) -> Any:
    """A model that ONNX's checker lets pass, or None."""
    nodes, constants = choices.choice(SOURCES)
    nodes = copy.deepcopy(nodes)
    constants = {name: np.asarray(values) for name, values in constants.items()}
    for _ in range(choices.choice([1, 1, 2, 3])):
        mutate(choices, choices.choice(nodes), constants)
    shape = choices.choice([(6, 9, 8), (6, 9, 8), (6, 9, 8), (6, 14), (6, 14), (6, 8), (8,), (1, 1, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sources.model_of(nodes, constants, shape, choices.choice([11, 13, 17, 17, 20]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return None
    return model


def mutate(choices: random.Random, node: Any, constants: dict[str, Any]) -> None:
    """Change an attribute, a constant, the operation, or what it reads."""
    match choices.randrange(5):
        case 0 if node.attribute:
            mutate_attribute(choices, choices.choice(list(node.attribute)))
        case 1 if node.attribute:
            node.attribute.remove(choices.choice(list(node.attribute)))
        case 2 if constants:
            name = choices.choice(list(constants))
            x = constants[name]
            forms = [x.ravel(), x[None], x.T, x.ravel()[:1], x.ravel()[:0], x * -1, x.astype(np.float64)]
            constants[name] = choices.choice(forms)
        case 3:
            node.op_type = choices.choice(list(KNOWN))
        case _ if node.input:
            node.input[choices.randrange(len(node.input))] = choices.choice(["x", "", *constants])


def mutate_attribute(choices: random.Random, attribute: Any) -> None:
    if attribute.type == AttributeProto.INTS and attribute.ints:
        numbers = list(attribute.ints)
        numbers[choices.randrange(len(numbers))] = choices.choice([-1, 0, 1, 2, 3, 7])
        numbers = choices.choice([numbers, numbers, numbers[:-1], [*numbers, 1]])
        attribute.ClearField("ints")
        attribute.ints.extend(numbers)
    elif attribute.type == AttributeProto.INT and attribute.name != "ceil_mode":  # which is 0 or 1
        attribute.i = choices.choice([-5, -1, 0, 1, 2, 3, 9])
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = choices.choice([0.0, -1.0, 0.5, 3.0, float("nan")])
