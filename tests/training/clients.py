"""A client without a federation."""

import torch

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Slot
from genfed.core.task import Data, Task


class Keeps:
    def get(self, slot: Slot[object]) -> None:
        raise AssertionError

    def put(self, slot: Slot[object], record: object) -> None:
        raise AssertionError


def client_of(data: Data, classes: int, number: int = 0, seed: int = 0) -> Client:
    def none(architecture: str, rng: torch.Generator) -> torch.nn.Module:
        raise AssertionError

    task = Task("image", tuple(data.x.shape[1:]), tuple(map(str, range(classes))))
    info = ClientInfo(number, "a", len(data))
    cpu, rng = torch.device("cpu"), torch.Generator().manual_seed(seed)
    return Client(info, task, data, Keeps(), rng, seed, cpu, "float32", none)  # type: ignore[arg-type]
