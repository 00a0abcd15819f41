"""One client's part in training a generator federatedly, and drawing from what came of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genfed.core.method import Client, Data, Server, Slot, Task, Weights
from genfed.generators.generator import Generator, GeneratorNetwork, staying, travelling
from genfed.learn.fit import Moments, fit, moments_of, restore


@dataclass(frozen=True)
class AtHome:
    """What stays with the client between rounds: the optimisers' moments and the parts that do not travel."""

    moments: tuple[Moments, ...]
    weights: Weights


AT_HOME = Slot("generator", AtHome)
"""To be declared by a phase that calls `train_round`."""


def initial(generator: Generator, server: Server, task: Task) -> Weights:
    """The travelling part of a new generator of `task`'s examples: the same for every method with this seed."""
    return travelling(generator.new(task, server.common("generator")))


def train_round(
    generator: Generator, client: Client, task: Task, sent: Weights, data: Data, *, epochs: int, batch_size: int
) -> tuple[Weights, float]:
    """Trains the generator that was sent on `data` (examples of `task`), its players' moments going on from where this
    client left them. Returns its travelling part and the last epoch's mean loss.
    """
    home = client.kept.get(AT_HOME) or AtHome((), {})
    network = _loaded(generator, client, task, sent | home.weights)
    players = network.players()
    for player, moments in zip(players, home.moments, strict=False):  # there are none at first
        restore(player.optimiser, moments)
    loss = fit(players, data, epochs=epochs, batch_size=batch_size, rng=client.rng, precision=client.precision)
    client.kept.put(AT_HOME, AtHome(tuple(moments_of(p.optimiser) for p in players), staying(network)))
    return travelling(network), loss


def draw(generator: Generator, where: Client | Server, task: Task, weights: Weights, y: Tensor) -> Tensor:
    """One example of `task` per label, by the generator with these weights; on `where`'s device."""
    return _loaded(generator, where, task, weights).sample(y.to(where.device), where.rng)


def draw_batches(
    generator: Generator, client: Client, task: Task, weights: Weights, *, epochs: int, batch_size: int
) -> Data:
    """Epochs · max(1, ⌊n / batch_size⌋) batches, where n is the client's number of examples; labels uniform over the
    classes. Empty for 0 epochs.
    """
    count = epochs * max(1, len(client.data) // batch_size) * batch_size
    y = torch.randint(len(task.classes), (count,), generator=client.rng).to(client.device)
    return Data(draw(generator, client, task, weights, y), y)


def _loaded(generator: Generator, where: Client | Server, task: Task, weights: Weights) -> GeneratorNetwork:
    before = where.rng.get_state()
    with _Unfilled():
        network = generator.new(task, where.rng)
    if network.state_dict().keys() != weights.keys():
        # What never travels is the new network's own until the client has kept some.
        where.rng.set_state(before)
        network = generator.new(task, where.rng)
        weights = staying(network) | weights
    network.load_state_dict(weights)
    return network.to(where.device)


class _Unfilled(TorchFunctionMode):
    """Leaves out the random filling of new tensors, a tenth of the time that a client takes to sample: they are loaded
    right after.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))
