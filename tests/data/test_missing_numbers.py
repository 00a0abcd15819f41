"""A number that means that there is no value, however a file writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from genfed.core.task import Task
from genfed.data.encoder import write_encoder
from genfed.data.features import TableSchema
from genfed.data.sites import Sites
from genfed.data.table import Table

N = 60
VALUES = [round(float(v), 2) for v in np.random.default_rng(0).normal(size=N)]


def load(file: Path, cells: list[str], mark: str = ",", **set_to: Any) -> torch.Tensor:
    """Returns the features of a column with these texts beside one of decimals in the same notation."""
    other = [f"{v:.2f}".replace(".", "," if mark == ";" else ".") for v in reversed(VALUES)]
    rows = [f"{c}{mark}{o}{mark}{i % 2}" for i, (c, o) in enumerate(zip(cells, other, strict=True))]
    file.write_text("\n".join([f"a{mark}b{mark}y", *rows]) + "\n", "utf-8")
    return Table(path=str(file), label="y", **set_to).load().train.x


@pytest.mark.parametrize("written", ["-999", "-999.0", "-999.00", " -999.00 ", "-9.99e2", "−999", "-999 kg"])
@pytest.mark.parametrize("word", ["-999", "-999.0"])
def test_a_missing_number_is_found_however_it_is_written(word: str, written: str, tmp_path: Path) -> None:
    unit = " kg" if "kg" in written else ""
    cells = [f"{v:.2f}{unit}" for v in VALUES]
    gaps = load(tmp_path / "a.csv", ["" if i % 5 == 0 else c for i, c in enumerate(cells)])
    marked = [written if i % 5 == 0 else c for i, c in enumerate(cells)]
    assert torch.equal(load(tmp_path / "a.csv", marked, missing=(word,)), gaps)


@pytest.mark.parametrize(("word", "written"), [("-999", "-999,00"), ("-999,0", "-999,00"), ("-9999", "-9.999,0")])
def test_a_missing_number_is_found_among_decimal_commas(word: str, written: str, tmp_path: Path) -> None:
    cells = [f"{v:.2f}".replace(".", ",") for v in VALUES]
    gaps = load(tmp_path / "a.csv", ["" if i % 5 == 0 else c for i, c in enumerate(cells)], ";")
    marked = [written if i % 5 == 0 else c for i, c in enumerate(cells)]
    assert torch.equal(load(tmp_path / "a.csv", marked, ";", missing=(word,)), gaps)


def test_a_missing_number_is_found_among_codes_and_in_new_files(tmp_path: Path) -> None:
    codes = ["-9.0" if i % 5 == 0 else str(i % 3) for i in range(N)]
    table = Table(path=str(tmp_path / "a.csv"), label="y", missing=("-9",), categorical=("a",))
    load(tmp_path / "a.csv", codes)
    data = table.load()
    assert isinstance(data.encoder, TableSchema)
    assert data.encoder.categories == {"a": ("(missing)", "0", "1", "2")}
    numbers = Table(path=str(tmp_path / "a.csv"), label="y", missing=("-9",))
    load(tmp_path / "a.csv", ["-9" if c == "-9.0" else c for c in codes])
    data = numbers.load()
    load(tmp_path / "new.csv", codes)
    parquet.write_table(
        pyarrow.table({"a": [float(c) for c in codes], "b": list(reversed(VALUES))}), tmp_path / "new.parquet"
    )
    files = [tmp_path / name for name in ("a.csv", "new.csv", "new.parquet")]
    first, *others = [next(iter(numbers.read(str(file), data.task, data.encoder))).x for file in files]
    assert all(torch.equal(first, x) for x in others)


def test_words_for_missing_values_go_with_the_schema(tmp_path: Path) -> None:
    """Another site, a served run and a model know what the training file writes for a missing value."""
    rows = [
        f"{-999 if i % 9 == 0 else i % 7},{'NA' if i % 5 == 0 else 'b'},{'yes' if i % 2 else 'no'}" for i in range(90)
    ]
    (tmp_path / "a.csv").write_text("\n".join(["age,country,ill", *rows]) + "\n")
    path = str(tmp_path / "a.csv")
    first = Table(path=path, label="ill", missing=("-999",), not_missing=("NA",), validation=0.0).load()
    assert isinstance(first.encoder, TableSchema)
    write_encoder(first.encoder, tmp_path / "encoder.json")
    other = Table(path=path, label="ill", encoder=str(tmp_path / "encoder.json"), validation=0.0).load()
    assert torch.equal(first.train.x, other.train.x)
    task = Task("table", tuple(first.train.x.shape[1:]), ("no", "yes"))
    (served,) = Sites().read(path, task, first.encoder)
    (alone,) = Table(path=path, label="").read(path, task, first.encoder)
    assert torch.equal(served.x, alone.x)
    assert float(served.x[:, 0].abs().max()) < 3, "-999 is the median"
    assert torch.equal(served.x[:, 1], torch.tensor([float(i % 9 == 0) for i in range(90)])), "it says what is missing"
    assert served.x[::5, 2:].sum(1).eq(1).all(), "NA is a country"
