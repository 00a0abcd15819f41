"""What an audit's author meets: an audit takes the part of an attacker on one finished trial, and tells what it got."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from genfed.audits.findings import Findings
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.rng import stream
from genfed.core.task import Data, Task

if TYPE_CHECKING:
    from torch import nn

Sees = Literal["samples", "state", "classifiers", "uploads"]
"""What an attacker has: examples that the trained generator makes or the server keeps; all that the server holds in the
end; the classifiers that clients end with; or what a client uploads."""


class NotPossible(GenfedError):  # noqa: N818
    """The audit cannot be made of this trial; the message says why, and which setting would help."""


@dataclass(frozen=True)
class ClientExamples:
    """Whose examples are whose."""

    client: ClientInfo
    rows: Tensor
    """Of `Case.train`, int64."""
    like: Tensor | None
    """Held-out rows that are like this client's; None: all are."""


@dataclass(frozen=True)
class Case:
    """A finished trial as an audit meets it. The examples are the auditor's own knowledge, against which an attack is
    scored; what the attacker has are `state`, `samples` and `classifier`, as far as its threat model goes.
    """

    label: str
    method: Method[Any]
    task: Task
    seed: int
    device: torch.device
    train: Data
    """All clients' training examples, on the CPU."""
    held_out: Data
    """Those that nobody trained on, on the CPU."""
    holdings: tuple[ClientExamples, ...]
    server: Callable[..., Server]
    """By a path that names its draws: where server functions run."""
    state: Any
    """The server's, after the last round."""
    samples: Callable[[Tensor, str], Data]
    """(classes [n], purpose) → examples of these classes, float on the scale of `normalize_pixels`, that the generator
    makes (of a generator of features: features); of a set that the server keeps, as many as it has. Raises NotPossible
    where there is neither."""
    classifier: "Callable[[ClientInfo], nn.Module]"
    """A client's, as it is scored after the last round, in eval mode on the CPU."""
    retrained: "Callable[[int, Sequence[Data]], Case]"
    """(number, examples by holding) → the same method on these, from another seed: a shadow of this trial."""
    features: Callable[[Data], Data] | None = None
    """Real examples → their features by the extractor that all clients share, where samples are such features; None:
    samples are examples."""
    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of a table: by column of categories, the features that are its one-hot code; {}: there are none."""
    tell: Callable[[str], None] = lambda line: None
    """Says what is going on, to whoever watches an audit that takes a minute or more."""

    def rng(self, *path: str | int) -> torch.Generator:
        """The audit's own draws."""
        return stream(self.seed, "audit", *path)

    def as_seen(self, sees: Sequence[Sees]) -> "Case":
        """With no more than an attacker of that kind has."""
        return dataclasses.replace(
            self,
            state=self.state if {"state", "uploads"} & set(sees) else _Hidden("state"),
            samples=self.samples if {"state", "samples"} & set(sees) else _Hidden("samples"),
            classifier=self.classifier if "classifiers" in sees else _Hidden("classifier"),
            features=self.features if {"state", "samples"} & set(sees) else None,
        )


class _Hidden:
    """In the place of what an attacker does not have."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the audit's threat model does not have {self._name!r}")

    def __call__(self, *given: object) -> Any:
        raise AssertionError(f"the audit's threat model does not have {self._name!r}")


class Audit(ABC):
    """The settings of an attack (its fields), what its attacker sees, and the attack."""

    sees: ClassVar[tuple[Sees, ...]]
    """All that the attacker has of the run."""
    attacker: ClassVar[str]
    """Who that is and what they know besides, in a sentence for people."""
    retrains: ClassVar[bool] = False
    """True: it trains the method anew, several times; made only where it is named."""

    @abstractmethod
    def examine(self, case: Case) -> Findings:
        """Attacks one trial, and its two controls.

        Raises:
            NotPossible: the trial lacks what the attack needs.
        """
