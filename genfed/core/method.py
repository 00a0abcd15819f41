"""The interface of a method: a list of phases, each some rounds of send → work → update."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Repeat
from genfed.core.privacy import DeclaredTraining
from genfed.core.task import Task

if TYPE_CHECKING:
    from torch import nn

S = TypeVar("S")


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that clients train on their examples."""

    name: str
    """Name that messages use."""
    network: "nn.Module"
    """The network, with initial weights."""
    task: Task
    """Task whose examples the network takes."""
    objectives: Sequence[Any] = ()
    """`training.fit.Objective`s that it is trained by. Empty: it is a classifier, trained by cross-entropy."""
    remedy: str = "nn.GroupNorm can stand there"
    """Advice for a network that cannot be trained by DP-SGD since it mixes the examples of a batch."""


class Method(ABC, Generic[S]):
    """A federated method: settings (its fields), a state record and a list of phases.

    A method in a file of your own is named by `kind = "package.module:Class"`; docs/own.md goes through one. In this
    one every client trains the same initial classifier, and the server learns the mean of their losses.

    >>> from dataclasses import dataclass
    >>> from genfed import Empty, Mean, Method, Model, Phase, Reply, Slot, Training, initial_weights, load_weights
    >>> from genfed import settings, train, weights_of
    >>> @dataclass(frozen=True)
    ... class Loss:
    ...     loss: float
    >>> OWN = Slot("classifier", Model)
    >>> @settings
    ... class TrainOnce(Method[Loss]):
    ...     state = Loss
    ...     training: Training = Training(epochs=2)
    ...     "Training of a client's classifier."
    ...     def init(self, server):
    ...         return Loss(0.0)
    ...     def phases(self):
    ...         mean = {"loss": Mean()}
    ...         return [Phase("train", self.update, self.send, self.train, aggregate=mean, slots=(OWN,))]
    ...     def send(self, server, state, info):
    ...         return Empty()
    ...     def train(self, client, sent: Empty) -> Reply[Loss]:
    ...         network = load_weights(client.new_network(client.rng), initial_weights(client))
    ...         loss = train(network, client, self.training)
    ...         client.storage.put(OWN, Model(weights_of(network)))
    ...         return Reply(Loss(loss), weight=len(client.data))
    ...     def update(self, server, state, reduced):
    ...         return Loss(reduced["loss"])
    ...     def send_classifier(self, server, state, info):
    ...         return Empty()
    ...     def classifier(self, client, sent):
    ...         return load_weights(client.new_network(client.rng), client.storage.get(OWN).classifier)
    >>> [phase.name for phase in TrainOnce(training=Training(epochs=5)).phases()]
    ['train']
    """

    state: ClassVar[type[Any]]
    """Type of the method's state record."""
    pooled: ClassVar[bool] = False
    """Whether one client per architecture holds the data of all clients (an upper bound, not a federation)."""
    reference: ClassVar[bool] = False
    """Whether the method is a reference for the others, such as local training. Its clients exchange nothing, so all of
    them train in every round, whatever `federation.client_fraction` says."""
    needs_every_class: ClassVar[bool] = False
    """Whether each client must have examples of every class. A client without one is refused before training. (No
    method of genfed needs it.)"""
    minimum_examples: ClassVar[int] = 1
    """Minimum number of a client's examples. A client with fewer is refused before training."""
    needs_public: ClassVar[bool] = False
    """Whether the method needs public examples. A run without them is refused before training."""
    needs_architectures: ClassVar[bool] = False
    """Whether the server, or another client, runs clients' networks. If so, a federation in which only one site knows
    an architecture is refused before training."""
    unaugmented: ClassVar[tuple[str, ...]] = ()
    """Names of the `Training` settings that do not support augmentation, since the method has its own loss or trains on
    something other than images. A run that sets augmentation there is refused before training."""
    generates: ClassVar[bool] = False
    """Whether `generate` generates examples from the state."""
    of_features: ClassVar[bool] = False
    """Whether `generate` generates features instead, and `represent` returns the features of real examples."""

    classifier_reads_data: ClassVar[bool] = False
    """Whether `classifier` reads `client.data`. If so, tools that rebuild a classifier after a run load the run's
    data."""
    classifier_reads_storage: ClassVar[bool] = False
    """Whether `classifier` reads `client.storage`, so that scores depend on what the client trained by itself. A site
    that uploads only with noise of its own refuses the method."""
    ignores_architecture: ClassVar[bool] = False
    """Whether all clients have the same classifier if they were sent the same record, whatever their architectures."""
    unprotected_upload: ClassVar[str] = ""
    """Phrase that completes "its clients upload …", naming data that DP-SGD does not protect. Empty: unknown."""

    def private_trainings(self) -> Mapping[str, Sequence[DeclaredTraining]] | None:
        """Returns the trainings on a client's own examples, by name of each phase in which clients work.

        A method that declares them guarantees two things. All of these trainings go through `training.fit` with
        `client.privacy`. And a client's uploads and scores depend on its examples only through these trainings and
        through the number of examples. A subclass with its own `work` or `phases` must declare them again. An upload
        holds only tensors as the last of these trainings left them, or as they were received; any other reply stays on
        the client. None (the default): a run with differential privacy is refused.
        """
        return None

    def trained_networks(self, server: Server) -> Sequence[TrainedNetwork]:
        """Returns the networks that clients train in addition to their own classifiers, with initial weights. A run
        with differential privacy checks them before training.
        """
        return ()

    def forgets(self) -> bool:
        """Returns whether `forget` removes a client exactly; the default is False. Such a method has one phase in which
        clients work, its first one, of one round, and after it the server is alone.
        """
        return False

    def forget(self, server: Server, state: S, info: ClientInfo, upload: Callable[[], Any]) -> S:
        """Returns the state after the first phase as if a client had not been there, given a later state.

        Args:
            server: A server that does not know the client.
            state: A state after the first phase, or a later one.
            info: The client.
            upload: Makes the client's upload again.

        Raises:
            GenfedError: the method does not `forgets`.
        """
        raise GenfedError(f"{type(self).__name__} cannot remove a client from what it has learned")

    @abstractmethod
    def init(self, server: Server) -> S:
        """Returns the state before the first round."""

    @abstractmethod
    def phases(self) -> "Sequence[Phase[S] | Repeat[S]]":
        """Returns the algorithm."""

    @abstractmethod
    def send_classifier(self, server: Server, state: S, info: ClientInfo) -> Any:
        """Returns the record from which a client builds its classifier, together with what it stores."""

    @abstractmethod
    def classifier(self, client: Client, sent: Any) -> "nn.Module":
        """Returns the classifier that is evaluated. Runs on the client and may read every slot of `client.storage`.
        Clients of one architecture have the same classifier if they were sent the same record and store nothing for it.
        """

    def generate(self, server: Server, state: S, y: Tensor) -> Tensor:
        """Returns one example per label: y [n] → [n, *shape] on the scale of `normalize_pixels`.

        Raises:
            GenfedError: the method has no generator.
        """
        raise GenfedError(f"{type(self).__name__} has no generator to sample from")

    def represent(self, server: Server, state: S, x: Tensor) -> Tensor:
        """Returns the features [n, …] of examples x (as in `Data.x`), on the CPU; for methods with `of_features`.

        Raises:
            GenfedError: the method has no features.
        """
        raise GenfedError(f"{type(self).__name__} has no features")
