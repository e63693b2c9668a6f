"""The models and recordings that the package ships, and packed files by path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from csengine import container
from csengine.container import Model

if TYPE_CHECKING:
    from importlib.abc import Traversable  # importlib.resources.abc from Python 3.11

_SUFFIX = ".safetensors"
_REMEDY = "reinstall csengine (from a source tree: `make demo` installs it complete)"


@dataclass(frozen=True)
class Packed:
    """A packed file that was read. bytes: size of the file."""

    name: str
    model: Model
    bytes: int


@dataclass(frozen=True)
class Recording:
    """A shipped WAV file. label: what the network should answer; word: what is said, None for no word."""

    file: Traversable
    label: str
    word: str | None

    @property
    def truth(self) -> str:
        """The label, with the word where that says more."""
        return self.label if self.word in (None, self.label) else f"{self.label} ({self.word})"


def directory() -> Traversable:
    """Where the package keeps its models."""
    return files("csengine") / "models"


def model_names() -> tuple[str, ...]:
    """Shipped models, by the names that the command line takes."""
    if not directory().is_dir():
        return ()
    found = (entry.name for entry in directory().iterdir() if entry.name.endswith(_SUFFIX))
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in found))


def load_model(name: str) -> Packed:
    """Read a packed file: a path, or the name of a shipped model. Raises FileNotFoundError, ModelFormatError."""
    with model_path(name) as path:
        return Packed(name, container.load(path), path.stat().st_size)


@contextmanager
def model_path(name: str) -> Iterator[Path]:
    """The path of a packed file; a shipped model need not be a file of its own."""
    if name in model_names() and not Path(name).exists():
        with as_file(directory() / f"{name}{_SUFFIX}") as path:
            yield path
        return
    if not Path(name).is_file():
        known = ", ".join(model_names()) or "none is installed"
        raise FileNotFoundError(
            f"no such model: {name}; expected the path of a packed file, or a shipped model: {known}"
        )
    yield Path(name)


def demo_model(name: str) -> Packed:
    """A shipped model. Raises FileNotFoundError with the remedy."""
    if name not in model_names():
        raise FileNotFoundError(f"the shipped model {name}{_SUFFIX} is missing from the package; {_REMEDY}")
    return load_model(name)


def recordings() -> tuple[Recording, ...]:
    """The shipped recordings, in the order of their list. Raises FileNotFoundError with the remedy."""
    place = directory() / "recordings"
    listing = place / "recordings.json"
    if not listing.is_file():
        raise FileNotFoundError(f"the shipped recordings (recordings.json) are missing from the package; {_REMEDY}")
    entries = json.loads(listing.read_text(encoding="utf-8"))["recordings"]
    return tuple(Recording(place / entry["file"], entry["label"], entry["word"]) for entry in entries)
