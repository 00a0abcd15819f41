"""The interface of an audit: it attacks one finished trial and reports what it found."""

import dataclasses
import itertools
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
"""What an attacker has: "samples", examples from the trained generator or from the server's synthetic dataset; "state",
all that the server holds after the run; "classifiers", the final classifiers of clients; "uploads", what a client
uploads."""


class NotPossible(GenfedError):  # noqa: N818
    """The audit is not possible for this trial. The message says why, and which setting would help."""


@dataclass(frozen=True)
class ClientExamples:
    """The examples of one client."""

    client: ClientInfo
    rows: Tensor
    """Rows of `Case.train`, int64."""
    like: Tensor | None
    """Held-out rows that resemble this client's examples. None: all do."""
    rounds: Mapping[str, int] = field(default_factory=dict)
    """The last round of each phase in which the client took part, by phase; without phases in which it never did."""


@dataclass(frozen=True)
class Case:
    """A finished trial as an audit sees it. The examples are knowledge of the auditor, by which an attack is scored.
    The attacker has `state`, `samples` and `classifier`, as far as its threat model allows.
    """

    label: str
    method: Method[Any]
    task: Task
    seed: int
    device: torch.device
    train: Data
    """Training examples of the clients that took part in the trial, on the CPU. Those of others are in none of it."""
    held_out: Data
    """Examples on which no client trained, on the CPU."""
    holdings: tuple[ClientExamples, ...]
    """The clients that took part, by id."""
    server: Callable[..., Server]
    """(path that names the draws) → a server on which server functions run."""
    state: Any
    """State of the server after the last round."""
    samples: Callable[[Tensor, str], Data]
    """(classes [n], purpose) → generated examples of these classes, float on the scale of `normalize_pixels` (features,
    if the generator generates features). From a synthetic dataset on the server: as many as it has. Raises NotPossible
    if the trial has neither."""
    classifier: "Callable[[ClientInfo], nn.Module]"
    """(client) → its classifier as evaluated after the last round, in eval mode on the CPU."""
    retrained: "Callable[[int, Sequence[Data]], Case]"
    """(number, examples by holding) → the same method trained on these, with another seed: a shadow of this trial. The
    same clients take part."""
    features: Callable[[Data], Data] | None = None
    """Real examples → their features by the extractor that all clients share, if samples are such features. None:
    samples are examples."""
    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Features that are the one-hot code of each categorical column of a table, by column. Empty: none."""
    notify: Callable[[str], None] = lambda line: None
    """Shows progress, for audits that take a minute or more."""

    def rng(self, *path: str | int) -> torch.Generator:
        """Returns a stream of the audit's own random numbers."""
        return stream(self.seed, "audit", *path)

    def limit_to(self, holdings: Sequence[ClientExamples]) -> "Case":
        """Returns the case with only these clients and rows. It has no shadows."""
        ends = torch.tensor([0, *(len(each.rows) for each in holdings)]).cumsum(0).tolist()
        places = [torch.arange(*place) for place in itertools.pairwise(ends)]
        return dataclasses.replace(
            self,
            train=self.train[torch.cat([each.rows for each in holdings])],
            holdings=tuple(dataclasses.replace(h, rows=rows) for h, rows in zip(holdings, places, strict=True)),
            retrained=_Hidden("retrained"),
        )

    def as_seen(self, sees: Sequence[Sees]) -> "Case":
        """Returns the case with only what an attacker of this kind has."""
        return dataclasses.replace(
            self,
            state=self.state if {"state", "uploads"} & set(sees) else _Hidden("state"),
            samples=self.samples if {"state", "samples"} & set(sees) else _Hidden("samples"),
            classifier=self.classifier if "classifiers" in sees else _Hidden("classifier"),
            features=self.features if {"state", "samples", "uploads"} & set(sees) else None,
        )


class _Hidden:
    """Replaces what an attacker does not have. Any use of it is an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the audit's threat model does not have {self._name!r}")

    def __call__(self, *given: object) -> Any:
        raise AssertionError(f"the audit's threat model does not have {self._name!r}")


class Audit(ABC):
    """An attack with its settings (fields) and its threat model."""

    sees: ClassVar[tuple[Sees, ...]]
    """All that the attacker has from the run."""
    attacker: ClassVar[str]
    """Who the attacker is and what else they know, in a sentence for people."""
    retrains: ClassVar[bool] = False
    """True: the audit trains the method again, several times. It runs only if it is named."""

    @abstractmethod
    def examine(self, case: Case) -> Findings:
        """Attacks one trial and its two controls.

        Raises:
            NotPossible: the trial lacks what the attack needs.
        """
