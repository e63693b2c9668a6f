"""The speakers of the synthetic data set and which of them are heard only in validation or in test.

A *speaker* is a voice of one synthesizer: for espeak-ng a variant (its timbre; the accents are spoken by all), for
flite and festival a recorded person. Variants that their authors derived from each other, and synthesizers that
speak with the same person's voice, are kept in the same split, so that no test speaker was heard in training.
The espeak-ng families of validation and test were drawn at random once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# fmt: off
OTHER_WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "follow", "forward", "go", "happy", "house", "learn", "left",
    "marvin", "no", "off", "on", "right", "sheila", "stop", "tree", "up", "visual", "wow", "yes",
)
# fmt: on

ACCENTS = (
    "en-gb",
    "en-us",
    "en-gb-scotland",
    "en-029",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-us-nyc",
)

VALIDATION_FAMILIES = frozenset(
    {
        "ed",
        "f3",
        "gene",
        "grandpa",
        "iven",
        "linda",
        "pedro",
        "ricishaymax",
        "shelby",
    }
)
TEST_FAMILIES = frozenset(
    {
        "adam",
        "alicia",
        "andy",
        "antonio",
        "benjamin",
        "david",
        "m3",
        "marcelo",
        "mario",
        "norbert",
        "quincy",
        "sandro",
        "travis",
        "tweaky",
        "whisper",
    }
)

RECORDED_SPEAKERS = {
    "flite-kal": "training",
    "flite-kal16": "training",
    "festival-kal_diphone": "training",
    "flite-awb": "training",
    "flite-slt": "training",
    "festival-cmu_us_slt_arctic_hts": "training",
    "flite-rms": "test",
    "festival-ked_diphone": "test",
}
"""flite's and festival's voices: kal, awb, rms, slt and ked are persons."""


@dataclass(frozen=True)
class Speaker:
    """One voice: ``name`` is unique and fit for a file name, ``voice`` is what the synthesizer calls it."""

    name: str
    synthesizer: str
    voice: str
    split: str


def family(variant: str) -> str:
    """The common name of variants derived from each other: ``iven3`` → ``iven``; f1…f5 and m1…m8 are unrelated."""
    name = variant.lower()
    if re.fullmatch(r"[fm]\d", name):
        return name
    return re.sub(r"(\d+|robot|(?<=whisper)f)$", "", name.removeprefix("anxious"))


def split_of_variant(variant: str) -> str:
    """``training``, ``validation`` or ``test``."""
    name = family(variant)
    if name in TEST_FAMILIES:
        return "test"
    return "validation" if name in VALIDATION_FAMILIES else "training"


def espeak_speakers() -> list[Speaker]:
    """All variants of the espeak-ng installed here."""
    listing = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    variants = sorted(set(re.findall(r"!v/(.+?)\s*(?:\(|$)", listing, re.MULTILINE)))
    return [
        Speaker(f"espeak-{variant.replace(' ', '-')}", "espeak-ng", variant, split_of_variant(variant))
        for variant in variants
    ]


def recorded_speakers() -> list[Speaker]:
    """The voices of :data:`RECORDED_SPEAKERS` whose synthesizer and data are installed here."""
    voices = {"flite": _flite_voices(), "festival": _festival_voices()}
    speakers = []
    for name, split in RECORDED_SPEAKERS.items():
        synthesizer, voice = name.split("-", 1)
        if voice in voices[synthesizer]:
            speakers.append(Speaker(name, synthesizer, voice, split))
    return speakers


def _flite_voices() -> list[str]:
    if not shutil.which("flite"):
        return []
    listing = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=True).stdout
    return listing.split(":", 1)[1].split()


def _festival_voices() -> list[str]:
    if not shutil.which("festival"):
        return []
    listing = subprocess.run(
        ["festival", "--pipe"], input="(print (voice.list))", capture_output=True, text=True, check=True
    ).stdout
    return listing.strip().strip("()").split()
