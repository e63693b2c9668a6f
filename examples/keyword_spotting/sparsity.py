"""Accuracy against sparsity: the hidden layers of the keyword-spotting network, sparse in four ways.

    python sparsity.py     # trains what is missing in --output → bench/results/kws-sparsity.json

Every network goes on from the same dense teacher for a short while and learns its answers as well as the labels; conv1
and the output layer stay dense. Only how the weights are chosen that stay differs:

    random      a complementary pattern drawn before, whatever the teacher's weights are, and never changed
    magnitude   complementary patterns that keep the strongest weights, 1x1 blocks, in two steps
    blocks      the same in blocks of 4 rows by 16 kernels, which processors like
    winners     as magnitude, and the paper's k-winners after all three layers: sparse twice

Accuracies are those of the packed int8 network, as the engine computes it, on voices that training never heard.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dataset
from network import METHODS, SPARSITIES, TEACHER, on_curve
from package import calibration_clips, integer_accuracy, pack_network
from study import train_missing, write
from torch import nn
from train import accuracy, add_arguments, load_network, prepare, recipe_of

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "kws-sparsity.json"
EPOCHS = 1
PRUNED_AFTER = (0.0, 0.2)  # the teacher is trained already, so that pruning begins at once
AVERAGING = 0.97  # in so few steps a slower average would remember the weights just pruned


def measure(output: Path, seed: int, features: dict[str, dataset.Features]) -> Iterator[dict[str, object]]:
    """Density and accuracies of the teacher and of every network that has a checkpoint in ``output``."""
    calibration = calibration_clips(features)
    points = [(method, sparsity, on_curve(method, sparsity)) for method in METHODS for sparsity in SPARSITIES]
    for method, sparsity, variant in [("dense", 0.0, TEACHER), *points]:
        checkpoint = output / f"{variant}-{seed}.pt"
        if checkpoint.exists():
            network = load_network(checkpoint)
            yield {
                "method": method,
                "sparsity": sparsity,
                "seed": seed,
                "density": round(density(network), 5),
                "float": round(accuracy(network, features["test"]), 5),
                "accuracy": round(integer_accuracy(pack_network(network, calibration, {}), features["test"]), 5),
            }


def density(network: nn.Sequential) -> float:
    """Share of the weights of conv2 and linear that are not 0."""
    weights = [network.get_submodule(name).weight for name in ("conv2", "linear")]
    return sum(int((weight != 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=METHODS, action="append", help="trains instead of all")
    parser.add_argument("--sparsity", type=float, choices=SPARSITIES, action="append", help="trains instead of all")
    parser.add_argument("--evaluate", action="store_true", help="train nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    add_arguments(parser)
    parser.set_defaults(epochs=EPOCHS)
    arguments = parser.parse_args()
    methods, sparsities = arguments.method or METHODS, arguments.sparsity or SPARSITIES
    recipe = replace(recipe_of(arguments), pruned_after=PRUNED_AFTER, averaging=AVERAGING)
    features = prepare(arguments.data, arguments.features, recipe)
    if not arguments.evaluate:
        variants = [on_curve(method, sparsity) for sparsity in sparsities for method in methods]
        train_missing(variants, (arguments.seed,), arguments, recipe)
    results = list(measure(arguments.output, arguments.seed, features))
    write(arguments.results, arguments.data, recipe, results=results)
    for result in results:
        print(result)


if __name__ == "__main__":
    main()
