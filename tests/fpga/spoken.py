"""Words of voices that training never heard, synthesized here: the example's test voices of espeak-ng."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from csengine import audio

EXAMPLE = Path(__file__).parents[2] / "examples" / "keyword_spotting"


def available() -> bool:
    """Whether the synthesizer is installed."""
    return shutil.which("espeak-ng") is not None


def held_out(count: int, place: Path) -> Iterator[Path]:
    """So many WAV files of one second, the voices in turn."""
    sys.path.insert(0, str(EXAMPLE))
    import synthesis
    import voices

    speakers = [speaker for speaker in voices.espeak_speakers() if speaker.split == "test"]
    takes = [synthesis.plan_takes(speaker, seed=0) for speaker in speakers]
    for i in range(count):
        which, number = i % len(speakers), i // len(speakers)
        take = takes[which][7 * i % len(takes[which])]
        with tempfile.TemporaryDirectory() as scratch:
            for _, samples in synthesis.speak(speakers[which], [take], Path(scratch)):
                path = place / f"{take.word}-{speakers[which].name}-{number}.wav"
                synthesis.write_clip(path, audio.fit_length(samples))
                yield path
