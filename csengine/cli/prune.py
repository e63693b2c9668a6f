"""`csengine prune`: the layers of a float network become complementary; then it is packed."""

from __future__ import annotations

import argparse
from typing import Any

from csengine import container, reference
from csengine.cli import options, output, shipped
from csengine.cli.samples import read_array
from csengine.cli.source import read_network
from csengine.convert import convert
from csengine.pruning import LayerLoss, prune
from csengine.quantization import relative_error

_EXAMPLES = """\
  csengine prune model.onnx -o sparse.safetensors --sparsity 0.9 --float
  csengine prune model.onnx -o sparse.safetensors --sparsity 0.9 --block 4x16 --calibrate samples.npy
  csengine prune float.safetensors -o sparse.safetensors --sparsity 0.8 --spread --layer fc=0.95 --keep stem --float

Without training afterwards a network loses much of what it knew; see csengine.torch for masks that hold while it is
trained. The layers that read the input or give the result stay dense; --keep names others instead. "kept" is the share
of a layer's sum of squares that stayed, "at best" what as many weights anywhere could have kept.
"""


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    text = "prune a float model to complementary patterns, and pack it"
    parser = options.add_command(commands, "prune", text, _EXAMPLES, execute)
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, or a packed file of float32")
    options.add_packed_output(parser, is_required=True)
    help = "share of the weights to remove from every layer, such as 0.9"
    parser.add_argument("--sparsity", type=options.share, required=True, metavar="X", help=help)
    help = "rows x kernels that share their pattern (default: 1x1)"
    parser.add_argument("--block", type=options.block, default=(1, 1), metavar="UxV", help=help)
    help = "remove that share of all layers together, more where magnitudes differ more"
    parser.add_argument("--spread", action="store_true", help=help)
    help = "another sparsity for one layer; may be repeated"
    parser.add_argument("--layer", type=options.layer_share, action="append", default=[], metavar="NAME=X", help=help)
    help = "a layer that stays dense; may be repeated (default: the first and the last)"
    parser.add_argument("--keep", action="append", metavar="NAME", help=help)
    options.add_input_shape(parser)
    options.add_seed(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    source = read_network(arguments.model, arguments.input_shape)
    graph = source.graph
    samples = None if arguments.calibrate is None else source.samples(read_array(arguments.calibrate, arguments.array))
    pruned, losses = prune(
        graph,
        arguments.sparsity,
        block=arguments.block,
        layers=dict(arguments.layer),
        keep=arguments.keep,
        spread=arguments.spread,
        seed=arguments.seed,
    )
    model, _ = convert(pruned, samples, labels=source.labels, preprocessing=source.preprocessing)
    container.save(model, arguments.output)
    written = shipped.load_model(arguments.output)
    x = source.random(1) if samples is None else samples[:4]
    report = {
        "output": arguments.output,
        "bytes": written.bytes,
        "result_error": relative_error(reference.run(written.model.graph, x), reference.run(graph, x)),
        "layers": losses,
    }
    print(output.json_text(report) if arguments.json else _text(report))
    return 0


def _text(report: dict[str, Any]) -> str:
    facts = [
        ("written", f"{report['output']} ({output.size(report['bytes'])})"),
        ("result differs by", f"{report['result_error']:.1%} from the dense network's, untrained"),
    ]
    header = ("layer", ">matrix", ">block", ">set size", ">density", ">kept", ">at best")
    return f"{output.facts(facts)}\n\n{output.table(header, [_cells(loss) for loss in report['layers']])}"


def _cells(loss: LayerLoss) -> tuple[str, ...]:
    shares = (f"{share:.1%}" for share in (loss.density, loss.kept, loss.unstructured))
    block = f"{loss.block[0]}x{loss.block[1]}"
    return (loss.name, f"{loss.rows} x {loss.kernels}", block, str(loss.set_size), *shares)
