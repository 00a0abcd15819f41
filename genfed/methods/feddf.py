"""FedDF. Lin, Kong, Stich, Jaggi, Ensemble Distillation for Robust Model Fusion in Federated Learning, NeurIPS 2020,
arXiv 2006.07242, Algorithm 3: the server averages weights within an architecture, then distils all the clients' models,
as one ensemble, into each average on public examples without labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Collect, Fold, Mean
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.methods.bases.averaging import Classifiers, FederatedAveraging
from genfed.training.distillation import divergence
from genfed.training.evaluation import predict
from genfed.training.fit import Loss, Objective, batches, train_step
from genfed.training.pixels import normalize_pixels
from genfed.training.upload_checks import check_classifier
from genfed.training.weights import Model, build_classifier, weights_of


@settings
class FedDF(FederatedAveraging):
    """FedAvg within an architecture, then distillation of all clients' models into each average on public examples.

    1. train, `rounds` rounds. Server → client: the weights of its architecture. Client: trains on its examples. Client
       → server: the weights. The server averages them within an architecture, weighted by examples; then each average
       takes `distillation_steps` steps towards the mean logits of all clients' models, on public examples.

    >>> [phase.name for phase in FedDF(rounds=10, distillation_steps=100).phases()]
    ['train']
    """

    needs_public = True
    needs_architectures = True

    distillation_steps: Annotated[int, Field(ge=0)] = 500
    """Batches that every architecture learns from after each round. 0: FedAvg."""
    # differs from the paper: up to 10,000, stopped early by validation accuracy; here the server has no labels.
    distillation_batch_size: Annotated[int, Field(ge=1)] = 128
    """Public examples per step."""
    distillation_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of Adam in the first step; it falls to 0 as a cosine."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature: divides logits before they are compared; 1 in the paper."""

    def init(self, server: Server) -> Classifiers:
        if server.public is not None and not len(server.public):
            raise GenfedError("feddf needs public examples, and the source in the table [public] has none")
        return super().init(server)

    def private_trainings(self) -> Mapping[str, Sequence[DeclaredTraining]] | None:
        return super().private_trainings()  # distillation happens on the server

    def phases(self) -> list[Phase[Classifiers]]:
        (averaging,) = super().phases()
        # The server holds every model of a round: the ensemble needs each single one.
        return [replace(averaging, update=self.fuse, aggregate={"classifier": Collect()}, check=self.check)]

    def check(self, server: Server, info: ClientInfo, upload: Model) -> None:
        """Refuses an upload from which students cannot learn.

        Raises:
            GenfedError: it is no working classifier of the client's architecture.
        """
        check_classifier(server, info, upload.classifier)

    def fuse(self, server: Server, state: Classifiers, reduced: Reduced) -> Classifiers:
        """Averages the uploads and distils them. An architecture without an upload keeps its weights."""
        received: dict[int, Weights] = reduced["classifier"]
        fold = Fold({"classifier": Mean(by="architecture")}, list(reduced.clients))
        for info in reduced.clients:
            fold.add(info, Model(received[info.id]), info.examples)
        means: dict[str, Weights] = fold.finish()["classifier"]
        if self.distillation_steps:
            teachers = ((info.architecture, received[info.id]) for info in reduced.clients)
            means = self.distill(server, means, list(teachers))
        return Classifiers(state.classifiers | means)

    def distill(
        self, server: Server, students: dict[str, Weights], teachers: list[tuple[str, Weights]]
    ) -> dict[str, Weights]:
        """Returns the students after learning the mean of the teachers' logits; all learn from the same batches."""
        assert server.public is not None
        size, rng = self.distillation_batch_size, server.rng
        epochs = (batches(len(server.public), size, rng) for _ in repeat(None))
        drawn = list(islice(chain.from_iterable(epochs), self.distillation_steps))
        used, places = torch.unique(torch.cat(drawn), return_inverse=True)
        x = server.public[used].to(server.device)
        # The teachers do not change: each predicts every example once, one network at a time.
        ensemble = torch.zeros(len(x), len(server.task.classes), device=server.device)
        for architecture, weights in teachers:
            ensemble += predict(build_classifier(server, architecture, weights), x, server.precision) / len(teachers)
        # differs from the paper: in eval mode. Otherwise BatchNorm would adopt the statistics of public examples, but
        # students are evaluated on examples like the clients'.
        networks = {
            architecture: build_classifier(server, architecture, w).eval() for architecture, w in students.items()
        }
        rate = self.distillation_learning_rate
        optimizers = [torch.optim.Adam(n.parameters(), lr=rate, fused=True) for n in networks.values()]
        objectives = [Objective(self.loss(n), o) for n, o in zip(networks.values(), optimizers, strict=True)]
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, self.distillation_steps) for o in optimizers]
        for rows in torch.split(places.to(server.device), [len(rows) for rows in drawn]):
            for objective, schedule in zip(objectives, schedules, strict=True):
                train_step(objective, normalize_pixels(x[rows]), ensemble[rows], rng, server.precision)
                schedule.step()
        return {architecture: weights_of(network) for architecture, network in networks.items()}

    def loss(self, student: nn.Module) -> Loss:
        """Returns the loss KL(ensemble ‖ student); its `y` are the logits of the ensemble [n, classes]."""

        def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            return divergence(student(x).float(), y, self.temperature)

        return loss
