"""What the methods share whose server makes one synthetic set with its diffusion model and trains on it: from what
clients upload once, through synthesis and learning, to rounds of tuning on the clients.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.foundation.images import resize_to
from genfed.foundation.settings import Foundation
from genfed.methods.bases.local_training import MODEL, load_own_classifier
from genfed.training.classifier import Training, train
from genfed.training.synthetic_dataset import SampleRequest, SyntheticDataset, synthesis
from genfed.training.synthetic_teaching import Supervision, teaching_set
from genfed.training.weights import Model, load_weights, read_weights, weights_of

log = logging.getLogger(__name__)
SET = Slot("set", Data)
"""The synthetic set, at a client that learns from it itself."""


@dataclass(frozen=True)
class ConditionSet:
    """What images are asked for with, a condition a row."""

    conditions: Tensor
    """Results of `FoundationModel.encode_condition`: embeddings [m, tokens, width], or numbers of classes [m]. Empty:
    the labels' own."""
    labels: Tensor
    """int64 [m]."""
    clients: Tensor
    """int64 [m]: for whom the images stand; `NO_CLIENT`: for none."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ServerSynthesisState:
    """Where a one-shot method stands."""

    teachers: dict[int, Weights]
    """The classifiers that clients uploaded, by client; empty where the method wants none."""
    asked: ConditionSet
    synthetic: SyntheticDataset
    students: dict[str, Weights]
    """The models that learn from the set, by architecture."""
    foundation: str
    """The fingerprint of the diffusion model that makes it."""
    personal: tuple[str, ...] = ()
    """Architectures without a student: their clients learn from the set themselves."""


@dataclass(frozen=True)
class GlobalClassifier:
    """A global model on its way."""

    architecture: str
    classifier: Weights
    """Empty: the client has a model of its own."""


@settings
class ServerSynthesis(Method[ServerSynthesisState]):
    """One upload, a synthetic set, and students that learn from it."""

    state = ServerSynthesisState

    foundation: Foundation = Field(default_factory=Foundation)
    """The server's diffusion model and how it is sampled."""
    images: Annotated[int, Field(ge=1)] = 30
    """Made with each condition."""
    student: str | None = None
    """Architecture of the one global model; left out: one for each architecture present."""
    pretrained: str | None = None
    """A .safetensors file of weights with which students start, such as the model.safetensors of `genfed export`: those
    of the same name and shape are taken, so the last layer may be of other classes. Left out: new weights."""
    learning: Training = Field(
        default_factory=lambda: Training(epochs=2, batch_size=32, learning_rate=0.01, momentum=0.9, weight_decay=1e-5)
    )
    """Training of the students on the synthetic set, in each round of it."""
    learning_rounds: Annotated[int, Field(ge=0)] = 10
    """Rounds of that, on the server alone."""
    rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds in which clients train the students further on their own examples, and these are averaged; 0: one shot."""
    training: Training = Field(
        default_factory=lambda: Training(epochs=20, batch_size=32, learning_rate=0.005, momentum=0.9, weight_decay=1e-5)
    )
    """Local training on a client: of its own classifier, where the method uploads one, and of a student."""
    synthetic_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs on the synthetic set after each of these averages, where the student is: on the server, or at a client
    whose architecture is its own."""

    @abstractmethod
    def upload_phases(self) -> list[Phase[ServerSynthesisState]]:
        """What comes before the synthesis and sets `State.asked`."""

    def student_supervision(self) -> Supervision:
        """What students learn of an image."""
        return "fine_tuning"

    def training_images(self, server: Server, state: ServerSynthesisState) -> Tensor | slice:
        """Which images students learn from."""
        return slice(None)

    def init(self, server: Server) -> ServerSynthesisState:
        model = self.foundation.load(server.task, server.device, server.precision)  # refuses before training
        personal = self.trains_personal_models(server)
        names = [n for n in server.architectures if n not in personal] if self.student is None else [self.student]
        students = {name: weights_of(server.new_network(name, server.common("classifier", name))) for name in names}
        if self.pretrained is not None:
            students = {
                name: weights | matching_weights(self.pretrained, name, weights) for name, weights in students.items()
            }
        empty = torch.empty(0, dtype=torch.int64)
        return ServerSynthesisState(
            {}, ConditionSet(torch.empty(0), empty, empty), SyntheticDataset(), students, model.fingerprint, personal
        )

    def trains_personal_models(self, server: Server) -> tuple[str, ...]:
        """Those of the clients' own architectures that need no student on the server."""
        if self.student is not None or self.needs_architectures:
            return ()
        return tuple(sorted({info.architecture for info in server.clients if info.personal}))

    def phases(self) -> list[Phase[ServerSynthesisState]]:
        mean = {"classifier": Mean(by="architecture") if self.student is None else Mean()}
        return [
            *self.upload_phases(),
            synthesis("synthesise", self.request, self.generate_checked, self.foundation.batch_size),
            Phase("learn", self.train_students, rounds=self.learning_rounds),
            Phase(
                "learn_own",
                lambda server, state, reduced: state,
                self.send_set,
                self.train_personal_model,
                rounds=lambda state: int(bool(state.personal and len(state.synthetic))),
                slots=(MODEL, SET),
            ),
            Phase(
                "tune",
                self.keep,
                self.send_classifier,
                self.finetune,
                aggregate=mean,
                rounds=self.rounds,
                slots=(MODEL, SET),
            ),
        ]

    def request(self, state: ServerSynthesisState) -> SampleRequest:
        """So many images of each condition, those of one condition one after another."""
        rows = torch.arange(len(state.asked)).repeat_interleave(self.images)
        return SampleRequest(state.asked.labels[rows], state.asked.clients[rows], rows)

    def generate_checked(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        """The images, unless the model is no longer the one that the method began with.

        Raises:
            GenfedError: it is another.
        """
        if self.foundation.load(server.task, server.device, server.precision).fingerprint != state.foundation:
            raise GenfedError(
                f"foundation {self.foundation.model} has changed since this run began: put the model back, or "
                "begin anew with --fresh"
            )
        before = [rng.get_state() for rng in rngs]
        try:
            return self.generate_images(server, state, wanted, rngs)
        except torch.OutOfMemoryError:
            half = len(wanted) // 2
            if not half:
                raise GenfedError(
                    f"foundation {self.foundation.model}: one image does not fit into the memory of {server.device}"
                ) from None
        # Each image draws from its own stream: half as many at once are the same images.
        for rng, drawn in zip(rngs, before, strict=True):
            rng.set_state(drawn)
        parts = [(wanted[:half], rngs[:half]), (wanted[half:], rngs[half:])]
        return torch.cat([self.generate_checked(server, state, *part) for part in parts])

    def generate_images(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        """The images, as the foundation model makes them."""
        model = self.foundation.load(server.task, server.device, server.precision)
        images = self.foundation.generate(model, state.asked.conditions[wanted.conditions], rngs)
        return resize_to(images, server.task.shape)

    def train_students(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """A round of the students' training on the synthetic set."""
        return self.student_phases(server, state, self.learning.epochs, self.student_supervision())

    def student_phases(
        self, server: Server, state: ServerSynthesisState, epochs: int, how: Supervision
    ) -> ServerSynthesisState:
        """The students after so many epochs on the set; an empty one changes nothing."""
        if not (len(state.synthetic) and state.students):
            return state
        teachers = build_networks(server, {} if how == "fine_tuning" else state.teachers)
        data = teaching_set(server, state.synthetic, teachers, how)[self.training_images(server, state)]
        students = dict(state.students)
        for name, weights in state.students.items():
            student = build_network(server, name, weights)
            if not math.isfinite(train(student, server, self.learning, data=data, epochs=epochs)):
                raise GenfedError(f"the student {name} diverged on the synthetic set: lower learning.learning_rate")
            students[name] = weights_of(student)
        return replace(state, students=students)

    def send_set(self, server: Server, state: ServerSynthesisState, info: ClientInfo) -> Data:
        """All images and their labels to a client that learns from them itself, none to others."""
        rows = None if info.architecture in state.personal else torch.empty(0, dtype=torch.int64)
        return state.synthetic.read(server, rows).data

    def train_personal_model(self, client: Client, sent: Data) -> Reply[Empty]:
        """All that a student learns on the server, by a client's own model, which stays there; so does the set."""
        if not len(sent):
            return Reply(Empty())
        network, loss, data = load_own_classifier(client), 0.0, sent.to(client.device)
        for _ in range(self.learning_rounds):
            loss = train(network, client, self.learning, data=data, public=True)
        if not math.isfinite(loss):
            raise GenfedError("its model diverged on the synthetic set: lower learning.learning_rate")
        client.storage.put(MODEL, Model(weights_of(network)))
        client.storage.put(SET, sent)
        return Reply(Empty(), metrics={"loss": loss})

    def finetune(self, client: Client, sent: GlobalClassifier) -> Reply[Model]:
        """A further round, on a client; a model of its own stays there."""
        network = self.classifier(client, sent)
        loss = train(network, client, self.training)
        if sent.classifier:
            return Reply(Model(weights_of(network)), weight=len(client.data), metrics={"loss": loss})
        if self.synthetic_epochs and (made := client.storage.get(SET)) is not None:
            data = made.to(client.device)
            train(network, client, self.learning, data=data, epochs=self.synthetic_epochs, public=True)
        client.storage.put(MODEL, Model(weights_of(network)))
        return Reply(Model({}), weight=len(client.data), metrics={"loss": loss})

    def keep(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """The means become the students; an architecture that nobody answered for keeps its own."""
        means = reduced["classifier"] if self.student is None else {self.student: reduced["classifier"]}
        state = replace(state, students=state.students | {n: w for n, w in means.items() if n in state.students})
        return (
            self.student_phases(server, state, self.synthetic_epochs, "fine_tuning") if self.synthetic_epochs else state
        )

    def send_classifier(self, server: Server, state: ServerSynthesisState, info: ClientInfo) -> GlobalClassifier:
        name = info.architecture if self.student is None else self.student
        return GlobalClassifier(name, {} if name in state.personal else state.students[name])

    def classifier(self, client: Client, sent: GlobalClassifier) -> nn.Module:
        if not sent.classifier:
            return load_own_classifier(client)
        return load_weights(client.new_network_of(sent.architecture, client.rng), sent.classifier)


def matching_weights(file: str, architecture: str, weights: Weights) -> Weights:
    """Those of a file's weights that have the name and shape of one of `weights`, in its dtype.

    Raises:
        GenfedError: no such file, a damaged one, or none fits.
    """
    given = read_weights(file, "pretrained")
    fit = {n: given[n].to(w.dtype) for n, w in weights.items() if n in given and given[n].shape == w.shape}
    if not fit:
        raise GenfedError(f"pretrained = {file!r} has no weights of the names and shapes of the student {architecture}")
    if new := weights.keys() - fit.keys():
        log.info("%s: %s start anew; the other %d are from %s", architecture, ", ".join(sorted(new)), len(fit), file)
    return fit


def build_network(server: Server, architecture: str, weights: Weights) -> nn.Module:
    """A classifier with these weights, on the server."""
    return load_weights(server.new_network(architecture, server.rng), weights)


def build_networks(server: Server, uploaded: Mapping[int, Weights]) -> dict[int, nn.Module]:
    """Clients' classifiers with what they uploaded, by client, on the server."""
    kinds = {info.id: info.architecture for info in server.clients}
    # Not from the server's own stream: what students see of the set would hang on how many teachers are opened.
    made = {client: server.new_network(kinds[client], server.common("overwritten")) for client in uploaded}
    return {client: load_weights(network, uploaded[client]) for client, network in made.items()}
