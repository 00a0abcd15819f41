"""TSTR and groups: planted relations, and labels that are not as they should be."""

from typing import Any

import numpy as np
import pandas
import pytest

from genfed.core.errors import GenfedError
from genfed.metrics.table_fidelity import shuffle_columns
from genfed.metrics.table_utility import (
    BOOSTING,
    LOGISTIC,
    TablePredictions,
    compare_groups,
    predict_test_rows,
    train_on_synthetic,
)
from tests.metrics.tables import make_patients


def test_real_rows_teach_and_shuffled_rows_do_not() -> None:
    train, test = make_patients(1200), make_patients(800, seed=1)
    shuffled = shuffle_columns(train, np.random.default_rng(0))
    real, learned = train_on_synthetic(train, test, "ill"), train_on_synthetic(shuffled, test, "ill")
    for name in (LOGISTIC, BOOSTING):
        assert (real[name].auc or 0) > 0.9
        assert abs((learned[name].auc or 0) - 0.5) < 0.2
        assert real[name].balanced_accuracy > 0.8


def predictions(y: list[int], found: list[int], positive: int | None = None) -> TablePredictions:
    return TablePredictions(("a", "b", "c"), np.array(y), np.eye(3)[found], positive)


def test_scores_by_hand() -> None:
    two = predictions([0, 0, 0, 1, 1, -1], [0, 0, 1, 1, 0, 2], positive=1).score()
    assert two is not None
    assert two.accuracy == pytest.approx(3 / 5)
    assert two.f1 == pytest.approx(2 / 4)
    assert two.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert two.auc == pytest.approx((2 / 3 + 1 / 2) / 2)  # of a single threshold
    three = predictions([0, 1, 2, 2], [0, 1, 1, 2]).score()
    assert three is not None
    assert three.f1 == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert three.auc == pytest.approx((1 + (1 + 2 / 3) / 2 + 3 / 4) / 3)


def test_rows_of_one_class_have_no_auc_and_no_rows_no_scores() -> None:
    given = predictions([0, 0, 1], [0, 1, 1], positive=1)
    scores = given.score(np.array([True, True, False]))
    assert scores is not None
    assert scores.auc is None
    assert scores.accuracy == 0.5
    assert given.score(np.zeros(3, bool)) is None


def test_a_single_class_of_synthetic_labels_is_always_predicted() -> None:
    train, test = make_patients(200), make_patients(300, seed=1)
    for score in train_on_synthetic(train.assign(ill="no"), test, "ill").values():
        assert score.auc == 0.5
        assert score.accuracy == pytest.approx((test.ill == "no").mean())
        assert score.f1 == 0


def test_labels_may_be_numbers_truth_values_or_many() -> None:
    train, test = make_patients(400), make_patients(300, seed=1)
    for kind in (float, bool):
        coded = [frame.assign(ill=(frame.ill == "yes").astype(kind)) for frame in (train, test)]
        found = train_on_synthetic(coded[0], coded[1], "ill")
        assert found[BOOSTING] == train_on_synthetic(train, test, "ill")[BOOSTING]
    decade = train_on_synthetic(train.assign(d=train.age // 20), test.assign(d=test.age // 20), "d")
    assert (decade[BOOSTING].auc or 0) > 0.95


def test_awkward_columns_are_learned_from() -> None:
    def spoil(frame: Any, fill: str) -> Any:
        return frame.assign(
            nothing=np.nan, flat=3.5, one="same", huge=frame.age * 1e300,
            names=[f"{fill}{i}" for i in range(len(frame))]
        )  # fmt: skip

    train, test = spoil(make_patients(500), "a"), spoil(make_patients(300, seed=1), "b")
    assert all((score.auc or 0) > 0.85 for score in train_on_synthetic(train, test, "ill").values())


def test_synthetic_rows_may_lack_a_class_and_have_another_one() -> None:
    train, test = make_patients(300), make_patients(300, seed=1)
    test.loc[:20, "ill"] = "unknown"
    train.loc[:3, "ill"] = "made up"
    scores = train_on_synthetic(train, test, "ill")[BOOSTING]
    assert 0.5 < (scores.auc or 0) < 1


@pytest.mark.parametrize(
    ("label", "positive", "words"),
    [
        ("illness", None, "there is no column 'illness'; it has 'age'"),
        ("ill", "maybe", "there is no class 'maybe'; it has 'no', 'yes'"),
        ("dose", None, "label 'dose': it has .* values; 100 are allowed"),
        ("empty", None, "label 'empty': it has no value in the test rows"),
    ],
)
def test_wrong_labels_are_refused(label: str, positive: str | None, words: str) -> None:
    frame = make_patients(200).assign(empty=None)
    with pytest.raises(GenfedError, match=words):
        train_on_synthetic(frame, frame, label, positive)


def test_a_label_without_features_is_refused() -> None:
    frame = make_patients(20)[["ill"]]
    with pytest.raises(GenfedError, match="no other column"):
        train_on_synthetic(frame, frame, "ill")


def test_gaps_between_groups_by_hand() -> None:
    # group f: 10 positive rows of which 8 are found, 10 others of which 1 is taken; group m: 5 of 10 and 3 of 10
    y = np.array([1] * 10 + [0] * 10 + [1] * 10 + [0] * 10 + [1])
    taken = np.array([1] * 8 + [0] * 2 + [1] + [0] * 9 + [1] * 5 + [0] * 5 + [1] * 3 + [0] * 7 + [0])
    given = TablePredictions(("no", "yes"), y, np.eye(2)[taken], 1)
    found = compare_groups(given, pandas.DataFrame({"sex": ["f"] * 20 + ["m"] * 20 + ["x"]}), "sex")
    assert found.true_positive_gap == pytest.approx(0.3)
    assert found.false_positive_gap == pytest.approx(0.2)
    assert found.selection_gap == pytest.approx(9 / 20 - 8 / 20)
    assert (found.positive, [(g.name, g.rows) for g in found.groups]) == ("yes", [("f", 20), ("m", 20), ("x", 1)])
    assert found.groups[2].true_positive is None


def test_groups_need_a_positive_class_and_few_values() -> None:
    frame = make_patients(300)
    found = predict_test_rows(frame, frame, "clinic")[LOGISTIC]
    with pytest.raises(GenfedError, match="name one, as there are not two classes"):
        compare_groups(found, frame, "sex")
    with pytest.raises(GenfedError, match=r"'age' has .* values; 50 groups are allowed"):
        compare_groups(predict_test_rows(frame, frame, "ill")[LOGISTIC], frame, "age")
