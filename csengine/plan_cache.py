"""Kernels that were measured to be the fastest, kept in a file, so that the next load need not measure again.

The file is JSON: for every layer a digest of what the choice depends on (processor, build, tier, mode, shapes, types,
pattern of the weights, expected activity) and the kernel's name. Entries that do not fit are not found, never wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csengine.backends import Mode
from csengine.graph import Conv2d, Graph, Linear
from csengine.packing import PackedMatrix
from csengine.plan import expected_activity, known_winners
from csengine.resources import cpu_model


@dataclass(frozen=True)
class PlanCache:
    """The choices in the file at `path`, for layers compiled for a tier and a mode by one build."""

    path: Path
    build: str
    tier: str
    mode: Mode

    def find(self, graph: Graph) -> dict[str, str]:
        """Kernels by layer, as far as they are known. A file that is not there or cannot be read knows none."""
        known = self._read()
        keys = self._keys(graph)
        return {layer: known[key] for layer, key in keys.items() if key in known}

    def require_own(self) -> None:
        """Raise ValueError where something else than a plan cache has this path: it would be replaced.

        A file that was cut off passes, and is written anew.
        """
        if self.path.exists() and not (self.path.is_file() and self._is_own()):
            raise ValueError(
                f"plan cache {self.path} is no plan cache; expected a JSON file that csengine wrote, or a new name, "
                "so that nothing is overwritten"
            )

    def _is_own(self) -> bool:
        content = self.path.read_bytes()
        try:
            found = json.loads(content)
        except ValueError:
            return content[:1] in (b"", b"{")
        return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())

    def add(self, graph: Graph, kernels: Mapping[str, str]) -> None:
        """Keep the kernels of these layers; the file is replaced as a whole. Raises OSError."""
        keys = self._keys(graph)
        known = self._read() | {keys[layer]: kernel for layer, kernel in kernels.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(self.path)

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: value for key, value in found.items() if isinstance(value, str)}

    def _keys(self, graph: Graph) -> dict[str, str]:
        activity, winners = expected_activity(graph), known_winners(graph)
        return {
            node.name: self._key(graph, node, activity[node.inputs[0]], winners.get(node.inputs[0]))
            for node in graph.nodes
            if isinstance(node, (Conv2d, Linear))
        }

    def _key(self, graph: Graph, node: Conv2d | Linear, activity: float, winners: int | None) -> str:
        source, result = graph.types[node.inputs[0]], graph.types[node.name]
        readers = [type(reader).__name__ for reader in graph.readers[node.name]]  # one of them may be fused
        facts = [cpu_model(), self.build, self.tier, self.mode, str(source), str(result), readers, activity, winners]
        if isinstance(node, Conv2d):
            facts.append([node.kernel, node.stride, node.padding, node.groups])
        if isinstance(node.weight, PackedMatrix):
            facts.append([node.weight.block, node.weight.members.tolist()])
        digest = hashlib.sha256(json.dumps(facts, default=str).encode())
        digest.update(np.packbits(node.dense_weight != 0).tobytes())
        return digest.hexdigest()
