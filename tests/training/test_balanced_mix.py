"""Training sets of own and generated examples, whose classes are equally frequent."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genfed.core.task import Data
from genfed.training.balanced_mix import draw_rows, mix_balanced


def own(y: list[int]) -> Data:
    """Examples [label, row + 1]."""
    return Data(torch.tensor([[c, i + 1.0] for i, c in enumerate(y)]).reshape(-1, 2), torch.tensor(y))


def generate(y: torch.Tensor) -> Data:
    """Examples [label, 0]."""
    return Data(torch.stack([y.float(), torch.zeros(len(y))], 1), y)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 2**32),
)
def test_composition(y: list[int], count: int, share: float, seed: int) -> None:
    mixed = mix_balanced(own(y), count, 5, share, generate, torch.Generator().manual_seed(seed))
    sizes = torch.bincount(mixed.y, minlength=5)
    assert len(mixed) == count
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(mixed.x[:, 0], mixed.y.float())  # every example is of its label
    is_own = mixed.x[:, 1] > 0
    held = torch.tensor([c in y for c in mixed.y.tolist()])
    assert not is_own[~held].any()
    if share in (0.0, 1.0):
        assert torch.equal(is_own, held if share else torch.zeros(count, dtype=torch.bool))


def test_own_examples_have_their_share_and_are_all_used() -> None:
    mixed = mix_balanced(own([1] * 10), 4000, 2, 0.25, generate, torch.Generator().manual_seed(0))
    rows = mixed.x[:, 1][mixed.x[:, 1] > 0]
    assert abs(len(rows) / 2000 - 0.25) < 0.05
    assert set(rows.tolist()) == {float(i) for i in range(1, 11)}


def test_pixels_are_normalized_alike() -> None:
    pixels = Data(torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([0, 1]))
    pool = Data(torch.full((3, 1), 255, dtype=torch.uint8), torch.tensor([2, 2, 2]))
    mixed = mix_balanced(pixels, 3, 3, 1.0, lambda y: pool[: len(y)], torch.Generator())
    assert mixed.x.flatten().tolist() == [-1.0, 1.0, 1.0]


def test_rows_are_of_their_label() -> None:
    held, y = torch.tensor([3, 0, 3, 1]), torch.tensor([3, 3, 1, 0, 3] * 20)
    rows = draw_rows(held, y, 5, torch.Generator().manual_seed(0))
    assert torch.equal(held[rows], y)
    assert set(rows.tolist()) == {0, 1, 2, 3}
