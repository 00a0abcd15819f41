"""Histograms of oriented gradients, computed by hand."""

import math

import pytest
import torch

from genfed import GenfedError, Task
from genfed.encoders.hog import HOG


def network(shape: tuple[int, int, int], **settings: int) -> torch.nn.Module:
    return HOG(**settings).new(Task("image", shape, ("a", "b")), torch.Generator())


def test_two_edges_by_hand() -> None:
    """A step to the right in the upper cell, one down in the lower: 0° and 90°."""
    x = torch.zeros(1, 1, 8, 4)
    x[0, 0, :4, 2:] = 1.0
    x[0, 0, 6:] = 1.0
    cells = network((1, 8, 4), orientations=2, cell=4, block=1)._count_directions(x)  # type: ignore[operator]
    # Upper cell: gradients of 1 to the right in columns 1 and 2 of rows 0 to 3, but in row 3 the pixels below are 0
    # where those above are 1, so column 2 there points down by 1 as well, √2 at −45° = 135°. Borders have none.
    assert cells[0, 0, 0, 0].item() == pytest.approx(7 / 16)
    assert cells[0, 1, 0, 0].item() == pytest.approx((math.sqrt(2) + 1) / 16)
    # Lower cell: row 4 sees row 3 above it, −1 in columns 2 and 3; rows 5 and 6 have a step of 1 down in all columns.
    assert cells[0, 0, 1, 0].item() == pytest.approx(0.0)
    assert cells[0, 1, 1, 0].item() == pytest.approx((2 + 8) / 16)


def test_the_strongest_channel_counts() -> None:
    x = torch.zeros(1, 3, 4, 4)
    x[0, 0, :, 2:] = 0.5
    x[0, 2, 2:] = 1.0
    cells = network((3, 4, 4), orientations=2, cell=4, block=1)._count_directions(x)  # type: ignore[operator]
    alone = network((1, 4, 4), orientations=2, cell=4, block=1)._count_directions(x[:, 2:])  # type: ignore[operator]
    assert cells[0, 1].item() == pytest.approx(alone[0, 1].item())
    assert cells[0, 0].item() == pytest.approx(4 * 0.5 / 16)  # rows 0 and 3, where the other has no gradient


def test_blocks_have_norm_1_and_no_number_far_above_the_others() -> None:
    x = torch.rand(3, 1, 28, 28) * 2 - 1
    features = network((1, 28, 28))(x)
    assert features.shape == (3, 3 * 3 * 4 * 9)
    blocks = features.view(3, 9, 36) / 36**0.5  # features have mean square 1, blocks are alike
    torch.testing.assert_close(blocks.square().sum(2), torch.full((3, 9), 1.0), atol=1e-4, rtol=0)
    assert float(blocks.max()) < 0.2 * 2


def test_contrast_does_not_matter() -> None:
    x, encoder = torch.rand(2, 1, 14, 14), network((1, 14, 14))
    torch.testing.assert_close(encoder(x), encoder(0.3 * x - 0.5), atol=1e-3, rtol=1e-3)


def test_an_even_image_has_features_of_zero() -> None:
    assert not network((1, 14, 14))(torch.ones(2, 1, 14, 14)).any()


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Task("table", (5,), ("a", "b")), "encoder hog takes images; the examples are a table"),
        (Task("image", (1, 13, 28), ("a", "b")), "images of 13×28 have no block"),
    ],
)
def test_refuses(task: Task, reason: str) -> None:
    with pytest.raises(GenfedError, match=reason):
        HOG().new(task, torch.Generator())
