"""Build a keyword-spotting data set with speech synthesizers, laid out like Google Speech Commands.

    python synthesis.py data/synthetic_commands

writes ``<word>/<speaker>_nohash_<take>.wav`` (16 kHz, 16 bit, mono), ``_background_noise_/*.wav``,
``validation_list.txt``, ``testing_list.txt`` and ``facts.json``. Training clips are clean and trimmed, because
training degrades them afresh in every rendering; validation and test clips are degraded once, here, like recordings
made in rooms. The result depends only on the seed and on the versions of the synthesizers.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import augmentation
import numpy as np
from scipy.io import wavfile
from voices import ACCENTS, DIGITS, OTHER_WORDS, Speaker, espeak_speakers, recorded_speakers

from csengine import audio

NOISE_SECONDS = 60

# Takes of a digit and of another word by one speaker: (training, validation and test).
TAKES = {"espeak-ng": ((16, 3), (8, 1)), "flite": ((60, 12), (20, 4)), "festival": ((60, 12), (20, 4))}


@dataclass(frozen=True)
class Take:
    """One utterance to be synthesized. ``stretch`` is relative duration, ``pitch`` relative pitch."""

    word: str
    number: int
    accent: str
    stretch: float
    pitch: float


def plan_takes(speaker: Speaker, seed: int) -> list[Take]:
    """What ``speaker`` says: every word several times, accents in turn, speed and pitch at random."""
    rng = np.random.default_rng([seed, zlib.crc32(speaker.name.encode())])
    digit_takes, other_takes = TAKES[speaker.synthesizer][speaker.split != "training"]
    takes = []
    for word in DIGITS + OTHER_WORDS:
        first_accent = int(rng.integers(len(ACCENTS)))
        for number in range(digit_takes if word in DIGITS else other_takes):
            accent = ACCENTS[(first_accent + number) % len(ACCENTS)]
            takes.append(Take(word, number, accent, float(rng.uniform(0.85, 1.3)), float(rng.uniform(0.75, 1.3))))
    return takes


def speak(speaker: Speaker, takes: list[Take], directory: Path) -> Iterator[tuple[Take, audio.Float32]]:
    """Synthesize the takes and yield each with its samples at 16 kHz, silence trimmed; mute takes are left out."""
    speak_all = {"espeak-ng": _espeak, "flite": _flite, "festival": _festival}[speaker.synthesizer]
    for take, path in zip(takes, speak_all(speaker.voice, takes, directory), strict=True):
        samples = trim(audio.read_wav(path)) if path.stat().st_size > 44 else np.zeros(0, np.float32)
        path.unlink()
        if speaker.synthesizer != "espeak-ng":  # these know few settings or none: another vocal tract by resampling
            samples = audio.resample(samples, 100 * round(160 * take.pitch**0.25))
        if len(samples):
            yield take, samples


def _espeak(voice: str, takes: list[Take], directory: Path) -> Iterator[Path]:
    path = directory / "take.wav"
    for take in takes:
        speed, pitch = round(165 / take.stretch), round(50 + 60 * np.log2(take.pitch))
        command = ["espeak-ng", "-v", f"{take.accent}+{voice}", "-s", str(speed), "-p", str(pitch), "-w", str(path)]
        subprocess.run([*command, take.word], check=True, capture_output=True)
        yield path


def _flite(voice: str, takes: list[Take], directory: Path) -> Iterator[Path]:
    path = directory / "take.wav"
    hertz = {"slt": 170.0}.get(voice, 105.0)
    for take in takes:
        settings = {"duration_stretch": take.stretch, "int_f0_target_mean": hertz * take.pitch}
        options = [text for name, value in settings.items() for text in ("--setf", f"{name}={value:.3f}")]
        command = ["flite", "-voice", voice, *options, "-t", take.word, "-o", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        yield path


def _festival(voice: str, takes: list[Take], directory: Path) -> list[Path]:
    """One process for all takes: festival is slow to start."""
    paths = [directory / f"{index}.wav" for index in range(len(takes))]
    script = [f"(voice_{voice})"]
    for take, path in zip(takes, paths, strict=True):
        script.append(f"(Parameter.set 'Duration_Stretch {take.stretch:.3f})")
        if voice.endswith("diphone"):
            script.append(
                f"(set! int_lr_params '((target_f0_mean {105 * take.pitch:.1f}) (target_f0_std 14)"
                " (model_f0_mean 170) (model_f0_std 34)))"
            )
        script.append(f'(utt.save.wave (SynthText "{take.word}") "{path}")')
    program = directory / "takes.scm"
    program.write_text("\n".join(script))
    subprocess.run(["festival", "-b", str(program)], check=True, capture_output=True)
    return paths


def trim(samples: audio.Float32, threshold: float = 0.01) -> audio.Float32:
    """Cut leading and trailing samples below ``threshold`` of the peak."""
    loud = np.flatnonzero(np.abs(samples) > threshold * np.abs(samples).max(initial=1e-4))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def write_speaker(speaker: Speaker, root: Path, seed: int) -> Counter[str]:
    """Synthesize and write all clips of one speaker; the number of clips per word."""
    rng = np.random.default_rng([seed, 1, zlib.crc32(speaker.name.encode())])
    noises = augmentation.read_noises(root, "evaluation") if speaker.split != "training" else []
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        for take, samples in speak(speaker, plan_takes(speaker, seed), Path(directory)):
            if speaker.split != "training":
                samples = augmentation.degrade(audio.fit_length(samples), noises, rng)
            write_clip(root / take.word / f"{speaker.name}_nohash_{take.number}.wav", samples)
            counts[take.word] += 1
    return counts


def write_clip(path: Path, samples: audio.Float32) -> None:
    """Write [samples] as 16 kHz, 16 bit, mono; louder than full scale is scaled down."""
    scaled = samples / max(1.0, float(np.abs(samples).max(initial=0)))
    wavfile.write(path, audio.SAMPLE_RATE, np.rint(scaled * 32767).astype(np.int16))


def write_noises(root: Path, seed: int) -> None:
    """Write one minute of every kind of background noise; babble is made of training speech."""
    rng = np.random.default_rng([seed, 2])
    speech = [audio.read_wav(path) for path in sorted(root.glob("[a-z]*/*.wav"))[::11]]
    for name, samples in augmentation.make_noises(NOISE_SECONDS, speech, rng).items():
        write_clip(root / "_background_noise_" / f"{name}.wav", samples)


def write_lists(root: Path, speakers: list[Speaker]) -> None:
    """Write the two lists that tell Google Speech Commands' splits."""
    split = {speaker.name: speaker.split for speaker in speakers}
    clips = sorted(path.relative_to(root).as_posix() for path in root.glob("[a-z]*/*.wav"))
    for name, file in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        chosen = [clip for clip in clips if split[Path(clip).name.split("_nohash_")[0]] == name]
        (root / file).write_text("".join(f"{clip}\n" for clip in chosen))


def synthesizer_versions() -> dict[str, str]:
    """The version each synthesizer states; those that are not installed are missing."""
    commands = {
        "espeak-ng": ["espeak-ng", "--version"],
        "flite": ["flite", "--version"],
        "festival": ["festival", "-v"],
    }
    versions = {}
    for name, command in commands.items():
        try:
            text = subprocess.run(command, capture_output=True, text=True).stdout
        except FileNotFoundError:
            continue
        found = re.search(r"(\d+\.\d+[\w.-]*)", text)
        versions[name] = found.group(1) if found else text.strip()
    return versions


def synthesize(root: Path, seed: int = 0, workers: int = 2) -> None:
    """Build the data set in the empty or absent directory ``root``."""
    speakers = espeak_speakers() + recorded_speakers()
    for word in (*DIGITS, *OTHER_WORDS, "_background_noise_"):
        (root / word).mkdir(parents=True)
    training = [speaker for speaker in speakers if speaker.split == "training"]
    held_out = [speaker for speaker in speakers if speaker.split != "training"]
    counts: dict[str, Counter[str]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for group in (training, held_out):
            if group is held_out:
                write_noises(root, seed)
            job = functools.partial(write_speaker, root=root, seed=seed)
            for speaker, count in zip(group, pool.map(job, group), strict=True):
                counts[speaker.name] = count
                print(f"{speaker.split:10} {speaker.name}: {count.total()} clips", file=sys.stderr)
    write_lists(root, speakers)
    facts = {
        "seed": seed,
        "synthesizers": synthesizer_versions(),
        "accents": ACCENTS,
        "speakers": {
            split: {s.name: counts[s.name].total() for s in speakers if s.split == split}
            for split in ("training", "validation", "test")
        },
    }
    (root / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the synthetic keyword-spotting data set.")
    parser.add_argument("root", type=Path, help="directory to create")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    synthesize(arguments.root, arguments.seed, arguments.workers)


if __name__ == "__main__":
    main()
