import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score
from torch import Tensor

from genfed.experiment.evaluation import DIGITS, score_outputs
from genfed.metrics.classification import (
    balanced_accuracy,
    calibration_error,
    class_probabilities,
    count_confusion,
    macro_auroc,
    macro_f1,
)
from genfed.training.evaluation import ClassCounts, choose_classes, count_by_class

NAN = math.nan
TRUE = torch.tensor([0, 0, 0, 0, 1, 1])
SAID = torch.tensor([0, 0, 1, 2, 1, 0])
"""Of class 0 two are right, one is given class 1 and one class 2; of class 1 one is right; class 2 has no example."""


def counts() -> ClassCounts:
    return count_by_class(SAID == TRUE, TRUE, 3)


def test_the_matrix_has_a_row_for_each_true_class() -> None:
    assert count_confusion(SAID, TRUE, 3).tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 0]]


def test_an_example_of_no_predicted_class_is_in_no_column() -> None:
    said = choose_classes(torch.tensor([[0.0, 1.0], [NAN, 1.0], [math.inf, 0.0], [2.0, 1.0]]))
    assert said.tolist() == [1, -1, -1, 0]
    assert count_confusion(said, torch.tensor([0, 0, 1, 0]), 2).tolist() == [[1, 1], [0, 0]]


def test_means_over_classes_skip_those_without_examples() -> None:
    assert balanced_accuracy(counts()) == pytest.approx((2 / 4 + 1 / 2) / 2)
    # F1 = 2 · right / (examples + predicted): class 0 has 4 and 3, class 1 has 2 and 2
    assert macro_f1(counts(), torch.tensor([3, 2, 1])) == pytest.approx((4 / 7 + 2 / 4) / 2)


def test_a_class_that_is_never_predicted_has_an_f1_of_0() -> None:
    found = ClassCounts(torch.tensor([3, 0]), torch.tensor([3, 1]))
    assert macro_f1(found, torch.tensor([4, 0])) == pytest.approx((6 / 7 + 0) / 2)


def of_class_1(*given: float) -> Tensor:
    p = torch.tensor(given, dtype=torch.float64)
    return torch.stack([1 - p, p], 1)


def test_auroc_by_hand() -> None:
    y = torch.tensor([0, 0, 1, 1])
    assert macro_auroc(of_class_1(0.1, 0.4, 0.35, 0.8), y) == 3 / 4
    assert macro_auroc(of_class_1(0.1, 0.4, 0.4, 0.8), y) == 3.5 / 4, "a tie counts half"
    assert macro_auroc(of_class_1(0.5, 0.5, 0.5, 0.5), y) == 0.5
    three = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.3, 0.4, 0.3]], dtype=torch.float64)
    # class 0: 0.6 above 0.2 and 0.3; class 1: 0.3 ties with 0.3 and is below 0.4; class 2 has no example
    assert macro_auroc(three[[0, 1, 2]], torch.tensor([0, 1, 0])) == pytest.approx((1 + 0.5 * 0.5) / 2)


def test_examples_of_one_class_have_no_auroc() -> None:
    assert macro_auroc(of_class_1(0.1, 0.9), torch.tensor([1, 1])) is None


def test_the_calibration_error_by_hand() -> None:
    # of two bins: up to 0.5 nothing, above it 0.9, 0.8 and 0.7 of which two are right
    found = calibration_error(of_class_1(0.9, 0.2, 0.7), torch.tensor([True, True, False]), bins=2)
    assert found == pytest.approx(abs(2 / 3 - 0.8))
    # 0.5 is the end of its bin: |0 − 0.5| and |1 − 1|
    assert calibration_error(of_class_1(0.5, 1.0), torch.tensor([False, True]), bins=2) == pytest.approx(0.25)


def test_an_example_without_finite_scores_is_equally_probable_of_every_class() -> None:
    outputs = torch.tensor([[NAN, 0.0, 0.0], [0.0, math.inf, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(class_probabilities(outputs), torch.full((3, 3), 1 / 3, dtype=torch.float64))
    y = torch.tensor([0, 1, 2])
    correct, scores = score_outputs(torch.full((3, 3), NAN), y)
    assert (correct.tolist(), scores.predicted.tolist()) == ([False] * 3, [0] * 3)
    assert (scores.auroc, scores.ece) == (0.5, round(1 / 3, DIGITS))


def test_huge_scores_have_measures() -> None:
    _, scores = score_outputs(torch.tensor([[1e38, -1e38], [-1e38, 1e38]]), torch.tensor([0, 1]))
    assert (scores.auroc, scores.ece) == (1.0, 0.0)


def test_scores_that_are_no_counts_are_rounded() -> None:
    """Their further digits could say what one example is, to a server that made the classifier for it."""
    _, scores = score_outputs(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3)
    assert scores.auroc is not None
    assert all(0 < value < 1 and round(value, DIGITS) == value for value in (scores.auroc, scores.ece))


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores with ties, and classes of which some have no example."""
    n, classes = draw(st.integers(1, 25)), draw(st.integers(2, 5))
    grid = st.lists(st.integers(-6, 6), min_size=n * classes, max_size=n * classes)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return torch.tensor(draw(grid)).view(n, classes) / 2, torch.tensor(labels)


@given(outputs())
def test_measures_are_those_of_scikit_learn(given_: tuple[Tensor, Tensor]) -> None:
    scores, y = given_
    classes, said, p = scores.shape[1], choose_classes(scores), class_probabilities(scores)
    found, present = count_by_class(said == y, y, classes), sorted(set(y.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and have no example
        assert balanced_accuracy(found) == pytest.approx(balanced_accuracy_score(y, said))
    predicted = torch.bincount(said, minlength=classes)
    theirs = f1_score(y, said, labels=present, average="macro", zero_division=0)
    assert macro_f1(found, predicted) == pytest.approx(theirs)
    assert count_confusion(said, y, classes).tolist() == confusion_matrix(y, said, labels=range(classes)).tolist()
    if len(present) < 2:
        assert macro_auroc(p, y) is None
    elif classes == 2:
        assert macro_auroc(p, y) == pytest.approx(roc_auc_score(y, p[:, 1]))
    else:
        areas = [roc_auc_score((y == label).int(), p[:, label]) for label in present]
        assert macro_auroc(p, y) == pytest.approx(np.mean(areas))


@given(outputs())
def test_the_calibration_error_is_that_of_its_definition(given_: tuple[Tensor, Tensor]) -> None:
    scores, y = given_
    p, right = class_probabilities(scores), choose_classes(scores) == y
    largest, expected = p.amax(1), 0.0
    for m in range(15):
        inside = (largest * 15 > m) & (largest * 15 <= m + 1)
        if inside.any():
            gap = abs(float(right[inside].double().mean()) - float(largest[inside].mean()))
            expected += gap * int(inside.sum()) / len(y)
    found = calibration_error(p, right)
    assert found == pytest.approx(expected)
    assert 0 <= found <= 1


@pytest.mark.parametrize("classes", [2, 4])
def test_a_good_classifier_is_distinguished_from_one_that_guesses(classes: int) -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (200,), generator=rng)
    noise = torch.randn(200, classes, generator=rng)
    _, guesses = score_outputs(noise, y)
    _, good = score_outputs(noise + 3 * torch.nn.functional.one_hot(y, classes), y)
    assert guesses.auroc == pytest.approx(0.5, abs=0.1)
    assert good.auroc is not None
    assert good.auroc > 0.95
