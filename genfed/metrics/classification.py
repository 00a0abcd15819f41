"""Measures of a classifier on held-out examples beside accuracy, as pure functions of tensors on the CPU.

A class without held-out examples is skipped: no mean over classes counts it. An example whose scores are not all finite
(the network has diverged) has no predicted class, −1, and the same probability for every class.
"""

import numpy as np
import torch
from torch import Tensor

from genfed.training.evaluation import ClassCounts

BINS = 15
"""Number of bins of the calibration error, as in Guo et al."""

LARGEST_MATRIX = 100
"""Largest number of classes for which a confusion matrix is counted."""


def class_probabilities(scores: Tensor) -> Tensor:
    """Returns the probability of each class, float64 [n, classes], from a network's scores [n, classes]."""
    finite = scores.isfinite().all(1, keepdim=True)
    return torch.where(finite, scores, 0).double().softmax(1)


def count_confusion(predicted: Tensor, y: Tensor, classes: int) -> Tensor:
    """Returns the numbers of examples by true class (row) and predicted class (column), int64 [classes, classes];
    without examples that have no predicted class.

    >>> import torch
    >>> count_confusion(torch.tensor([0, 1, 1, -1]), torch.tensor([0, 0, 1, 1]), classes=2)
    tensor([[1, 1],
            [0, 1]])

    Args:
        predicted: The predicted classes, int64 [n].
        y: The classes, int64 [n].
        classes: The number of classes.
    """
    known = predicted >= 0
    return torch.bincount(y[known] * classes + predicted[known], minlength=classes**2).view(classes, classes)


def balanced_accuracy(counts: ClassCounts) -> float:
    """Returns the mean recall of the classes that have examples; at least one has.

    >>> import torch
    >>> balanced_accuracy(ClassCounts(correct=torch.tensor([9, 1, 0]), total=torch.tensor([10, 2, 0])))
    0.7
    """
    present = counts.total > 0
    return float((counts.correct[present].double() / counts.total[present]).mean())


def macro_f1(counts: ClassCounts, predicted: Tensor) -> float:
    """Returns the mean F1 score of the classes that have examples; at least one has. The F1 score of a class is the
    harmonic mean of its precision and recall, 0 if neither is above 0.

    Args:
        counts: the examples of each class, and the correct ones.
        predicted: number of examples that are classified as each class, int64 [classes].
    """
    present = counts.total > 0
    return float((2 * counts.correct.double() / (counts.total + predicted))[present].mean())


def macro_auroc(probabilities: Tensor, y: Tensor) -> float | None:
    """Returns the mean over classes of the area under the ROC curve of one class against the others: the chance that an
    example of the class has a higher probability of it than an example of another class (a tie counts half). With two
    classes this is the area of class 1. None: all examples are of one class.

    Args:
        probabilities: probability of each class, float64 [n, classes].
        y: the classes, int64 [n].
    """
    present = torch.bincount(y).nonzero().flatten().tolist()
    if len(present) < 2:
        return None
    chosen = [1] if probabilities.shape[1] == 2 else present
    by_class, labels = probabilities.numpy(), y.numpy()
    areas = []
    for label in chosen:
        own = labels == label
        others, inside = np.sort(by_class[~own, label]), by_class[own, label]
        below = np.searchsorted(others, inside, "left").sum() + np.searchsorted(others, inside, "right").sum()
        areas.append(int(below) / (2 * len(inside) * len(others)))
    return sum(areas) / len(areas)


def calibration_error(probabilities: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Returns the expected calibration error, in [0, 1]: examples are put into bins of equal width by their largest
    probability, and the result is the mean distance between the share of correct examples in a bin and the mean largest
    probability there, weighted by the number of examples. Guo, Pleiss, Sun, Weinberger, arXiv 1706.04599.

    Args:
        probabilities: probability of each class, float64 [n, classes]. Without examples the result is 0.
        correct: which examples are classified correctly, bool [n].
        bins: number of bins. Bin m of M has the probabilities above (m − 1)/M, and up to m/M.
    """
    confidence = probabilities.amax(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, correct.double() - confidence)
    return float(gaps.abs().sum()) / max(1, len(correct))
