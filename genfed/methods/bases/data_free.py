"""Base of DENSE and Co-Boosting: clients upload their models once; the server trains a generator against their
ensemble and distils the ensemble into students, on generated images.
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
    """Weights that are trained from round to round, and the state of their optimizer."""

    weights: Weights
    moments: OptimizerState


@dataclass(frozen=True)
class ReplayPool:
    """The newest generated images, the oldest of them first."""

    images: Tensor
    """uint8 [m, C, H, W]."""
    labels: Tensor
    """Classes that the images were generated for, int64 [m]."""
    logits: Tensor
    """Logits of the ensemble when the images were generated, [m, classes]."""

    def append(self, newer: "ReplayPool", limit: int) -> "ReplayPool":
        """Returns these images and then newer ones; of all, the newest `limit`."""
        pairs = ((self.images, newer.images), (self.labels, newer.labels), (self.logits, newer.logits))
        return ReplayPool(*(torch.cat(pair)[-limit:] for pair in pairs))


@dataclass(frozen=True)
class DataFreeState:
    """The server's state. All clients' models are in memory and in every checkpoint."""

    models: dict[int, Weights]
    """The uploaded models, by client."""
    shares: Tensor
    """Weights of the models in the ensemble [models], by client id; the ensemble is the mean of logits times these."""
    generator: StudentTraining
    students: dict[str, StudentTraining]
    """The students, by architecture."""
    pool: ReplayPool


@dataclass(frozen=True)
class ReplayBatch:
    """The images that students learn from in an epoch."""

    images: Tensor
    """Images [m, C, H, W]: uint8, or floats on the scale of `normalize_pixels`."""
    logits: Tensor
    """Logits of the ensemble, [m, classes]."""


@settings
class DataFreeDistillation(GlobalClassifiers[DataFreeState]):
    """Base of methods with one upload of every client's model, then data-free distillation on the server; for images.

    1. train, once. Client → server: its model, trained from the initial weights on its examples.
    2. distil, `rounds` rounds, on the server: trains the generator, then the students on images.
    """

    state = DataFreeState
    needs_architectures = True

    rounds: Annotated[int, Field(ge=0)] = 50
    """Epochs of the server (T). In each the generator is trained, then the students. Published runs have 200."""
    training: Training = Field(
        default_factory=lambda: Training(epochs=200, batch_size=128, learning_rate=0.01, momentum=0.9)
    )
    """Training of a client's model before the upload (E = epochs)."""
    # differs from the papers: their one global model is `student`; None gives clients one of their own architecture.
    generator_steps: Annotated[int, Field(ge=0)] = 5
    """Steps of the generator in an epoch, on one batch of noise (T_G). Published codes take 30, since their generator
    is new in each epoch; here it goes on."""
    generator_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the generator's Adam (η_G; betas 0.5 and 0.999)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images generated in an epoch, and images per step of a student (b)."""
    replay_batches: Annotated[int, Field(ge=1)] = 20
    """Number of the newest batches of images that students learn from in each epoch. The published codes keep all."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of the students' SGD (η_S)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the students' SGD."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the distillation: divides logits of ensemble and students."""
    latent_dim: Annotated[int, Field(ge=1)] = 256
    """Dimension of the noise from which an image is generated."""
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the generator at the full size of the image."""

    @abstractmethod
    def objective(self, logits: Tensor, gap: Tensor, answers: Sequence[Tensor], y: Tensor) -> Tensor:
        """Returns the generator's loss per image [n].

        Args:
            logits: logits of the ensemble [n, classes].
            gap: distance of the images' statistics from those of the models' BatchNorm layers, a scalar.
            answers: logits of each student [n, classes].
            y: classes that the images are generated for [n].
        """

    def replay_batch(
        self, server: Server, ensemble: ClassifierEnsemble, shares: Tensor, pool: ReplayPool
    ) -> tuple[ReplayBatch, Tensor]:
        """Returns what students learn from the images of the pool, and the new shares of the models."""
        return ReplayBatch(pool.images, pool.logits), shares

    def init(self, server: Server) -> DataFreeState:
        network = NoiseToImage(server.task, self.latent_dim, self.width, server.common("generator"))
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
        """Trains the client's model from the initial weights of its architecture (LocalUpdate)."""
        weights, loss = train_alone(client, self.training)
        return Reply(Model(weights), weight=len(client.data), metrics={"loss": loss})

    def collect(self, server: Server, state: DataFreeState, reduced: Reduced) -> DataFreeState:
        """Takes the uploaded models; all have the same share."""
        models = reduced["classifier"]
        return replace(state, models=models, shares=torch.ones(len(models)))

    def distill(self, server: Server, state: DataFreeState, reduced: Reduced) -> DataFreeState:
        """Runs one epoch: the generator, then the students."""
        kinds = {info.id: info.architecture for info in server.clients}
        models = [build_classifier(server, kinds[i], w) for i, w in state.models.items()]
        ensemble = ClassifierEnsemble(models, state.shares.to(server.device))
        students = {name: build_classifier(server, name, weights) for name, weights in self.classifiers(state).items()}
        generator, images = self.generate_images(server, state.generator, ensemble, list(students.values()))
        pool = state.pool.append(images, self.replay_batches * self.batch_size)
        batch, shares = self.replay_batch(server, ensemble, state.shares, pool)
        learners = {
            name: self.teach(server, student, state.students[name].moments, batch) for name, student in students.items()
        }
        return DataFreeState(state.models, shares, generator, learners, pool)

    def generate_images(
        self, server: Server, learner: StudentTraining, ensemble: ClassifierEnsemble, students: Sequence[nn.Module]
    ) -> tuple[StudentTraining, ReplayPool]:
        """Trains the generator for T_G steps on one batch of noise. Returns it and its images."""
        new = NoiseToImage(server.task, self.latent_dim, self.width, server.rng)
        network = load_weights(new.to(server.device), learner.weights)
        adam = torch.optim.Adam(network.parameters(), self.generator_learning_rate, (0.5, 0.999), fused=True)
        load_optimizer_state(adam, learner.moments)
        z = torch.randn(self.batch_size, self.latent_dim, generator=server.rng).to(server.device)
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

    def teach(self, server: Server, student: nn.Module, moments: OptimizerState, batch: ReplayBatch) -> StudentTraining:
        """Trains a student for one epoch by KL(ensemble ‖ student), the distillation loss."""
        student.train().requires_grad_(True)
        sgd = torch.optim.SGD(student.parameters(), self.learning_rate, self.momentum, fused=True)
        load_optimizer_state(sgd, moments)
        answers = batch.logits.to(server.device)

        def loss(x: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
            return divergence(student(x).float(), answers[rows], self.temperature)

        data = Data(batch.images, torch.arange(len(batch.images))).to(server.device)
        objective, size = Objective(loss, sgd), self.batch_size
        fit([objective], data, epochs=1, batch_size=size, rng=server.rng, precision=server.precision)
        return StudentTraining(weights_of(student), optimizer_state(sgd))

    def classifiers(self, state: DataFreeState) -> dict[str, Weights]:
        return {name: student.weights for name, student in state.students.items()}


def disagreement(teacher: Tensor, student: Tensor) -> Tensor:
    """Returns KL(teacher ‖ student) of logits [n, classes], one per image [n]. Gradients flow to both."""
    ours, theirs = student.log_softmax(1), teacher.log_softmax(1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
