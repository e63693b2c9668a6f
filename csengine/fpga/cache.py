"""Where builds are kept: one directory per key, made once, complete or absent."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def directory() -> Path:
    """`CSENGINE_CACHE`, else `csengine` in the user's cache directory."""
    own = os.environ.get("CSENGINE_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{shared}/csengine").expanduser().resolve()


def key(*parts: bytes | str) -> str:
    """A name for what was made from these parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The directory of that name; the first who asks calls `make` on it, others wait for the result."""
    root = directory()
    root.mkdir(parents=True, exist_ok=True)
    target = root / name
    if target.is_dir():
        return target
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            place = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
            try:
                make(place)
                place.rename(target)
            finally:
                shutil.rmtree(place, ignore_errors=True)
    return target
