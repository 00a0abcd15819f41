"""A small table for tests of generators of rows."""

import torch
from torch import Tensor

from genfed import Data, Task
from genfed.core.task import Column

CELLS = ((-2.0, -2.0), (-1.0, -1.0), (0.0, 0.5), (1.0, 2.0))
TASK = Task(
    "table",
    (7,),
    ("no", "yes"),
    (
        Column("age", 0, 1, CELLS, (0.25, 0.25, 0.25, 0.25), gap=1),
        Column("sex", 2, 2),
        Column("town", 4, 3),
    ),
)
"""Codes: age 0 to 3, 4 where it is missing; sex 0 or 1; town 0 to 2."""


def encode(codes: Tensor) -> Tensor:
    """Rows with these codes [n, 3]; a code of −1 is a category that is not known."""
    x = torch.zeros(len(codes), 7)
    middles = torch.tensor([-2.0, -1.0, 0.2, 1.5, 0.0])
    x[:, 0], x[:, 1] = middles[codes[:, 0]], (codes[:, 0] == 4).float()
    for first, column in ((2, 1), (4, 2)):
        for code in range(3):
            rows = codes[:, column] == code
            x[rows, first + code] = 1
    return x


def draw_table(count: int = 2000, seed: int = 0) -> tuple[Data, Tensor]:
    """Rows, and their codes: age depends on the label, sex on age, and town on the sex and the label together."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (count,), generator=rng)
    age = torch.randint(3, (count,), generator=rng) + y + (torch.rand(count, generator=rng) < 0.1).long() * (1 - y)
    sex = ((age > 1) ^ (torch.rand(count, generator=rng) < 0.1)).long()
    town = torch.where(torch.rand(count, generator=rng) < 0.8, (sex + y) % 3, 2)
    codes = torch.stack([age, sex, town], dim=1)
    return Data(encode(codes), y), codes
