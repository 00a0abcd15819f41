"""Summarises the rows of metrics.jsonl into a report."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from statistics import fmean
from typing import Any

from genfed.core.errors import GenfedError
from genfed.engines.messages import LARGEST
from genfed.report.results import (
    EVALUATE,
    QUALITY,
    TRIGGERED,
    ClassScore,
    ClientScore,
    GeneratorQuality,
    Measures,
    PersonalScore,
    PhaseCost,
    Point,
    Row,
    TrialResult,
    average_architectures,
)


def summarize_trial(rows: Iterable[Row], method: str, seed: int) -> TrialResult:
    """Returns the result of one trial; rows of other trials are skipped.

    Raises:
        GenfedError: the trial was never evaluated, or a client was evaluated on no examples.
    """
    every = [row for row in rows if row["method"] == method and row["seed"] == seed]
    own = [row for row in every if row["phase"] != QUALITY]
    curve = read_accuracies(own)
    if not curve:
        raise GenfedError(f"{method}, seed {seed}: there is no evaluation in the metrics")
    last = curve[-1]
    clients = tuple(
        sorted(
            (read_score(row) for row in own if _is_client(row, EVALUATE) and row["round"] == last.round),
            key=lambda score: score.client,
        )
    )
    assert last.value is not None
    confusion = _read_confusion(own, last.round)
    return TrialResult(
        method, seed, last.value, clients, curve, read_losses(own), _sum_costs(own), _describe_failures(every),
        best=_read_best(own), parameters=_count_parameters(own), quality=_read_quality(every),
        own=_read_personal_scores(own, last.round), triggered=_read_backdoor_success(own, last.round),
        measures=_join_measures(clients, average_architectures, average_architectures),
        worst_measures=_join_measures(clients, _lowest, _highest),
        by_class=_score_classes(confusion, own, last.round), confusion=confusion,
    )  # fmt: skip


def read_accuracies(rows: Sequence[Row]) -> tuple[Point, ...]:
    """Returns the accuracy of one trial at every evaluation, averaged over clients and then over architectures."""
    points = []
    for (phase, round_, step), members in _group_by_round(row for row in rows if _is_client(row, EVALUATE)).items():
        scores = map(read_score, members)
        points.append(Point(phase, round_, step, average_architectures((s.architecture, s.accuracy) for s in scores)))
    return tuple(sorted(points, key=lambda point: point.round))


def _read_best(rows: Sequence[Row]) -> float:
    scores = [read_score(row) for row in rows if _is_client(row, EVALUATE)]
    best = {s.client: s for s in sorted(scores, key=lambda s: s.accuracy)}  # the last of a client is its best
    return average_architectures((s.architecture, s.accuracy) for s in best.values())


_Join = Callable[[Iterable[tuple[str, float]]], float]
"""Pairs of an architecture and a score of a client → one number."""


def _join_measures(clients: Sequence[ClientScore], higher: _Join, lower: _Join) -> Measures | None:
    """Returns the measures joined over the clients that have them. None: no client has any.

    Args:
        clients: the clients.
        higher: joins the scores of a measure of which higher is better.
        lower: joins those of the others.
    """
    known = [(client.architecture, client.measures) for client in clients if client.measures]
    if not known:
        return None
    areas = [(architecture, each.auroc) for architecture, each in known if each.auroc is not None]
    return Measures(
        balanced_accuracy=higher((architecture, each.balanced_accuracy) for architecture, each in known),
        f1=higher((architecture, each.f1) for architecture, each in known),
        auroc=higher(areas) if areas else None,
        ece=lower((architecture, each.ece) for architecture, each in known),
    )


def _lowest(scores: Iterable[tuple[str, float]]) -> float:
    return min(score for _, score in scores)


def _highest(scores: Iterable[tuple[str, float]]) -> float:
    return max(score for _, score in scores)


def _read_confusion(rows: Sequence[Row], round_: int) -> tuple[tuple[int, ...], ...]:
    """Returns the confusion matrix of one evaluation; rows of older versions, and of many classes, have none."""
    scored = [row for row in rows if row["phase"] == EVALUATE and row["round"] == round_]
    counts: Mapping[Any, Any] = next((row["confusion"] for row in scored if "confusion" in row), {})
    by_true = {int(true): {int(said): n for said, n in found.items()} for true, found in counts.items()}
    return tuple(tuple(by_true[true].get(said, 0) for said in sorted(by_true)) for true in sorted(by_true))


def _score_classes(confusion: Sequence[Sequence[int]], rows: Sequence[Row], round_: int) -> tuple[ClassScore, ...]:
    """Returns the scores of each class in one evaluation; () without a confusion matrix."""
    scored = [row["total"] for row in rows if _is_client(row, EVALUATE) and row["round"] == round_]
    totals = [sum(counts) for counts in zip(*scored, strict=True)]  # also examples of no predicted class
    found = []
    for label, row in enumerate(confusion):
        own, wrong = totals[label], sum(counts[label] for counts in confusion) - row[label]
        others = sum(totals) - own
        found.append(ClassScore(row[label] / own if own else None, 1 - wrong / others if others else None))
    return tuple(found)


def _read_personal_scores(rows: Sequence[Row], round_: int) -> tuple[PersonalScore, ...]:
    """Returns the scores of one evaluation, by client; rows of older versions have none."""
    scores = []
    for row in rows:
        if _is_client(row, EVALUATE) and row["round"] == round_:
            of: Mapping[Any, float | None] = row.get("own_of", {row["client"]: row.get("own")})
            scores += [
                PersonalScore(int(c), row["architecture"], value) for c, value in of.items() if value is not None
            ]
    return tuple(sorted(scores, key=lambda score: score.client))


def _read_backdoor_success(rows: Sequence[Row], round_: int) -> float | None:
    scored = [row for row in rows if _is_client(row, EVALUATE) and row["round"] == round_]
    rates = [rate for row in scored if (rate := _read_number(row, TRIGGERED)) is not None]
    return fmean(rates) if rates else None


def _count_parameters(rows: Sequence[Row]) -> float | None:
    held: dict[int, float] = defaultdict(float)
    trained = [row for row in rows if row["client"] is not None and row["phase"] != EVALUATE]
    counted = [(row, count) for row in trained if (count := _read_number(row, "parameters")) is not None]
    for row, count in counted:
        held[row["client"]] = max(held[row["client"]], count)
    whole = {row["phase"] for row, _ in counted} == {row["phase"] for row in trained}
    return fmean(held.values()) if held and whole else None


def _read_quality(rows: Sequence[Row]) -> GeneratorQuality | None:
    names = [f.name for f in fields(GeneratorQuality)]
    row = next((row for row in rows if row["phase"] == QUALITY and "frechet" in row), None)
    return None if row is None else GeneratorQuality(**{name: row[name] for name in names if name in row})


def read_losses(rows: Sequence[Row]) -> tuple[Point, ...]:
    """Returns the clients' mean "loss" in every round of one trial that has any; None where one is not finite."""
    trained = (row for row in rows if row["client"] is not None and row["phase"] != EVALUATE and "loss" in row)
    points = []
    for (phase, round_, step), members in _group_by_round(trained).items():
        values = [loss for row in members if (loss := _read_number(row, "loss")) is not None]
        points.append(Point(phase, round_, step, fmean(values) if len(values) == len(members) else None))
    return tuple(points)


def _read_number(row: Row, name: str) -> float | None:
    """Returns a number that a client, or a clock, has reported. None: there is none that can be added up (a number that
    is not finite, or beyond ±`LARGEST`, which older versions wrote).
    """
    value = row.get(name)
    return value if isinstance(value, int | float) and abs(value) <= LARGEST else None


def _add_seconds(rows: Iterable[Row]) -> float:
    return sum((_read_number(row, "seconds") or 0.0 for row in rows), 0.0)


def _is_client(row: Row, phase: str) -> bool:
    return row["client"] is not None and row["phase"] == phase


def _group_by_round(rows: Iterable[Row]) -> dict[tuple[str, int, int], list[Row]]:
    rounds = defaultdict(list)
    for row in rows:
        rounds[row["phase"], row["round"], row["step"]].append(row)
    return rounds


def read_score(row: Row) -> ClientScore:
    """Returns what a client scored in one evaluation, from its row.

    Raises:
        GenfedError: it was evaluated on no examples.
    """
    correct, total = row["correct"], row["total"]
    if not sum(total):
        raise GenfedError(f"{row['method']}, seed {row['seed']}: client {row['client']} was evaluated on no examples")
    recall = tuple(c / t if t else None for c, t in zip(correct, total, strict=True))
    measures = None
    if "ece" in row:
        measures = Measures(row["balanced_accuracy"], row["f1"], row["auroc"], row["ece"])
    accuracy = sum(correct) / sum(total)
    return ClientScore(row["client"], row["architecture"], row["examples"], accuracy, recall, measures)


def _sum_costs(rows: Sequence[Row]) -> tuple[PhaseCost, ...]:
    everybody = {row["client"] for row in rows} - {None}  # a client that never participated counts too
    phases: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        phases[row["phase"]].append(row)
    costs = []
    for phase, members in phases.items():
        clients = [row for row in members if row["client"] is not None]
        whole = [row for row in members if row["client"] is None]
        counted = [] if phase == EVALUATE else clients
        flops = [n for row in counted if row["round"] == 0 and (n := _read_number(row, "flops")) is not None]
        costs.append(
            PhaseCost(
                phase,
                rounds=len({row["round"] for row in members}),
                up_bytes=sum(row["up_bytes"] for row in counted) / len(everybody),
                down_bytes=sum(row["down_bytes"] for row in counted) / len(everybody),
                client_seconds=_add_seconds(clients),
                seconds=_add_seconds(whole),
                flops=fmean(flops) * len(counted) / len(everybody) if flops else None,
            )
        )
    return tuple(costs)


def _describe_failures(rows: Sequence[Row]) -> tuple[str, ...]:
    lines = []
    for row in rows:
        if row["client"] is None:
            where = f"{row['phase']} round {row['round'] + 1}"
            lines += [
                f"{where}: client {client} excluded: {reason}" for client, reason in row.get("failed", {}).items()
            ]
            lines += [f"{where}: {line}" for line in row.get("lost", ())]
    return tuple(lines)
