"""Choose the recordings that the package ships: one test clip per label, from as many voices as possible.

    python recordings.py data/synthetic_commands

The choice depends on the seed and on the data set alone; no network is asked. Voices come in random order, those of
flite and festival first so that more than one synthesizer is heard, and each speaks one label, at random. The clips
are test clips as they are, background noise included.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import augmentation
import dataset
import numpy as np
from synthesis import write_clip
from voices import espeak_speakers, recorded_speakers

from csengine import audio

OUTPUT = Path(audio.__file__).parent / "models" / "recordings"
SEED = 2


@dataclass(frozen=True)
class Recording:
    """One shipped clip. ``word`` is what is said, ``label`` what the network should answer."""

    file: str
    word: str | None
    label: str
    voice: str | None
    synthesizer: str | None


def choose(root: Path, seed: int) -> dict[Recording, audio.Float32]:
    """The recordings and their samples [16000]: every digit, one other word, and silence."""
    rng = np.random.default_rng(seed)
    test = dataset.read_split(root, "test")
    synthesizers = {speaker.name: speaker.synthesizer for speaker in espeak_speakers() + recorded_speakers()}
    voices = sorted(rng.permutation(test.speakers).tolist(), key=lambda voice: voice.startswith("espeak-"))
    chosen = {}
    for label, voice in zip(rng.permutation([*dataset.DIGITS, "unknown"]).tolist(), voices, strict=False):
        number = dataset.LABELS.index(label)
        clips = [
            path
            for path, its_label in zip(test.paths, test.labels, strict=True)
            if its_label == number and dataset.speaker_of(path) == voice
        ]
        path = clips[int(rng.integers(len(clips)))]
        word = path.parent.name
        recording = Recording(f"{word}_{voice}.wav", word, label, voice, synthesizers[voice])
        chosen[recording] = audio.fit_length(audio.read_wav(path))
    noise = augmentation.make_silence(augmentation.read_noises(root, "test"), rng)
    chosen[Recording("silence.wav", None, "silence", None, None)] = noise
    return chosen


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the synthetic data set")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    recordings = choose(arguments.root, arguments.seed)
    for recording, samples in recordings.items():
        write_clip(arguments.output / recording.file, samples)
    in_order = sorted(recordings, key=lambda recording: dataset.LABELS.index(recording.label))
    listing = {"seed": arguments.seed, "recordings": [asdict(recording) for recording in in_order]}
    (arguments.output / "recordings.json").write_text(json.dumps(listing, indent=1) + "\n")


if __name__ == "__main__":
    main()
