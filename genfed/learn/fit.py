"""Local training: players, each with its parameters, its loss and its optimiser, stepped over batches of data."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.method import Data
from genfed.core.privacy import Private
from genfed.core.rng import seeded

SCALED_AT_ONCE = 16_000_000
"""Pixels of a client that are held as floats while it trains (64 MB); with more, each batch is scaled by itself."""
Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Player:
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


def scaled(x: Tensor) -> Tensor:
    """The one scale of all models, real and generated alike: uint8 [0, 255] → float32 [−1, 1]; floats as they are."""
    return x.float().mul_(2 / 255).sub_(1) if x.dtype == torch.uint8 else x


def unscaled(x: Tensor) -> Tensor:
    """Back to pixels: float [−1, 1] → uint8 [0, 255], rounded and clamped."""
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def batches(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Rows of one shuffled epoch, `size` a batch. A last batch of one joins the batch before it, since BatchNorm has
    no variance of one example; but for size 1, where all are alike.
    """
    parts = list(torch.split(torch.randperm(n, generator=rng), size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def fit(
    players: Sequence[Player],
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    rng: torch.Generator,
    precision: str = "float32",
    privacy: Private | None = None,
) -> float:
    """Trains for `epochs` over the data, the players in turn on each batch; 0 epochs change nothing. With `privacy` by
    DP-SGD, which a client's own examples need: `rng` is then not drawn from.

    Returns the mean loss per example of the last epoch, summed over players (0.0 without an epoch, and under `privacy`,
    where no loss may be told).
    """
    if privacy is not None:
        from genfed.learn.dpsgd import fit_privately  # imports opacus, which takes seconds

        fit_privately(players, data, epochs=epochs, batch_size=batch_size, privacy=privacy)
        return 0.0
    total, device = 0.0, data.y.device
    if epochs > 1 and data.x.numel() <= SCALED_AT_ONCE:
        data = Data(scaled(data.x), data.y)
    with seeded(rng):  # dropout
        for _ in range(epochs):
            losses = []
            for rows in batches(len(data), batch_size, rng):
                rows = rows.to(device)
                x, y = scaled(data.x[rows]), data.y[rows]
                losses += [step(player, x, y, rng, precision) for player in players]
            total = float(torch.stack(losses).sum()) / len(data)
    return total


def step(player: Player, x: Tensor, y: Tensor, rng: torch.Generator, precision: str = "float32") -> Tensor:
    """One optimiser step on one batch; returns the batch's summed loss, detached."""
    with mixed(x.device, precision):
        loss = player.loss(x, y, rng)
    mean = objective = loss.float().mean()
    if player.penalty is not None:
        objective = objective + player.penalty()
    player.optimiser.zero_grad(set_to_none=True)
    objective.backward()  # type: ignore[no-untyped-call]
    player.optimiser.step()
    return mean.detach() * len(x)


def mixed(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
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


@dataclass(frozen=True)
class Moments:
    """What an optimiser remembers between rounds: by parameter number, then by name."""

    values: dict[int, dict[str, Tensor]]


def moments_of(optimiser: torch.optim.Optimizer) -> Moments:
    """The optimiser's memory as a record, on the CPU."""
    state = optimiser.state_dict()["state"]
    return Moments({i: {k: v.cpu() for k, v in s.items() if isinstance(v, Tensor)} for i, s in state.items()})


def restore(optimiser: torch.optim.Optimizer, moments: Moments | None) -> None:
    """Gives a copy of the memory back; None leaves the optimiser new."""
    if moments is not None:
        groups = optimiser.state_dict()["param_groups"]
        # An optimiser works in place, and what is loaded may be a server's state.
        optimiser.load_state_dict({"state": copy.deepcopy(moments.values), "param_groups": groups})
