"""What synthetic rows are good for: classifiers that learn from them, tested on real rows (TSTR, Esteban, Hyland and
Rätsch, arXiv 1706.02633). The same on real rows is TRTR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genfed.core.errors import GenfedError
from genfed.core.text import one_line
from genfed.metrics.table_columns import align_categories, align_tables
from genfed.metrics.table_features import codes_with_gaps, fit_boosting, fit_logistic, one_hot

if TYPE_CHECKING:
    from pandas import DataFrame

LOGISTIC, BOOSTING = "logistic regression", "gradient boosting"
_CLASSES = 100
_GROUPS = 50
_FEWEST = 10  # rows from which the rate of a group is known


@dataclass(frozen=True)
class TableScores:
    """How well a classifier does on test rows, in [0, 1]."""

    auc: float | None
    """Area under the ROC curve, the mean over classes, each against all others; None: the rows are of one class."""
    accuracy: float
    f1: float
    """F1 of the positive class; without one, the mean over the classes of the test rows."""
    balanced_accuracy: float
    """Mean over the classes of the test rows of the share that is found."""


@dataclass(frozen=True)
class TablePredictions:
    """What a classifier says of labelled test rows."""

    classes: tuple[str, ...]
    y: NDArray[np.int64]
    """The place of each row's class [n]; −1: it has no label."""
    probabilities: NDArray[np.float64]
    """[n, classes]"""
    positive: int | None
    """The place of the positive class; None: there is none, as there are more than two classes."""

    def score(self, rows: NDArray[np.bool_] | None = None) -> TableScores | None:
        """Returns the scores on the chosen rows [n] (None: all); None where no row among them has a label."""
        chosen = (self.y >= 0) & (True if rows is None else rows)
        if not chosen.any():
            return None
        y, found = self.y[chosen], self.probabilities[chosen].argmax(1)
        present = np.unique(y)
        measured = present if self.positive is None else np.array([self.positive])
        return TableScores(
            self._auc(y, self.probabilities[chosen], present),
            float((y == found).mean()),
            float(np.mean([_f1(y == k, found == k) for k in measured])),
            float(np.mean([(found[y == k] == k).mean() for k in present])),
        )

    @staticmethod
    def _auc(y: NDArray[np.int64], chances: NDArray[np.float64], present: NDArray[np.int64]) -> float | None:
        from sklearn.metrics import roc_auc_score

        if len(present) < 2:
            return None
        return float(np.mean([roc_auc_score(y == k, chances[:, k]) for k in present]))


def train_on_synthetic(
    synthetic: DataFrame, test: DataFrame, label: str, positive: str | None = None, seed: int = 0
) -> dict[str, TableScores]:
    """Trains logistic regression and gradient boosting on synthetic rows and returns their scores on real test rows
    (TSTR); trained on real rows, it is TRTR. The features are all columns of the test rows but the label. Rows without
    a label are left out. Training rows of a single class make a classifier that always predicts it, with an AUC of 0.5.

    Args:
        synthetic: The training rows.
        test: Real rows that neither a generator nor a classifier was trained on.
        label: The column to predict.
        positive: The class of which F1 is; None: the last one in sorted order if the test rows have two classes.
        seed: The seed of gradient boosting.

    Raises:
        GenfedError: see `align_tables`; or the label has no value in a table, more than 100 classes, or not the
            positive one; or there is no other column.
    """
    found = predict_test_rows(synthetic, test, label, positive, seed)
    scores = {name: predictions.score() for name, predictions in found.items()}
    return {name: score for name, score in scores.items() if score is not None}


def predict_test_rows(
    train: DataFrame, test: DataFrame, label: str, positive: str | None = None, seed: int = 0
) -> dict[str, TablePredictions]:
    """Returns what logistic regression and gradient boosting say of the test rows; see `train_on_synthetic`."""
    labels = align_categories(label, test=test, train=train)
    classes = labels.categories or ()
    y_test, y = labels.tables
    for where, places in (("test", y_test), ("training", y)):
        if not (places >= 0).any():
            raise GenfedError(f"label {one_line(label, 80)!r}: it has no value in the {where} rows")
    if len(classes) > _CLASSES:
        raise GenfedError(f"label {one_line(label, 80)!r}: it has {len(classes)} values; {_CLASSES} are allowed")
    place = _find_positive(label, classes, np.unique(y_test[y_test >= 0]), positive)
    others = [name for name in test.columns if str(name) != label]
    if not others:
        raise GenfedError(f"label {one_line(label, 80)!r}: there is no other column to predict it from")
    aligned = align_tables(test=test[others], training=train)
    columns = [replace(column, tables=column.tables[::-1]) for column in aligned]  # classifiers fit the first table
    inputs = {LOGISTIC: one_hot(columns), BOOSTING: [codes_with_gaps(columns, table) for table in range(2)]}
    labelled, present = y >= 0, np.unique(y[y >= 0])
    found = {}
    for name, (x, x_test) in inputs.items():
        chances = np.zeros((len(y_test), len(classes)))
        if len(present) == 1:
            chances[:, present[0]] = 1.0
        elif name == LOGISTIC:
            chances[:, present] = fit_logistic(x[labelled], y[labelled]).predict_proba(x_test)
        else:
            chances[:, present] = fit_boosting(x[labelled], y[labelled], seed).predict_proba(x_test)
        found[name] = TablePredictions(classes, y_test, chances, place)
    return found


def _find_positive(label: str, classes: Sequence[str], tested: NDArray[np.int64], positive: str | None) -> int | None:
    if positive is None:
        return int(tested[-1]) if len(tested) == 2 else None
    if positive not in classes:
        known = ", ".join(repr(one_line(name, 80)) for name in classes[:8])
        raise GenfedError(
            f"label {one_line(label, 80)!r}: there is no class {one_line(positive, 80)!r}; it has {known}"
        )
    return classes.index(positive)


def _f1(true: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    total = int(true.sum() + found.sum())
    return 2 * int((true & found).sum()) / total if total else 0.0


@dataclass(frozen=True)
class GroupRates:
    """What a classifier does with the test rows of one group."""

    name: str
    rows: int
    """Number of its labelled test rows."""
    true_positive: float | None
    """Share of its positive rows that are found; None: it has fewer than 10."""
    false_positive: float | None
    """Share of its other rows that are taken for positive; None: it has fewer than 10."""
    selected: float | None
    """Share of its rows that are taken for positive; None: it has fewer than 10."""


@dataclass(frozen=True)
class Fairness:
    """How differently a classifier treats groups of people. A gap is the largest rate of a group less the smallest;
    None: fewer than two groups have the rate.
    """

    column: str
    positive: str
    groups: tuple[GroupRates, ...]
    true_positive_gap: float | None
    false_positive_gap: float | None
    selection_gap: float | None
    """Gap of the shares that are taken for positive (demographic parity)."""


def compare_groups(predictions: TablePredictions, test: DataFrame, sensitive: str) -> Fairness:
    """Returns how differently a classifier treats the groups of a column of the test rows. Rows without a value in it
    belong to no group.

    Raises:
        GenfedError: there is no such column, it has more than 50 values, or there is no positive class.
    """
    if predictions.positive is None:
        raise GenfedError("groups are compared by a positive class: name one, as there are not two classes")
    column = align_categories(sensitive, test=test)
    names = column.categories or ()
    if len(names) > _GROUPS:
        raise GenfedError(f"column {one_line(sensitive, 80)!r} has {len(names)} values; {_GROUPS} groups are allowed")
    labelled, places = predictions.y >= 0, column.tables[0]
    true, taken = predictions.y == predictions.positive, predictions.probabilities.argmax(1) == predictions.positive
    groups = []
    for k, name in enumerate(names):
        inside = labelled & (places == k)
        rates = (_rate(taken, inside & true), _rate(taken, inside & ~true), _rate(taken, inside))
        groups.append(GroupRates(name, int(inside.sum()), *rates))
    return Fairness(
        sensitive,
        predictions.classes[predictions.positive],
        tuple(groups),
        _gap([group.true_positive for group in groups]),
        _gap([group.false_positive for group in groups]),
        _gap([group.selected for group in groups]),
    )


def _rate(taken: NDArray[np.bool_], rows: NDArray[np.bool_]) -> float | None:
    return float(taken[rows].mean()) if rows.sum() >= _FEWEST else None


def _gap(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return max(known) - min(known) if len(known) > 1 else None
