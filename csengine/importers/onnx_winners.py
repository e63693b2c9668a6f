"""k-winners as people export them: a TopK, and either a scatter of the winners or a comparison with the least of them.

    TopK → ScatterElements into zeros                    the winners' values, gathered or taken from the TopK
    TopK → ScatterElements of ones → Mul                 a mask
    TopK → ReduceMin, Slice or Gather → a comparison → Where or Cast → Mul

The parts become symbols until a value is chosen. A comparison keeps all that are equal to the least winner; the
engine keeps exactly k, of equal ones the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from csengine.importers.builder import Builder, UnsupportedError, Value, sample_axis

if TYPE_CHECKING:
    from csengine.importers.onnx_operations import Call

FORMS = "write them as TopK and ScatterElements, or as TopK, ReduceMin, a comparison and Where"


@dataclass(frozen=True, eq=False)
class Symbol:
    """A part of k-winners among `ranking` along an axis of a sample."""

    ranking: Value
    k: int
    axis: int
    what: ClassVar[str] = "a part of k-winners"


@dataclass(frozen=True, eq=False)
class Values(Symbol):
    """The k largest. is_sorted: largest first."""

    is_sorted: bool
    what: ClassVar[str] = "the values of a TopK"


@dataclass(frozen=True, eq=False)
class Indices(Symbol):
    """Where the k largest are."""

    what: ClassVar[str] = "the indices of a TopK"


@dataclass(frozen=True, eq=False)
class Least(Symbol):
    """The k-th largest, for every scope. is_dropped: whether it lacks the axis."""

    is_dropped: bool = False
    what: ClassVar[str] = "the least value of a TopK"


@dataclass(frozen=True, eq=False)
class Gathered(Symbol):
    """What `source` has where the winners are."""

    source: Value
    what: ClassVar[str] = "the gathered values of a TopK"


@dataclass(frozen=True, eq=False)
class Mask(Symbol):
    """Which elements win; which lose if `losers`. laid: the ranking as the mask lies now, reshaped and transposed."""

    laid: Value
    losers: bool = False
    what: ClassVar[str] = "a comparison with a TopK"


TOP = (Values, Indices, Gathered)


def whole_shape(builder: Builder, top: Symbol) -> tuple[int, ...]:
    """The shape of a batch of what a TopK gives, or of what is gathered with it."""
    full = list(builder.whole_shape(top.ranking))
    full[top.axis + (not top.ranking.is_whole)] = top.k
    return tuple(full)


def top_k(call: Call) -> Any:
    x = call.tensor(0)
    if not call.get("largest", 1):
        raise UnsupportedError("does not choose the largest", FORMS)
    k = call.get("k") if len(call.names) < 2 else int(call.constant(1).item())
    parts = (x, int(k), sample_axis(call.get("axis", -1), x))
    return Values(*parts, bool(call.get("sorted", 1))), Indices(*parts)


def reduce_min(call: Call) -> Any:
    top = call.operand(0)
    axes = call.numbers("axes", 1)
    if not isinstance(top, Values) or axes is None:
        raise UnsupportedError("has no counterpart but as the least of a TopK's values", FORMS)
    if [sample_axis(axis, top.ranking) for axis in axes] != [top.axis]:
        raise UnsupportedError("takes the minimum along another axis than the TopK", FORMS)
    return Least(top.ranking, top.k, top.axis, not call.get("keepdims", 1))


def slice_values(call: Call) -> Any:
    top = call.operand(0)
    if not isinstance(top, Values) or not top.is_sorted:
        raise UnsupportedError("has no counterpart but of a sorted TopK's values", FORMS)
    starts, ends, axes, steps = (
        call.numbers(name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    )
    if axes is None or [sample_axis(a, top.ranking) for a in axes] != [top.axis] or not starts or not ends:
        raise UnsupportedError("slices another axis than that of the TopK", FORMS)
    chosen = range(top.k)[slice(starts[0], ends[0], steps[0] if steps else 1)]
    return _least(top, list(chosen))


def gather_values(call: Call) -> Any:
    top = call.operand(0)
    if not isinstance(top, Values) or not top.is_sorted or sample_axis(call.get("axis", 0), top.ranking) != top.axis:
        raise UnsupportedError("has no counterpart but of a sorted TopK's values, along its axis", FORMS)
    index = call.constant(1)
    least = _least(top, [int(i) % top.k for i in index.ravel()])
    return replace(least, is_dropped=index.ndim == 0)


def restore_axis(call: Call) -> Any:
    """The axis that the least lacks, put back."""
    least = call.operand(0)
    if not isinstance(least, Least) or not least.is_dropped:
        raise UnsupportedError("has no counterpart but of the least of a TopK's values", FORMS)
    rank = len(least.ranking.shape) + 1
    if [axis % rank - 1 for axis in call.numbers("axes", 1) or []] != [least.axis]:
        raise UnsupportedError("adds another axis than the TopK's", FORMS)
    return replace(least, is_dropped=False)


def _least(top: Values, chosen: list[int]) -> Least:
    if len(chosen) != 1:
        raise UnsupportedError(f"takes {len(chosen)} of a TopK's values; expected one", FORMS)
    return Least(top.ranking, chosen[0] + 1, top.axis)


def gather_elements(call: Call) -> Any:
    indices = call.operand(1)
    if not isinstance(indices, Indices) or sample_axis(call.get("axis", 0), indices.ranking) != indices.axis:
        raise UnsupportedError("has no counterpart but with the indices of a TopK, along its axis", FORMS)
    return Gathered(indices.ranking, indices.k, indices.axis, call.tensor(0))


def scatter(call: Call) -> Any:
    into, indices, updates = call.operands
    is_zero = isinstance(into, np.ndarray) and not into.any()
    if not isinstance(indices, Indices) or not is_zero or call.get("reduction", b"none") != b"none":
        raise UnsupportedError("has no counterpart but of a TopK's values into zeros", FORMS)
    if sample_axis(call.get("axis", 0), indices.ranking) != indices.axis:
        raise UnsupportedError("scatters along another axis than the TopK", FORMS)
    mask = Mask(indices.ranking, indices.k, indices.axis, indices.ranking)
    if isinstance(updates, np.ndarray) and (updates == 1).all():
        return mask
    if isinstance(updates, Values) and updates.ranking is indices.ranking:
        return choose(call, mask, indices.ranking)
    if isinstance(updates, Gathered) and updates.ranking is indices.ranking:
        return choose(call, mask, updates.source)
    raise UnsupportedError("scatters something else than the winners' values", FORMS)


def comparison(is_less: bool, or_equal: bool) -> Callable[[Call], Any]:
    """An operation that compares a ranking with the least winner, or the other way around."""

    def compare(call: Call) -> Any:
        a, b = call.operands
        flipped = isinstance(a, Least)
        least, ranking = (a, b) if flipped else (b, a)
        fits = isinstance(least, Least) and isinstance(ranking, Value) and ranking.name == least.ranking.name
        if fits and least.is_dropped:
            raise UnsupportedError("compares without the axis of the TopK", "keep it, or put it back with Unsqueeze")
        if not fits:
            raise UnsupportedError("has no counterpart but between activations and the least of their TopK", FORMS)
        below = is_less != flipped  # whether it asks for ranking below the least
        strict_above = below == or_equal  # "not ranking <= least", or "ranking > least"
        k = least.k - 1 if strict_above else least.k
        return Mask(least.ranking, k, least.axis, least.ranking, losers=below)

    return compare


def negate_mask(call: Call) -> Any:
    mask = call.operand(0)
    if not isinstance(mask, Mask):
        raise UnsupportedError("has no counterpart but of a comparison with a TopK", FORMS)
    return replace(mask, losers=not mask.losers)


def where(call: Call) -> Any:
    mask, taken, other = call.operands
    if not isinstance(mask, Mask):
        raise UnsupportedError("has no counterpart but with a comparison with a TopK", FORMS)
    zeros, i = (taken, 2) if mask.losers else (other, 1)
    if not isinstance(zeros, np.ndarray) or zeros.any():
        raise UnsupportedError("gives losers another value than 0", FORMS)
    return choose(call, replace(mask, losers=False), call.tensor(i))


def choose(call: Call, mask: Mask, source: Value) -> Value:
    """The winners among `source`, which is the ranking, or what the ranking is scaled from."""
    if mask.losers:
        raise UnsupportedError("keeps the losers", FORMS)
    ranking, factor = mask.ranking, None
    if ranking.name != source.name:
        scaled_from, constant = call.state.scaled.get(ranking.name, (None, np.ones(())))
        if scaled_from is None or scaled_from.name != source.name:
            raise UnsupportedError("ranks by something else than the values times positive constants", FORMS)
        factor = _arranged(constant, scaled_from, ranking)
    if mask.laid.shape != source.shape or not np.array_equal(mask.laid.places.ravel(), source.places.ravel()):
        raise UnsupportedError("ranks in another shape than it chooses in", FORMS)
    ranked = replace(ranking, name=source.name, places=ranking.places.reshape(source.places.shape))
    chosen = call.state.builder.k_winners(call.name, ranked, mask.k, (mask.axis,), factor)
    return replace(source, name=chosen.name)


def _arranged(factor: Any, source: Value, ranking: Value) -> Any:
    """A factor that broadcasts to the shape of what was scaled, in the shape of the ranking."""
    in_graph = np.broadcast_to(factor, source.shape).ravel()[source.places.ravel()]
    full = np.empty(in_graph.size, in_graph.dtype)
    full[ranking.places.ravel()] = in_graph
    return full.reshape(ranking.shape)


OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    "TopK": top_k,
    "ReduceMin": reduce_min,
    "GatherElements": gather_elements,
    "ScatterElements": scatter,
    "Less": comparison(is_less=True, or_equal=False),
    "LessOrEqual": comparison(is_less=True, or_equal=True),
    "Greater": comparison(is_less=False, or_equal=False),
    "GreaterOrEqual": comparison(is_less=False, or_equal=True),
    "Not": negate_mask,
}
