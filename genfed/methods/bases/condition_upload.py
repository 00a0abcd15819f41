"""Base of FGL and methods like it: clients upload conditions of a public diffusion model, never text, and the server
generates images from them.
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
    """All that a client uploads: no text, no file name."""

    conditions: Tensor
    """Embeddings [m, tokens, width], or class numbers [m]."""
    labels: Tensor
    """Classes of the conditions, int64 [m]."""


@settings
class ConditionUploadMethod(ServerSynthesis):
    """Base of methods whose clients upload conditions once; the server generates images from all of them."""

    unprotected_upload = "conditions computed from its examples"

    @abstractmethod
    def upload_conditions(self, client: Client, sent: Empty) -> Reply[ConditionUpload]:
        """Returns the conditions that a client uploads."""

    def most_conditions(self, server: Server, info: ClientInfo) -> int:
        """Returns how many conditions a client may upload. The server draws `images_per_condition` images from each."""
        return min(len(server.task.classes), info.examples)

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

    def check(self, server: Server, info: ClientInfo, upload: ConditionUpload) -> None:
        """Refuses an upload from which no images can be generated.

        Raises:
            GenfedError: the server does not know a class, there is not one condition for each label, or there are more
                than `most_conditions`.
        """
        labels, conditions = upload.labels, upload.conditions
        check_labels(labels, server)
        if len(labels) > (most := self.most_conditions(server, info)):
            raise GenfedError(
                f"{len(labels)} conditions from a client of {info.examples} examples; at most {most} are allowed"
            )
        model = self.foundation.load(server.task, server.device, server.precision)
        none = model.encode_unconditional(1)
        found, allowed = (conditions.dtype, tuple(conditions.shape)), (none.dtype, (len(labels), *none.shape[1:]))
        if found != allowed:
            raise GenfedError(f"conditions are {found[0]} {found[1]}; {allowed[0]} {allowed[1]} are allowed")
        if model.kind == "class" and not bool(((conditions >= 0) & (conditions <= int(none))).all()):
            raise GenfedError(f"conditions are classes that {model.name} does not know: it has {int(none)}")

    def collect(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """Takes the conditions of all clients, one client after another."""
        conditions: dict[int, Tensor] = reduced["conditions"]
        labels: dict[int, Tensor] = reduced["labels"]
        clients = sorted(conditions)
        requested = ConditionSet(
            torch.cat([conditions[client] for client in clients]),
            torch.cat([labels[client] for client in clients]),
            torch.cat([torch.full_like(labels[client], client) for client in clients]),
        )
        return replace(state, requested=requested)


def check_embeddings(model: FoundationModel, method: str) -> None:
    """Refuses a class-conditional model for a method that computes with embeddings.

    Raises:
        GenfedError: the model is class-conditional.
    """
    if model.kind == "class":
        raise GenfedError(
            f"{method} computes with embeddings of prompts, and foundation {model.name} is class-conditional: it has "
            "none; use fgl, or a text-to-image model"
        )
