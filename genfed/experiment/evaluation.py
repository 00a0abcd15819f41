"""The phase that evaluates classifiers."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, ClientStorage, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.federated_data import PersonalTestSet
from genfed.core.method import Method
from genfed.core.phase import Phase, Reply, Wire, flatten_phases
from genfed.core.record import digest, pack
from genfed.core.task import Data
from genfed.report.results import EVALUATE, QUALITY, TRIGGERED
from genfed.training.evaluation import ClassCounts, correct_mask, count_by_class, reweighted_accuracy
from genfed.training.upload_checks import check_form

R = TypeVar("R")

REMEMBERED = 64
"""Number of classifiers whose scores are remembered, so that no two clients score the same one."""


@dataclass(frozen=True)
class ClassifierScores(ClassCounts):
    """A client's scores of its classifier."""

    own_accuracy: dict[int, float]
    """Accuracy on data like that of each client for which it is scored, by client; without clients that have none."""


def check_scores(server: Server, scores: ClassifierScores, held_out: int) -> None:
    """Refuses scores that no classifier has.

    Args:
        server: the server.
        scores: the scores that a client uploaded.
        held_out: number of its held-out examples.

    Raises:
        GenfedError: counts have another type or shape, a class has more correct examples than examples, there are no
            examples or more than the held-out ones, or an accuracy is not in [0, 1].
    """
    classes = len(server.task.classes)
    check_form("correct", scores.correct, torch.int64, (classes,))
    check_form("total", scores.total, torch.int64, (classes,))
    if not bool(((scores.correct >= 0) & (scores.correct <= scores.total)).all()):
        raise GenfedError("correct is below 0 or above total in a class")
    if not bool(scores.total.any()):
        raise GenfedError("total is 0 in every class: it was scored on no examples")
    if (total := sum(scores.total.tolist())) > held_out:
        raise GenfedError(f"total is {total:,} over all classes; there are {held_out:,} held-out examples")
    if invalid := [value for value in scores.own_accuracy.values() if not 0 <= value <= 1]:
        raise GenfedError(f"own_accuracy is {invalid[0]:g}; 0 to 1 is allowed")


class WatchedStorage:
    """A client's private records, with a note of whether any was read."""

    def __init__(self, storage: ClientStorage) -> None:
        self._storage = storage
        self.read = False

    def get(self, slot: Slot[R]) -> R | None:
        """See `ClientStorage`."""
        self.read = True
        return self._storage.get(slot)

    def put(self, slot: Slot[R], record: R) -> None:
        """See `ClientStorage`."""
        self._storage.put(slot, record)


class WatchedData(Data):
    """A client's examples, with a note of whether any was read."""

    read = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("x", "y"):
            object.__setattr__(self, "read", True)
        return super().__getattribute__(name)


@dataclass(frozen=True)
class NoStorage:
    """Private records that must not be read, or that are elsewhere."""

    reason: str
    """The message of the error with which every read is refused."""

    def get(self, slot: Slot[R]) -> R | None:
        """See `ClientStorage`.

        Raises:
            GenfedError: always.
        """
        raise GenfedError(self.reason)

    def put(self, slot: Slot[R], record: R) -> None:
        """See `ClientStorage`."""


class _Evaluator:
    """Scores the classifiers of a method's clients."""

    def __init__(
        self,
        method: Method[Any],
        held_out: Data,
        own: Mapping[int, Sequence[PersonalTestSet]],
        triggered: tuple[Data, int] | None,
        only_sent: bool,
    ) -> None:
        self._method, self._held_out, self._own, self._triggered = method, held_out, own, triggered
        self._only_sent = only_sent
        self._scored: dict[tuple[str, str], tuple[Tensor, dict[str, float]]] = {}

    def evaluate(self, client: Client, sent: Any) -> Reply[ClassifierScores]:
        """Scores one client's classifier; for `Phase.work`."""
        (correct, metrics), y = self._score_once(client, sent), self._held_out.y.cpu()
        classes, own_y, accuracy = len(client.task.classes), client.data.y.cpu(), {}
        whole = count_by_class(correct, y, classes)
        for each in self._own.get(client.info.id, ()):
            counts = whole if each.rows is None else count_by_class(correct[each.rows], y[each.rows], classes)
            examples = torch.bincount(own_y[slice(*each.range)], minlength=classes)
            if (score := reweighted_accuracy(counts, examples)) is not None:
                accuracy[each.client] = score
        return Reply(ClassifierScores(whole.correct, whole.total, accuracy), metrics=metrics)

    def _score_once(self, client: Client, sent: Any) -> tuple[Tensor, dict[str, float]]:
        """Returns `_score`, or the scores of an equal classifier: clients of one architecture (or all, where the
        method says so) that were sent the same record have the same one, unless it was built from their storage or
        their examples.
        """
        if self._only_sent:
            own = NoStorage("its classifier is built from what it trained itself, and its scores get no noise")
            client = replace(client, storage=own, data=client.data[:0])
        architecture = "" if self._method.ignores_architecture else client.info.architecture
        key = (architecture, digest(pack(sent)))
        if key not in self._scored:
            storage, data = WatchedStorage(client.storage), WatchedData(client.data.x, client.data.y)
            network = self._method.classifier(replace(client, storage=storage, data=data), sent)
            result = self._score(network, client)
            if storage.read or data.read:
                return result
            if len(self._scored) >= REMEMBERED:
                self._scored.clear()
            self._scored[key] = result
        return self._scored[key]

    def _score(self, network: nn.Module, client: Client) -> tuple[Tensor, dict[str, float]]:
        """Returns which held-out examples are classified correctly, bool [n], and the metrics."""
        correct = correct_mask(network, self._held_out, client.precision)
        if self._triggered is None:
            return correct, {}
        data, target = self._triggered
        fooled = correct_mask(network, replace(data, y=torch.full_like(data.y, target)), client.precision)
        return correct, {TRIGGERED: fooled.double().mean().item()}


def add_evaluation(
    method: Method[Any],
    held_out: Data,
    own: Mapping[int, Sequence[PersonalTestSet]] | None = None,
    triggered: tuple[Data, int] | None = None,
    only_sent: bool = False,
    elsewhere: Mapping[int, int] | None = None,
) -> dict[str, Phase[Any]]:
    """Returns a method's phases by name, with the phase that scores its classifiers.

    A client uploads, per class, the number of held-out examples and of those that it classifies correctly, and one
    accuracy on data like its own. That accuracy is weighted by its training examples of each class, which several
    accuracies reveal; so do the counts where the held-out examples are the client's. Where the server must not learn
    the class counts, `own` is None.

    Args:
        method: the method.
        held_out: the examples on which classifiers are scored, on the device on which clients work.
        own: personal test sets by client, as in `FederatedData`. None: there is no accuracy on data like the client's.
        triggered: examples with a backdoor's trigger, and the class that it means. The metric TRIGGERED is the share
            of them that is classified as that class. None: there is no such metric.
        only_sent: whether a classifier may be built only from what the server sent. The evaluation of any other fails,
            since its scores would depend on the client's training examples.
        elsewhere: number of held-out examples by client that has its own. None: all clients are scored on `held_out`.

    Raises:
        GenfedError: two different phases have one name, or a phase has a name that the run itself uses.
    """

    def check(server: Server, info: ClientInfo, scores: ClassifierScores) -> None:
        check_scores(server, scores, (elsewhere or {}).get(info.id, len(held_out)))

    phases: dict[str, Phase[Any]] = {}
    for phase in flatten_phases(method.phases()):
        same = replace(phase, rounds=1)  # a phase may come again with another number of rounds
        if phase.name in (EVALUATE, QUALITY):
            raise GenfedError(f"{type(method).__name__} has a phase named {phase.name!r}, which is the run's own")
        if phases.setdefault(phase.name, same) != same:
            raise GenfedError(f"{type(method).__name__} has two phases named {phase.name!r}")
    phases[EVALUATE] = Phase(
        EVALUATE,
        lambda server, state, reduced: state,
        method.send_classifier,
        _Evaluator(method, held_out, own or {}, triggered, only_sent).evaluate,
        aggregate={"correct": Collect(), "total": Collect(), "own_accuracy": Collect()},
        wire=Wire(typing.get_type_hints(method.classifier)["sent"], ClassifierScores),
        scores=True,
        check=check,
    )
    return phases
