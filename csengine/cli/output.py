"""What the command line prints: aligned tables, Markdown, CSV, JSON, and progress."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any

import numpy as np


def printable(text: object) -> str:
    """Text from a file without control characters, which could steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Columns under a header, aligned; a header that begins with ">" aligns its column to the right."""
    cells = [[name.lstrip(">") for name in header], *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for cell, width, name in zip(row, widths, header, strict=True)
        ]
        lines.append((indent + "  ".join(padded)).rstrip())
    return "\n".join(lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    rule = ["---:" if name.startswith(">") else "---" for name in header]
    cells = [[name.lstrip(">") for name in header], rule, *[[printable(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Records of the same keys as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().rstrip("\n")


def json_text(value: object) -> str:
    """JSON; dataclasses, arrays and NumPy's numbers included. NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def flatten(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested JSON as (dotted name, text)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, float):
        yield name, f"{value:.6g}"
    else:
        yield name, str(value)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, aligned."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{printable(name):{width}}  {printable(text)}".rstrip() for name, text in pairs)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def microseconds(seconds: float) -> str:
    """A time in microseconds, as table cell."""
    return f"{seconds * 1e6:,.1f}"


def giga(rate: float) -> str:
    """A rate in 10**9 per second, as table cell."""
    return f"{rate / 1e9:,.2f}"


class Progress:
    """A line on stderr about long work, there only while it lasts and only on a terminal."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        self._show("")
        return self

    def step(self, note: str = "") -> None:
        """One more part is done; `note` says what comes next."""
        self._done += 1
        self._show(note)

    def _show(self, note: str) -> None:
        if self._shown:
            line = f"{self._what}: {self._done} of {self._total} {printable(note)}".rstrip()
            sys.stderr.write(f"\r\x1b[K{line[:78]}")
            sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
