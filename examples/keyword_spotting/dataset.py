"""Google Speech Commands, real or synthetic, as network inputs.

A data set is a directory in Google's layout: ``<word>/<speaker>_nohash_<n>.wav``, ``_background_noise_/*.wav``,
``validation_list.txt`` and ``testing_list.txt``. Twelve labels: *unknown* (every word that is no digit), *silence*
(background noise), *zero* … *nine*. Of the unknown words a random part is used, lest they outnumber the digits.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import augmentation
import numpy as np
from numpy.typing import NDArray
from voices import DIGITS

from csengine import audio

LABELS = ("unknown", "silence", *DIGITS)
UNKNOWN, SILENCE = 0, 1
SPLITS = ("training", "validation", "test")

# Clips of `unknown` and of `silence` for one clip of an average digit.
UNKNOWN_PER_DIGIT = {"training": 2.0, "validation": 1.0, "test": 1.0}
SILENCE_PER_DIGIT = {"training": 1.0, "validation": 1.0, "test": 1.0}

TRAINING_SPEED = 1.2
"""Training varies speed and pitch together by up to this factor: more vocal tracts than there are voices."""

_CHUNK = 256


@dataclass(frozen=True)
class Split:
    """The clips of one split: files and labels of the words, and how many clips of silence go with them."""

    name: str
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    silences: int

    def __len__(self) -> int:
        return len(self.paths) + self.silences

    @property
    def speakers(self) -> tuple[str, ...]:
        """Who is heard in this split."""
        return tuple(sorted({speaker_of(path) for path in self.paths}))


def speaker_of(path: Path) -> str:
    """The speaker in a clip's file name."""
    return path.name.split("_nohash_")[0]


def read_split(root: Path, name: str, seed: int = 0) -> Split:
    """List the clips of split ``name`` (training, validation or test) of the data set at ``root``."""
    listed = {split: _read_list(root / file) for split, file in _LISTS.items()}
    if name in listed:
        clips = listed[name]
    else:
        held_out = set().union(*listed.values())
        everything = (path.relative_to(root).as_posix() for path in root.glob("[!_.]*/*.wav"))
        clips = [clip for clip in everything if clip not in held_out]
    digits = sorted(clip for clip in clips if _word(clip) in DIGITS)
    others = sorted(clip for clip in clips if _word(clip) not in DIGITS)
    if not digits:
        raise FileNotFoundError(f"{root}: no digit in the {name} split; expected <word>/<speaker>_nohash_<n>.wav")
    per_digit = len(digits) / len(DIGITS)
    rng = np.random.default_rng([seed, SPLITS.index(name)])
    kept = min(len(others), round(UNKNOWN_PER_DIGIT[name] * per_digit))
    others = sorted(others[index] for index in rng.choice(len(others), kept, replace=False))
    labels = [LABELS.index(_word(clip)) for clip in digits] + [UNKNOWN] * kept
    silences = round(SILENCE_PER_DIGIT[name] * per_digit)
    return Split(name, tuple(root / clip for clip in digits + others), tuple(labels), silences)


_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


def _read_list(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line]


def _word(clip: str) -> str:
    return clip.split("/", 1)[0]


@dataclass(frozen=True)
class Features:
    """Network inputs ``x`` float16 [renderings, n, 1, 32, 32] and labels ``y`` int64 [n]."""

    x: NDArray[np.float16]
    y: NDArray[np.int64]

    @property
    def inputs(self) -> NDArray[np.float32]:
        """The only rendering of an evaluation split, float32 [n, 1, 32, 32]."""
        (rendering,) = self.x
        return rendering.astype(np.float32)


def render(root: Path, split: Split, renderings: int, seed: int = 0, workers: int = 2) -> Features:
    """Features of a split: of the clips as they are for validation and test, of degraded copies for training.

    Every rendering degrades every clip afresh. The result depends on ``seed``, not on ``workers``.
    """
    numbers = [
        (rendering, range(start, min(start + _CHUNK, len(split))))
        for rendering in range(renderings)
        for start in range(0, len(split), _CHUNK)
    ]
    job = functools.partial(_render_chunk, root, split, seed)
    with ProcessPoolExecutor(workers) as pool:
        chunks = list(pool.map(job, numbers))
    x = np.concatenate(chunks).reshape(renderings, len(split), 1, audio.MEL_BANDS, audio.FRAMES)
    y = np.array([*split.labels, *[SILENCE] * split.silences], np.int64)
    return Features(x, y)


def _render_chunk(root: Path, split: Split, seed: int, numbers: tuple[int, Iterable[int]]) -> NDArray[np.float16]:
    rendering, indices = numbers
    noises = _noises(root, split.name)
    inputs = []
    for index in indices:
        rng = np.random.default_rng([seed, SPLITS.index(split.name), rendering, index])
        if index >= len(split.paths):
            clip = augmentation.make_silence(noises, rng)
        else:
            clip = audio.fit_length(audio.read_wav(split.paths[index]))
            if split.name == "training":
                clip = augmentation.degrade(clip, noises, rng, TRAINING_SPEED)
        inputs.append(audio.network_input(clip)[0].astype(np.float16))
    return np.stack(inputs)


@functools.lru_cache(maxsize=3)
def _noises(root: Path, split: str) -> list[audio.Float32]:
    return augmentation.read_noises(root, split)


def load_features(root: Path, cache: Path, renderings: int, seed: int = 0) -> dict[str, Features]:
    """Features of all splits of the data set at ``root``, computed once and kept under the directory ``cache``."""
    features = {}
    for name in SPLITS:
        split = read_split(root, name, seed)
        count = renderings if name == "training" else 1
        file = cache / f"{name}-{_fingerprint(root, split, count, seed)}.npz"
        if not file.exists():
            made = render(root, split, count, seed, os.cpu_count() or 1)
            cache.mkdir(parents=True, exist_ok=True)
            np.savez(file, x=made.x, y=made.y)
        with np.load(file) as saved:
            features[name] = Features(saved["x"], saved["y"])
    return features


def _fingerprint(root: Path, split: Split, renderings: int, seed: int) -> str:
    """Changes with the files and the settings (not with the code: delete the cache after changing that)."""
    facts = [str(root.resolve()), seed, renderings, split.silences, [str(path) for path in split.paths]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def describe(root: Path, seed: int = 0) -> dict[str, object]:
    """Sizes and speakers of the splits, and the synthesis facts if the data set has them."""
    facts: dict[str, object] = {"name": root.name}
    for name in SPLITS:
        split = read_split(root, name, seed)
        facts[name] = {"clips": len(split), "silence": split.silences, "unknown": split.labels.count(UNKNOWN)}
        facts[f"{name}_speakers"] = len(split.speakers)
    synthesis = root / "facts.json"
    if synthesis.exists():
        facts["synthesis"] = json.loads(synthesis.read_text())
    return facts
