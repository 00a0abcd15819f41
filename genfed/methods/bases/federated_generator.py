"""Training a generator federatedly, and classifiers on what it makes: what methods of that kind share."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genfed.core.client import Client, Server, Slot
from genfed.core.method import Method, Trained
from genfed.core.phase import Phase, Repeat
from genfed.core.privacy import Use
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.cvae import CVAE
from genfed.generators.generator import Generator, GeneratorNetwork, staying, travelling
from genfed.training.classifier import Training, train
from genfed.training.fit import fit
from genfed.training.optimizer_state import Moments, moments_of, restore
from genfed.training.pixels import unscaled

S = TypeVar("S")


@dataclass(frozen=True)
class AtHome:
    """What stays with the client between rounds: the optimisers' moments and the parts that do not travel."""

    moments: tuple[Moments, ...]
    weights: Weights


@dataclass(frozen=True)
class Generated:
    """A generator on its way."""

    generator: Weights


@dataclass(frozen=True)
class Supply:
    """Where a client's generated examples come from."""

    generator: Weights
    """To draw them from; empty where a pool is sent."""
    pool: Data | None
    """Examples drawn by the server, images as uint8; left out: the client draws its own."""


@dataclass(frozen=True)
class ToTrain:
    """What a generator round starts from."""

    generator: Weights
    progress: float
    """Share of all generator rounds that is done, in [0, 1)."""


AT_HOME = Slot("generator", AtHome)
"""To be declared by a phase that calls `train_at_home`."""


@settings
class Generative(Method[S]):
    """What methods share that train a generator federatedly and classifiers on what it makes: GeFL's two forms."""

    minimum_examples = 2  # BatchNorm on 1×1 maps has no variance of one example

    generator: InstanceOf[Generator] = Field(default_factory=lambda: CVAE())
    """The conditional generator that all clients train together."""
    generator_rounds: Annotated[int, Field(ge=0)] = 100
    """Rounds of generator training before the joint rounds (T_KA)."""
    generator_epochs: Annotated[int, Field(ge=0)] = 5
    """Local epochs in a generator round (T_g)."""
    generator_batch_size: Annotated[int, Field(ge=2)] = 64
    """Examples per generator step."""
    rounds: Annotated[int, Field(ge=0)] = 50
    """Joint rounds, in which the classifiers are trained (T_TN)."""
    synthetic_epochs: Annotated[int, Field(ge=0)] = 1
    """In a joint round: epochs on generated examples, as many steps each as an epoch of real ones (T_s)."""
    pool: Literal["client", "server"] = "client"
    """Who draws the generated examples of a joint round: each client its own, as in the paper, or the server one pool
    for all, which is mostly smaller than a generator and spares weak clients the drawing."""
    training: Training = Field(default_factory=Training)
    """In a joint round: training on real examples (T_r = epochs); generated ones use the same optimiser settings."""

    def new_generator(self, server: Server, task: Task) -> Trained:
        """A new generator of `task`'s examples."""
        return Trained("the generator", self.generator.new(task, server.common("generator")), task)

    def initial_generator(self, server: Server, task: Task) -> Weights:
        """The travelling part of a new generator of `task`'s examples: the same for every method with this seed."""
        return travelling(self.generator.new(as_maps(task), server.common("generator")))

    def generator_use(self) -> Use:
        """What a phase declares that calls `train_at_home` with the client's own examples, or features of them."""
        return Use(self.generator_epochs, self.generator_batch_size)

    def train_at_home(
        self, client: Client, task: Task, sent: Weights, data: Data, progress: float = 0.0
    ) -> tuple[Weights, float]:
        """T_g epochs of the generator that was sent on `data` (examples of `task`), its players' moments going on from
        where this client left them, and their learning rates those of `progress` (the share of all generator rounds
        that is done). Returns its travelling part and the last epoch's mean loss.
        """
        home = client.kept.get(AT_HOME) or AtHome((), {})
        task = as_maps(task)
        network = loaded(self.generator, client, task, sent | home.weights)
        players = network.players()
        for player, moments in zip(players, home.moments, strict=False):  # there are none at first
            restore(player.optimiser, moments)
        for player in players:
            for group in player.optimiser.param_groups:
                group["lr"] *= network.pace(progress)  # the optimisers are new in every round
        loss = fit(
            players,
            Data(data.x.reshape(-1, *task.shape), data.y),
            epochs=self.generator_epochs,
            batch_size=self.generator_batch_size,
            rng=client.rng,
            precision=client.precision,
            privacy=client.privacy,
        )
        client.kept.put(AT_HOME, AtHome(tuple(moments_of(p.optimiser) for p in players), staying(network)))
        return travelling(network), loss

    def joint_rounds(self, count: int, draw: Phase[S], joint: Phase[S]) -> Repeat[S]:
        """`count` joint rounds, the pool drawn anew before each if the server draws it."""
        return Repeat(count, [draw, joint] if self.pool == "server" else [joint])

    def draw_pool(self, server: Server, task: Task, weights: Weights) -> Data:
        """A pool of examples of `task` that is as large as any client needs, labels uniform over the classes."""
        count = max(self._needed(info.examples) for info in server.clients)
        y = torch.randint(len(task.classes), (count,), generator=server.rng)
        x = self.drawn(server, task, weights, y).cpu()
        return Data(unscaled(x) if task.kind == "image" else x, y)

    def supply(self, weights: Weights, pool: Data | None) -> Supply:
        """What is sent for a joint round."""
        return Supply(weights, None) if pool is None else Supply({}, pool)

    def train_on_generated(self, network: nn.Module, client: Client, task: Task, supply: Supply) -> dict[str, float]:
        """Trains on T_s · max(1, ⌊n / B⌋) batches of generated examples of `task`, labels uniform over the classes.
        Returns the loss by its name in the log; nothing for T_s = 0.
        """
        count = self._needed(len(client.data))
        if not count:
            return {}
        if supply.pool is None:
            y = torch.randint(len(task.classes), (count,), generator=client.rng).to(client.device)
            generated = Data(self.drawn(client, task, supply.generator, y), y)
        else:
            generated = supply.pool[torch.randperm(len(supply.pool), generator=client.rng)[:count]].to(client.device)
        return {"synthetic_loss": train(network, client, self.training, data=generated, epochs=1, public=True)}

    def _needed(self, examples: int) -> int:
        size = self.training.batch_size
        return self.synthetic_epochs * max(1, examples // size) * size

    def drawn(self, where: Client | Server, task: Task, weights: Weights, y: Tensor) -> Tensor:
        """One example of `task` per label, by the generator with these weights; on `where`'s device."""
        x = loaded(self.generator, where, task, weights).sample(y.to(where.device), where.rng)
        return x.reshape(len(y), *task.shape)


def as_maps(task: Task) -> Task:
    """The task as generators take it: features that are no maps are as many channels of 1×1."""
    if task.kind != "features" or len(task.shape) == 3:
        return task
    return replace(task, shape=(math.prod(task.shape), 1, 1))


def loaded(generator: Generator, where: Client | Server, task: Task, weights: Weights) -> GeneratorNetwork:
    """The generator of examples of `task` with these weights, on `where`'s device; parts that they lack, since these
    never travel, have the initial weights that all clients share.
    """
    with _Unfilled():
        network = generator.new(as_maps(task), where.rng)
    if network.state_dict().keys() != weights.keys():
        # What never travels begins at every client as what travels does: with the common initial weights.
        network = generator.new(as_maps(task), where.common("generator"))
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
