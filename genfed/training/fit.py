"""Local training: players, each with its parameters, its loss and its optimiser, stepped over batches of data."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.privacy import PrivateTrainer
from genfed.core.rng import seeded
from genfed.core.task import Data
from genfed.training.pixels import normalize_pixels

SCALED_AT_ONCE = 16_000_000
"""Pixels of a client that are held as floats while it trains (64 MB); with more, each batch is scaled by itself."""
Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Objective:
    """One who minimises its own loss: a classifier, a VAE, or one side of a GAN."""

    loss: Loss
    """(x [n, *shape] scaled, y [n], rng) → one loss per example [n]."""
    optimiser: torch.optim.Optimizer
    """Over its own parameters alone."""
    penalty: Callable[[], Tensor] | None = None
    """Added to the batch's mean loss; a scalar that does not depend on the batch."""
    network: nn.Module | None = None
    """What its parameters are those of; None: it cannot be trained by DP-SGD."""
    sees_data: bool = True
    """False: of x and y its loss takes no more than their number, as the generator of a GAN."""


def batches(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Rows of one shuffled epoch, `size` a batch. A last batch of one joins the batch before it, since BatchNorm has
    no variance of one example; but for size 1, where all are alike.
    """
    parts = list(torch.split(torch.randperm(n, generator=rng), size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def fit(
    players: Sequence[Objective],
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    rng: torch.Generator,
    precision: str = "float32",
    privacy: PrivateTrainer | None = None,
) -> float:
    """Trains for `epochs` over the data, the players in turn on each batch; 0 epochs change nothing. With `privacy` by
    DP-SGD, which a client's own examples need: `rng` is then not drawn from.

    Returns the mean loss per example of the last epoch, summed over players (0.0 without an epoch, and under `privacy`,
    where no loss may be told).
    """
    if privacy is not None:
        from genfed.privacy.dp_sgd import fit_privately  # imports opacus, which takes seconds

        fit_privately(players, data, epochs=epochs, batch_size=batch_size, privacy=privacy)
        return 0.0
    total, device = 0.0, data.y.device
    if epochs > 1 and data.x.numel() <= SCALED_AT_ONCE:
        data = Data(normalize_pixels(data.x), data.y)
    with seeded(rng):  # dropout
        for _ in range(epochs):
            losses = []
            for rows in batches(len(data), batch_size, rng):
                rows = rows.to(device)
                x, y = normalize_pixels(data.x[rows]), data.y[rows]
                losses += [train_step(player, x, y, rng, precision) for player in players]
            total = float(torch.stack(losses).sum()) / len(data)
    return total


def train_step(player: Objective, x: Tensor, y: Tensor, rng: torch.Generator, precision: str = "float32") -> Tensor:
    """One optimiser step on one batch; returns the batch's summed loss, detached."""
    with mixed_precision(x.device, precision):
        loss = player.loss(x, y, rng)
    mean = objective = loss.float().mean()
    if player.penalty is not None:
        objective = objective + player.penalty()
    player.optimiser.zero_grad(set_to_none=True)
    objective.backward()  # type: ignore[no-untyped-call]
    player.optimiser.step()
    return mean.detach() * len(x)


def mixed_precision(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16 where `precision` says so; weights and optimisers stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def cross_entropy(network: nn.Module) -> Loss:
    """The loss of a classifier, one per example; y are classes [n] or soft targets [n, classes]."""

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        logits: Tensor = network(x)
        return F.cross_entropy(logits, y, reduction="none")

    return loss
