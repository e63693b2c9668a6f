"""Train the keyword-spotting network, from nothing to a checkpoint.

    python train.py --all                                  # the variants that the package ships
    python train.py --variant dense --seed 1               # one run
    python train.py --all --data path/to/speech_commands   # on the real data set

Without ``--data`` the synthetic data set is built first, in ``data/synthetic_commands``. Every run writes
``<output>/<variant>-<seed>.pt`` (a state_dict; ``network.build_network`` makes the module for it) and the same name
with ``.json`` (settings, accuracies of the float network, time).
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import dataset
import synthesis
import torch
from network import TEACHER, VARIANTS, build_network, count_nonzeros, pool_first, prune
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

SHIPPED = ("sparse-sparse-blocked", "sparse-sparse")


@dataclass(frozen=True)
class Recipe:
    """The training budget and its settings, the same for all variants but the teacher.

    ``epochs``: of every variant, which goes on from the teacher; ``teacher_epochs``: of the teacher, from nothing.
    ``renderings``: how many differently degraded copies of the training set there are; every epoch mixes them.
    ``taught``: share of the teacher in the loss, the rest is the labels'; ``temperature`` divides the scores compared.
    ``pruned_after``: the shares of the epochs after which masks are made that keep the strongest weights; each time
    half as many stay, the last masks are the variant's. ``averaging``: decay of the moving average of the weights,
    which starts with the last masks and is what training returns.
    """

    epochs: int = 10
    teacher_epochs: int = 16
    renderings: int = 4
    batch: int = 128
    learning_rate: float = 1e-3
    teacher_learning_rate: float = 2e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    taught: float = 0.7
    temperature: float = 2.0
    pruned_after: tuple[float, ...] = (0.1, 0.2, 0.3)
    averaging: float = 0.995


def train(
    variant: str, seed: int, features: dict[str, dataset.Features], recipe: Recipe, teacher: nn.Sequential | None = None
) -> nn.Sequential:
    """Train one network and return the average of its last weights, in evaluation mode.

    It starts with the weights of the ``teacher`` and learns to answer like it; without one, from nothing.
    """
    torch.manual_seed(seed)
    network = build_network(variant, seed, masked=False).to(memory_format=torch.channels_last)
    if teacher is not None:
        network.load_state_dict(teacher.state_dict(), strict=False)  # k-winners have buffers that it lacks
        teacher = pool_first(teacher).eval().to(memory_format=torch.channels_last)
    training = features["training"]
    epochs, rate = recipe.epochs, recipe.learning_rate
    if teacher is None:
        epochs, rate = recipe.teacher_epochs, recipe.teacher_learning_rate
    steps = epochs * -(-len(training.y) // recipe.batch)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=recipe.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    in_training = pool_first(network)
    masks_made = [round(share * steps) for share in recipe.pruned_after]
    step = 0
    averaged: AveragedModel | None = None
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        network.train()
        for x, y in batches(training, epoch, recipe.batch):
            for stage, due in enumerate(masks_made, start=1):
                if step == due:
                    prune(network, variant, seed, len(masks_made) - stage)
            if step == masks_made[-1]:
                averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging))
            x = spec_augment(distort(x)).to(memory_format=torch.channels_last)
            loss = loss_of(in_training, x, y, recipe, teacher)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if averaged is not None:
                averaged.update_parameters(network)
            total += loss.item() * len(y)
        right = accuracy(network.eval(), features["validation"])
        print(
            f"{variant}-{seed} epoch {epoch + 1}/{epochs}: loss {total / len(training.y):.4f}, "
            f"validation {right:.2%}, {time.perf_counter() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    if averaged is not None:
        network = averaged.module
    recalibrate_norms(pool_first(network), training)
    return network.eval()


def loss_of(network: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, teacher: nn.Module | None) -> Tensor:
    """Cross-entropy of the network's answers to the labels, mixed with that to the teacher's (Hinton et al., 2015)."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bfloat16()):
        scores = network(x)
    loss = nn.functional.cross_entropy(scores.float(), y, label_smoothing=recipe.label_smoothing)
    if teacher is None:
        return loss
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bfloat16()):
        answers = (teacher(x).float() / recipe.temperature).softmax(dim=1)
    taught = nn.functional.cross_entropy(scores.float() / recipe.temperature, answers) * recipe.temperature**2
    return torch.lerp(loss, taught, recipe.taught)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the processor does; elsewhere bfloat16 is emulated, and ten times slower than float32."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def batches(features: dataset.Features, epoch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: x float32 [n, 1, 32, 32], y int64 [n]. Every clip comes in another rendering."""
    order = torch.randperm(len(features.y))
    rendering = (torch.randperm(len(features.y)) + epoch) % len(features.x)
    for chosen in order.split(size):
        if len(chosen) > 1:  # batch norm needs two
            x = features.x[rendering[chosen].numpy(), chosen.numpy()]
            yield torch.from_numpy(x).float(), torch.from_numpy(features.y[chosen.numpy()])


def distort(x: Tensor, stretch: float = 1.15, bands: float = 1.5, frames: float = 2.0, level: float = 0.04) -> Tensor:
    """Samples [n, 1, 32, 32] as other vocal tracts, tempos and microphones would have given them.

    At random: frequency and time are each stretched by a factor up to ``stretch`` either way and moved by up to so
    many bands and frames, and a smooth curve over the bands is added, the sum of four waves of standard deviation
    ``level`` (0.04 is 3.2 dB).
    """
    n, _, height, width = x.shape
    at_random = 2 * torch.rand(4, n) - 1
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0] = stretch ** at_random[0]
    place[:, 0, 2] = at_random[1] * frames * 2 / width  # the image is 2 wide and high
    place[:, 1, 1] = stretch ** at_random[2]
    place[:, 1, 2] = place[:, 1, 1] - 1 + at_random[3] * bands * 2 / height  # stretched from the lowest band
    grid = nn.functional.affine_grid(place, list(x.shape), align_corners=False)
    x = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    band = torch.linspace(-torch.pi, torch.pi, height)
    waves = torch.stack([band / torch.pi, band.cos(), band.sin(), (2 * band).cos()])
    x = x + (level * torch.randn(n, 4) @ waves)[:, None, :, None]
    return (x - x.amax(dim=(2, 3), keepdim=True) + 1).clamp(0, 1)  # the loudest is 1, as in every input


def spec_augment(x: Tensor, widest: int = 3) -> Tensor:
    """Replace a random run of bands and a random run of frames of every sample by its mean (SpecAugment)."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    place = torch.arange(x.shape[-1])
    for axis in (2, 3):
        width = torch.randint(0, widest + 1, (len(x), 1))
        start = (torch.rand(len(x), 1) * (x.shape[axis] - width + 1)).long()
        hidden = (place >= start) & (place < start + width)
        x = torch.where(hidden[:, None, :, None] if axis == 2 else hidden[:, None, None, :], mean, x)
    return x


@torch.no_grad()
def recalibrate_norms(network: nn.Sequential, features: dataset.Features, samples: int = 8192) -> None:
    """Take the batch-norm statistics from the final weights, in float32: training may have moved them in bfloat16."""
    norms = [module for module in network if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain average over all batches
    network.train()
    for number, (x, _) in enumerate(batches(features, 0, 256)):
        if number * 256 < samples:
            network(x)
    for norm in norms:
        norm.momentum = 0.1


@torch.no_grad()
def predict(network: nn.Module, features: dataset.Features) -> Tensor:
    """Predicted labels int64 [n] of an evaluation split, computed in float32."""
    return torch.cat([network(x).argmax(dim=1) for x in torch.from_numpy(features.inputs).split(256)])


def accuracy(network: nn.Module, features: dataset.Features) -> float:
    """Share of an evaluation split that is recognised."""
    return float((predict(network, features) == torch.from_numpy(features.y)).float().mean())


def load_network(checkpoint: Path) -> nn.Sequential:
    """The network of a checkpoint ``<variant>-<seed>.pt``, in evaluation mode."""
    variant, seed = checkpoint.stem.rsplit("-", 1)
    network = build_network(variant, int(seed))
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    return network.eval()


def run(variant: str, seed: int, features: dict[str, dataset.Features], output: Path, recipe: Recipe) -> None:
    """Train one network, evaluate it, write its checkpoint and its facts. The teacher of its seed comes first."""
    started = time.perf_counter()
    teacher = None if variant == TEACHER else load_network(output / f"{TEACHER}-{seed}.pt")
    network = train(variant, seed, features, recipe, teacher)
    facts = {
        "variant": variant,
        "seed": seed,
        "recipe": asdict(recipe),
        "nonzeros": count_nonzeros(network),
        "training_seconds": round(time.perf_counter() - started, 1),
        "float": {split: accuracy(network, features[split]) for split in ("validation", "test")},
        "torch": torch.__version__,
        "bfloat16": multiplies_bfloat16(),
    }
    output.mkdir(parents=True, exist_ok=True)
    network.to(memory_format=torch.contiguous_format)
    torch.save(network.state_dict(), output / f"{variant}-{seed}.pt")
    (output / f"{variant}-{seed}.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts), flush=True)


def keep_memory() -> None:
    """Tell glibc to keep freed memory; else every step maps and clears the pages of its tensors anew."""
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**31 - 1)


def prepare(data: Path, cache: Path, recipe: Recipe) -> dict[str, dataset.Features]:
    """Features of the data set at ``data``, which is synthesized if it does not exist."""
    if not data.exists():
        synthesis.synthesize(data, workers=os.cpu_count() or 1)
    return dataset.load_features(data, cache, recipe.renderings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that training and the study share."""
    parser.add_argument("--data", type=Path, default=Path("data/synthetic_commands"), help="data set directory")
    parser.add_argument("--features", type=Path, default=Path("data/features"), help="where features are kept")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="directory of the checkpoints")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="networks trained at the same time")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--teacher-epochs", type=int, default=Recipe.teacher_epochs)
    parser.add_argument("--renderings", type=int, default=Recipe.renderings)


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the command line asks for."""
    return Recipe(epochs=arguments.epochs, teacher_epochs=arguments.teacher_epochs, renderings=arguments.renderings)


def run_all(runs: list[tuple[str, int]], arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Train every (variant, seed), ``--jobs`` at a time in processes of one thread each; missing teachers first."""
    teachers = [(TEACHER, seed) for seed in dict.fromkeys(seed for _, seed in runs)]
    missing = [(name, seed) for name, seed in teachers if not (arguments.output / f"{name}-{seed}.json").exists()]
    job = functools.partial(_run_in_process, arguments=arguments, recipe=recipe)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for stage in (missing, [run_ for run_ in runs if run_[0] != TEACHER]):
            for _ in pool.map(job, stage):
                pass


def _run_in_process(run_: tuple[str, int], arguments: argparse.Namespace, recipe: Recipe) -> None:
    keep_memory()
    torch.set_num_threads(1)
    variant, seed = run_
    features = dataset.load_features(arguments.data, arguments.features, recipe.renderings)
    run(variant, seed, features, arguments.output, recipe)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, action="append", default=[])
    parser.add_argument("--all", action="store_true", help=f"train {' and '.join(SHIPPED)}")
    parser.add_argument("--seed", type=int, default=0)
    add_arguments(parser)
    arguments = parser.parse_args()
    variants = list(SHIPPED) if arguments.all else arguments.variant
    if not variants:
        parser.error("say --all or --variant")
    recipe = recipe_of(arguments)
    prepare(arguments.data, arguments.features, recipe)
    run_all([(variant, arguments.seed) for variant in variants], arguments, recipe)


if __name__ == "__main__":
    main()
