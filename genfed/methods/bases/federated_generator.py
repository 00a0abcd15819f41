"""Base of GeFL and GeFL-F: clients train a generator together, and classifiers on generated examples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

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
from genfed.generators.row_generator import LocalRowGenerator, RowGenerator
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.methods.bases.generator_building import SkipInitialization, build_generator, maps_task
from genfed.training.balanced_mix import draw_rows, mix_balanced
from genfed.training.classifier import Training, train
from genfed.training.fit import Objective, fit, fit_steps
from genfed.training.local_objectives import hold_near, use_sgd
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.pixels import denormalize_pixels
from genfed.training.server_optimizer import ServerMoments, ServerOptimizer

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


GENERATOR_MEMORY = Slot("generator", GeneratorMemory, forget=lambda memory: replace(memory, moments=()))
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
    generator_steps: Annotated[int, Field(ge=1)] | None = None
    """Local steps in a generator round, in place of epochs. None: `generator_epochs`. 1: with plain SGD at the clients
    a round is one step on the batches of all clients together, so it does not matter which classes a client has."""
    generator_batch_size: Annotated[int, Field(ge=2)] = 64
    """Examples per generator step."""
    generator_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of plain SGD, with which clients train the generator. None: the generator's own optimizers, whose
    state stays on the client."""
    generator_mu: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the term (μ/2)·‖w − w_t‖² in the generator's losses, which holds it near the one that was sent
    (FedProx, arXiv 1812.06127); 0: none."""
    server_optimizer: ServerOptimizer = Field(default_factory=ServerOptimizer)
    """How the server takes the clients' generators into its own; the default is their mean, as in the paper."""
    rounds: Annotated[int, Field(ge=0)] = 50
    """Joint rounds, in which the classifiers are trained (T_TN)."""
    synthetic_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs on generated examples in a joint round, each with as many steps as an epoch on real ones (T_s)."""
    pool: Literal["client", "server"] = "client"
    """Where the generated examples of a joint round are drawn. "client": each client draws its own, as in the paper.
    "server": the server draws one pool for all, which is often smaller than a generator and saves clients the work."""
    mix: Literal["sequence", "balanced"] = "sequence"
    """Order of generated and real examples in a joint round. "sequence": the epochs on generated examples, then those
    on real ones, as in the paper. "balanced": as many epochs on a mixture with equally frequent classes. An example of
    a class that the client has is real with probability T_r / (T_s + T_r), and those of other classes are generated."""
    training: Training = Field(default_factory=Training)
    """Training on real examples in a joint round (T_r = epochs); generated ones use the same optimizer settings."""

    def new_generator(self, server: Server, task: Task) -> TrainedNetwork:
        """Returns a new generator of examples of `task`."""
        task = maps_task(task)
        check_size(self.generator, task)
        network = self.generator.new(task, server.common("generator")).to(server.device)
        return TrainedNetwork("the generator", network, task, network.objectives(), 'set norm = "group" for it')

    def initial_generator(self, server: Server, task: Task) -> Weights:
        """Returns the uploaded part of a new generator of `task`, the same in every method with this seed. Empty: it is
        estimated from sums, and there is none before.

        Raises:
            GenfedError: the examples are a table; the generator is too large, or the pool that the server will draw;
                see `draw_pool`.
        """
        if isinstance(self.generator, LocalRowGenerator):
            raise GenfedError(
                f"generator {type(self.generator).__name__}: what sites fit alone has no mean; allowed is another "
                "generator of rows: mixture, tan or any_order"
            )
        if isinstance(self.generator, StatisticsGenerator):
            if task.kind == "table" and not isinstance(self.generator, RowGenerator):
                raise GenfedError(
                    f"generator {type(self.generator).__name__}: examples of shape {task.shape}, a table; allowed are "
                    "images and series, gefl_f for features, or a generator of rows: mixture, tan or any_order"
                )
            self.generator.shapes(task)  # refused before training
            return {}
        if self.pool == "server" and server.clients:
            self._pool_size(server, task)  # refused before training
        check_size(self.generator, maps_task(task))
        return uploaded_weights(self.generator.new(maps_task(task), server.common("generator")))

    def advise_on_labels(self) -> str:
        """Returns a sentence on what to change if the generator ignores labels, without its full stop."""
        if isinstance(self.generator, StatisticsGenerator):
            return "Set a generator with more numbers per class"
        missing = []
        if getattr(self.generator, "norm", "group") != "group":
            missing.append('generator.norm = "group"')
        if self.generator_steps is None:
            missing.append("generator_steps = 1")
        if self.generator_learning_rate is None:
            missing.append("generator_learning_rate = 0.01")
        if self.server_optimizer.is_mean:
            missing.append('server_optimizer = { kind = "adam", learning_rate = 0.003 }')
        if not missing:
            return "Set more generator_rounds, or another server_optimizer.learning_rate"
        return (
            "Where clients have few classes each, the mean of their generators learns no label: set "
            f'{", ".join(missing)} ("few classes per client" in docs/methods/gefl.md); else set more generator_rounds'
        )

    @property
    def is_declared(self) -> bool:
        """Whether clients train as `private_trainings` can declare: in epochs, and on real examples alone. Sums are not
        declared.
        """
        estimated = isinstance(self.generator, StatisticsGenerator)
        return not estimated and self.generator_steps is None and self.mix == "sequence"

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
        objectives = self._local_objectives(network)
        for objective, moments in zip(objectives, stored.moments, strict=False):  # there are none at first
            load_optimizer_state(objective.optimizer, moments)
        for objective in objectives:
            for group in objective.optimizer.param_groups:
                group["lr"] *= network.learning_rate_factor(progress)  # the optimizers are new in every round
        loss = self._fit_generator(client, objectives, Data(data.x.reshape(-1, *task.shape), data.y))
        memory = GeneratorMemory(tuple(optimizer_state(o.optimizer) for o in objectives), kept_weights(network))
        if memory.weights or any(moments.values for moments in memory.moments):
            client.storage.put(GENERATOR_MEMORY, memory)
        return uploaded_weights(network), loss

    def _local_objectives(self, network: GeneratorNetwork) -> Sequence[Objective]:
        """Returns the objectives of local training: the network's own, with the settings' optimizer and penalty."""
        objectives = network.objectives()
        if self.generator_learning_rate is not None:
            objectives = use_sgd(objectives, self.generator_learning_rate)
        return hold_near(objectives, self.generator_mu) if self.generator_mu else objectives

    def _fit_generator(self, client: Client, objectives: Sequence[Objective], data: Data) -> float:
        size, rng, precision = self.generator_batch_size, client.rng, client.precision
        if self.generator_steps is not None:
            steps = self.generator_steps
            return fit_steps(objectives, data, steps=steps, batch_size=size, rng=rng, precision=precision)
        epochs, privacy = self.generator_epochs, client.privacy
        return fit(objectives, data, epochs=epochs, batch_size=size, rng=rng, precision=precision, privacy=privacy)

    def update_generator(
        self, server: Server, task: Task, before: Weights, mean: Weights, moments: ServerMoments
    ) -> tuple[Weights, ServerMoments]:
        """Returns the generator after a round, by the server's optimizer, and the moments of the optimizer.

        Args:
            server: the server.
            task: task of the examples that are generated.
            before: the generator that was sent.
            mean: the mean of the clients' generators.
            moments: the moments of the optimizer before this round.
        """
        if self.server_optimizer.is_mean:
            return mean, moments
        with SkipInitialization():
            network = self.generator.new(maps_task(task), server.rng)
        names = {name for name, _ in network.named_parameters()}
        return self.server_optimizer.step(before, mean, moments, names)

    def estimate_generator(self, server: Server, task: Task, present: Weights, reduced: Reduced) -> Weights:
        """Returns the generator for the sums over all clients.

        Args:
            server: the server.
            task: task of the examples that are generated.
            present: the generator of the pass before. Empty: this is the first pass.
            reduced: the sums.
        """
        assert isinstance(self.generator, StatisticsGenerator)
        statistics = {name: value.long() for name, value in reduced["statistics"].items()}
        return self.generator.estimate(task, statistics, present or None, server.common("generator"))

    def joint_rounds(self, count: int, draw: Phase[S], joint: Phase[S]) -> Repeat[S]:
        """Returns `count` joint rounds; if the server draws the pool, it draws a new one before each."""
        return Repeat(count, [draw, joint] if self.pool == "server" else [joint])

    def draw_pool(self, server: Server, task: Task, weights: Weights) -> Data:
        """Returns a pool of examples of `task`, as large as any client needs, with uniform labels.

        Raises:
            GenfedError: they would be more than `MOST_GENERATED` numbers, by the examples that a client declares.
        """
        count, classes = self._pool_size(server, task), len(task.classes)
        if self.mix == "balanced":
            y = torch.arange(max(count, classes)) % classes
        else:
            y = torch.randint(classes, (count,), generator=server.rng)
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

    def train_jointly(
        self, network: nn.Module, client: Client, task: Task, supply: GeneratedSupply, own: Data
    ) -> dict[str, float]:
        """Trains a classifier on generated and on the client's `own` examples of `task`. Returns the losses by their
        names in the log.

        Raises:
            GenfedError: the generated examples would be more than `MOST_GENERATED` numbers.
        """
        if self.mix == "balanced":
            return {"loss": self._train_balanced(network, client, task, supply, own)}
        if not (count := self._generated_count(len(own))):
            return {"loss": train(network, client, self.training, data=own)}
        self._check_count(count, task)
        generated = self._draw_uniform(client, task, supply, count)
        synthetic_loss = train(network, client, self.training, data=generated, epochs=1, public=True)
        return {"synthetic_loss": synthetic_loss, "loss": train(network, client, self.training, data=own)}

    def _train_balanced(
        self, network: nn.Module, client: Client, task: Task, supply: GeneratedSupply, own: Data
    ) -> float:
        epochs = self.synthetic_epochs + self.training.epochs
        if not (count := self._generated_count(len(own))):
            return 0.0
        self._check_count(count, task)

        def draw(y: Tensor) -> Data:
            if supply.pool is not None:
                return supply.pool[draw_rows(supply.pool.y, y, len(task.classes), client.rng)]
            return Data(self.sample_from(client, task, supply.generator, y), y)

        share = self.training.epochs / epochs
        mixed = mix_balanced(own, count, len(task.classes), share, draw, client.rng)
        return train(network, client, self.training, data=mixed, epochs=1)

    def _draw_uniform(self, client: Client, task: Task, supply: GeneratedSupply, count: int) -> Data:
        """Returns generated examples with uniform labels."""
        if supply.pool is None:
            y = torch.randint(len(task.classes), (count,), generator=client.rng).to(client.device)
            return Data(self.sample_from(client, task, supply.generator, y), y)
        return supply.pool[torch.randperm(len(supply.pool), generator=client.rng)[:count]].to(client.device)

    def _check_count(self, count: int, task: Task) -> None:
        if count * math.prod(task.shape) > MOST_GENERATED:
            raise GenfedError(
                f"synthetic_epochs = {self.synthetic_epochs}: {count} generated examples of {task.shape} at once are "
                "too many; set fewer"
            )

    def _generated_count(self, examples: int) -> int:
        """Returns the maximum number of generated examples in a joint round, for a client with this many real ones."""
        epochs, size = self.synthetic_epochs, self.training.batch_size
        if self.mix == "balanced":
            epochs += self.training.epochs
        return epochs * max(1, examples // size) * size

    def sample_from(self, where: Client | Server, task: Task, weights: Weights, y: Tensor) -> Tensor:
        """Returns one generated example of `task` per label, on the device of `where`."""
        x = build_generator(self.generator, where, task, weights).sample(y.to(where.device), where.rng)
        return x.reshape(len(y), *task.shape)
