"""FedLMG. Yang, Su, Li, Xue, One-Shot Heterogeneous Federated Learning with Local Model-Guided Diffusion Models, ICML
2025, arXiv 2311.08870: clients upload their classifiers once; the server guides its diffusion model by their gradients
and BatchNorm statistics, and trains students on the images.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.foundation.classifier_guidance import ClassifierGuidance, Teacher, check_sampler, generate_guided
from genfed.foundation.prompts import embed_class_prompts
from genfed.foundation.settings import Foundation
from genfed.methods.bases.classifier_upload import build_uploaded, train_alone, upload_classifier
from genfed.methods.bases.server_synthesis import ConditionSet, ServerSynthesis, ServerSynthesisState
from genfed.training.synthetic_dataset import SampleRequest
from genfed.training.synthetic_teaching import Supervision, consensus_rows
from genfed.training.upload_checks import check_classifier, check_labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FedLMGUpload:
    """All that a client uploads."""

    classifier: Weights
    """Parameters and BatchNorm statistics."""
    classes: Tensor
    """Classes of which the client has examples, int64 [k]."""


@settings
class FedLMG(ServerSynthesis):
    """Local-model-guided synthesis: the server generates images of each client and class, guided by the client's
    classifier.

    1. train, once. Client → server: its classifier, trained from the initial weights on its examples, and its classes.
    2. synthesise, once, on the server: `images_per_condition` images for each client and each of its classes, from the
       prompt of the class, guided by the gradients and BatchNorm statistics of the client's classifier.
    3. learn, `student_rounds` rounds, on the server: trains the students on the images, by labels and teachers
       (`supervision`).
    4. learn_own: never needed here, since the server must run all architectures.
    5. tune, `finetune_rounds` rounds (0: one-shot). Server → client: its student. Client → server: the student after
       training on the client's examples. The server averages the students within an architecture.

    >>> [phase.name for phase in FedLMG(images_per_condition=10).phases()]
    ['train', 'synthesise', 'learn', 'learn_own', 'tune']
    """

    unprotected_upload = "which classes a client has examples of"
    needs_architectures = True

    foundation: Foundation = Field(default_factory=lambda: Foundation(scheduler="ddpm"))
    """The server's diffusion model and how it is sampled; its scheduler is ddpm, as in the paper, or ddim."""
    prompt: str = "an image of {class}"
    """Prompt of a class; {class} is its name. For a class-conditional model: "{class}"."""
    classifier_guidance: ClassifierGuidance = Field(default_factory=ClassifierGuidance)
    """Guidance by the classifiers."""
    supervision: Supervision = "specific_teacher"
    """Supervision of the students: FT, MD or SD of the paper."""

    consensus_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each client's images of a class that students learn from: the images with the highest mean probability
    from the other clients' classifiers. 1: all, as in the paper."""

    def init(self, server: Server) -> ServerSynthesisState:
        check_sampler(self.foundation.load(server.task, server.device, server.precision), self.foundation)
        embed_class_prompts(self.foundation, self.prompt, server)  # refuses a prompt before training
        if self.classifier_guidance.statistics and (
            without := [name for name in server.architectures if cannot_guide(server, name)]
        ):
            log.warning("no BatchNorm over maps in %s: L_BN is 0, classes alone guide", ", ".join(without))
        return super().init(server)

    def student_supervision(self) -> Supervision:
        return self.supervision

    def training_images(self, server: Server, state: ServerSynthesisState) -> Tensor | slice:
        if self.consensus_fraction == 1:
            return slice(None)
        return consensus_rows(server, state.synthetic, build_uploaded(server, state.teachers), self.consensus_fraction)

    def upload_phases(self) -> list[Phase[ServerSynthesisState]]:
        return [upload_classifier(self.collect, self.train, check=self.check, fields=("classifier", "classes"))]

    def train(self, client: Client, sent: Empty) -> Reply[FedLMGUpload]:
        """Trains the client's own classifier."""
        weights, loss = train_alone(client, self.client_training)
        return Reply(FedLMGUpload(weights, torch.unique(client.data.y).cpu()), metrics={"loss": loss})

    def check(self, server: Server, info: ClientInfo, upload: FedLMGUpload) -> None:
        """Refuses an upload that cannot guide.

        Raises:
            GenfedError: a class is unknown to the server or listed twice, or the classifier is no working one of the
                client's architecture.
        """
        check_labels(upload.classes, server)
        if len(torch.unique(upload.classes)) < len(upload.classes):
            raise GenfedError("a class is listed twice among its classes")
        check_classifier(server, info, upload.classifier)

    def collect(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """Takes the classifiers, and asks for images of each client and each of its classes."""
        classes: dict[int, Tensor] = reduced["classes"]
        labels = torch.cat([classes[client] for client in sorted(classes)])
        clients = torch.cat([torch.full_like(classes[client], client) for client in sorted(classes)])
        return replace(state, teachers=reduced["classifier"], requested=ConditionSet(torch.empty(0), labels, clients))

    def generate_images(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        present = {client: state.teachers[client] for client in torch.unique(wanted.clients).tolist()}
        return generate_guided(
            self.foundation.load(server.task, server.device, server.precision),
            self.foundation,
            self.classifier_guidance,
            {client: Teacher(network) for client, network in build_uploaded(server, present).items()},
            embed_class_prompts(self.foundation, self.prompt, server)[wanted.labels],
            wanted.labels,
            wanted.clients,
            rngs,
            server.task.shape,
        )


def cannot_guide(server: Server, architecture: str) -> bool:
    """Returns whether the architecture has no BatchNorm over maps, whose statistics could guide images."""
    modules = server.new_network(architecture, server.common("check")).modules()
    return not any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in modules)
