"""Base of methods whose server generates one synthetic dataset with its diffusion model and trains students on it."""

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.foundation.images import resize_to
from genfed.foundation.settings import Foundation
from genfed.methods.bases.classifier_upload import GlobalClassifier, GlobalClassifiers, build_uploaded
from genfed.methods.bases.local_training import MODEL, load_own_classifier
from genfed.training.classifier import Training, train
from genfed.training.synthetic_dataset import SampleRequest, SyntheticDataset, synthesis
from genfed.training.synthetic_teaching import Supervision, teaching_set
from genfed.training.weights import Model, build_classifier, initial_classifier, read_weights, weights_of

log = logging.getLogger(__name__)
SET = Slot("set", Data)
"""Slot of the synthetic dataset, at a client that trains its own model on it."""


@dataclass(frozen=True)
class ConditionSet:
    """The conditions from which images are generated, one per row."""

    conditions: Tensor
    """Embeddings [m, tokens, width] or class numbers [m], as `FoundationModel.encode_condition` returns them. Empty:
    the conditions follow from the labels."""
    labels: Tensor
    """Classes of the images, int64 [m]."""
    clients: Tensor
    """Clients that the images represent, int64 [m]; `NO_CLIENT`: none."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ServerSynthesisState:
    """The server's state."""

    teachers: dict[int, Weights]
    """Classifiers that clients uploaded, by client. Empty: the method does not use them."""
    requested: ConditionSet
    synthetic: SyntheticDataset
    students: dict[str, Weights]
    """Weights of the students, by architecture."""
    foundation: str
    """Fingerprint of the diffusion model that generates the set."""
    personal: tuple[str, ...] = ()
    """Architectures without a student; their clients train on the set themselves."""


@settings
class ServerSynthesis(GlobalClassifiers[ServerSynthesisState]):
    """Base of methods with one upload (or none), a synthetic dataset on the server, and students trained on it.

    1. the phases of `upload_phases`. They set the conditions, `ServerSynthesisState.requested`.
    2. synthesise, once, on the server: generates `images_per_condition` images from each condition.
    3. learn, `student_rounds` rounds, on the server: trains the students.
    4. learn_own, once: clients whose architecture the server cannot run train their own model on the images.
    5. tune, `finetune_rounds` rounds: clients train the students on their own examples; the server averages them.
    """

    state = ServerSynthesisState

    foundation: Foundation = Field(default_factory=Foundation)
    """The server's diffusion model and how it is sampled."""
    images_per_condition: Annotated[int, Field(ge=1)] = 30
    """Images generated from each condition."""
    pretrained: str | None = None
    """A .safetensors file with initial weights of the students, such as model.safetensors of `genfed export`. Weights
    with the same name and shape are used, so the classes may differ. None: new weights."""
    student_training: Training = Field(
        default_factory=lambda: Training(epochs=2, batch_size=32, learning_rate=0.01, momentum=0.9, weight_decay=1e-5)
    )
    """Training of the students on the synthetic set in each round."""
    student_rounds: Annotated[int, Field(ge=0)] = 10
    """Rounds of the students' training, on the server."""
    finetune_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds in which clients train the students on their own examples and the server averages them. 0: one-shot."""
    client_training: Training = Field(
        default_factory=lambda: Training(epochs=20, batch_size=32, learning_rate=0.005, momentum=0.9, weight_decay=1e-5)
    )
    """Local training on a client: of the classifier that it uploads, if the method has such an upload, and of a
    student."""
    synthetic_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs on the synthetic set after each of these rounds: on the server, or on a client that has no student."""

    @abstractmethod
    def upload_phases(self) -> list[Phase[ServerSynthesisState]]:
        """Returns the phases before the synthesis, which set `ServerSynthesisState.requested`."""

    def student_supervision(self) -> Supervision:
        """Returns what students learn from an image."""
        return "fine_tuning"

    def training_images(self, server: Server, state: ServerSynthesisState) -> Tensor | slice:
        """Returns the rows of the images that students learn from."""
        return slice(None)

    def init(self, server: Server) -> ServerSynthesisState:
        model = self.foundation.load(server.task, server.device, server.precision)  # refuses before training
        personal = self.personal_architectures(server)
        names = [name for name in self.student_architectures(server) if name not in personal]
        students = {name: initial_classifier(server, name) for name in names}
        if self.pretrained is not None:
            students = {
                name: weights | matching_weights(self.pretrained, name, weights) for name, weights in students.items()
            }
        empty = torch.empty(0, dtype=torch.int64)
        return ServerSynthesisState(
            {}, ConditionSet(torch.empty(0), empty, empty), SyntheticDataset(), students, model.fingerprint, personal
        )

    def personal_architectures(self, server: Server) -> tuple[str, ...]:
        """Returns the architectures that only their clients can run; they get no student."""
        if self.student is not None or self.needs_architectures:
            return ()
        return tuple(sorted({info.architecture for info in server.clients if info.personal}))

    def phases(self) -> list[Phase[ServerSynthesisState]]:
        mean = {"classifier": Mean(by="architecture") if self.student is None else Mean()}
        return [
            *self.upload_phases(),
            synthesis("synthesise", self.request, self.generate_checked, self.foundation.batch_size),
            Phase("learn", self.train_students, rounds=self.student_rounds),
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
                rounds=self.finetune_rounds,
                slots=(MODEL, SET),
            ),
        ]

    def request(self, state: ServerSynthesisState) -> SampleRequest:
        """Returns a request for `images_per_condition` images of each condition, one condition after another."""
        rows = torch.arange(len(state.requested)).repeat_interleave(self.images_per_condition)
        return SampleRequest(state.requested.labels[rows], state.requested.clients[rows], rows)

    def generate_checked(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        """Generates images, in smaller batches where memory is short.

        Raises:
            GenfedError: the diffusion model has changed since the run began, or one image does not fit into memory.
        """
        if self.foundation.load(server.task, server.device, server.precision).fingerprint != state.foundation:
            raise GenfedError(
                f"foundation {self.foundation.model} has changed since this run began: restore the model, or "
                "start again with --fresh"
            )
        states = [rng.get_state() for rng in rngs]
        try:
            return self.generate_images(server, state, wanted, rngs)
        except torch.OutOfMemoryError:
            half = len(wanted) // 2
            if not half:
                raise GenfedError(
                    f"foundation {self.foundation.model}: one image does not fit into the memory of {server.device}"
                ) from None
        # Each image draws from its own stream, so that smaller batches give the same images.
        for rng, state_before in zip(rngs, states, strict=True):
            rng.set_state(state_before)
        parts = [(wanted[:half], rngs[:half]), (wanted[half:], rngs[half:])]
        return torch.cat([self.generate_checked(server, state, *part) for part in parts])

    def generate_images(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        """Generates images from the conditions of a request."""
        model = self.foundation.load(server.task, server.device, server.precision)
        images = self.foundation.generate(model, state.requested.conditions[wanted.conditions], rngs)
        return resize_to(images, server.task.shape)

    def train_students(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """Trains the students on the synthetic set for one round."""
        return self.teach_students(server, state, self.student_training.epochs, self.student_supervision())

    def teach_students(
        self, server: Server, state: ServerSynthesisState, epochs: int, supervision: Supervision
    ) -> ServerSynthesisState:
        """Trains the students for `epochs` on the synthetic set. An empty set changes nothing."""
        if not (len(state.synthetic) and state.students):
            return state
        teachers = build_uploaded(server, {} if supervision == "fine_tuning" else state.teachers)
        data = teaching_set(server, state.synthetic, teachers, supervision)[self.training_images(server, state)]
        students = dict(state.students)
        for name, weights in state.students.items():
            student = build_classifier(server, name, weights)
            if not math.isfinite(train(student, server, self.student_training, data=data, epochs=epochs)):
                raise GenfedError(f"the student {name} diverged on the synthetic set: lower learning.learning_rate")
            students[name] = weights_of(student)
        return replace(state, students=students)

    def send_set(self, server: Server, state: ServerSynthesisState, info: ClientInfo) -> Data:
        """Returns all images and labels for a client without a student, and none for other clients."""
        rows = None if info.architecture in state.personal else torch.empty(0, dtype=torch.int64)
        return state.synthetic.read(server, rows).data

    def train_personal_model(self, client: Client, sent: Data) -> Reply[Empty]:
        """Trains a client's own model on the synthetic set, and stores both on the client."""
        if not len(sent):
            return Reply(Empty())
        network, loss, data = load_own_classifier(client), 0.0, sent.to(client.device)
        for _ in range(self.student_rounds):
            loss = train(network, client, self.student_training, data=data, public=True)
        if not math.isfinite(loss):
            raise GenfedError("its model diverged on the synthetic set: lower learning.learning_rate")
        client.storage.put(MODEL, Model(weights_of(network)))
        client.storage.put(SET, sent)
        return Reply(Empty(), metrics={"loss": loss})

    def finetune(self, client: Client, sent: GlobalClassifier) -> Reply[Model]:
        """Trains the student on the client's examples; a client without a student trains and stores its own model."""
        network = self.classifier(client, sent)
        loss = train(network, client, self.client_training)
        if sent.classifier:
            return Reply(Model(weights_of(network)), weight=len(client.data), metrics={"loss": loss})
        if self.synthetic_epochs and (stored := client.storage.get(SET)) is not None:
            data = stored.to(client.device)
            train(network, client, self.student_training, data=data, epochs=self.synthetic_epochs, public=True)
        client.storage.put(MODEL, Model(weights_of(network)))
        return Reply(Model({}), weight=len(client.data), metrics={"loss": loss})

    def keep(self, server: Server, state: ServerSynthesisState, reduced: Reduced) -> ServerSynthesisState:
        """Takes the means as the students. An architecture without an upload keeps its student."""
        means = reduced["classifier"] if self.student is None else {self.student: reduced["classifier"]}
        state = replace(state, students=state.students | {n: w for n, w in means.items() if n in state.students})
        return (
            self.teach_students(server, state, self.synthetic_epochs, "fine_tuning") if self.synthetic_epochs else state
        )

    def classifiers(self, state: ServerSynthesisState) -> dict[str, Weights]:
        return state.students

    def classifier(self, client: Client, sent: GlobalClassifier) -> nn.Module:
        return super().classifier(client, sent) if sent.classifier else load_own_classifier(client)


def matching_weights(file: str, architecture: str, weights: Weights) -> Weights:
    """Returns the weights of a file that have the name and shape of one of `weights`, in its dtype.

    Raises:
        GenfedError: the file does not exist, is damaged, or has no such weights.
    """
    found = read_weights(file, "pretrained")
    matching = {n: found[n].to(w.dtype) for n, w in weights.items() if n in found and found[n].shape == w.shape}
    if not matching:
        raise GenfedError(f"pretrained = {file!r} has no weights of the names and shapes of the student {architecture}")
    if new := weights.keys() - matching.keys():
        log.info(
            "%s: %s have new weights; the other %d are from %s",
            architecture,
            ", ".join(sorted(new)),
            len(matching),
            file,
        )
    return matching
