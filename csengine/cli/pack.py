"""`csengine pack`: pack a model's sparse layers anew, with another block shape or set size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from csengine import container, packing
from csengine.cli import options, output, shipped
from csengine.cli.weights import HEADER, LayerWeights, describe_layer, weight_cells
from csengine.container import Model
from csengine.convert import PACKING_DENSITY
from csengine.errors import CsengineError
from csengine.graph import Conv2d, Graph, Linear, Node
from csengine.packing import PackedMatrix

_EXAMPLES = """\
  csengine pack model.safetensors -o repacked.safetensors --block 4x16
  csengine pack model.safetensors -o repacked.safetensors --block 1x16 --set-size 8 --layer linear1 --layer linear2
  csengine pack kws -o anew.safetensors   keep the blocks, search for better sets

Blocks are rows x kernels. By default packed layers keep their block, and layers with dense weights, at most half of
them other than zero, are packed in 1x1 blocks. The network computes the same as before.
"""


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    text = "pack a model's sparse layers anew, with another block shape or set size"
    parser = options.add_command(commands, "pack", text, _EXAMPLES, execute)
    options.add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the packed file to write")
    help = "rows x kernels that share their pattern (default: as the layer has it)"
    parser.add_argument("--block", type=options.block, metavar="UxV", help=help)
    set_size = options.integer(1, packing.MAX_SET_SIZE)
    help = "kernel blocks that a set can overlay (default: whatever packs smallest)"
    parser.add_argument("--set-size", type=set_size, metavar="S", help=help)
    help = "pack only this layer; may be repeated (default: all that are packed or sparse)"
    parser.add_argument("--layer", action="append", metavar="NAME", help=help)


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    packed = shipped.load_model(arguments.model)
    model = packed.model
    chosen = _choose(model.graph, arguments.layer)
    with output.Progress("packing", len(chosen)) as progress:
        nodes: list[Node] = []
        for node in model.graph.nodes:
            if node.name in chosen and isinstance(node, (Conv2d, Linear)):
                node = _repack(node, arguments.block, arguments.set_size)
                progress.step(node.name)
            nodes.append(node)
    graph = Graph(tuple(nodes), model.graph.layout)
    container.save(Model(graph, model.labels, model.preprocessing, model.accuracy), arguments.output)
    written = shipped.load_model(arguments.output)
    before, after = _weights(model.graph, chosen), _weights(written.model.graph, chosen)
    report = {
        "model": packed.name,
        "output": arguments.output,
        "file_bytes_before": packed.bytes,
        "file_bytes": written.bytes,
        "before": before,
        "layers": after,
    }
    print(output.json_text(report) if arguments.json else _text(packed, written, before, after))
    return 0


def _choose(graph: Graph, wanted: Sequence[str] | None) -> frozenset[str]:
    """The layers to pack: those named, or all that are packed or sparse."""
    layers = {node.name: node for node in graph.nodes if isinstance(node, (Conv2d, Linear))}
    packable = {name: node for name, node in layers.items() if not (isinstance(node, Conv2d) and node.groups > 1)}
    for name in wanted or ():
        if name not in packable:
            raise ValueError(f"no layer {name!r} that can be packed; the model has {', '.join(packable) or 'none'}")
    if wanted is not None:
        return frozenset(wanted)
    return frozenset(name for name, node in packable.items() if _is_packed_or_sparse(node))


def _is_packed_or_sparse(node: Conv2d | Linear) -> bool:
    weight = node.weight
    return isinstance(weight, PackedMatrix) or int(np.count_nonzero(weight)) <= PACKING_DENSITY * weight.size


def _repack(node: Conv2d | Linear, block: tuple[int, int] | None, set_size: int | None) -> Conv2d | Linear:
    """The layer with its weight packed anew."""
    own = node.weight.block if isinstance(node.weight, PackedMatrix) else (1, 1)
    weight = packing.pack(node.dense_weight, block=block or own, set_size=set_size)
    if not np.array_equal(weight.unpack(), node.dense_weight):
        raise CsengineError(f"{node.name}: unpacking does not give the weights back; please report this")
    return replace(node, weight=weight)


def _weights(graph: Graph, chosen: frozenset[str]) -> list[LayerWeights]:
    return [describe_layer(node) for node in graph.nodes if isinstance(node, (Conv2d, Linear)) and node.name in chosen]


def _text(
    old: shipped.Packed, new: shipped.Packed, before: Sequence[LayerWeights], after: Sequence[LayerWeights]
) -> str:
    sizes = f"{new.name}: {output.size(new.bytes)}; {old.name} has {output.size(old.bytes)}"
    if not after:
        return f"no layer is packed or sparse; copied\n{sizes}"
    tables = [output.table(HEADER, [weight_cells(row) for row in rows], indent="  ") for rows in (before, after)]
    return f"before\n{tables[0]}\n\nafter\n{tables[1]}\n\n{sizes}"
