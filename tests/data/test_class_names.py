"""Names of classes: in the order of sorted labels, or the labels themselves in another order."""

import numpy as np
import pytest

from genfed.core.errors import GenfedError
from genfed.data.labels import encode_labels


def test_labels_keep_their_names_in_another_order() -> None:
    y, names = encode_labels({"train": np.array(["no", "yes", "no"])}, ("yes", "no"), "t.csv")
    assert names == ("yes", "no")
    assert y["train"].tolist() == [1, 0, 1]
    y, names = encode_labels({"train": np.array([3, 1, 2])}, ("1", "3", "2"), "t.csv")
    assert [names[label] for label in y["train"].tolist()] == ["3", "1", "2"]


def test_other_names_stand_for_sorted_labels() -> None:
    y, names = encode_labels({"train": np.array([7, 1, 7])}, ("benign", "malignant"), "t.csv")
    assert [names[label] for label in y["train"].tolist()] == ["malignant", "benign", "malignant"]


def test_a_mixture_is_refused() -> None:
    with pytest.raises(GenfedError, match="classes has 'maybe', which is no label, beside others that are"):
        encode_labels({"train": np.array(["no", "yes"])}, ("yes", "maybe"), "t.csv")
