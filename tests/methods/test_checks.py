"""Uploads that a server keeps singly are looked at before anything is made of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, flatten_phases
from genfed.core.rng import stream
from genfed.core.task import Task
from genfed.experiment.evaluation import ClassifierScores, check_scores, score_outputs
from genfed.methods.bases.decoder_upload import Decoder, DecoderUpload, build_decoder
from genfed.methods.bases.representation import ClassStatistics
from genfed.methods.fedgen import FedGenUpload
from genfed.methods.fedgh import Representations
from genfed.methods.fedkd import FedKDUpdate
from genfed.metrics.classification import LARGEST_MATRIX
from genfed.training.low_rank import FactoredWeights, factorize
from genfed.training.upload_checks import check_counts
from genfed.training.weights import Model, weights_of
from tests.conftest import tiny

TASK = Task("image", (1, 8, 8), ("a", "b", "c"))
INFO = ClientInfo(0, "linear", 5)
NUMBERS = torch.tensor([2, 0, 3])


def server() -> Server:
    return Server(
        TASK, (INFO,), 0, stream(0), 0, torch.device("cpu"), "float32",
        lambda name, rng: Architectures().new(name, TASK, rng),
    )  # fmt: skip


def method_of(label: str) -> Any:
    return read_config(tiny(label)).method[label]


def collecting(label: str) -> Phase[Any]:
    return next(phase for phase in flatten_phases(method_of(label).phases()) if phase.check)


def refused(phase: Phase[Any], good: Any, changes: Mapping[str, tuple[Any, str]]) -> None:
    assert phase.check is not None
    phase.check(server(), INFO, good)
    for field, (value, says) in changes.items():
        with pytest.raises(GenfedError, match=says):
            phase.check(server(), INFO, replace(good, **{field.partition(" ")[0]: value}))


COUNTS = {
    "labels": (torch.tensor([5]), r"counts are torch.int64 \(1,\); torch.int64 \(3,\) are allowed"),
    "labels float": (NUMBERS.float(), r"counts are torch.float32 \(3,\)"),
    "labels scalar": (torch.tensor(5), r"counts are torch.int64 \(\)"),
    "labels negative": (torch.tensor([-1, 3, 3]), "counts do not add up to the 5 examples of the client"),
    "labels huge": (torch.tensor([2**62, 2**62, 2**62]), "counts do not add up to the 5 examples"),
    "labels none": (torch.zeros(3, dtype=torch.int64), "counts do not add up to the 5 examples"),
}


@pytest.mark.parametrize("label", ["fedcvae_ens", "fedcvae_kd"])
def test_a_decoder_and_its_labels(label: str) -> None:
    method: DecoderUpload[Any] = method_of(label)
    decoder = build_decoder(method.new_network(server(), torch.Generator()))
    name = next(name for name, part in sorted(decoder.items()) if part.ndim and len(part) > 1)
    others = {
        "decoder": (
            {k: v for k, v in decoder.items() if k != name},
            f"not that of the generator: '{name}' is different",
        ),
        "decoder more": (decoder | {"more": torch.zeros(1)}, "'more' is different"),
        "decoder cut": (decoder | {name: decoder[name][:1]}, f"'{name}' is different"),
        "decoder double": (decoder | {name: decoder[name].double()}, f"'{name}' is different"),
    }
    refused(collecting(label), Decoder(decoder, NUMBERS), COUNTS | others)


def test_counts_of_fedgen() -> None:
    check_counts(server(), INFO, NUMBERS)
    counts = {field.replace("labels", "counts"): change for field, change in COUNTS.items()}
    refused(collecting("fedgen"), FedGenUpload({}, {}, NUMBERS), counts)


def test_representations_of_fedgh() -> None:
    some, size = torch.tensor([True, False, True]), method_of("fedgh").dimension
    wrong: dict[str, tuple[Any, str]] = {
        "means": (torch.zeros(3, size + 1), rf"means is torch.float32 \(3, {size + 1}\); torch.float32 \(3, {size}\)"),
        "means double": (torch.zeros(3, size).double(), "means is torch.float64"),
        "present": (torch.tensor([1, 0, 1]), r"present is torch.int64 \(3,\); torch.bool \(3,\) is allowed"),
        "present scalar": (torch.tensor(True), r"present is torch.bool \(\)"),
        "present none": (torch.zeros(3, dtype=torch.bool), "present has no class"),
    }
    refused(collecting("fedgh"), Representations(torch.zeros(3, size), some), wrong)


def test_statistics_of_fedproto() -> None:
    (phase,) = flatten_phases(method_of("fedproto").phases())
    size = method_of("fedproto").dimension
    wrong: dict[str, tuple[Any, str]] = {field.replace("labels", "counts"): case for field, case in COUNTS.items()}
    wrong["counts claimed"] = (torch.full((3,), 10**12), "counts do not add up to the 5 examples of the client")
    wrong["sums huge"] = (torch.full((3, size), 1e15), "sums holds numbers that are not finite or beyond a million")
    wrong["sums"] = (torch.zeros(3, size + 1), rf"sums is torch.float32 \(3, {size + 1}\)")
    refused(replace(phase, check=phase.screen), ClassStatistics(torch.ones(3, size), NUMBERS), wrong)


def test_updates_of_fedkd() -> None:
    """Factors are looked at before they are multiplied: 2·10⁶ numbers can have a product of 10¹²."""
    (phase,) = flatten_phases(method_of("fedkd").phases())
    mentee = weights_of(Architectures().new(method_of("fedkd").mentee, TASK, torch.Generator()))
    good = factorize({k: torch.full_like(v, 2.0) for k, v in mentee.items()}, 0.9)
    name = next(iter(good.left))
    huge = {name: torch.ones(10**6, 1)}, {name: torch.ones(1, 10**6)}
    wrong = {
        "update": (FactoredWeights(good.whole, good.left | huge[0], good.right | huge[1]), f"'{name}' is .*1000000"),
        "update less": (replace(good, whole={}), "is missing"),
        "update huge": (replace(good, left={k: v * 1e15 for k, v in good.left.items()}), r"beyond ±1e\+06"),
    }
    refused(replace(phase, check=phase.screen), FedKDUpdate(good), wrong)


@pytest.mark.parametrize("label", ["feddf", "ensemble", "dense"])
def test_a_classifier_that_is_asked_with_others(label: str) -> None:
    weights = weights_of(Architectures().new("linear", TASK, torch.Generator()))
    name = min(weights)
    wrong = {
        "classifier": (weights | {name: weights[name][:1]}, f"its classifier is no linear: '{name}' is different"),
        "classifier huge": ({k: v * 1e30 for k, v in weights.items()}, "its classifier has diverged"),
    }
    refused(collecting(label), Model(weights), wrong)


def scored(correct: Any, total: Any, own: dict[int, float] | None = None, **changes: Any) -> ClassifierScores:
    """The scores of a classifier that takes every example which it gets wrong for one of the next class."""
    correct, total = torch.tensor(correct), torch.tensor(total)
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    if correct.shape == total.shape == (3,):
        confusion = torch.diag(correct.long()) + torch.diag(total - correct.long()).roll(1, 1)
    auroc = 0.5 if int((total > 0).sum()) > 1 else None
    scores = ClassifierScores(correct, total, own or {}, confusion.sum(0), confusion, auroc, ece=0.25)
    return replace(scores, **changes)


@pytest.mark.parametrize(
    ("correct", "total", "own", "says"),
    [
        ([0, 0, 0], [0, 0, 0], {}, "total is 0 in every class: it was scored on no examples"),
        (0, 0, {}, r"correct is torch.int64 \(\); torch.int64 \(3,\) is allowed"),
        ([1, 1, 1], 3, {}, r"total is torch.int64 \(\); torch.int64 \(3,\) is allowed"),
        ([1, 1], [1, 1], {}, r"correct is torch.int64 \(2,\)"),
        ([1.0, 1.0, 1.0], [1, 1, 1], {}, r"correct is torch.float32 \(3,\)"),
        ([10**9, 0, 0], [1, 0, 0], {}, "correct is below 0 or above total in a class"),
        ([0, -1, 0], [1, 1, 1], {}, "correct is below 0 or above total in a class"),
        ([0, 0, 0], [5, 0, -4], {}, "correct is below 0 or above total in a class"),
        ([0, 0, 0], [3, 2, 2], {}, "total is 7 over all classes; there are 6 held-out examples"),
        ([0, 0, 0], [2**62, 2**62, 2**62], {}, "over all classes; there are 6 held-out examples"),
        ([0, 0, 0], [1, 1, 1], {0: 1e9}, r"own_accuracy is 1e\+09; 0 to 1 is allowed"),
        ([0, 0, 0], [1, 1, 1], {0: 0.5, 1: -0.1}, "own_accuracy is -0.1; 0 to 1 is allowed"),
    ],
)
def test_scores_that_no_classifier_has(correct: Any, total: Any, own: dict[int, float], says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        check_scores(server(), scored(correct, total, own), 6)


MATRIX = torch.tensor([[1, 1, 0], [0, 2, 0], [0, 0, 2]])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"predicted": torch.tensor([1, 3])}, r"predicted is torch.int64 \(2,\); torch.int64 \(3,\) is allowed"),
        ({"predicted": torch.tensor([1.0, 3, 2])}, "predicted is torch.float32"),
        ({"predicted": torch.tensor([0, 3, 3])}, "predicted is below correct in a class"),
        ({"predicted": torch.tensor([1, 3, 3])}, "predicted is more than the 6 examples over all classes"),
        ({"predicted": torch.tensor([2, 2, 2])}, "confusion has other counts than predicted or correct"),
        ({"confusion": MATRIX[:2]}, r"confusion is torch.int64 \(2, 3\); torch.int64 \(3, 3\) is allowed"),
        ({"confusion": MATRIX[:0, :0]}, r"confusion is torch.int64 \(0, 0\)"),
        ({"confusion": MATRIX + torch.tensor([[0, 0, 0], [0, 0, 0], [-1, 1, 0]])}, "confusion is below 0"),
        ({"confusion": MATRIX + torch.tensor([[0, -1, 0], [0, 1, 0], [0, 0, 0]])}, "more examples of a class than tot"),
        ({"confusion": MATRIX + torch.tensor([[0, -1, 1], [0, 0, 0], [0, 0, 0]])}, "other counts than predicted"),
        ({"confusion": MATRIX + torch.tensor([[0, 0, 0], [0, -1, 0], [0, 1, -1]])}, "other counts than predicted"),
        ({"auroc": None}, "auroc is None; a number is allowed where two classes have examples, else None"),
        ({"auroc": float("nan")}, "auroc is nan; 0 to 1 is allowed"),
        ({"auroc": 1.01}, "auroc is 1.01; 0 to 1 is allowed"),
        ({"ece": -1e-3}, "ece is -0.001; 0 to 1 is allowed"),
        ({"ece": float("inf")}, "ece is inf; 0 to 1 is allowed"),
    ],
)
def test_scores_that_contradict_each_other(changes: dict[str, Any], says: str) -> None:
    good = scored([1, 2, 2], [2, 2, 2], confusion=MATRIX, predicted=MATRIX.sum(0))
    check_scores(server(), good, 6)
    with pytest.raises(GenfedError, match=says):
        check_scores(server(), replace(good, **changes), 6)


def test_examples_without_finite_scores_are_of_no_predicted_class() -> None:
    less = torch.diag(torch.tensor([1, 0, 2]))
    check_scores(server(), scored([1, 0, 2], [2, 2, 2], confusion=less, predicted=less.sum(0)), 6)


def test_many_classes_have_no_confusion_matrix() -> None:
    many, counts = LARGEST_MATRIX + 1, torch.ones(LARGEST_MATRIX + 1, dtype=torch.int64)
    where = replace(server(), task=replace(TASK, classes=tuple(map(str, range(many)))))
    _, scores = score_outputs(torch.eye(many), torch.arange(many))
    assert (scores.confusion.shape, scores.predicted.tolist()) == ((0, 0), counts.tolist())
    check_scores(where, scores, many)
    with pytest.raises(GenfedError, match=r"confusion is torch.int64 \(101, 101\); torch.int64 \(0, 0\) is allowed"):
        check_scores(where, replace(scores, confusion=torch.diag(counts)), many)


@pytest.mark.parametrize(
    ("correct", "total", "own"),
    [([0, 0, 0], [1, 0, 0], {}), ([4, 0, 2], [4, 0, 2], {0: 1.0}), ([2**62, 0, 0], [2**62, 2**61, 0], {0: 0.0})],
)
def test_scores_that_a_classifier_may_have(correct: list[int], total: list[int], own: dict[int, float]) -> None:
    check_scores(server(), scored(correct, total, own), sum(total))
