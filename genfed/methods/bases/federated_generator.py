"""Training a generator federatedly, and classifiers on what it makes: what methods of that kind share."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genfed.core.client import Client, Server, Slot
from genfed.core.method import Method, TrainedNetwork
from genfed.core.phase import Phase, Repeat
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.cvae import CVAE
from genfed.generators.generator import Generator, GeneratorNetwork, kept_weights, uploaded_weights
from genfed.training.classifier import Training, train
from genfed.training.fit import fit
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.pixels import denormalize_pixels

S = TypeVar("S")


@dataclass(frozen=True)
class GeneratorMemory:
    """What stays with the client between rounds: the optimisers' moments and the parts that do not travel."""

    moments: tuple[OptimizerState, ...]
    weights: Weights


@dataclass(frozen=True)
class SentGenerator:
    """A generator on its way."""

    generator: Weights


@dataclass(frozen=True)
class GeneratedSupply:
    """Where a client's generated examples come from."""

    generator: Weights
    """To draw them from; empty where a pool is sent."""
    pool: Data | None
    """Examples drawn by the server, images as uint8; left out: the client draws its own."""


@dataclass(frozen=True)
class GeneratorStart:
    """What a generator round starts from."""

    generator: Weights
    progress: float
    """Share of all generator rounds that is done, in [0, 1)."""


AT_HOME = Slot("generator", GeneratorMemory)
"""To be declared by a phase that calls `train_local_generator`."""


@settings
class FederatedGenerator(Method[S]):
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

    def new_generator(self, server: Server, task: Task) -> TrainedNetwork:
        """A new generator of `task`'s examples."""
        network = self.generator.new(task, server.common("generator")).to(server.device)
        return TrainedNetwork("the generator", network, task, network.objectives(), 'set norm = "group" for it')

    def initial_generator(self, server: Server, task: Task) -> Weights:
        """The travelling part of a new generator of `task`'s examples: the same for every method with this seed."""
        return uploaded_weights(self.generator.new(maps_task(task), server.common("generator")))

    def generator_use(self) -> DeclaredTraining:
        """Declares what `train_local_generator` does with the client's own examples, or features of them."""
        return DeclaredTraining(self.generator_epochs, self.generator_batch_size)

    def train_local_generator(
        self, client: Client, task: Task, sent: Weights, data: Data, progress: float = 0.0
    ) -> tuple[Weights, float]:
        """T_g epochs of the generator that was sent on `data` (examples of `task`), its players' moments going on from
        where this client left them, and their learning rates those of `progress` (the share of all generator rounds
        that is done). Returns its travelling part and the last epoch's mean loss.
        """
        home = client.storage.get(AT_HOME) or GeneratorMemory((), {})
        task = maps_task(task)
        network = build_generator(self.generator, client, task, sent | home.weights)
        players = network.objectives()
        for player, moments in zip(players, home.moments, strict=False):  # there are none at first
            load_optimizer_state(player.optimiser, moments)
        for player in players:
            for group in player.optimiser.param_groups:
                group["lr"] *= network.learning_rate_factor(progress)  # the optimisers are new in every round
        loss = fit(
            players,
            Data(data.x.reshape(-1, *task.shape), data.y),
            epochs=self.generator_epochs,
            batch_size=self.generator_batch_size,
            rng=client.rng,
            precision=client.precision,
            privacy=client.privacy,
        )
        client.storage.put(
            AT_HOME, GeneratorMemory(tuple(optimizer_state(p.optimiser) for p in players), kept_weights(network))
        )
        return uploaded_weights(network), loss

    def joint_rounds(self, count: int, draw: Phase[S], joint: Phase[S]) -> Repeat[S]:
        """`count` joint rounds, the pool drawn anew before each if the server draws it."""
        return Repeat(count, [draw, joint] if self.pool == "server" else [joint])

    def draw_pool(self, server: Server, task: Task, weights: Weights) -> Data:
        """A pool of examples of `task` that is as large as any client needs, labels uniform over the classes."""
        count = max(self._needed(info.examples) for info in server.clients)
        y = torch.randint(len(task.classes), (count,), generator=server.rng)
        x = self.sample_from(server, task, weights, y).cpu()
        return Data(denormalize_pixels(x) if task.kind == "image" else x, y)

    def supply(self, weights: Weights, pool: Data | None) -> GeneratedSupply:
        """What is sent for a joint round."""
        return GeneratedSupply(weights, None) if pool is None else GeneratedSupply({}, pool)

    def train_on_generated(
        self, network: nn.Module, client: Client, task: Task, supply: GeneratedSupply
    ) -> dict[str, float]:
        """Trains on T_s · max(1, ⌊n / B⌋) batches of generated examples of `task`, labels uniform over the classes.
        Returns the loss by its name in the log; nothing for T_s = 0.
        """
        count = self._needed(len(client.data))
        if not count:
            return {}
        if supply.pool is None:
            y = torch.randint(len(task.classes), (count,), generator=client.rng).to(client.device)
            generated = Data(self.sample_from(client, task, supply.generator, y), y)
        else:
            generated = supply.pool[torch.randperm(len(supply.pool), generator=client.rng)[:count]].to(client.device)
        return {"synthetic_loss": train(network, client, self.training, data=generated, epochs=1, public=True)}

    def _needed(self, examples: int) -> int:
        size = self.training.batch_size
        return self.synthetic_epochs * max(1, examples // size) * size

    def sample_from(self, where: Client | Server, task: Task, weights: Weights, y: Tensor) -> Tensor:
        """One example of `task` per label, by the generator with these weights; on `where`'s device."""
        x = build_generator(self.generator, where, task, weights).sample(y.to(where.device), where.rng)
        return x.reshape(len(y), *task.shape)


def maps_task(task: Task) -> Task:
    """The task as generators take it: features that are no maps are as many channels of 1×1."""
    if task.kind != "features" or len(task.shape) == 3:
        return task
    return replace(task, shape=(math.prod(task.shape), 1, 1))


def build_generator(generator: Generator, where: Client | Server, task: Task, weights: Weights) -> GeneratorNetwork:
    """The generator of examples of `task` with these weights, on `where`'s device; parts that they lack, since these
    never travel, have the initial weights that all clients share.
    """
    with _Unfilled():
        network = generator.new(maps_task(task), where.rng)
    if network.state_dict().keys() != weights.keys():
        # What never travels begins at every client as what travels does: with the common initial weights.
        network = generator.new(maps_task(task), where.common("generator"))
        weights = kept_weights(network) | weights
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
