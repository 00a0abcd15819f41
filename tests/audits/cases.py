"""A trial for audits to meet, made by hand: what is in it is known."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfed.audits.audit import Case, ClientExamples
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.rng import stream
from genfed.core.task import Data, Task

CLASSES = 3
ROUNDS = {"statistics": 0, "generator": 0, "whiten": 0}
"""All clients took part in these phases."""


def task(side: int = 8) -> Task:
    return Task("image", (1, side, side), ("a", "b", "c"))


def drawn(n: int, *path: str, side: int = 8) -> Data:
    """Images of three classes, each its own blurred pattern in noise."""
    rng, y = stream(3, *path), torch.arange(n) % CLASSES
    patterns = torch.rand(CLASSES, 1, side, side, generator=stream(3, "patterns"))
    x = 128 + 80 * (patterns[y] - 0.5) + 25 * torch.randn(n, 1, side, side, generator=rng)
    return Data(x.clamp(0, 255).byte(), y)


def server(*path: str | int) -> Server:
    def never(architecture: str, rng: torch.Generator) -> nn.Module:
        raise AssertionError(architecture)

    return Server(task(), (), 0, stream(0, *path), 0, torch.device("cpu"), "float32", never)


def case(*, train: int = 240, held_out: int = 480, clients: int = 2, **changes: Any) -> Case:
    """Examples are shared out in turn; what is not given cannot be used."""

    def unused(*given: object) -> Any:
        raise AssertionError("not given")

    infos = [ClientInfo(i, "linear", train // clients) for i in range(clients)]
    fields: dict[str, Any] = {
        "label": "toy", "method": None, "task": task(), "seed": 0, "device": torch.device("cpu"),
        "train": drawn(train, "train"), "held_out": drawn(held_out, "held out"),
        "holdings": tuple(
            ClientExamples(info, torch.arange(i, train, clients), None, ROUNDS) for i, info in enumerate(infos)
        ),
        "server": server, "state": None, "samples": unused, "classifier": unused, "retrained": unused,
    }  # fmt: skip
    return Case(**fields | changes)


def samples_of(x: Tensor, y: Tensor) -> Any:
    """A generator that gives these, whatever is asked for."""
    return lambda labels, purpose: Data(x, y)


def joined(parts: Sequence[Data]) -> Data:
    return Data(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
