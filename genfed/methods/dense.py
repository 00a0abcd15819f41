"""DENSE. Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu, DENSE: Data-Free One-Shot Federated Learning, NeurIPS 2022,
arXiv 2112.12371, Algorithm 1: clients upload their models once; the server trains a generator against the ensemble of
them and distils the ensemble, on what the generator makes, into a global model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.method import Client, Data, Method, Nothing, Phase, Reduced, Reply, Server, Weights
from genfed.core.settings import settings
from genfed.generators.noise import NoiseToImage
from genfed.learn.distil import divergence
from genfed.learn.ensemble import Ensemble
from genfed.learn.fit import Moments, Player, fit, moments_of, restore, scaled, step, unscaled
from genfed.learn.training import Training, train
from genfed.learn.weights import Model, initial_weights, load_weights, weights_of


@dataclass(frozen=True)
class Learner:
    """Weights that are trained from round to round, and what their optimiser remembers."""

    weights: Weights
    moments: Moments


@dataclass(frozen=True)
class State:
    """The clients' models (all of them, in memory and in every checkpoint), the generator, the students by
    architecture, and the newest images with the ensemble's answers.
    """

    models: dict[int, Weights]
    generator: Learner
    students: dict[str, Learner]
    images: Tensor
    """uint8 [m, C, H, W], the oldest first."""
    logits: Tensor
    """[m, classes]."""


@dataclass(frozen=True)
class Student:
    """A global model on its way."""

    architecture: str
    classifier: Weights


@settings
class DENSE(Method[State]):
    """One upload of every client's model, then data-free distillation on the server; images alone."""

    state = State

    rounds: Annotated[int, Field(ge=0)] = 200
    """Epochs of the server (T): in each the generator is trained, then the students."""
    training: Training = Field(
        default_factory=lambda: Training(epochs=200, batch_size=128, learning_rate=0.01, momentum=0.9)
    )
    """Training of a client's model, all of it before the one upload (E = epochs)."""
    student: str | None = None
    """Architecture of the one global model; None: one for each architecture present."""
    # differs from the paper: it has one global model. None gives every client one of its own architecture.
    generator_steps: Annotated[int, Field(ge=0)] = 30
    """Steps of the generator in an epoch, all on one batch of noise (T_G)."""
    generator_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of its Adam (η_G; betas 0.5 and 0.999)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images that an epoch makes, and that a student's step takes (b)."""
    remembered: Annotated[int, Field(ge=1)] = 20
    """The newest batches of images that students learn from in each epoch; 1 is Algorithm 1. The published code keeps
    all."""
    stability: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the batch-norm loss (λ₁)."""
    boundary: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the boundary support loss (λ₂)."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Of the students' SGD (η_S)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the same."""
    latent: Annotated[int, Field(ge=1)] = 256
    """Numbers that an image is made from."""
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the generator at the image's full size."""

    def init(self, server: Server) -> State:
        network = NoiseToImage(server.task, self.latent, self.width, server.common("generator"))
        names = server.architectures if self.student is None else (self.student,)
        new = {name: server.new_network(name, server.common("classifier", name)) for name in names}
        return State(
            {},
            Learner(weights_of(network), Moments({})),
            {name: Learner(weights_of(student), Moments({})) for name, student in new.items()},
            torch.empty(0, *server.task.shape, dtype=torch.uint8),
            torch.empty(0, len(server.task.classes)),
        )

    def phases(self) -> list[Phase[State]]:
        return [
            Phase(
                "train",
                self.collect,
                lambda server, state, info: Nothing(),
                self.train,
                aggregate={"classifier": Collect()},
                changes_classifier=False,
            ),
            Phase("distil", self.distil, rounds=self.rounds),
        ]

    def train(self, client: Client, sent: Nothing) -> Reply[Model]:
        """LocalUpdate, on a client, from its architecture's initial weights."""
        network = load_weights(client.new_network(client.rng), initial_weights(client))
        loss = train(network, client, self.training)
        return Reply(Model(weights_of(network)), weight=len(client.data), metrics={"loss": loss})

    def collect(self, server: Server, state: State, reduced: Reduced) -> State:
        """The only upload."""
        return replace(state, models=reduced["classifier"])

    def distil(self, server: Server, state: State, reduced: Reduced) -> State:
        """An epoch: the data generation stage, then the model distillation stage."""
        kinds = {info.id: info.architecture for info in server.clients}
        models = [load_weights(server.new_network(kinds[i], server.rng), w) for i, w in state.models.items()]
        ensemble = Ensemble(models)
        students = {
            name: load_weights(server.new_network(name, server.rng), learner.weights)
            for name, learner in state.students.items()
        }
        generator, images, logits = self.generate_images(server, state.generator, ensemble, list(students.values()))
        kept = self.remembered * self.batch_size
        images, logits = torch.cat([state.images, images])[-kept:], torch.cat([state.logits, logits])[-kept:]
        learners = {
            name: self.teach(server, student, state.students[name].moments, images, logits)
            for name, student in students.items()
        }
        return State(state.models, generator, learners, images, logits)

    def generate_images(
        self, server: Server, learner: Learner, ensemble: Ensemble, students: Sequence[nn.Module]
    ) -> tuple[Learner, Tensor, Tensor]:
        """T_G steps on one batch of noise; the generator then, its images and the ensemble's logits of them."""
        new = NoiseToImage(server.task, self.latent, self.width, server.rng)
        network = load_weights(new.to(server.device), learner.weights)
        adam = torch.optim.Adam(network.parameters(), self.generator_learning_rate, (0.5, 0.999), fused=True)
        restore(adam, learner.moments)
        z = torch.randn(self.batch_size, self.latent, generator=server.rng).to(server.device)
        y = torch.randint(len(server.task.classes), (self.batch_size,), generator=server.rng).to(server.device)
        for student in students:
            student.eval().requires_grad_(False)

        def loss(z: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            x = network(z)
            logits, gap = ensemble(x)
            crossed = [boundary_support(logits, student(x).float()) for student in students]
            similarity = F.cross_entropy(logits, y, reduction="none")
            support = torch.stack(crossed).mean(0)  # −L_div; the mean where there are several students
            total: Tensor = similarity + self.stability * gap - self.boundary * support
            return total

        for _ in range(self.generator_steps):
            step(Player(loss, adam), z, y, server.rng, server.precision)
        with torch.no_grad():
            images = unscaled(network(z))
            logits, _ = ensemble(scaled(images))
        return Learner(weights_of(network), moments_of(adam)), images.cpu(), logits.cpu()

    def teach(self, server: Server, student: nn.Module, moments: Moments, images: Tensor, logits: Tensor) -> Learner:
        """One epoch over the images of KL(ensemble ‖ student), the distillation loss."""
        student.train().requires_grad_(True)
        sgd = torch.optim.SGD(student.parameters(), self.learning_rate, self.momentum, fused=True)
        restore(sgd, moments)
        answers = logits.to(server.device)

        def loss(x: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
            return divergence(student(x).float(), answers[rows])

        data = Data(images, torch.arange(len(images))).to(server.device)
        player, size = Player(loss, sgd), self.batch_size
        fit([player], data, epochs=1, batch_size=size, rng=server.rng, precision=server.precision)
        return Learner(weights_of(student), moments_of(sgd))

    def send_classifier(self, server: Server, state: State, info: ClientInfo) -> Student:
        name = info.architecture if self.student is None else self.student
        return Student(name, state.students[name].weights)

    def classifier(self, client: Client, sent: Student) -> nn.Module:
        return load_weights(client.new_network_of(sent.architecture, client.rng), sent.classifier)


def boundary_support(teacher: Tensor, student: Tensor) -> Tensor:
    """ω · KL(teacher ‖ student), one per example [n]; ω is 1 where they choose different classes, else 0."""
    ours, theirs = student.log_softmax(1), teacher.log_softmax(1)  # a gradient flows to both: to the images
    apart = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    return (teacher.argmax(1) != student.argmax(1)) * apart
