"""Base of GeFL and GeFL-F: clients train a generator together, and classifiers on generated examples."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.method import Method, TrainedNetwork
from genfed.core.phase import Phase, Reduced, Repeat, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.cvae import CVAE
from genfed.generators.generator import Generator, GeneratorNetwork, check_size, kept_weights, uploaded_weights
from genfed.training.classifier import Training, train
from genfed.training.fit import fit
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.pixels import denormalize_pixels

S = TypeVar("S")
MOST_GENERATED = 2**31
"""Maximum count of numbers in the generated examples that a client, or the server, draws at once (8 GiB)."""


@dataclass(frozen=True)
class GeneratorMemory:
    """What a client stores of the generator between rounds: optimizer states, and the parts that are not uploaded."""

    moments: tuple[OptimizerState, ...]
    weights: Weights


@dataclass(frozen=True)
class SentGenerator:
    """The uploaded part of a generator."""

    generator: Weights


@dataclass(frozen=True)
class GeneratedSupply:
    """The source of a client's generated examples."""

    generator: Weights
    """Generator that the client draws examples from. Empty: a pool is sent."""
    pool: Data | None
    """Examples drawn by the server, images as uint8. None: the client draws its own."""


@dataclass(frozen=True)
class GeneratorStart:
    """What a client is sent in a generator round."""

    generator: Weights
    progress: float
    """Completed share of all generator rounds, in [0, 1)."""


GENERATOR_MEMORY = Slot("generator", GeneratorMemory)
"""Slot that a phase declares if it calls `train_local_generator`."""


@settings
class FederatedGenerator(Method[S]):
    """Base of methods whose clients train a generator together, then classifiers on generated and on real examples."""

    minimum_examples = 2  # BatchNorm on 1×1 maps has no variance of one example

    generator: InstanceOf[Generator] = Field(default_factory=lambda: CVAE())
    """Conditional generator that all clients train together."""
    generator_rounds: Annotated[int, Field(ge=0)] = 100
    """Rounds of generator training before the joint rounds (T_KA)."""
    generator_epochs: Annotated[int, Field(ge=0)] = 5
    """Local epochs in a generator round (T_g)."""
    generator_batch_size: Annotated[int, Field(ge=2)] = 64
    """Examples per generator step."""
    rounds: Annotated[int, Field(ge=0)] = 50
    """Joint rounds, in which the classifiers are trained (T_TN)."""
    synthetic_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs on generated examples in a joint round, each with as many steps as an epoch on real ones (T_s)."""
    pool: Literal["client", "server"] = "client"
    """Where the generated examples of a joint round are drawn. "client": each client draws its own, as in the paper.
    "server": the server draws one pool for all, which is often smaller than a generator and saves clients the work."""
    training: Training = Field(default_factory=Training)
    """Training on real examples in a joint round (T_r = epochs); generated ones use the same optimizer settings."""

    def new_generator(self, server: Server, task: Task) -> TrainedNetwork:
        """Returns a new generator of examples of `task`."""
        task = maps_task(task)
        check_size(self.generator, task)
        network = self.generator.new(task, server.common("generator")).to(server.device)
        return TrainedNetwork("the generator", network, task, network.objectives(), 'set norm = "group" for it')

    def initial_generator(self, server: Server, task: Task) -> Weights:
        """Returns the uploaded part of a new generator of `task`, the same in every method with this seed.

        Raises:
            GenfedError: the generator is too large, or the pool that the server will draw; see `draw_pool`.
        """
        if self.pool == "server" and server.clients:
            self._pool_size(server, task)  # refused before training
        check_size(self.generator, maps_task(task))
        return uploaded_weights(self.generator.new(maps_task(task), server.common("generator")))

    def declare_generator(self) -> DeclaredTraining:
        """Returns the declaration of `train_local_generator`, for training on examples or their features."""
        return DeclaredTraining(self.generator_epochs, self.generator_batch_size)

    def generator_phase(
        self,
        update: Callable[[Server, S, Reduced], S],
        send: Callable[[Server, S, ClientInfo], Any],
        work: Callable[[Client, Any], Reply[SentGenerator]],
        slots: tuple[Slot[Any], ...] = (),
    ) -> Phase[S]:
        """Returns the phase "generator", in which clients train the generator and the server averages it, all alike.

        Args:
            update: takes the mean into the state.
            send: as in `Phase`.
            work: trains the generator on a client by `train_local_generator`.
            slots: slots that `work` needs besides the generator's.
        """
        return Phase(
            "generator",
            update,
            send,
            work,
            aggregate={"generator": Mean(equal=True)},
            rounds=self.generator_rounds,
            slots=(GENERATOR_MEMORY, *slots),
            changes_classifier=False,
        )

    def train_local_generator(
        self, client: Client, task: Task, sent: Weights, data: Data, progress: float = 0.0
    ) -> tuple[Weights, float]:
        """Trains a generator on the client for T_g epochs. The optimizers go on from their last state on this client.

        Args:
            client: the client.
            task: task of the examples that are generated.
            sent: the generator that was sent.
            data: examples of `task`.
            progress: completed share of all generator rounds, by which the learning rates change.

        Returns:
            The uploaded part of the generator, and the mean loss of the last epoch.
        """
        stored = client.storage.get(GENERATOR_MEMORY) or GeneratorMemory((), {})
        task = maps_task(task)
        network = build_generator(self.generator, client, task, sent | stored.weights)
        objectives = network.objectives()
        for objective, moments in zip(objectives, stored.moments, strict=False):  # there are none at first
            load_optimizer_state(objective.optimizer, moments)
        for objective in objectives:
            for group in objective.optimizer.param_groups:
                group["lr"] *= network.learning_rate_factor(progress)  # the optimizers are new in every round
        loss = fit(
            objectives,
            Data(data.x.reshape(-1, *task.shape), data.y),
            epochs=self.generator_epochs,
            batch_size=self.generator_batch_size,
            rng=client.rng,
            precision=client.precision,
            privacy=client.privacy,
        )
        client.storage.put(
            GENERATOR_MEMORY,
            GeneratorMemory(tuple(optimizer_state(o.optimizer) for o in objectives), kept_weights(network)),
        )
        return uploaded_weights(network), loss

    def joint_rounds(self, count: int, draw: Phase[S], joint: Phase[S]) -> Repeat[S]:
        """Returns `count` joint rounds; if the server draws the pool, it draws a new one before each."""
        return Repeat(count, [draw, joint] if self.pool == "server" else [joint])

    def draw_pool(self, server: Server, task: Task, weights: Weights) -> Data:
        """Returns a pool of examples of `task`, as large as any client needs, with uniform labels.

        Raises:
            GenfedError: they would be more than `MOST_GENERATED` numbers, by the examples that a client declares.
        """
        count = self._pool_size(server, task)
        y = torch.randint(len(task.classes), (count,), generator=server.rng)
        x = self.sample_from(server, task, weights, y).cpu()
        return Data(denormalize_pixels(x) if task.kind == "image" else x, y)

    def _pool_size(self, server: Server, task: Task) -> int:
        """Returns the number of examples in the server's pool."""
        most = max(server.clients, key=lambda info: info.examples)
        count = self._generated_count(most.examples)
        if count * math.prod(task.shape) > MOST_GENERATED:
            raise GenfedError(
                f'pool = "server": client {most.id} declares {most.examples} examples, so the server would draw '
                f'{count} of {task.shape} at once, which are too many; set pool = "client", or leave the client out'
            )
        return count

    def supply(self, weights: Weights, pool: Data | None) -> GeneratedSupply:
        """Returns what is sent for a joint round."""
        return GeneratedSupply(weights, None) if pool is None else GeneratedSupply({}, pool)

    def train_on_generated(
        self, network: nn.Module, client: Client, task: Task, supply: GeneratedSupply
    ) -> dict[str, float]:
        """Trains on T_s · max(1, ⌊n / B⌋) batches of generated examples of `task` with uniform labels. Returns the loss
        by its name in the log; nothing for T_s = 0.

        Raises:
            GenfedError: they would be more than `MOST_GENERATED` numbers.
        """
        count = self._generated_count(len(client.data))
        if not count:
            return {}
        if count * math.prod(task.shape) > MOST_GENERATED:
            raise GenfedError(
                f"synthetic_epochs = {self.synthetic_epochs}: {count} generated examples of {task.shape} at once are "
                "too many; set fewer"
            )
        if supply.pool is None:
            y = torch.randint(len(task.classes), (count,), generator=client.rng).to(client.device)
            generated = Data(self.sample_from(client, task, supply.generator, y), y)
        else:
            generated = supply.pool[torch.randperm(len(supply.pool), generator=client.rng)[:count]].to(client.device)
        return {"synthetic_loss": train(network, client, self.training, data=generated, epochs=1, public=True)}

    def _generated_count(self, examples: int) -> int:
        """Returns the number of generated examples for a client with this many real ones."""
        size = self.training.batch_size
        return self.synthetic_epochs * max(1, examples // size) * size

    def sample_from(self, where: Client | Server, task: Task, weights: Weights, y: Tensor) -> Tensor:
        """Returns one generated example of `task` per label, on the device of `where`."""
        x = build_generator(self.generator, where, task, weights).sample(y.to(where.device), where.rng)
        return x.reshape(len(y), *task.shape)


def maps_task(task: Task) -> Task:
    """Returns the task in the form for generators: feature vectors become channels of 1×1."""
    if task.kind != "features" or len(task.shape) == 3:
        return task
    return replace(task, shape=(math.prod(task.shape), 1, 1))


def build_generator(generator: Generator, where: Client | Server, task: Task, weights: Weights) -> GeneratorNetwork:
    """Returns the generator of examples of `task` with these weights, on the device of `where`. Parts that are not
    uploaded, and so missing, get the initial weights that all clients share.
    """
    check_size(generator, maps_task(task))
    with _SkipInitialization():
        network = generator.new(maps_task(task), where.rng)
    if network.state_dict().keys() != weights.keys():
        # At every client, the parts that are not uploaded begin with the common initial weights too.
        network = generator.new(maps_task(task), where.common("generator"))
        weights = kept_weights(network) | weights
    network.load_state_dict(weights)
    return network.to(where.device)


class _SkipInitialization(TorchFunctionMode):
    """Skips the random initialization of new tensors, which takes a tenth of the time of sampling."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))
