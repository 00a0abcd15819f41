"""Tables of very many columns, such as those of genes: what is done for a column does not look at all others."""

from pathlib import Path

import pytest
from pyarrow import csv, parquet

import genfed.data.table_source as table_source
from genfed.core.errors import GenfedError
from genfed.data.table import Table

WIDTH, N = 400, 20


def write(file: Path, width: int = WIDTH) -> Table:
    lines = [[f"g{i}" for i in range(width)] + ["y"]]
    lines += [[str(i * k % 7 / 4) for i in range(width)] + [str(k % 2)] for k in range(N)]
    file.write_text("\n".join(map(",".join, lines)) + "\n")
    return Table(path=str(file), label="y")


def test_the_names_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = []

    class Counting(table_source.RawTable):
        def __getattribute__(self, name: str) -> object:
            if name == "columns":
                lists.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr("genfed.data.table.RawTable", Counting)
    found = []
    for width in (WIDTH // 2, WIDTH):
        lists.clear()
        table = write(tmp_path / "a.csv", width).read_table(str(tmp_path / "a.csv"))
        for name in table.names:
            table.cells(name)
        assert table.places is table.places
        found.append(len(lists))
    assert found[1] - found[0] == WIDTH // 2


def test_all_columns_are_features_in_their_order(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv")
    data = table.load()
    assert data.task.shape == (WIDTH,)
    parquet.write_table(csv.read_csv(tmp_path / "a.csv"), tmp_path / "a.parquet")
    again = Table(path=str(tmp_path / "a.parquet"), label="y").load()
    assert again.train.x.equal(data.train.x)
    named = tuple(f"g{i}" for i in reversed(range(WIDTH)))
    turned = Table(path=str(tmp_path / "a.csv"), label="y", features=named).load()
    assert turned.train.x.equal(data.train.x.flip(1))


def test_names_that_are_not_there_or_stand_twice(tmp_path: Path) -> None:
    write(tmp_path / "a.csv")
    with pytest.raises(GenfedError, match=r"column 'ß' is not there; there are: g0, .*, g49 … and 351 more$"):
        Table(path=str(tmp_path / "a.csv"), label="ß").load()
    with pytest.raises(GenfedError, match="column 'g3' is named twice"):
        Table(path=str(tmp_path / "a.csv"), label="y", numeric=("g3", "g3")).load()
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace("g399", "g7", 1))
    with pytest.raises(GenfedError, match="column 'g7' appears twice"):
        Table(path=str(tmp_path / "a.csv"), label="y").load()
