"""Train the variants and their teacher with three seeds and record the accuracies on held-out voices.

    python study.py              # trains what is missing in --output, then evaluates
    python study.py --evaluate   # evaluates the checkpoints that exist
    python study.py --variant sparse-sparse --variant sparse-sparse-first --seed 0 --results first-layer.json

The result is one JSON file, ``results/study.json`` beside this script: per variant and split the accuracy of every
seed, mean and sample standard deviation, and the facts needed to judge them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import dataset
import torch
from network import TEACHER, VARIANTS
from package import calibration_clips, integer_accuracy, pack_network
from train import Recipe, accuracy, add_arguments, load_network, prepare, recipe_of, run_all

from csengine.torch.layers import masked_weight_of

STUDIED = (TEACHER, "dense", "sparse-dense", "sparse-sparse", "sparse-sparse-blocked")
SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "study.json"


def evaluate(
    output: Path,
    features: dict[str, dataset.Features],
    variants: Sequence[str] = STUDIED,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, dict[str, object]]:
    """Accuracies of the checkpoints in ``output`` by variant: of the float networks, and packed, as the engine runs."""
    calibration = calibration_clips(features)
    results: dict[str, dict[str, object]] = {}
    for variant in variants:
        checkpoints = [output / f"{variant}-{seed}.pt" for seed in seeds if (output / f"{variant}-{seed}.pt").exists()]
        if not checkpoints:
            continue
        facts = [json.loads(path.with_suffix(".json").read_text()) for path in checkpoints]
        networks = [load_network(path) for path in checkpoints]
        models = [pack_network(network, calibration, {}) for network in networks]
        results[variant] = {
            "seeds": [fact["seed"] for fact in facts],
            "nonzeros": sorted({fact["nonzeros"] for fact in facts}),
            "training_seconds": [fact["training_seconds"] for fact in facts],
            "layers": describe_masks(networks[0]),
            "float": {
                split: summarize([accuracy(network, features[split]) for network in networks])
                for split in ("validation", "test")
            },
            "int8": {
                split: summarize([integer_accuracy(model, features[split]) for model in models])
                for split in ("validation", "test")
            },
        }
    return results


def summarize(values: list[float]) -> dict[str, object]:
    """Values, their mean and their sample standard deviation (None for a single value)."""
    deviation = round(statistics.stdev(values), 5) if len(values) > 1 else None
    mean = round(statistics.mean(values), 5)
    return {"values": [round(value, 5) for value in values], "mean": mean, "deviation": deviation}


def describe_masks(network: torch.nn.Sequential) -> dict[str, object]:
    """Block, set size and non-zeros of every masked layer."""
    masks: dict[str, object] = {}
    for name, layer in network.named_children():
        masked = masked_weight_of(layer)
        if masked is not None:
            sets, size = masked.members.shape
            masks[name] = {"block": masked.block, "sets": sets, "set_size": size, "nonzeros": int(masked.mask.sum())}
    return masks


def train_missing(variants: Sequence[str], seeds: Sequence[int], arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Train what has no checkpoint yet; the teachers first."""
    runs = [(variant, seed) for seed in seeds for variant in variants]
    run_all([(v, s) for v, s in runs if not (arguments.output / f"{v}-{s}.json").exists()], arguments, recipe)


def write(path: Path, data: Path, recipe: Recipe, **results: object) -> None:
    """Results as JSON, and what they were made from: data, recipe, machine."""
    machine = {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__}
    study = {"data": dataset.describe(data), "recipe": vars(recipe), "machine": machine, **results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(study, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", help="train nothing")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help=f"instead of {', '.join(STUDIED)}")
    parser.add_argument("--seed", type=int, action="append", help=f"instead of {SEEDS}")
    parser.add_argument("--results", type=Path, default=RESULTS)
    add_arguments(parser)
    arguments = parser.parse_args()
    variants, seeds = arguments.variant or STUDIED, arguments.seed or SEEDS
    recipe = recipe_of(arguments)
    features = prepare(arguments.data, arguments.features, recipe)
    if not arguments.evaluate:
        train_missing(variants[::-1], seeds, arguments, recipe)
    found = evaluate(arguments.output, features, variants, seeds)
    write(arguments.results, arguments.data, recipe, variants=found)
    for variant, result in found.items():
        print(variant, json.dumps({"float": result["float"], "int8": result["int8"]}))


def processor() -> str:
    """The processor's name as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
