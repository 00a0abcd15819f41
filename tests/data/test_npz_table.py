"""Arrays [n, features] are scaled like the numbers of a file, and so wherever they are read."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genfed.core.errors import GenfedError
from genfed.data.dataset import Dataset
from genfed.data.encoder import write_encoder
from genfed.data.features import TableSchema
from genfed.data.npz import Npz
from genfed.data.table import Table

RNG = np.random.default_rng(0)
X = np.stack([RNG.normal(40, 12, 80), RNG.normal(3e4, 9e3, 80), RNG.normal(0.3, 0.1, 80)], axis=1)
Y = np.arange(80) % 2


def write(folder: Path, name: str = "a.npz", **arrays: Any) -> str:
    np.savez(folder / name, **arrays)
    return str(folder / name)


def warned(folder: Path, x: Any) -> tuple[str, ...]:
    return Npz(path=write(folder, x=x, y=Y)).load().summary.warnings


@pytest.mark.parametrize("scale", ["standard", "range", "none"])
def test_features_are_scaled_like_those_of_a_file(scale: Any, tmp_path: Path) -> None:
    lines = [",".join(map(repr, row)) for row in X.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,c,y", *(f"{line},{y}" for line, y in zip(lines, Y, strict=True))]))
    arrays = Npz(path=write(tmp_path, x=X, y=Y), scale=scale).load()
    table = Table(path=str(tmp_path / "a.csv"), label="y", scale=scale).load()
    for one, other in ((arrays.train, table.train), (arrays.validation, table.validation), (arrays.test, table.test)):
        assert torch.equal(one.x, other.x)
    if scale == "standard":
        assert torch.allclose(arrays.train.x.std(0, correction=0), torch.ones(3), atol=1e-5)


def test_new_rows_get_the_very_training_features(tmp_path: Path) -> None:
    source = Npz(path=write(tmp_path, x=X, y=Y, row=np.arange(80)), columns=("row",))
    data = source.load()
    (found,) = source.read(source.path, data.task, data.encoder)
    parts = ((data.train, data.columns), (data.validation, data.validation_columns), (data.test, data.test_columns))
    for part, columns in parts:
        assert torch.equal(part.x, found.x[[int(row) for row in columns["row"]]])
    with pytest.raises(GenfedError, match=r"has no encoder\.json; resuming the run \(--resume\) writes it"):
        next(source.read(source.path, data.task, None))


def test_a_stored_encoder_is_used(tmp_path: Path) -> None:
    first = Npz(path=write(tmp_path, x=X, y=Y)).load()
    assert isinstance(first.encoder, TableSchema)
    write_encoder(first.encoder, tmp_path / "encoder.json")
    there = write(tmp_path, "b.npz", x=X + 100, y=Y)
    data = Npz(path=there, encoder=str(tmp_path / "encoder.json")).load()
    assert data.encoder == first.encoder
    with pytest.raises(GenfedError, match=r"encoder\.json: it is not of an \.npz with 2 features"):
        Npz(path=write(tmp_path, x=X[:, :2], y=Y), encoder=str(tmp_path / "encoder.json")).load()


def test_what_was_read_is_told(tmp_path: Path) -> None:
    fixed = np.concatenate([X, np.full((80, 1), 7.0)], axis=1)
    facts = Npz(path=write(tmp_path, x=fixed, y=Y)).load().summary.facts
    assert facts[0].startswith(f"{tmp_path}/a.npz: 4 features, ")
    assert facts[1] == "features with one value: 3"
    assert warned(tmp_path, X) == ()
    assert warned(tmp_path, np.concatenate([np.arange(80)[:, None], X], axis=1)) == (
        "feature 0 of x numbers the rows; leave it out of x",
    )
    assert warned(tmp_path, RNG.integers(0, 256, (80, 64))) == (
        "x seems to hold images in rows; x of shape [n, 8, 8] is read as images",
    )
    (line,) = warned(tmp_path, np.concatenate([X[:40], X[:40]]))
    assert line.startswith("40 examples are exact copies of another, among 80")


def test_rows_of_a_group_stay_together(tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=Y, who=np.arange(80) // 4)
    data: Dataset = Npz(path=path, group="who").load()
    homes = [set(columns["who"]) for columns in (data.columns, data.validation_columns, data.test_columns)]
    assert sum(map(len, homes)) == 20
    with pytest.raises(GenfedError, match="array 'patient' is not there"):
        Npz(path=path, group="patient").load()


def test_labels_keep_their_value_or_are_refused(tmp_path: Path) -> None:
    large = Npz(path=write(tmp_path, x=X, y=Y.astype(np.uint64) + np.uint64(2**63 + 5))).load()
    assert large.task.classes == (str(2**63 + 5), str(2**63 + 6))
    mixed: dict[str, Any] = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y.astype(np.uint64)}
    assert Npz(path=write(tmp_path, **mixed)).load().task.classes == ("0", "1")
    with pytest.raises(
        GenfedError, match=r"labels of train: texts are stored as bytes that are not utf-8 .*; set encoding"
    ):
        Npz(path=write(tmp_path, x=X, y=np.array(["süß".encode("latin-1"), b"yes"])[Y])).load()


def test_features_in_another_unit_are_warned_of_wherever_they_are_read(tmp_path: Path) -> None:
    other = X * [1, 1000, 1]
    said = r"column '1': most values are far from those of training \(median .*is it in another unit\?"
    source = Npz(path=write(tmp_path, x_train=X, y_train=Y, x_test=other, y_test=Y))
    data = source.load()
    (line,) = data.summary.warnings
    assert re.search(rf"^{re.escape(source.path)}: x of test: {said}", line)
    for path, wanted in ((write(tmp_path, "new.npz", x=other), 1), (write(tmp_path, "same.npz", x=X), 0)):
        (found,) = source.read(path, data.task, data.encoder)
        assert len(found.warnings) == wanted
        assert all(re.search(rf"^{re.escape(path)}: x: {said}", line) for line in found.warnings)
    assert isinstance(data.encoder, TableSchema)
    write_encoder(data.encoder, tmp_path / "encoder.json")
    site = Npz(path=write(tmp_path, "b.npz", x=other, y=Y), encoder=str(tmp_path / "encoder.json")).load()
    assert re.search(said, " ".join(site.summary.warnings))


def test_of_very_many_features_in_another_unit_the_rest_is_counted(tmp_path: Path) -> None:
    wide = RNG.normal(0, 1, (80, 300))
    source = Npz(path=write(tmp_path, x=wide, y=Y))
    data = source.load()
    (found,) = source.read(path := write(tmp_path, "new.npz", x=wide + 1000), data.task, data.encoder)
    assert len(found.warnings) == 21
    assert found.warnings[-1] == f"{path}: x: … and 280 more values or columns that do not fit"
