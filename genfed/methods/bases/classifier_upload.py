"""Classifiers that clients upload once, and classifiers that the server trains for all of them."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.training.classifier import Training, train
from genfed.training.upload_checks import check_classifier
from genfed.training.weights import Model, build_classifier, initial_weights, weights_of

S = TypeVar("S")


def upload_classifier(
    update: Callable[[Server, S, Reduced], S],
    work: Callable[[Client, Empty], Reply[Any]],
    *,
    check: Callable[[Server, ClientInfo, Any], None] | None = None,
    fields: Sequence[str] = ("classifier",),
    changes_classifier: bool = False,
) -> Phase[S]:
    """Returns the phase "train": each client trains a classifier alone and uploads it, once; the server gets all.

    Args:
        update: takes the collected uploads into the state.
        work: trains on a client, usually by `train_alone`. A method of the class that declares `private_trainings`.
        check: refuses an upload. None: `check_classifier` of its classifier.
        fields: names of the upload's fields.
        changes_classifier: as in `Phase`.
    """

    def check_upload(server: Server, info: ClientInfo, upload: Model) -> None:
        check_classifier(server, info, upload.classifier)

    return Phase(
        "train",
        update,
        lambda server, state, info: Empty(),
        work,
        aggregate={name: Collect() for name in fields},
        changes_classifier=changes_classifier,
        check=check or check_upload,
    )


def train_alone(client: Client, training: Training) -> tuple[Weights, float]:
    """Trains the client's classifier from its initial weights on the client's examples. Returns the weights, and the
    mean loss of the last epoch.
    """
    network = build_classifier(client, client.info.architecture, initial_weights(client))
    loss = train(network, client, training)
    return weights_of(network), loss


@dataclass(frozen=True)
class GlobalClassifier:
    """A classifier that the server trained, on its way to a client."""

    architecture: str
    classifier: Weights
    """Empty: the client uses a classifier of its own."""


@settings
class GlobalClassifiers(Method[S]):
    """Base of methods whose server trains classifiers for all clients: one per architecture, or one `student`."""

    student: str | None = None
    """Architecture of the one global model. None: one model for each architecture present."""

    @abstractmethod
    def classifiers(self, state: S) -> Mapping[str, Weights]:
        """Returns the weights of the global models by architecture."""

    def student_architectures(self, server: Server) -> tuple[str, ...]:
        """Returns the architectures of the global models, sorted."""
        return server.architectures if self.student is None else (self.student,)

    def send_classifier(self, server: Server, state: S, info: ClientInfo) -> GlobalClassifier:
        name = info.architecture if self.student is None else self.student
        return GlobalClassifier(name, self.classifiers(state).get(name, {}))

    def classifier(self, client: Client, sent: GlobalClassifier) -> nn.Module:
        return build_classifier(client, sent.architecture, sent.classifier)


def build_uploaded(server: Server, uploaded: Mapping[int, Weights]) -> dict[int, nn.Module]:
    """Returns the clients' classifiers with the weights that they uploaded, by client, on the server's device."""
    architectures = {info.id: info.architecture for info in server.clients}
    # Not from the server's own stream: what students see of the set would depend on how many teachers are built.
    return {
        client: build_classifier(server, architectures[client], weights, server.common("overwritten"))
        for client, weights in uploaded.items()
    }
