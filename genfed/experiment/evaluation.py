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
from genfed.report.results import EVALUATE, QUALITY, TRIGGERED
from genfed.training.evaluation import ClassCounts, correct_mask, count_by_class, reweighted_accuracy
from genfed.training.upload_checks import check_form

R = TypeVar("R")

REMEMBERED = 64
"""Classifiers whose scores are remembered, so that no two clients score the same one."""


@dataclass(frozen=True)
class ClassifierScores(ClassCounts):
    """What a client tells of its classifier."""

    own_accuracy: dict[int, float]
    """By client for whom it is scored: the accuracy on data like that one's; left out where there are none."""


def check_scores(server: Server, info: ClientInfo, scores: ClassifierScores) -> None:
    """Refuses scores that no classifier has; for `Phase.check`.

    Raises:
        GenfedError: counts of another type or shape, more right than there are, none at all, or an accuracy beyond 1.
    """
    classes = len(server.task.classes)
    check_form("correct", scores.correct, torch.int64, (classes,))
    check_form("total", scores.total, torch.int64, (classes,))
    if not bool(((scores.correct >= 0) & (scores.correct <= scores.total)).all()):
        raise GenfedError("correct is below 0 or above total in a class")
    if not bool(scores.total.any()):
        raise GenfedError("total is 0 in every class: it was scored on no examples")
    if bad := [value for value in scores.own_accuracy.values() if not 0 <= value <= 1]:
        raise GenfedError(f"own_accuracy is {bad[0]:g}; 0 to 1 is allowed")


class WatchedStorage:
    """A client's private records, and whether any was asked for."""

    def __init__(self, kept: ClientStorage) -> None:
        self._kept = kept
        self.read = False

    def get(self, slot: Slot[R]) -> R | None:
        """See `ClientStorage`."""
        self.read = True
        return self._kept.get(slot)

    def put(self, slot: Slot[R], record: R) -> None:
        """See `ClientStorage`."""
        self._kept.put(slot, record)


def add_evaluation(
    method: Method[Any],
    held_out: Any,
    own: Mapping[int, Sequence[PersonalTestSet]] | None = None,
    triggered: tuple[Any, int] | None = None,
) -> dict[str, Phase[Any]]:
    """A method's phases by name, and the phase that scores its classifiers. A client tells, of each class, how many
    examples `held_out` has and how many of them it gets right, and one number for the data like its own. That number is
    weighted by its training examples of each class, which several of them give away, as `total` does those held out
    where these are its own: so it is not told where the server is not to know. Where clients work, `held_out` lies on
    their device; `own` is that of `FederatedData`, None: nobody is scored so. `triggered`: examples of which the metric
    TRIGGERED tells the share that is taken for the given class.

    Raises:
        GenfedError: two different phases of one name, or one of a name that the run itself uses.
    """
    phases: dict[str, Phase[Any]] = {}
    for phase in flatten_phases(method.phases()):
        same = replace(phase, rounds=1)  # a phase may come again with another number of rounds
        if phase.name in (EVALUATE, QUALITY):
            raise GenfedError(f"{type(method).__name__} has a phase named {phase.name!r}, which is the run's own")
        if phases.setdefault(phase.name, same) != same:
            raise GenfedError(f"{type(method).__name__} has two phases named {phase.name!r}")

    scored: dict[tuple[str, str], tuple[Tensor, dict[str, float]]] = {}

    def judged(network: nn.Module, client: Client) -> tuple[Tensor, dict[str, float]]:
        """Which of the common part it gets right, and the metrics."""
        hit = correct_mask(network, held_out, client.precision)
        if triggered is None:
            return hit, {}
        data, target = triggered
        fooled = correct_mask(network, replace(data, y=torch.full_like(data.y, target)), client.precision)
        return hit, {TRIGGERED: fooled.double().mean().item()}

    def scored_once(client: Client, sent: Any) -> tuple[Tensor, dict[str, float]]:
        """Clients of one architecture who were sent the same have the same classifier, unless they kept something of
        it: one of a thousand clients is asked for all of them.
        """
        known = (client.info.architecture, digest(pack(sent)))
        if known not in scored:
            kept = WatchedStorage(client.storage)
            result = judged(method.classifier(replace(client, storage=kept), sent), client)
            if kept.read:
                return result
            if len(scored) >= REMEMBERED:
                scored.clear()
            scored[known] = result
        return scored[known]

    def evaluate(client: Client, sent: Any) -> Reply[ClassifierScores]:
        (hit, metrics), y = scored_once(client, sent), held_out.y.cpu()
        classes, mine, accuracy = len(client.task.classes), client.data.y.cpu(), {}
        whole = count_by_class(hit, y, classes)
        for each in (own or {}).get(client.info.id, ()):
            counts = whole if each.rows is None else count_by_class(hit[each.rows], y[each.rows], classes)
            held = torch.bincount(mine[slice(*each.range)], minlength=classes)
            if (score := reweighted_accuracy(counts, held)) is not None:
                accuracy[each.client] = score
        return Reply(ClassifierScores(whole.correct, whole.total, accuracy), metrics=metrics)

    phases[EVALUATE] = Phase(
        EVALUATE,
        lambda server, state, reduced: state,
        method.send_classifier,
        evaluate,
        aggregate={"correct": Collect(), "total": Collect(), "own_accuracy": Collect()},
        wire=Wire(typing.get_type_hints(method.classifier)["sent"], ClassifierScores),
        scores=True,
        check=check_scores,
    )
    return phases
