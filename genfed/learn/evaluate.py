"""What a network makes of examples, and scoring a classifier by what it classifies right of each class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.method import Data, Server, Weights
from genfed.learn.fit import mixed, scaled
from genfed.learn.weights import load_weights

_SCORE = 1e6
"""Beyond it a classifier has diverged."""


@dataclass(frozen=True)
class Counts:
    """Per class [classes] int64: test examples, and how many of them were classified right."""

    correct: Tensor
    total: Tensor


@torch.no_grad()
def predicted(network: nn.Module, x: Tensor, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """What the network gives, [n, …] float32 of examples as `Data.x` has them; in eval mode, without gradients."""
    network.eval()
    parts = []
    for some in torch.split(x, batch_size):
        with mixed(x.device, precision):
            out: Tensor = network(scaled(some))
        parts.append(out.float())
    return torch.cat(parts)


def count(network: nn.Module, data: Data, classes: int, precision: str = "float32", batch_size: int = 500) -> Counts:
    """Classifies all examples in eval mode."""
    return tally(hits(network, data, precision, batch_size), data.y.cpu(), classes)


def hits(network: nn.Module, data: Data, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """Which examples are classified right in eval mode: bool [n], on the CPU."""
    return (predicted(network, data.x, precision, batch_size).argmax(1) == data.y).cpu()


def tally(hit: Tensor, y: Tensor, classes: int) -> Counts:
    """Counts examples of the classes y [n] and those that were hit, bool [n]; both on the CPU."""
    return Counts(torch.bincount(y[hit], minlength=classes), torch.bincount(y, minlength=classes))


def weighted(counts: Counts, held: Tensor) -> float | None:
    """Accuracy with each class weighted by its share in `held`, numbers of examples [classes]. A class that was not
    tested is left out and the others make up for it; None: no class is left.
    """
    weights = torch.where(counts.total > 0, held, 0).double()
    if not weights.any():
        return None
    return float((weights * counts.correct / counts.total.clamp(min=1)).sum() / weights.sum())


def check_form(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuses a part of an upload that is of another type or shape; for `Phase.check`.

    Raises:
        GenfedError: it is.
    """
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise GenfedError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; {dtype} {shape} is allowed")


def check_counts(server: Server, info: ClientInfo, counts: Tensor) -> None:
    """Refuses an upload that is no count of the client's examples by class; for `Phase.check`.

    Raises:
        GenfedError: it is not int64 [classes], or does not add up to the number of the client's examples.
    """
    classes = len(server.task.classes)
    if counts.dtype != torch.int64 or counts.shape != (classes,):
        raise GenfedError(f"counts are {counts.dtype} {tuple(counts.shape)}; torch.int64 ({classes},) are allowed")
    if bool((counts < 0).any()) or sum(counts.tolist()) != info.examples:
        raise GenfedError(f"counts do not add up to the {info.examples} examples of the client, each 0 or more")


def check_classifier(server: Server, info: ClientInfo, weights: Weights) -> None:
    """Refuses an upload that is no working classifier of the client's architecture; for `Phase.check`.

    Raises:
        GenfedError: it has other parts or shapes, or its scores of noise are beyond all measure.
    """
    draws, shape = server.common("check"), (4, *server.task.shape)
    network = server.new_network(info.architecture, draws)
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if unlike := own.items() ^ {name: tuple(value.shape) for name, value in weights.items()}.items():
        raise GenfedError(f"its classifier is no {info.architecture}: {min(unlike)[0]!r} is not as there")
    noise = torch.randn(shape, generator=draws)
    if server.task.kind == "image":
        noise = noise.mul_(50).add_(128).clamp_(0, 255).byte()
    scores = predicted(load_weights(network, weights), noise.to(server.device))
    if not bool((scores.abs() < _SCORE).all()):
        raise GenfedError("its classifier has diverged: scores of noise are not finite or beyond a million")
