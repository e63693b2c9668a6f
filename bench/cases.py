"""The networks and inputs that are compared: keyword spotting, single linear layers, convolutions in a chain.

Random layers are built as they would be trained: complementary masks, int8 weights, uint8 activations, and scales that
keep activations in range. Everything is drawn from a seed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine import audio
from csengine.cli import shipped
from csengine.container import Model
from csengine.convert import convert
from csengine.engine import Engine
from csengine.graph import KWTA, Conv2d, Graph, Input, Linear, Node, Requantization, Softmax
from csengine.packing import EMPTY, NOBODY, PackedMatrix
from csengine.pruning import prune
from csengine.quantization import multiplier_and_shift

Array = NDArray[Any]
ROOT = Path(__file__).parent.parent
SHIPPED = {"sparse-sparse-blocked": "kws", "sparse-sparse": "kws_paper"}

_SPREAD = 64.0  # standard deviation of what a layer gives, in steps of its uint8 result
_MEAN_SQUARE_WEIGHT = 127 * 255 / 6  # of integers from -127 to 127
_SCALE = 1 / _SPREAD

# --- keyword spotting ------------------------------------------------------------------------------------------------


def recordings(batch: int) -> NDArray[np.float32]:
    """Shipped recordings as network input [batch, 1, 32, 32], repeated as needed; noise if none are shipped."""
    try:
        clips = np.concatenate([audio.load_input(str(recording.file)) for recording in shipped.recordings()])
    except FileNotFoundError:
        clips = np.random.default_rng(0).random((8, 1, 32, 32), np.float32)
    return np.ascontiguousarray(clips[np.arange(batch) % len(clips)])


def keyword_network(variant: str, checkpoints: Path | None) -> Model:
    """A variant of the paper's network as packed integer model: as shipped, else from a checkpoint, else random."""
    if variant in SHIPPED and SHIPPED[variant] in shipped.model_names():
        return shipped.load_model(SHIPPED[variant]).model
    import torch

    from csengine.importers.torch import load

    sys.path.insert(0, str(ROOT / "examples" / "keyword_spotting"))
    from network import build_network

    torch.manual_seed(0)
    network = build_network(variant).eval()
    path = checkpoints / f"{variant}-0.pt" if checkpoints else None
    if path and path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True))
    graph = load(network, (1, 32, 32))
    return convert(graph, recordings(64).transpose(0, 2, 3, 1))[0]


def with_dense_convolutions(model: Model) -> Model:
    """The same network, but no weight of a convolution is 0: the least weight, of either sign, takes its place."""
    rng = np.random.default_rng(0)

    def filled(node: Node) -> Node:
        if not isinstance(node, Conv2d):
            return node
        weight = node.dense_weight
        return replace(node, weight=np.where(weight == 0, rng.choice([-1, 1], weight.shape), weight).astype(np.int8))

    return replace(model, graph=Graph(tuple(filled(node) for node in model.graph.nodes), model.graph.layout))


# --- imported networks -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def imported_source(name: str) -> Graph:
    """A network that others published, imported with random weights: "ResNet-50" or "MobileNetV2", images of 224².

    They end in logits: the softmax of random ones would hide what a runtime gets wrong.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    import light_models

    from csengine.importers import onnx

    model = light_models.light("resnet50") if name == "ResNet-50" else light_models.mobilenet_v2(224, 1000)
    graph = onnx.read(model).graph
    return Graph(graph.nodes[:-1] if isinstance(graph.output, Softmax) else graph.nodes, graph.layout)


def imported_network(name: str, sparsity: float, block: tuple[int, int]) -> Model:
    """The same, int8, its layers but the first and the last pruned to complementary patterns; sparsity 0 is dense."""
    graph = imported_source(name)
    graph = prune(graph, sparsity, block=block)[0] if sparsity else graph
    return convert(graph, images(2))[0]


def images(count: int) -> NDArray[np.float32]:
    """Noise as images `[B, 224, 224, 3]`."""
    return np.random.default_rng(0).standard_normal((count, 224, 224, 3), np.float32)


def feed_forward(
    inputs: int, hidden: int, density: float, share: float | None, block: tuple[int, int], before: float = 1.0
) -> Model:
    """A transformer's feed-forward block for one position: two linear layers, between them k-winners of that share.

    share: None for a ReLU only, of which half is active. before: share of the inputs that win before the first layer.
    """
    first, second = _packed_pair(inputs, hidden, density, block)
    mean_square = _SPREAD**2 * (0.5 if share is None else 0.33)
    nodes: list[Node] = [_input((inputs,))]
    if before < 1.0:
        nodes.append(KWTA(name="chosen", inputs=("input",), k=max(1, round(before * inputs)), scope="global"))
    nodes.append(_linear("up", nodes[-1].name, first, before * _SPREAD**2))
    if share is not None:
        nodes.append(KWTA(name="winners", inputs=("up",), k=max(1, round(share * hidden)), scope="global"))
    nodes.append(_linear("down", nodes[-1].name, second, mean_square))
    return Model(Graph(tuple(nodes)))


@lru_cache(maxsize=1)
def _packed_pair(inputs: int, hidden: int, density: float, block: tuple[int, int]) -> tuple[PackedMatrix, PackedMatrix]:
    """Weights of both layers of a block."""
    first = packed_weights(np.random.default_rng(0), inputs, hidden, density, block)
    return first, packed_weights(np.random.default_rng(1), hidden, inputs, density, block)


def _linear(name: str, source: str, weight: PackedMatrix, mean_square: float) -> Linear:
    return Linear(
        name=name,
        inputs=(source,),
        weight=weight,
        bias=np.zeros(weight.kernels, np.int32),
        requantization=_requantization(weight, weight.kernels, mean_square),
    )


# --- layers ----------------------------------------------------------------------------------------------------------


def packed_weights(
    rng: np.random.Generator, rows: int, kernels: int, density: float, block: tuple[int, int]
) -> PackedMatrix:
    """Random int8 weights under a complementary mask, packed: each kernel block has the same number of row blocks."""
    u, v = block
    row_blocks, kernel_blocks = -(-rows // u), -(-kernels // v)
    share = max(1, round(density * row_blocks))
    split = np.array_split(np.arange(kernel_blocks), -(-kernel_blocks // (row_blocks // share)))
    members = np.full((len(split), len(split[0])), EMPTY, np.int32)
    kid = np.full((row_blocks, len(split)), NOBODY, np.uint8)
    for t, group in enumerate(split):
        members[t, : len(group)] = group
        kid[rng.permutation(row_blocks)[: share * len(group)], t] = np.repeat(np.arange(len(group)), share)
    owner = np.where(kid == NOBODY, EMPTY, members[np.arange(len(split)), np.where(kid == NOBODY, 0, kid)])
    exists = (owner[..., None] != EMPTY) & (owner[..., None] * v + np.arange(v) < kernels)
    weights = _values(rng, (row_blocks, len(split), v, u)) * exists[..., None]
    weights[-1, :, :, u - (-rows % u) :] = 0
    return PackedMatrix(rows, kernels, weights, kid, members)


def _values(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Non-zero weights."""
    return (rng.integers(1, 128, shape) * rng.choice([-1, 1], shape)).astype(np.int8)


def _dense_weights(rng: np.random.Generator, rows: int, kernels: int, density: float) -> NDArray[np.int8]:
    return _values(rng, (rows, kernels)) * (rng.random((rows, kernels)) < density)


def _requantization(weight: PackedMatrix | Array, kernels: int, mean_square: float) -> Requantization:
    """Brings sums of products to the spread. mean_square: of the activations, zeros included."""
    inputs = np.count_nonzero(weight.weights if isinstance(weight, PackedMatrix) else weight) / kernels
    typical = np.sqrt(max(1.0, inputs) * _MEAN_SQUARE_WEIGHT * mean_square)
    return Requantization(*multiplier_and_shift(np.full(kernels, _SPREAD / typical)), "uint8", _SCALE)


def active_input(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> NDArray[np.uint8]:
    """Activations of which exactly that share of each sample is not 0: halves of a normal distribution."""
    values = np.clip(np.abs(rng.normal(0, _SPREAD, shape)), 1, 255).astype(np.uint8)
    size = values[0].size
    for sample in values.reshape(len(values), size):
        sample[rng.permutation(size)[round(share * size) :]] = 0
    return values


def linear_layer(rows: int, kernels: int, density: float, block: tuple[int, int], seed: int = 0) -> Model:
    """Linear and ReLU, uint8 to uint8; the scales expect a tenth of the inputs to be active."""
    weight = packed_weights(np.random.default_rng(seed), rows, kernels, density, block)
    layer = Linear(
        name="linear",
        inputs=("input",),
        weight=weight,
        bias=np.zeros(kernels, np.int32),
        requantization=_requantization(weight, kernels, 0.1 * _SPREAD**2),
    )
    return Model(Graph((_input((rows,)), layer)))


def _input(shape: tuple[int, ...]) -> Input:
    return Input(name="input", inputs=(), shape=shape, dtype="uint8", scale=_SCALE)


@dataclass(frozen=True)
class Convolution:
    """One or two convolutions that give what they read, so that a chain of them is a network.

    channels: of the input, and between the two if there are two. source: the network that has it.
    """

    name: str
    source: str
    size: int
    kernel: int
    channels: tuple[int, ...]
    depthwise: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, dense."""
        pairs = zip(self.channels, (*self.channels[1:], self.channels[0]), strict=True)
        return self.size**2 * self.kernel**2 * sum(a if self.depthwise else a * b for a, b in pairs)

    def chain(self, units: int, density: float, block: tuple[int, int] | None, winners: float | None) -> Model:
        """So many of them, one after the other, each followed by a ReLU or by k-winners of that share of the channels.

        block: None keeps the weights dense, zeros included.
        """
        rng = np.random.default_rng(0)
        nodes: list[Node] = [_input((self.size, self.size, self.channels[0]))]
        mean_square = (0.5 if winners is None else 0.33) * _SPREAD**2  # of all, of the uppermost tenth
        for _ in range(units):
            for i, channels in enumerate(self.channels):
                kernels = self.channels[(i + 1) % len(self.channels)]
                nodes.append(
                    self._layer(rng, nodes[-1].name, len(nodes), channels, kernels, density, block, mean_square)
                )
                if winners is not None:
                    k = max(1, round(winners * kernels))
                    nodes.append(KWTA(name=f"winners{len(nodes)}", inputs=(nodes[-1].name,), k=k, scope="local"))
        return Model(Graph(tuple(nodes)))

    def _layer(
        self,
        rng: np.random.Generator,
        source: str,
        number: int,
        channels: int,
        kernels: int,
        density: float,
        block: tuple[int, int] | None,
        mean_square: float,
    ) -> Conv2d:
        rows = self.kernel**2 * (1 if self.depthwise else channels)
        weight: PackedMatrix | Array = _dense_weights(rng, rows, kernels, density)
        if block is not None and not self.depthwise:
            weight = packed_weights(rng, rows, kernels, density, block)
        return Conv2d(
            name=f"conv{number}",
            inputs=(source,),
            weight=weight,
            bias=np.zeros(kernels, np.int32),
            requantization=_requantization(weight, kernels, mean_square),
            kernel=(self.kernel, self.kernel),
            padding=(self.kernel // 2,) * 4,
            groups=channels if self.depthwise else 1,
        )


CONVOLUTIONS = (
    Convolution("1×1 64→64 at 56²", "ResNet-50", 56, 1, (64,)),
    Convolution("1×1 256→64→256 at 56²", "ResNet-50", 56, 1, (256, 64)),
    Convolution("3×3 64→64 at 56²", "ResNet-50", 56, 3, (64,)),
    Convolution("3×3 128→128 at 28²", "ResNet-50", 28, 3, (128,)),
    Convolution("3×3 512→512 at 7²", "ResNet-50", 7, 3, (512,)),
    Convolution("1×1 960→160→960 at 7²", "MobileNetV2", 7, 1, (960, 160)),
    Convolution("depthwise 3×3 of 144 at 56²", "MobileNetV2", 56, 3, (144,), depthwise=True),
    Convolution("depthwise 3×3 of 960 at 7²", "MobileNetV2", 7, 3, (960,), depthwise=True),
)
LINEARS = ((1600, 1500), (1024, 4096), (4096, 16384), (16384, 4096))
BLOCKS = ((1, 1), (1, 16), (4, 16))
IMPORTED: dict[str, tuple[tuple[int, int], ...]] = {
    "ResNet-50": ((4, 16), (64, 16)),
    "MobileNetV2": ((4, 16), (4, 8)),
}
"""Networks, and the blocks in which each is pruned."""
BEFORE_BOTH = "k-winners before both layers"
FEED_FORWARD = ((768, 3072), (4096, 16384))


def plan_of(model: Model) -> list[dict[str, Any]]:
    """Kernel, mode and products of every layer, as one thread runs it here."""
    rows = Engine(model, threads=1).plan()
    facts = ("name", "kernel", "mode", "macs_dense", "macs_done")
    return [{fact: getattr(row, fact) for fact in facts} for row in rows if row.macs_dense]
