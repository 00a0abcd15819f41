"""Quotation marks that open a value and belong to none: what stands between two of them is one value, and told of."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from genfed.data.table import Table

N = 60


def load(file: Path, rows: Sequence[str], header: str = "a,t,b,y", mark: str = ",", end: str = "\n") -> tuple[str, ...]:
    """Returns the warnings of a table that speak of values with rows in them."""
    text = end.join([header, *rows]).replace(",", mark) + end
    file.write_bytes(text.encode())
    return tuple(line for line in Table(path=str(file), label="y").load().summary.warnings if "looks like" in line)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("second", [11, 30])
def test_rows_between_two_quotation_marks_are_told_of(
    second: int, place: int, end: str, mark: str, tmp_path: Path
) -> None:
    rows = []
    for i in range(N):
        cells = [f"v{i % 3}", f"w{i % 2}", f"{i / 4}", str(i % 2)]
        cells[place] = '"5' if i in (10, second) else cells[place]
        rows.append(",".join(cells))
    (line,) = load(tmp_path / "a.csv", rows, mark=mark, end=end)
    assert f"1 value holds what looks like the ends of {second - 10} row" in line
    assert line.isprintable()


def test_rows_of_a_last_column_are_told_of_and_in_new_files(tmp_path: Path) -> None:
    rows = [f"{i / 4},{i % 2}," + ('"5in' if i in (10, 30, 40, 50) else "z") for i in range(N)]
    (line,) = load(tmp_path / "a.csv", rows, "a,y,t")
    assert "2 values hold what looks like the ends of 30 rows" in line
    plain = [row.replace('"', "") for row in rows]
    assert load(tmp_path / "b.csv", plain, "a,y,t") == ()
    table = Table(path=str(tmp_path / "b.csv"), label="y")
    data = table.load()
    (new,) = table.read(str(tmp_path / "a.csv"), data.task, data.encoder)
    assert new.warnings[0].startswith(f"{tmp_path / 'a.csv'}: 2 values hold what looks like the ends of 30 rows")


def test_texts_of_several_lines_and_inches_are_not_told_of(tmp_path: Path) -> None:
    notes = ["seen at home\nno, no fever, well", "one\ntwo\n\nthree", "a,b\nc", 'of 5" pipe', "x, y\nz, u, v", "z"]
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows([["a", "t", "b", "y"], *([i / 4, notes[i % 6], i % 7, i % 2] for i in range(N))])
    warnings = Table(path=str(file), label="y").load().summary.warnings
    assert not any("looks like" in line for line in warnings)
    rows = [f'{i / 4},{3 + i % 3}",{i % 7},{i % 2}' for i in range(N)]
    assert load(file, rows) == ()
