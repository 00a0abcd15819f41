"""Names of classes: in the order of sorted labels, or the labels themselves in another order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genfed.core.errors import GenfedError
from genfed.data.labels import doubt_classes, encode_labels
from genfed.data.npz import Npz
from genfed.data.table import Table
from genfed.preprocessing.source_summary import SourceSummary


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


@pytest.mark.parametrize("word", ["unknown", "Unknown", "n.d.", "unbekannt", "missing"])
def test_a_class_that_may_mean_that_there_is_no_label_is_told_of(word: str, tmp_path: Path) -> None:
    labels = [("ill", "well", word)[i % 3] for i in range(90)]
    line = (
        f"class {word!r} is learned like the others; if it means that there is no label, leave out its rows; if it is "
        "a class, name it in data."
    )
    (tmp_path / "a.csv").write_text("a,y\n" + "".join(f"{i / 7},{label}\n" for i, label in enumerate(labels)))
    table: dict[str, Any] = {"path": str(tmp_path / "a.csv"), "label": "y"}
    assert f"{line}not_missing" in Table(**table).load().summary.warnings
    assert Table(**table, not_missing=(word,)).load().summary.warnings == ()
    assert Table(**table, classes=tuple(sorted({*labels}))).load().summary.warnings == ()
    with pytest.raises(GenfedError, match="column 'y' lacks 30 values; each row needs one"):
        Table(**table, missing=(word,)).load()
    np.savez(tmp_path / "a.npz", x=np.arange(270.0).reshape(90, 3) % 7.3, y=np.array(labels))
    assert f"{line}classes" in Npz(path=str(tmp_path / "a.npz")).load().summary.warnings
    named = Npz(path=str(tmp_path / "a.npz"), classes=tuple(sorted({*labels}))).load().summary.warnings
    assert not any("no label" in warning for warning in named)


def test_signs_and_none_may_be_classes() -> None:
    assert doubt_classes(("+", "-", "x", "none", "refused", "0"), (), "data.classes") == SourceSummary()
    assert doubt_classes(("?", "NA", "a"), ("NA",), "data.classes").warnings[0].startswith("class '?' is learned")
