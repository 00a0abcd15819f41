"""What a method's author meets: a method is a list of phases; a phase is send → work → update, some rounds long."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
    """Name in messages."""
    network: "nn.Module"
    task: Task
    """Task whose examples the network takes."""
    objectives: Sequence[Any] = ()
    """`training.fit.Objective`s that it is trained by. Empty: it is a classifier, trained by cross-entropy."""
    remedy: str = "nn.GroupNorm can stand there"
    """Advice for a network that cannot be trained by DP-SGD since it mixes the examples of a batch."""


class Method(ABC, Generic[S]):
    """A federated method: hyper-parameters (its fields), a state record and a list of phases."""

    state: ClassVar[type[Any]]
    """The type of its state record."""
    pooled: ClassVar[bool] = False
    """True: one client per architecture holds everybody's data (a ceiling, not a federation)."""
    needs_every_class: ClassVar[bool] = False
    """True: a client that lacks a class is refused before training. (None that ships needs it.)"""
    minimum_examples: ClassVar[int] = 1
    """A client with fewer is refused before training."""
    needs_public: ClassVar[bool] = False
    """True: a run without public examples is refused before training."""
    needs_architectures: ClassVar[bool] = False
    """True: the server, or another client, runs clients' networks. A federation in which only its site knows an
    architecture is refused before training."""
    unaugmented: ClassVar[tuple[str, ...]] = ()
    """Names of those of its `Training` settings whose examples it does not augment: it has its own loss, or they are
    no images. A run that asks for it is refused before training."""
    generates: ClassVar[bool] = False
    """True: `generate` makes examples from the state."""
    of_features: ClassVar[bool] = False
    """True: `generate` makes features instead, and `represent` says what those of real examples are."""

    unprotected_upload: ClassVar[str] = ""
    """What leaves a client without DP-SGD having made it, in the words after "its clients upload"; empty: not said."""

    def private_trainings(self) -> Mapping[str, Sequence[DeclaredTraining]] | None:
        """Returns, by phase in which clients work, its trainings on a client's own examples. A class that declares them
        guarantees that all go through `training.fit` with `client.privacy`, and that what a client uploads or scores
        depends on its examples by these trainings and by their number alone. None (the default): differential privacy
        is refused. A subclass with its own `work` or `phases` does not inherit the declaration.
        """
        return None

    def trained_networks(self, server: Server) -> Sequence[TrainedNetwork]:
        """Returns what clients train on their examples besides their own classifiers, with the initial weights; a run
        with differential privacy checks these networks before training.
        """
        return ()

    @abstractmethod
    def init(self, server: Server) -> S:
        """The state before the first round."""

    @abstractmethod
    def phases(self) -> "Sequence[Phase[S] | Repeat[S]]":
        """The algorithm."""

    @abstractmethod
    def send_classifier(self, server: Server, state: S, info: ClientInfo) -> Any:
        """What a client needs to classify, besides what it kept."""

    @abstractmethod
    def classifier(self, client: Client, sent: Any) -> "nn.Module":
        """What is scored; runs on the client and may read every slot of `client.kept`. Clients who keep nothing of it
        have the same as all of their architecture who were sent the same.
        """

    def generate(self, server: Server, state: S, y: Tensor) -> Tensor:
        """One example per label: y [n] → [n, *shape] on the scale of `normalize_pixels`."""
        raise GenfedError(f"{type(self).__name__} has no generator to sample from")

    def represent(self, server: Server, state: S, x: Tensor) -> Tensor:
        """Of a method with `of_features`: examples as `Data.x` has them → features [n, …], on the CPU."""
        raise GenfedError(f"{type(self).__name__} has no features")
