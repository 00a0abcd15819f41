"""FedLMG. Yang, Su, Li, Xue, One-Shot Heterogeneous Federated Learning with Local Model-Guided Diffusion Models, ICML
2025, arXiv 2311.08870: clients upload their classifiers once; the server steers its diffusion model by their gradients
and batch-norm statistics, and trains on what it makes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.foundation.classifier_guidance import ClassifierGuidance, Teacher, check_sampler, generate_guided
from genfed.foundation.prompts import embed_class_prompts
from genfed.foundation.settings import Foundation
from genfed.methods.bases.server_synthesis import ConditionSet, ServerSynthesis, ServerSynthesisState, build_networks
from genfed.training.classifier import train
from genfed.training.synthetic_dataset import SampleRequest
from genfed.training.synthetic_teaching import Supervision, consensus_rows
from genfed.training.upload_checks import check_classifier, check_labels
from genfed.training.weights import initial_weights, load_weights, weights_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FedLMGUpload:
    """All that a client sends."""

    classifier: Weights
    """Parameters and BatchNorm's statistics."""
    classes: Tensor
    """Those that it has examples of, int64 [k]."""


@settings
class FedLMG(ServerSynthesis):
    """Local-model-guided synthesis: images of each client and class as its own classifier knows them."""

    unprotected_upload = "which classes a client has examples of"
    needs_architectures = True

    foundation: Foundation = Field(default_factory=lambda: Foundation(scheduler="ddpm"))
    """The server's diffusion model and how it is sampled: by ddpm, as in the paper, or ddim."""
    prompt: str = "an image of {class}"
    """What the diffusion model is asked for, with the name of the class; for a class-conditional model "{class}"."""
    guidance: ClassifierGuidance = Field(default_factory=ClassifierGuidance)
    """How classifiers steer."""
    aggregation: Supervision = "specific_teacher"
    """How students learn: FT, MD or SD of the paper."""

    def init(self, server: Server) -> ServerSynthesisState:
        check_sampler(self.foundation.load(server.task, server.device, server.precision), self.foundation)
        embed_class_prompts(self.foundation, self.prompt, server)  # refuses a prompt before training
        if self.guidance.statistics and (
            without := [name for name in server.architectures if cannot_guide(server, name)]
        ):
            log.warning("no BatchNorm over maps in %s: L_BN is 0, classes alone steer", ", ".join(without))
        return super().init(server)

    kept: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each client's images of a class that students learn from: those that the other clients' classifiers,
    asked together, are surest of; the paper's is 1, all."""

    def student_supervision(self) -> Supervision:
        return self.aggregation

    def training_images(self, server: Server, state: ServerSynthesisState) -> Tensor | slice:
        if self.kept == 1:
            return slice(None)
        return consensus_rows(server, state.synthetic, build_networks(server, state.teachers), self.kept)

    def upload_phases(self) -> list[Phase[ServerSynthesisState]]:
        collect = {"classifier": Collect(), "classes": Collect()}
        return [
            Phase(
                "train",
                self.collect,
                lambda server, state, info: Empty(),
                self.train,
                aggregate=collect,
                changes_classifier=False,
                check=self.check,
            )
        ]

    def train(self, client: Client, sent: Empty) -> Reply[FedLMGUpload]:
        """The client's own classifier, trained on its own examples."""
        network = load_weights(client.new_network(client.rng), initial_weights(client))
        loss = train(network, client, self.training)
        return Reply(FedLMGUpload(weights_of(network), torch.unique(client.data.y).cpu()), metrics={"loss": loss})

    def check(self, server: Server, info: ClientInfo, upload: FedLMGUpload) -> None:
        """Refuses what nothing can be steered by.

        Raises:
            GenfedError: classes that the server does not know or that stand twice, or no working classifier of the
                client's architecture.
        """
        check_labels(upload.classes, server)
        if len(torch.unique(upload.classes)) < len(upload.classes):
            raise GenfedError("a class stands twice among its classes")
        check_classifier(server, info, upload.classifier)

    def collect(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """Each client and each of its classes; the prompt is the class's."""
        classes: dict[int, Tensor] = reduced["classes"]
        labels = torch.cat([classes[client] for client in sorted(classes)])
        clients = torch.cat([torch.full_like(classes[client], client) for client in sorted(classes)])
        return replace(state, teachers=reduced["classifier"], asked=ConditionSet(torch.empty(0), labels, clients))

    def generate_images(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        present = {client: state.teachers[client] for client in torch.unique(wanted.clients).tolist()}
        return generate_guided(
            self.foundation.load(server.task, server.device, server.precision),
            self.foundation,
            self.guidance,
            {client: Teacher(network) for client, network in build_networks(server, present).items()},
            embed_class_prompts(self.foundation, self.prompt, server)[wanted.labels],
            wanted.labels,
            wanted.clients,
            rngs,
            server.task.shape,
        )


def cannot_guide(server: Server, architecture: str) -> bool:
    """Whether it has no BatchNorm over maps, by which images could be steered."""
    modules = server.new_network(architecture, server.common("check")).modules()
    return not any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in modules)
