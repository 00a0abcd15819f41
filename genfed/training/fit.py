"""Local training: objectives, each with its parameters, loss and optimizer, stepped over batches of data."""

import contextlib
import itertools
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
"""Maximum number of a client's pixels that are held as floats while it trains (64 MB). With more, each batch is
normalized separately."""
Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss and the optimizer that minimizes it: of a classifier, a VAE, or one side of a GAN.

    >>> import torch
    >>> from genfed import Objective
    >>> network = torch.nn.Linear(2, 1)
    >>> def squared_error(x, y, rng):
    ...     return (network(x)[:, 0] - y).square()
    >>> objective = Objective(squared_error, torch.optim.SGD(network.parameters(), lr=0.1), network=network)
    >>> objective.loss(torch.zeros(3, 2), torch.zeros(3), torch.Generator()).shape
    torch.Size([3])
    """

    loss: Loss
    """Function (x [n, *shape] normalized, y [n], rng) → one loss per example [n]."""
    optimizer: torch.optim.Optimizer
    """Optimizer of this objective's own parameters."""
    penalty: Callable[[], Tensor] | None = None
    """Function that returns a scalar, which is added to the batch's mean loss and does not depend on the batch. None:
    no penalty."""
    network: nn.Module | None = None
    """Network that holds the parameters. None: it cannot be trained by DP-SGD."""
    sees_data: bool = True
    """Whether the loss uses x and y. False: it uses only their number, as the generator of a GAN does."""


def batches(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yields the shuffled rows of one epoch in batches. A last batch of one example is joined to the batch before it,
    since BatchNorm has no variance of one example, unless `size` is 1.

    Args:
        n: number of examples.
        size: examples per batch.
        rng: draws the order.
    """
    parts = list(torch.split(torch.randperm(n, generator=rng), size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def fit(
    objectives: Sequence[Objective],
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    rng: torch.Generator,
    precision: str = "float32",
    privacy: PrivateTrainer | None = None,
) -> float:
    """Trains on the data; on each batch, every objective takes a step in turn. 0 epochs change nothing.

    Returns the mean loss per example of the last epoch, summed over objectives. Returns 0.0 if there is no epoch, or
    with `privacy`, since a loss would reveal something about the examples.

    >>> import torch
    >>> from genfed import Data, Objective, fit
    >>> network, x = torch.nn.Linear(2, 1), torch.randn(40, 2)
    >>> def squared_error(x, y, rng):
    ...     return (network(x)[:, 0] - y).square()
    >>> objective = Objective(squared_error, torch.optim.SGD(network.parameters(), lr=0.1))
    >>> data = Data(x, x[:, 0] - 2 * x[:, 1])
    >>> fit([objective], data, epochs=50, batch_size=10, rng=torch.Generator().manual_seed(0)) < 0.01
    True

    Args:
        objectives: the losses and optimizers; each has its own parameters.
        data: the examples.
        epochs: number of times that every example is used.
        batch_size: examples per batch.
        rng: draws the order of the examples and the random numbers of losses.
        precision: see `mixed_precision`.
        privacy: trains instead of this function, and does not draw from `rng`. Pass `client.privacy` for a client's own
            examples. None: no differential privacy.
    """
    if privacy is not None:
        privacy.fit(objectives, data, epochs=epochs, batch_size=batch_size)
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
                losses += [train_step(objective, x, y, rng, precision) for objective in objectives]
            total = float(torch.stack(losses).sum()) / len(data)
    return total


def fit_steps(
    objectives: Sequence[Objective],
    data: Data,
    *,
    steps: int,
    batch_size: int,
    rng: torch.Generator,
    precision: str = "float32",
) -> float:
    """Trains as `fit` does, for a number of batches in place of epochs; further epochs begin as long as batches are
    missing. Returns the mean loss per example of all steps, summed over objectives; 0.0 if there is no step.

    Args:
        objectives: see `fit`.
        data: the examples.
        steps: number of batches.
        batch_size: examples per batch.
        rng: see `fit`.
        precision: see `mixed_precision`.
    """
    losses, seen, device = [], 0, data.y.device
    endless = itertools.chain.from_iterable(batches(len(data), batch_size, rng) for _ in itertools.count())
    with seeded(rng):  # dropout
        for rows in itertools.islice(endless, steps):
            x, y = normalize_pixels(data.x[rows.to(device)]), data.y[rows.to(device)]
            losses += [train_step(objective, x, y, rng, precision) for objective in objectives]
            seen += len(rows)
    return float(torch.stack(losses).sum()) / seen if losses else 0.0


def train_step(objective: Objective, x: Tensor, y: Tensor, rng: torch.Generator, precision: str = "float32") -> Tensor:
    """Takes one optimizer step on one batch, and returns the batch's summed loss, detached."""
    with mixed_precision(x.device, precision):
        loss = objective.loss(x, y, rng)
    mean = total = loss.float().mean()
    if objective.penalty is not None:
        total = total + objective.penalty()
    objective.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    objective.optimizer.step()
    return mean.detach() * len(x)


def mixed_precision(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Returns an autocast to bfloat16 if `precision` is "bfloat16". Weights and optimizers stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def cross_entropy(network: nn.Module) -> Loss:
    """Returns a classifier's cross-entropy, one per example; y are classes [n] or soft targets [n, classes]."""

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        logits: Tensor = network(x)
        return F.cross_entropy(logits, y, reduction="none")

    return loss
