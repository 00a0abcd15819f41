"""The phase that evaluates classifiers."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Collect, Sum
from genfed.core.client import Client, ClientStorage, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.federated_data import PersonalTestSet
from genfed.core.method import Method
from genfed.core.phase import Phase, Reply, Wire, flatten_phases
from genfed.core.record import digest, pack
from genfed.core.task import Data
from genfed.metrics.classification import (
    LARGEST_MATRIX,
    calibration_error,
    class_probabilities,
    count_confusion,
    macro_auroc,
)
from genfed.report.results import EVALUATE, QUALITY, TRIGGERED
from genfed.training.evaluation import (
    ClassCounts,
    choose_classes,
    correct_mask,
    count_by_class,
    predict,
    reweighted_accuracy,
)
from genfed.training.upload_checks import check_form

R = TypeVar("R")

REMEMBERED = 64
"""Number of classifiers whose scores are remembered, so that no two clients score the same one."""
DIGITS = 4
"""Number of decimal places of a score that is no count. With more, a server could read from the score of a classifier
made for it what a single held-out example is; a count says about as much."""


@dataclass(frozen=True)
class ClassifierScores(ClassCounts):
    """A client's scores of its classifier."""

    own_accuracy: dict[int, float]
    """Accuracy on data like that of each client for which it is scored, by client; without clients that have none."""
    predicted: Tensor
    """Number of examples that are classified as each class, int64 [classes]."""
    confusion: Tensor
    """Number of examples by true and by predicted class, int64 [classes, classes]. [0, 0]: there are more than
    LARGEST_MATRIX classes."""
    auroc: float | None
    """See `macro_auroc`; rounded. None: all examples are of one class."""
    ece: float
    """See `calibration_error`; rounded."""


@torch.no_grad()
def score_outputs(outputs: Tensor, y: Tensor) -> tuple[Tensor, ClassifierScores]:
    """Returns which examples are classified correctly, bool [n], and the scores without `own_accuracy`.

    Args:
        outputs: the outputs of a classifier, float [n, classes] on the CPU.
        y: the classes, int64 [n] on the CPU.
    """
    classes, predicted, probabilities = outputs.shape[1], choose_classes(outputs), class_probabilities(outputs)
    correct, auroc = predicted == y, macro_auroc(probabilities, y)
    whole = count_by_class(correct, y, classes)
    confusion = torch.zeros(0, 0, dtype=torch.int64)
    if classes <= LARGEST_MATRIX:
        confusion = count_confusion(predicted, y, classes)
    return correct, ClassifierScores(
        whole.correct,
        whole.total,
        {},
        predicted=torch.bincount(predicted[predicted >= 0], minlength=classes),
        confusion=confusion,
        auroc=None if auroc is None else round(auroc, DIGITS),
        ece=round(calibration_error(probabilities, correct), DIGITS),
    )


def check_scores(server: Server, scores: ClassifierScores, held_out: int) -> None:
    """Refuses scores that no classifier has.

    Args:
        server: the server.
        scores: the scores that a client uploaded.
        held_out: number of its held-out examples.

    Raises:
        GenfedError: counts have another type or shape or contradict each other, there are no examples or more than the
            held-out ones, or a score is not in [0, 1].
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
    _check_confusion(scores, classes)
    if (scores.auroc is None) != (int((scores.total > 0).sum()) < 2):
        raise GenfedError(f"auroc is {scores.auroc}; a number is allowed where two classes have examples, else None")
    shares = [("own_accuracy", value) for value in scores.own_accuracy.values()]
    shares += [("auroc", 0.5 if scores.auroc is None else scores.auroc), ("ece", scores.ece)]
    if invalid := [(name, value) for name, value in shares if not 0 <= value <= 1]:
        raise GenfedError(f"{invalid[0][0]} is {invalid[0][1]:g}; 0 to 1 is allowed")


def _check_confusion(scores: ClassifierScores, classes: int) -> None:
    """Refuses predicted classes that contradict the other counts, which were checked before."""
    check_form("predicted", scores.predicted, torch.int64, (classes,))
    if bool((scores.predicted < scores.correct).any()):
        raise GenfedError("predicted is below correct in a class")
    if sum(scores.predicted.tolist()) > (total := sum(scores.total.tolist())):
        raise GenfedError(f"predicted is more than the {total:,} examples over all classes")
    sides = 0 if classes > LARGEST_MATRIX else classes
    check_form("confusion", scores.confusion, torch.int64, (sides, sides))
    if not sides:
        return
    counts = scores.confusion  # whole numbers of an upload are at most `LARGEST`, so that their sums do not overflow
    if bool((counts < 0).any()):
        raise GenfedError("confusion is below 0")
    if bool((counts.sum(1) > scores.total).any()):
        raise GenfedError("confusion has more examples of a class than total")
    if not (torch.equal(counts.sum(0), scores.predicted) and torch.equal(counts.diagonal(), scores.correct)):
        raise GenfedError("confusion has other counts than predicted or correct")


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


@dataclass(frozen=True)
class _Scored:
    """The scores of a classifier, the same for every client that has it."""

    correct: Tensor
    """Held-out examples that are classified correctly, bool [n]."""
    scores: ClassifierScores
    """The scores without `own_accuracy`."""
    metrics: dict[str, float]


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
        self._scored: dict[tuple[str, str], _Scored] = {}

    def evaluate(self, client: Client, sent: Any) -> Reply[ClassifierScores]:
        """Scores one client's classifier; for `Phase.work`."""
        scored, y = self._score_once(client, sent), self._held_out.y.cpu()
        classes, own_y, accuracy = len(client.task.classes), client.data.y.cpu(), {}
        for each in self._own.get(client.info.id, ()):
            rows = each.rows
            counts = scored.scores if rows is None else count_by_class(scored.correct[rows], y[rows], classes)
            examples = torch.bincount(own_y[slice(*each.range)], minlength=classes)
            if (score := reweighted_accuracy(counts, examples)) is not None:
                accuracy[each.client] = score
        return Reply(replace(scored.scores, own_accuracy=accuracy), metrics=scored.metrics)

    def _score_once(self, client: Client, sent: Any) -> _Scored:
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

    def _score(self, network: nn.Module, client: Client) -> _Scored:
        """Returns the scores of a classifier on all held-out examples."""
        outputs = predict(network, self._held_out.x, client.precision)
        correct, scores = score_outputs(outputs.cpu(), self._held_out.y.cpu())
        metrics = {}
        if self._triggered is not None:
            data, target = self._triggered
            fooled = correct_mask(network, replace(data, y=torch.full_like(data.y, target)), client.precision)
            metrics[TRIGGERED] = fooled.double().mean().item()
        return _Scored(correct, scores, metrics)


def add_evaluation(
    method: Method[Any],
    held_out: Data,
    own: Mapping[int, Sequence[PersonalTestSet]] | None = None,
    triggered: tuple[Data, int] | None = None,
    only_sent: bool = False,
    elsewhere: Mapping[int, int] | None = None,
) -> dict[str, Phase[Any]]:
    """Returns a method's phases by name, with the phase that scores its classifiers.

    A client uploads counts of held-out examples by class and predicted class, two scores of its probabilities, and one
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
        aggregate={each.name: Collect() for each in fields(ClassifierScores)} | {"confusion": Sum()},
        wire=Wire(typing.get_type_hints(method.classifier)["sent"], ClassifierScores),
        scores=True,
        check=check,
    )
    return phases
