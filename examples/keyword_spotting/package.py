"""Turn trained checkpoints into packed integer models: export, fold, quantize, combine.

    python package.py            # runs/*.pt → csengine/models/kws.safetensors, kws_paper.safetensors
    python package.py --variant sparse-sparse-first --models .   # another one

Activations are calibrated on training clips; the accuracies recorded in the files are those of held-out voices, the
float network's and the packed one's, as the engine computes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dataset
import numpy as np
from network import VARIANTS
from numpy.typing import NDArray
from torch import nn
from train import accuracy, add_arguments, load_network, prepare, recipe_of

from csengine import Engine, audio
from csengine.container import Model, save
from csengine.convert import convert
from csengine.importers.torch import load

SHIPPED = {"kws": "sparse-sparse-blocked", "kws_paper": "sparse-sparse"}
OUTPUT = Path(audio.__file__).parent / "models"
CALIBRATION_CLIPS = 1024
PERCENTILE = 99.9  # of the active values of a layer; the validation speakers preferred it to the maximum
PREPROCESSING = {
    "kind": "log-mel",
    "sample_rate": audio.SAMPLE_RATE,
    "fft_size": audio.FFT_SIZE,
    "hop": audio.HOP,
    "bands": audio.MEL_BANDS,
    "top_db": audio.TOP_DB,
}


def calibration_clips(features: dict[str, dataset.Features]) -> NDArray[np.float32]:
    """Training inputs float32 [n, 32, 32, 1], drawn at random."""
    clips = features["training"].x[0]
    chosen = np.random.default_rng(0).choice(len(clips), min(CALIBRATION_CLIPS, len(clips)), replace=False)
    return clips[np.sort(chosen)].astype(np.float32).transpose(0, 2, 3, 1)


def pack_network(network: nn.Sequential, calibration: NDArray[np.float32], measured: dict[str, object]) -> Model:
    """The packed integer model of a trained network. ``measured``: accuracies to record in it."""
    graph = load(network, (1, audio.MEL_BANDS, audio.FRAMES))
    described = {"labels": dataset.LABELS, "preprocessing": PREPROCESSING, "accuracy": measured}
    model, _ = convert(graph, calibration, percentile=PERCENTILE, **described)
    return model


def integer_accuracy(model: Model, features: dataset.Features) -> float:
    """Share of an evaluation split that the packed model recognises."""
    answers = Engine(model).run(features.inputs).argmax(axis=1)
    return float((answers == features.y).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which seed's checkpoints")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="instead of the shipped ones")
    parser.add_argument("--models", type=Path, default=OUTPUT, help="where the packed models go")
    add_arguments(parser)
    arguments = parser.parse_args()
    features = prepare(arguments.data, arguments.features, recipe_of(arguments))
    calibration = calibration_clips(features)
    chosen = {variant: variant for variant in arguments.variant} if arguments.variant else SHIPPED
    for name, variant in chosen.items():
        network = load_network(arguments.output / f"{variant}-{arguments.seed}.pt")
        packed = pack_network(network, calibration, {})
        measured: dict[str, object] = {"data": arguments.data.name, "variant": variant}
        for split in ("validation", "test"):
            measured[f"{split}_float32"] = round(accuracy(network, features[split]), 5)
            measured[f"{split}_int8"] = round(integer_accuracy(packed, features[split]), 5)
        save(Model(packed.graph, packed.labels, PREPROCESSING, measured), arguments.models / f"{name}.safetensors")
        print(name, measured)


if __name__ == "__main__":
    main()
