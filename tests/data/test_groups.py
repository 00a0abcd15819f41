"""One patient has one name in all parts, whatever the file is and however it stores the name; a missing one is none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from genfed.core.errors import GenfedError
from genfed.data.cells import spell_names, text_cells
from genfed.data.huggingface import HuggingFace
from genfed.data.npz import Npz
from genfed.data.split import SplitSource
from genfed.data.table import Table

N = 24
A = np.random.default_rng(0).normal(size=N).tolist()
Y = [i // 2 % 2 for i in range(N)]
Who = Sequence[object]
Parts = dict[str, Who]
Write = Callable[[Path, Parts, dict[str, Any]], SplitSource]


def _csv(folder: Path, parts: Parts, set_to: dict[str, Any]) -> SplitSource:
    for part, who in parts.items():
        lines = [f"{a},{'' if w is None else w},{y}" for a, w, y in zip(A, who, Y, strict=False)]
        (folder / f"{part}.csv").write_text("\n".join(["a,who,y", *lines]) + "\n")
    test = str(folder / "test.csv") if "test" in parts else None
    return Table(path=str(folder / "train.csv"), test_path=test, label="y", **set_to)


def _parquet(folder: Path, parts: Parts, set_to: dict[str, Any]) -> SplitSource:
    for part, who in parts.items():
        table = pyarrow.table({"a": A[: len(who)], "who": pyarrow.array(list(who)), "y": Y[: len(who)]})
        parquet.write_table(table, folder / f"{part}.parquet")
    test = str(folder / "test.parquet") if "test" in parts else None
    return Table(path=str(folder / "train.parquet"), test_path=test, label="y", **set_to)


def _npz(folder: Path, parts: Parts, set_to: dict[str, Any]) -> SplitSource:
    arrays: dict[str, Any] = {}
    for part, who in parts.items():
        n, of_numbers = len(who), not any(isinstance(w, str) for w in who)
        stored = [np.nan if w is None else w for w in who] if of_numbers else [str(w) for w in who]
        arrays |= {f"x_{part}": np.array(A[:n])[:, None], f"y_{part}": Y[:n], f"who_{part}": np.array(stored)}
    np.savez(folder / "a.npz", **arrays)
    return Npz(path=str(folder / "a.npz"), **set_to)


def _huggingface(folder: Path, parts: Parts, set_to: dict[str, Any]) -> SplitSource:
    datasets = pytest.importorskip("datasets")
    made = {}
    for part, who in parts.items():
        n = len(who)
        made[part] = datasets.Dataset.from_dict({"a": A[:n], "who": list(who), "label": Y[:n]})
    datasets.DatasetDict(made).save_to_disk(folder / "set")
    return HuggingFace(path=str(folder / "set"), **set_to)


def _images(folder: Path, parts: Parts, set_to: dict[str, Any]) -> SplitSource:
    datasets = pytest.importorskip("datasets")
    made = {}
    for part, who in parts.items():
        pixels = [Image.new("L", (4, 4), i) for i in range(len(who))]
        made[part] = datasets.Dataset.from_dict({"image": pixels, "who": list(who), "label": Y[: len(who)]})
    datasets.DatasetDict(made).save_to_disk(folder / "set")
    return HuggingFace(path=str(folder / "set"), **set_to)


SOURCES = pytest.mark.parametrize("write", [_csv, _parquet, _npz, _huggingface, _images])
WHOLE = [i // 2 for i in range(N)]
SAME: list[tuple[Who, Who]] = [
    ([float(w) for w in WHOLE], [0] * 4),
    (WHOLE, ["0.0"] * 4),
    ([f"{w}.00" for w in WHOLE], [0] * 4),
    ([f"{w}.0" for w in WHOLE[1:]] + ["A3"], ["1"] * 4),
    ([f"P{w} " for w in WHOLE], [" P0"] * 4),
    ([w > 5 for w in WHOLE], ["true"] * 4),
]


@SOURCES
@pytest.mark.parametrize(("train", "test"), SAME)
def test_a_group_in_two_given_parts_is_refused_however_it_is_stored(
    train: Who, test: Who, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(GenfedError, match=r"group 'who': '.*' is in the given train and test parts"):
        write(tmp_path, {"train": train, "test": test}, {"group": "who"}).load()


@SOURCES
@pytest.mark.parametrize("who", [[None if i % 3 else i // 4 for i in range(N)], [None, *"ab" * (N // 2)][:N]])
@pytest.mark.parametrize("set_to", [{"group": "who"}, {"columns": ("who",)}])
def test_a_missing_name_is_no_name(who: Who, set_to: dict[str, Any], write: Write, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=rf"who(_train)?'? lacks {who.count(None)} values"):
        write(tmp_path, {"train": who}, set_to).load()


@pytest.mark.parametrize("who", [np.array(["nan", "a"] * 12), np.array(["NaT", "2020-01-31"] * 12, "datetime64[D]")])
def test_names_that_numpy_spells_for_missing_ones_are_refused(who: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array(A)[:, None], y=Y, who=who)
    with pytest.raises(GenfedError, match=r"a\.npz: who lacks 12 values \(NaN, None, NA and the like\)"):
        Npz(path=str(tmp_path / "a.npz"), group="who").load()


def test_a_class_label_of_minus_one_is_missing(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"a": A, "label": Y, "who": [i % 3 - 1 for i in range(N)]})
    made.cast_column("who", datasets.ClassLabel(names=["north", "south"])).save_to_disk(tmp_path / "set")
    with pytest.raises(GenfedError, match="column 'who' lacks 8 values"):
        HuggingFace(path=str(tmp_path / "set"), columns=("who",)).load()


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (["1.0", "2.0"], ["1", "A3"], [["1", "2"], ["1", "A3"]]),
        (["1.10", "1.1", "2"], ["2.0"], [["1.10", "1.1", "2"], ["2.0"]]),  # codes
        (["01", "1"], ["1.0"], [["01", "1"], ["1"]]),
        (["1e3"], ["1000"], [["1000"], ["1000"]]),
        (["9007199254740993"], ["9007199254740992"], [["9007199254740993"], ["9007199254740992"]]),
        (["a", "b"], [], [["a", "b"], []]),
    ],
)
def test_names_are_spelled_alike_where_they_are_sure(train: Who, test: Who, expected: list[list[str]]) -> None:
    cells = {"train": text_cells(map(str, train)), "test": text_cells(map(str, test))}
    assert list(spell_names(cells).values()) == expected
