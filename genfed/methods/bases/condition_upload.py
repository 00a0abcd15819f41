"""What FGL and its kin share: clients upload conditions of the public diffusion model, never text, and the server makes
images of them.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.foundation.model import FoundationModel
from genfed.methods.bases.server_synthesis import ConditionSet, ServerSynthesis, ServerSynthesisState
from genfed.training.upload_checks import check_labels


@dataclass(frozen=True)
class ConditionUpload:
    """All that a client sends: no text, no name of a file."""

    conditions: Tensor
    """Embeddings [m, tokens, width], or numbers of classes [m]."""
    labels: Tensor
    """int64 [m]."""


@settings
class ConditionUploadMethod(ServerSynthesis):
    """Clients tell what they have as conditions, and images are made of all of these."""

    unprotected_upload = "conditions made of its examples"

    @abstractmethod
    def upload_conditions(self, client: Client, sent: Empty) -> Reply[ConditionUpload]:
        """What a client uploads."""

    def upload_phases(self) -> list[Phase[ServerSynthesisState]]:
        return [
            Phase(
                "tell",
                self.collect,
                lambda server, state, info: Empty(),
                self.upload_conditions,
                aggregate={"conditions": Collect(), "labels": Collect()},
                changes_classifier=False,
                check=self.check,
            )
        ]

    def check(self, server: Server, info: ClientInfo, told: ConditionUpload) -> None:
        """Refuses what no images can be made of.

        Raises:
            GenfedError: a class that the server does not know, something else than a condition for each label, or more
                than it has examples.
        """
        labels, conditions = told.labels, told.conditions
        check_labels(labels, server)
        if len(labels) > info.examples:
            raise GenfedError(f"{len(labels)} conditions from a client of {info.examples} examples")
        model = self.foundation.load(server.task, server.device, server.precision)
        none = model.encode_unconditional(1)
        found, allowed = (conditions.dtype, tuple(conditions.shape)), (none.dtype, (len(labels), *none.shape[1:]))
        if found != allowed:
            raise GenfedError(f"conditions are {found[0]} {found[1]}; {allowed[0]} {allowed[1]} are allowed")
        if model.kind == "class" and not bool(((conditions >= 0) & (conditions <= int(none))).all()):
            raise GenfedError(f"conditions are classes that {model.name} does not know: it has {int(none)}")

    def collect(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """All that clients told, one after another: their proportions stay."""
        told: dict[int, Tensor] = reduced["conditions"]
        labels: dict[int, Tensor] = reduced["labels"]
        clients = sorted(told)
        asked = ConditionSet(
            torch.cat([told[client] for client in clients]),
            torch.cat([labels[client] for client in clients]),
            torch.cat([torch.full_like(labels[client], client) for client in clients]),
        )
        return replace(state, asked=asked)


def check_embeddings(model: FoundationModel, method: str) -> None:
    """Refuses a foundation that is asked by numbers of classes, where a method computes with embeddings.

    Raises:
        GenfedError: it is class-conditional.
    """
    if model.kind == "class":
        raise GenfedError(
            f"{method} computes with embeddings of prompts, and foundation {model.name} is class-conditional: it has "
            "none; use fgl, or a text-to-image model"
        )
