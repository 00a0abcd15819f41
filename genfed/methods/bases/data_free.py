"""What DENSE and what builds on it share: clients upload their models once; the server trains a generator against the
ensemble of them and distils the ensemble, on what the generator makes, into students.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.client import Client, Server
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.generators.noise_to_image import NoiseToImage
from genfed.methods.bases.classifier_upload import GlobalClassifiers, train_alone, upload_classifier
from genfed.training.classifier import Training
from genfed.training.distillation import divergence
from genfed.training.ensemble import ClassifierEnsemble
from genfed.training.fit import Objective, fit, train_step
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.pixels import denormalize_pixels, normalize_pixels
from genfed.training.weights import Model, build_classifier, initial_classifier, load_weights, weights_of


@dataclass(frozen=True)
class StudentTraining:
    """Weights that are trained from round to round, and what their optimiser remembers."""

    weights: Weights
    moments: OptimizerState


@dataclass(frozen=True)
class ReplayPool:
    """The newest images, the oldest first."""

    images: Tensor
    """uint8 [m, C, H, W]."""
    labels: Tensor
    """What each was to be, int64 [m]."""
    logits: Tensor
    """The ensemble's of each when it was made, [m, classes]."""

    def joined(self, newer: "ReplayPool", most: int) -> "ReplayPool":
        """With newer ones after these, the newest `most` of all."""
        pairs = ((self.images, newer.images), (self.labels, newer.labels), (self.logits, newer.logits))
        return ReplayPool(*(torch.cat(pair)[-most:] for pair in pairs))


@dataclass(frozen=True)
class DataFreeState:
    """The clients' models (all of them, in memory and in every checkpoint), what each counts for, the generator, the
    students by architecture, and the newest images.
    """

    models: dict[int, Weights]
    shares: Tensor
    """[models], in the order of the clients' ids; the ensemble is the mean of logits times these."""
    generator: StudentTraining
    students: dict[str, StudentTraining]
    pool: ReplayPool


@dataclass(frozen=True)
class ReplayBatch:
    """What students learn in an epoch."""

    images: Tensor
    """[m, C, H, W]: uint8, or floats on the scale of `normalize_pixels`."""
    logits: Tensor
    """The teacher's of each, [m, classes]."""


@settings
class DataFreeDistillation(GlobalClassifiers[DataFreeState]):
    """One upload of every client's model, then data-free distillation on the server; images alone."""

    state = DataFreeState
    needs_architectures = True

    rounds: Annotated[int, Field(ge=0)] = 200
    """Epochs of the server (T): in each the generator is trained, then the students."""
    training: Training = Field(
        default_factory=lambda: Training(epochs=200, batch_size=128, learning_rate=0.01, momentum=0.9)
    )
    """Training of a client's model, all of it before the one upload (E = epochs)."""
    # differs from the papers: their one global model is `student`; None gives clients one of their own architecture.
    generator_steps: Annotated[int, Field(ge=0)] = 30
    """Steps of the generator in an epoch, all on one batch of noise (T_G)."""
    generator_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of its Adam (η_G; betas 0.5 and 0.999)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images that an epoch makes, and that a student's step takes (b)."""
    remembered: Annotated[int, Field(ge=1)] = 20
    """The newest batches of images that students learn from in each epoch. The published codes keep all."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Of the students' SGD (η_S)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the same."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """At which students learn the ensemble's answers."""
    latent: Annotated[int, Field(ge=1)] = 256
    """Numbers that an image is made from."""
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the generator at the image's full size."""

    @abstractmethod
    def objective(self, logits: Tensor, gap: Tensor, answers: Sequence[Tensor], y: Tensor) -> Tensor:
        """The generator's loss per image [n]: of the ensemble's logits [n, classes] and its distance in statistics, a
        scalar, of each student's logits, and of the classes y [n] that images were to be.
        """

    def replay_batch(
        self, server: Server, ensemble: ClassifierEnsemble, shares: Tensor, pool: ReplayPool
    ) -> tuple[ReplayBatch, Tensor]:
        """What students learn from the images; and what models, by `shares` until now, count for from now on."""
        return ReplayBatch(pool.images, pool.logits), shares

    def init(self, server: Server) -> DataFreeState:
        network = NoiseToImage(server.task, self.latent, self.width, server.common("generator"))
        new = {name: initial_classifier(server, name) for name in self.student_architectures(server)}
        images = torch.empty(0, *server.task.shape, dtype=torch.uint8)
        return DataFreeState(
            {},
            torch.empty(0),
            StudentTraining(weights_of(network), OptimizerState({})),
            {name: StudentTraining(weights, OptimizerState({})) for name, weights in new.items()},
            ReplayPool(images, torch.empty(0, dtype=torch.int64), torch.empty(0, len(server.task.classes))),
        )

    def phases(self) -> list[Phase[DataFreeState]]:
        return [
            upload_classifier(self.collect, self.train),
            Phase("distil", self.distill, rounds=self.rounds),
        ]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def train(self, client: Client, sent: Empty) -> Reply[Model]:
        """LocalUpdate, on a client, from its architecture's initial weights."""
        weights, loss = train_alone(client, self.training)
        return Reply(Model(weights), weight=len(client.data), metrics={"loss": loss})

    def collect(self, server: Server, state: DataFreeState, reduced: Reduced) -> DataFreeState:
        """The only upload; all models count alike."""
        models = reduced["classifier"]
        return replace(state, models=models, shares=torch.ones(len(models)))

    def distill(self, server: Server, state: DataFreeState, reduced: Reduced) -> DataFreeState:
        """An epoch: images are made, then students learn."""
        kinds = {info.id: info.architecture for info in server.clients}
        models = [build_classifier(server, kinds[i], w) for i, w in state.models.items()]
        ensemble = ClassifierEnsemble(models, state.shares.to(server.device))
        students = {name: build_classifier(server, name, weights) for name, weights in self.classifiers(state).items()}
        generator, made = self.generate_images(server, state.generator, ensemble, list(students.values()))
        pool = state.pool.joined(made, self.remembered * self.batch_size)
        lesson, shares = self.replay_batch(server, ensemble, state.shares, pool)
        learners = {
            name: self.teach(server, student, state.students[name].moments, lesson)
            for name, student in students.items()
        }
        return DataFreeState(state.models, shares, generator, learners, pool)

    def generate_images(
        self, server: Server, learner: StudentTraining, ensemble: ClassifierEnsemble, students: Sequence[nn.Module]
    ) -> tuple[StudentTraining, ReplayPool]:
        """T_G steps on one batch of noise; the generator then, and its images."""
        new = NoiseToImage(server.task, self.latent, self.width, server.rng)
        network = load_weights(new.to(server.device), learner.weights)
        adam = torch.optim.Adam(network.parameters(), self.generator_learning_rate, (0.5, 0.999), fused=True)
        load_optimizer_state(adam, learner.moments)
        z = torch.randn(self.batch_size, self.latent, generator=server.rng).to(server.device)
        y = torch.randint(len(server.task.classes), (self.batch_size,), generator=server.rng).to(server.device)
        for student in students:
            student.eval().requires_grad_(False)

        def loss(z: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            x = network(z)
            logits, gap = ensemble(x)
            return self.objective(logits, gap, [student(x).float() for student in students], y)

        for _ in range(self.generator_steps):
            train_step(Objective(loss, adam), z, y, server.rng, server.precision)
        with torch.no_grad():
            images = denormalize_pixels(network(z))
            logits, _ = ensemble(normalize_pixels(images))
        return StudentTraining(weights_of(network), optimizer_state(adam)), ReplayPool(
            images.cpu(), y.cpu(), logits.cpu()
        )

    def teach(
        self, server: Server, student: nn.Module, moments: OptimizerState, lesson: ReplayBatch
    ) -> StudentTraining:
        """One epoch over the images of KL(ensemble ‖ student), the distillation loss."""
        student.train().requires_grad_(True)
        sgd = torch.optim.SGD(student.parameters(), self.learning_rate, self.momentum, fused=True)
        load_optimizer_state(sgd, moments)
        answers = lesson.logits.to(server.device)

        def loss(x: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
            return divergence(student(x).float(), answers[rows], self.temperature)

        data = Data(lesson.images, torch.arange(len(lesson.images))).to(server.device)
        player, size = Objective(loss, sgd), self.batch_size
        fit([player], data, epochs=1, batch_size=size, rng=server.rng, precision=server.precision)
        return StudentTraining(weights_of(student), optimizer_state(sgd))

    def classifiers(self, state: DataFreeState) -> dict[str, Weights]:
        return {name: student.weights for name, student in state.students.items()}


def disagreement(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) of logits [n, classes], one per image [n]; gradients flow to both, so to the images."""
    ours, theirs = student.log_softmax(1), teacher.log_softmax(1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
