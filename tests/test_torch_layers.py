"""csengine.torch: strict k-winners, complementary masks, and masks that hold through training."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from csengine.masks import matrix_from_weight, weight_from_matrix  # noqa: E402
from csengine.torch import (  # noqa: E402
    ComplementaryMask,
    KWinners,
    attach_mask,
    k_winners,
    magnitude_mask,
    mask_of,
    random_mask,
)


def winners_by_definition(values: np.ndarray, ranking: np.ndarray, k: int) -> np.ndarray:
    """One scope: exactly k winners by (ranking descending, index ascending), losers 0."""
    order = sorted(range(len(values)), key=lambda index: (-ranking[index], index))
    kept = np.zeros_like(values)
    kept[order[:k]] = values[order[:k]]
    return kept


def k_winners_by_definition(x: np.ndarray, k: int, scope: str, factor: np.ndarray | None) -> np.ndarray:
    rows = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    ranking = rows if factor is None else rows * factor
    size = rows[0].size if scope == "global" else rows.shape[-1]
    pairs = zip(rows.reshape(-1, size), ranking.reshape(-1, size), strict=True)
    kept = np.stack([winners_by_definition(values, rank, k) for values, rank in pairs]).reshape(rows.shape)
    return kept.transpose(0, 3, 1, 2) if x.ndim == 4 else kept


@st.composite
def activations(draw: st.DrawFn) -> np.ndarray:
    """Few distinct values, so that ties are frequent; of both signs."""
    shape = draw(st.sampled_from([(1, 5), (3, 17), (2, 4, 3, 2), (1, 8, 1, 1), (2, 1, 3, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(-3, 4, shape).astype(np.float32)


@settings(deadline=None)
@given(activations(), st.integers(1, 12), st.sampled_from(["local", "global"]), st.booleans())
def test_k_winners_follow_the_definition(x: np.ndarray, k: int, scope: str, boosted: bool) -> None:
    factor = np.linspace(0.5, 2, x.shape[1], dtype=np.float32) if boosted else None
    expected = k_winners_by_definition(x, k, scope, factor)
    got = k_winners(torch.from_numpy(x), k, scope, None if factor is None else torch.from_numpy(factor))
    np.testing.assert_array_equal(got.numpy(), expected)


def test_ties_go_to_the_lower_index_in_nhwc_order() -> None:
    x = torch.ones(1, 2, 2, 2)
    kept = k_winners(x, 3, "global")[0]
    assert kept[:, 0, 0].tolist() == [1, 1]
    assert kept[:, 0, 1].tolist() == [1, 0]
    assert kept[:, 1].sum() == 0


def test_memory_format_does_not_matter() -> None:
    x = torch.randint(0, 4, (3, 8, 5, 5)).float()
    for scope in ("local", "global"):
        expected = k_winners(x, 3, scope)
        assert torch.equal(k_winners(x.to(memory_format=torch.channels_last), 3, scope), expected)


def test_gradient_reaches_winners_only() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 2.0]], requires_grad=True)
    k_winners(x, 2, "global").sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 0, 1, 0]]


def test_k_of_inference_differs_when_asked() -> None:
    layer = KWinners(2, "local", k_inference=3)
    x = torch.arange(1.0, 6.0)[None]
    assert int((layer(x) != 0).sum()) == 2
    assert int((layer.eval()(x) != 0).sum()) == 3


def test_boosting_prefers_units_that_rarely_won() -> None:
    layer = KWinners(1, "local", units=3, boost_strength=5.0, duty_cycle_period=1)
    assert layer.factor is not None
    layer(torch.tensor([[1.0, 0.0, 0.9]]))
    assert layer.duty_cycle.tolist() == [1, 0, 0]
    boosted = layer(torch.tensor([[1.0, 0.0, 0.9]]))
    assert boosted.tolist() == [[0, 0, pytest.approx(0.9)]], "the value passed on is unboosted"


def test_evaluation_ranks_by_the_factor_until_boosting_ends() -> None:
    layer = KWinners(1, "local", units=2, boost_strength=2.0)
    layer.duty_cycle.copy_(torch.tensor([0.9, 0.1]))
    layer.eval()
    x = torch.tensor([[1.0, 0.8]])
    assert layer(x)[0, 1] > 0
    copy = KWinners(1, "local", units=2).eval()
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(copy(x), layer(x)), "a checkpoint keeps strength and duty cycle"
    layer.set_boost_strength(0)
    assert layer.factor is None
    assert layer(x)[0, 0] == 1


def test_duty_cycle_is_the_share_of_places_where_a_channel_is_active() -> None:
    layer = KWinners(1, "local", units=2, boost_strength=0.1, duty_cycle_period=4)
    x = torch.zeros(4, 2, 1, 2)
    x[:, 0, 0, 0] = 1
    layer(x)
    assert layer.duty_cycle.tolist() == [0.5, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: KWinners(0, "local"),
        lambda: KWinners(3, "somewhere"),  # type: ignore[arg-type]
        lambda: KWinners(3, "local", k_inference=0),
        lambda: KWinners(3, "local", boost_strength=1.0),
        lambda: KWinners(3, "local").set_boost_strength(1.0),
        lambda: k_winners(torch.zeros(2, 3, 4, 5, 6), 1, "local"),
    ],
)
def test_impossible_k_winners_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        make()  # type: ignore[operator]


def check_complementary(mask: ComplementaryMask, rows: int, kernels: int, set_size: int) -> np.ndarray:
    """Every property of a complementary mask; returns the pattern per block [row blocks, kernel blocks]."""
    u, v = mask.block
    assert mask.matrix.shape == (rows, kernels)
    assert mask.members.dtype == np.int32
    assert mask.members.shape[1] == set_size
    padded = np.pad(mask.matrix, [(0, -rows % u), (0, -kernels % v)])
    blocks = padded.reshape(len(padded) // u, u, -1, v)
    pattern = blocks.any(axis=(1, 3))
    whole = np.repeat(np.repeat(pattern, u, axis=0), v, axis=1)[:rows, :kernels]
    np.testing.assert_array_equal(mask.matrix, whole, "blocks share their pattern")
    present = mask.members[mask.members >= 0]
    np.testing.assert_array_equal(np.sort(present), np.arange(pattern.shape[1]), "each kernel block is in one set")
    for slots in mask.members:
        assert pattern[:, slots[slots >= 0]].sum(axis=1).max() <= 1, "no row block has two owners"
    return pattern


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (4, 1), (1, 16), (4, 16), (3, 2)]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_masks_are_complementary_and_use_every_row_block(
    rows: int, kernels: int, set_size: int, block: tuple[int, int], seed: int, by_magnitude: bool
) -> None:
    rng = np.random.default_rng(seed)
    if by_magnitude:
        mask = magnitude_mask(rng.standard_normal((rows, kernels)), set_size, rng=rng, block=block)
    else:
        mask = random_mask(rows, kernels, set_size, rng=rng, block=block)
    pattern = check_complementary(mask, rows, kernels, set_size)
    for slots in mask.members:
        members = slots[slots >= 0]
        assert (pattern[:, members].sum(axis=1) == 1).all(), "nothing is left unowned"
        per_member = pattern[:, members].sum(axis=0)
        assert per_member.max() - per_member.min() <= 1, "shares are even"


@pytest.mark.parametrize(
    ("rows", "kernels", "set_size", "count"), [(25, 64, 2, 12), (1600, 64, 8, 200), (1600, 1500, 25, 64)]
)
def test_the_papers_layers_get_exactly_their_weights(rows: int, kernels: int, set_size: int, count: int) -> None:
    mask = random_mask(rows, kernels, set_size, rng=np.random.default_rng(0), blocks_per_kernel=count)
    check_complementary(mask, rows, kernels, set_size)
    np.testing.assert_array_equal(mask.matrix.sum(axis=0), count)
    assert mask.members.shape == (kernels // set_size, set_size)
    assert mask.density == count / rows


def test_empty_slots_are_marked_and_spread() -> None:
    mask = random_mask(1600, 1500, 24, rng=np.random.default_rng(0), block=(1, 16))
    check_complementary(mask, 1600, 1500, 24)
    assert mask.members.shape == (4, 24)
    assert (mask.members < 0).sum(axis=1).tolist() == [0, 0, 1, 1]


def test_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="row blocks"):
        random_mask(25, 64, 2, rng=np.random.default_rng(0), blocks_per_kernel=13)


def test_magnitude_keeps_the_strongest_kernel_of_each_row() -> None:
    weights = np.array([[5.0, 1.0], [-6.0, 2.0], [0.5, 4.0], [1.0, -3.0]])
    mask = magnitude_mask(weights, 2, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(mask.matrix, [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_magnitude_sums_over_blocks() -> None:
    weights = np.array([[3.0, 0.0], [3.0, 4.0], [0.0, 1.0], [2.0, 2.0]])
    mask = magnitude_mask(weights, 2, rng=np.random.default_rng(0), block=(2, 1))
    np.testing.assert_array_equal(mask.matrix, [[1, 0], [1, 0], [0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("shape", "image"), [((6, 10), None), ((6, 24), (4, 3, 2)), ((5, 3, 2, 4), None), ((5, 1, 3, 3), None)]
)
def test_matrix_view_is_invertible(shape: tuple[int, ...], image: tuple[int, int, int] | None) -> None:
    weight = np.arange(np.prod(shape)).reshape(shape)
    matrix = matrix_from_weight(weight, image)
    assert matrix.shape == (weight[0].size, shape[0])
    np.testing.assert_array_equal(weight_from_matrix(matrix, shape, image), weight)


def test_matrix_rows_of_a_linear_behind_a_flatten_are_in_nhwc_order() -> None:
    x = torch.randn(2, 4, 3, 2)
    layer = nn.Linear(24, 5, bias=False)
    matrix = matrix_from_weight(layer.weight.detach().numpy(), (4, 3, 2))
    nhwc = x.permute(0, 2, 3, 1).flatten(1).numpy()
    np.testing.assert_allclose(nhwc @ matrix, layer(x.flatten(1)).detach().numpy(), atol=1e-5)


def test_matrix_rows_of_a_convolution_are_taps_then_channels() -> None:
    weight = np.zeros((2, 3, 2, 2))
    weight[1, 2, 0, 1] = 1  # kernel 1, channel 2, ky 0, kx 1
    assert np.argwhere(matrix_from_weight(weight)).tolist() == [[1 * 3 + 2, 1]]


@pytest.mark.parametrize("kind", ["linear", "flattened", "conv"])
def test_masks_hold_through_training_and_checkpoints(kind: str) -> None:
    torch.manual_seed(0)
    image = (3, 2, 2) if kind == "flattened" else None
    layer = nn.Conv2d(3, 8, 2) if kind == "conv" else nn.Linear(12, 8)
    x = torch.randn(16, 3, 2, 2) if kind == "conv" else torch.randn(16, 12)
    mask = random_mask(12, 8, 4, rng=np.random.default_rng(1), block=(2, 1))
    attach_mask(layer, mask, image)
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1, weight_decay=0.1)
    before = layer.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    matrix = matrix_from_weight(layer.weight.detach().numpy(), image)
    assert not torch.equal(before, layer.weight)
    np.testing.assert_array_equal(matrix != 0, mask.matrix)

    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    copy = nn.Conv2d(3, 8, 2) if kind == "conv" else nn.Linear(12, 8)
    attach_mask(copy, random_mask(12, 8, 4, rng=np.random.default_rng(2), block=(2, 1)), image)
    copy.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    restored = mask_of(copy)
    assert restored is not None
    np.testing.assert_array_equal(restored.matrix, mask.matrix)
    np.testing.assert_array_equal(restored.members, mask.members)
    assert restored.block == mask.block
    assert torch.equal(copy(x), layer(x))


def test_a_new_mask_replaces_the_old_one() -> None:
    layer = nn.Linear(8, 4)
    assert mask_of(layer) is None
    for seed in (0, 1):
        mask = random_mask(8, 4, 2, rng=np.random.default_rng(seed))
        attach_mask(layer, mask)
    found = mask_of(layer)
    assert found is not None
    np.testing.assert_array_equal(found.matrix, mask.matrix)
    assert len(layer.parametrizations["weight"]) == 1


def test_masks_of_the_wrong_size_and_grouped_convolutions_are_refused() -> None:
    mask = random_mask(8, 4, 2, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected"):
        attach_mask(nn.Linear(4, 8), mask)
    with pytest.raises(ValueError, match="groups"):
        attach_mask(nn.Conv2d(4, 4, 2, groups=2), mask)
