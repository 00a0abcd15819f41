"""What clients of methods of sums upload, computed from the examples that the auditor chooses."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genfed.audits.audit import Case, NotPossible
from genfed.core.phase import flatten_phases
from genfed.core.task import Data, Task, Weights
from genfed.generators.statistics_generator import STEPS, StatisticsGenerator, drop_small_classes
from genfed.methods.bases.feature_space import whitening_statistics
from genfed.methods.bases.feature_statistics import Statistics, measure_features
from genfed.methods.gefl_f import GeFLF
from genfed.training.pixels import normalize_pixels


@dataclass(frozen=True)
class UploadedSums:
    """What clients add up."""

    phase: str
    """The phase in which they upload it."""
    generator: StatisticsGenerator
    """The generator for which they add up."""
    whitened: bool = True
    """Whether they add up features as the method has them in the end. False: as its encoder gives them."""


def find_sums(case: Case) -> UploadedSums:
    """Returns what clients add up of their examples.

    Raises:
        NotPossible: clients upload no such sums.
    """
    generator = getattr(case.method, "generator", None)
    if isinstance(generator, StatisticsGenerator):
        for phase in flatten_phases(case.method.phases()):
            if phase.work is not None and phase.wire_types.uploaded is Statistics:
                return UploadedSums(phase.name, generator)
    method = case.method
    if isinstance(method, GeFLF) and any(phase.name == "whiten" for phase in flatten_phases(method.phases())):
        return UploadedSums("whiten", whitening_statistics(method.whitening), whitened=False)
    raise NotPossible(f"no client of {case.label} uploads sums over its examples")


def limit_to_added(case: Case, sums: UploadedSums) -> Case:
    """Returns the case with only the examples that are in the sums that the server has: those of clients that took part
    in the last pass, without classes that a client leaves out.
    """
    last = max((each.rounds.get(sums.phase, -1) for each in case.holdings), default=-1)
    holdings = []
    for each in case.holdings:
        if each.rounds.get(sums.phase) == last:
            y = case.train.y[each.rows]
            counts = drop_small_classes(torch.bincount(y), sums.generator.minimum_class_count)
            holdings.append(replace(each, rows=each.rows[counts[y] > 0]))
    return case.limit_to(holdings)


def mean_of_classes(generator: StatisticsGenerator, data: Data, task: Task) -> dict[int, tuple[int, Tensor]]:
    """Returns the number of examples and the mean [d] of each class that a client with these examples uploads.

    Raises:
        NotPossible: a client with these examples refuses to upload.
    """
    statistics = measure_features(generator, data, task, len(data), {}).upload.statistics
    means = _divide(statistics)
    return {label: (count, means[label]) for label, count in enumerate(statistics["counts"].tolist()) if count}


def vectors_as_uploaded(generator: StatisticsGenerator, data: Data, task: Task) -> Tensor:
    """Returns examples as they are added up, float64 [n, d]: each in a sum by itself."""
    parts = [Data(x, torch.arange(len(x))) for x in torch.split(data.x, len(task.classes))]
    return torch.cat([_divide(generator.measure(part, task))[: len(part)] for part in parts])


def describe_added(case: Case, added: Data) -> Task:
    """Returns the task of what clients add up, given what `read_added` returns."""
    if case.features is None:
        return case.task
    return replace(case.task, kind="features", shape=tuple(added.x.shape[1:]))


def _divide(statistics: Weights) -> Tensor:
    """Returns the means of the classes [classes, d] in a first pass; 0 without examples."""
    weights = statistics.get("shares", statistics["counts"]).double().reshape(-1, 1)
    return statistics["sums"].double().flatten(1) / weights.clamp_min(1) / STEPS


def read_added(case: Case, data: Data, sums: UploadedSums) -> Data:
    """Returns what clients add up of these examples."""
    if not sums.whitened:
        assert isinstance(case.method, GeFLF)
        encoder = {"digest": case.state.extractor["digest"]}
        return Data(case.method.space.represent(case.server("features"), encoder, data.x), data.y)
    return Data(normalize_pixels(data.x), data.y) if case.features is None else case.features(data)
