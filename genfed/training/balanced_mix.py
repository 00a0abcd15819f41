"""Training sets in which every class is as frequent as any other, of a client's own and of generated examples."""

from collections.abc import Callable

import torch
from torch import Tensor

from genfed.core.task import Data
from genfed.training.pixels import normalize_pixels


def mix_balanced(
    own: Data, count: int, classes: int, share: float, generate: Callable[[Tensor], Data], rng: torch.Generator
) -> Data:
    """Returns `count` examples, normalized, of which each class has ⌊count / classes⌋ or one more. An example of a
    class that the client has is one of its own with probability `share`, drawn with replacement; all others are
    generated.

    >>> import torch
    >>> from genfed import Data
    >>> from genfed.training.balanced_mix import mix_balanced
    >>> own = Data(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
    >>> def zeros(y):
    ...     return Data(torch.zeros(len(y), 2), y)
    >>> mixed = mix_balanced(own, 4, 2, 1.0, zeros, torch.Generator().manual_seed(0))
    >>> mixed.y.tolist(), mixed.x[:, 0].tolist()
    ([0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0])

    Args:
        own: the client's examples.
        count: number of examples to return.
        classes: number of classes of the task.
        share: probability in [0, 1] of an own example, where there is one of the class.
        generate: takes labels [m] and returns m generated examples of these labels.
        rng: draws which examples are own ones, and which of them.
    """
    device = own.y.device
    y = torch.arange(count) % classes
    held = torch.bincount(own.y.cpu(), minlength=classes) > 0
    is_own = (torch.rand(count, generator=rng) < share) & held[y]
    x = torch.empty(count, *own.x.shape[1:], device=device)
    x[is_own.to(device)] = normalize_pixels(own.x[draw_rows(own.y.cpu(), y[is_own], classes, rng).to(device)])
    if not is_own.all():
        x[~is_own.to(device)] = normalize_pixels(generate(y[~is_own]).x).to(device)
    return Data(x, y.to(device))


def draw_rows(held: Tensor, y: Tensor, classes: int, rng: torch.Generator) -> Tensor:
    """Returns for each label of y [m] a row of `held` with this label, at random with replacement. Every label of y
    must be in `held` [n].

    >>> import torch
    >>> draw_rows(torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2]), 3, torch.Generator())
    tensor([1, 1, 0])
    """
    sizes, rows = torch.bincount(held, minlength=classes), held.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    return rows[first[y] + (torch.rand(len(y), generator=rng, dtype=torch.float64) * sizes[y]).long()]
