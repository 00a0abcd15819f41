"""Numbers keep their units: those that mean different things are never read as one, and each mixture is named."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from genfed.core.errors import GenfedError
from genfed.data.cells import text_cells
from genfed.data.encoder import read_encoder, write_encoder
from genfed.data.numerals import describe_units, find_notation, list_units, read_numbers
from genfed.data.table import Table
from tests.data.test_table_readings import NOISE, NUMBERS, N, load, schema

V = [v / 100 for v in NUMBERS]


def column(data: Any, name: str = "v") -> list[float]:
    """Returns the numbers of a column of the training, validation and test rows, sorted."""
    place = list(schema(data).numbers).index(name)
    rows = [*data.train.x, *data.validation.x, *data.test.x]
    return sorted(float(row[place]) for row in rows)


def written(*units: str, values: Sequence[float] = V) -> list[str]:
    """Returns numbers with these units in turn, {} for the number."""
    return [units[i % len(units)].format(v) for i, v in enumerate(values)]


FACTORS: list[tuple[list[str], list[float]]] = [
    (["{}K", "{}M", "{:.0f}"], [1e3, 1e6, 0]),
    (["{}k", "{:.0f}"], [1e3, 0]),
    (["{}K", "{:.0f}"], [1e3, 0]),
    (["{} Mio", "{} Mrd."], [1e6, 1e9]),
    (["{} Mio. €", "{} €"], [1e6, 1]),
    (["${}M", "$ {}K"], [1e6, 1e3]),
    (["{} million", "{} bn"], [1e6, 1e9]),
    (["{} CR", "{} lakh"], [1e7, 1e5]),
    (["{}万", "{}W", "{}亿"], [1e4, 1e4, 1e8]),
    (["{} N", "{} S"], [1, -1]),
    (["{}° E", "{}° W"], [1, -1]),
]


@pytest.mark.parametrize(("units", "factors"), FACTORS, ids=lambda units: str(units[0]))
def test_words_and_letters_multiply_where_they_are_sure(units: list[str], factors: list[float], tmp_path: Path) -> None:
    data = load(tmp_path, {"v": written(*units)}, scale="none")
    expected = [v * factors[i % len(units)] or float(f"{v:.0f}") for i, v in enumerate(V)]
    assert np.allclose(column(data), sorted(expected), rtol=1e-6)
    (line,) = [line for line in data.summary.warnings if "several units" in line]
    assert line.endswith("; write the numbers alike, or set data.units")
    assert len(re.findall(r" \d+ \('", line)) == len(units)


@pytest.mark.parametrize("unit", ["K", " M", "W", " W", " CR", " N", "°C", " kg", "%", " €", " Mio"])
def test_one_unit_is_kept_and_shown(unit: str, tmp_path: Path) -> None:
    data = load(tmp_path, {"v": written(f"{{}}{unit}")})
    assert data.summary.warnings == ()
    notation = schema(data).numbers["v"].notation
    shown = "" if unit == " Mio" else f" {unit.strip()}"
    assert f" {notation.unit}".rstrip() == shown
    assert re.search(rf", v [\d.e+]+ to [\d.e+]+{shown}$", data.summary.facts[1])


MIXED = [
    ["{}M", "{:.0f}"],
    ["{}W", "{:.0f}"],
    ["{} CR", "{} DR"],
    ["{} N", "{:.0f}"],
    ["${}", "€{}", "¥{}"],
    ["{} USD", "{} CAD"],
    ["{} kg", "{} lb"],
    ["{} years", "{} months"],
    ["{:.0f}a", "{:.0f}b", "{:.0f}"],
]


@pytest.mark.parametrize("units", MIXED, ids=lambda units: str(units))
def test_other_mixtures_are_categories_or_refused(units: list[str], tmp_path: Path) -> None:
    texts = written(*units)
    texts = [
        text if "{:.0f}" not in units or "." in text or not text.isdecimal() else str(int(text) * 1000)
        for text in texts
    ]
    texts = [texts[i % 60] for i in range(N)]  # another text in every row would be an id
    data = load(tmp_path, {"v": texts})
    assert "v" in schema(data).categories
    (line,) = [line for line in data.summary.warnings if "several units" in line]
    assert line.endswith("; taken as categories; write the numbers alike, or set data.units")
    assert len(re.findall(r" \d+ \('", line)) == len(units)
    with pytest.raises(GenfedError, match=r"column 'v': several units: .*set data\.units"):
        load(tmp_path, {"v": texts}, numeric=("v",))


HEIGHTS = [f"{150 + v % 50} cm" if i % 2 else f"{1.5 + v % 50 / 100:.2f}" for i, v in enumerate(NUMBERS)]


def test_metres_beside_centimetres(tmp_path: Path) -> None:
    (line, *_) = load(tmp_path, {"v": HEIGHTS}).summary.warnings
    assert re.match(
        r"column 'v': several units: none \d+ \('1\.\d+'\), cm \d+ \('1\d\d cm'\); taken as categories", line
    )
    data = load(tmp_path, {"v": HEIGHTS}, units={"v": {"cm": 1, "": 100}}, scale="none")
    assert np.allclose(column(data), sorted(150 + v % 50 for v in NUMBERS))
    assert data.summary.warnings == ()
    few = load(tmp_path, {"v": [f"{150 + v % 50} cm" if i % 20 else "1.75" for i, v in enumerate(NUMBERS)]})
    (line,) = few.summary.warnings
    assert "cm 114 ('" in line
    assert "none 6 ('1.75' is taken as missing)" in line


def test_numbers_without_a_unit_that_are_like_the_others_are_read_with_a_warning(tmp_path: Path) -> None:
    data = load(tmp_path, {"v": written("{} kg", "{}")}, scale="none")
    (line,) = data.summary.warnings
    assert re.search(r"several units: kg 60 \('(.+) kg' is \1 kg\), none 60 \('(.+)' is \2 kg\); write the", line)
    assert np.allclose(column(data), sorted(V))


UNITS = ["{} kg", "{} cm", "${}", "{} €", "{}K", "{}M", "{} Mio", "{} N", "{} S", "{}%", "{}"]


@st.composite
def numbers_with_units(draw: st.DrawFn) -> list[str]:
    """Numbers in up to eight units, as many as one line names."""
    units = draw(st.lists(st.sampled_from(UNITS), min_size=1, max_size=8, unique=True))
    values = draw(st.lists(st.integers(1, 99), min_size=1, max_size=40))
    return [draw(st.sampled_from(units)).format(value) for value in values]


@settings(max_examples=200, deadline=None)
@given(numbers_with_units())
def test_no_number_is_read_without_a_word_beside_one_in_another_unit(texts: list[str]) -> None:
    cells = text_cells(texts)
    finding = find_notation(cells, None, None, None)
    values = read_numbers(cells, finding.notation)[0]
    units = {re.sub(r"\d", "", text) for text in texts}
    said = describe_units(cells, finding.notation)
    assert bool(said) == (len(units) > 1)
    listed = list_units(cells, finding.notation)
    assert len(re.findall(r" \d+ \('", listed)) == len(units)
    assert sum(int(n) for n in re.findall(r" (\d+) \('", listed)) == len(texts)
    for text, value in zip(texts, values.tolist(), strict=True):
        assert np.isnan(value) or abs(value) >= float(re.sub(r"[^\d.]", "", text))
    assert finding.share + finding.others == pytest.approx(1)
    assert finding.share == pytest.approx(float(np.mean(~np.isnan(values))))


OTHERS: list[tuple[str, str, str | None, str]] = [
    ("{}", "{} cm", None, r"cm 40 \('\d.* cm' is taken as missing\)"),
    ("{}", "{}%", None, "% 40"),
    ("{}", "${}", None, r"\$ 40"),
    ("{} cm", "{}", "not the unit of training: none 40 \\('(.+)' is \\1 cm\\)", ""),
    ("{}%", "{}", "not the unit of training: none 40 \\('(.+)' is \\1 %\\)", ""),
    ("${}", "{}", "not the unit of training: none 40 \\('(.+)' is \\1 \\$\\)", ""),
    ("${}", "€{}", None, "€ 40"),
    ("{} N", "{} S", None, "S 40"),
    ("{} Mio", "{} Mrd", "", ""),
]


@pytest.mark.parametrize(("train", "other", "warned", "refused"), OTHERS)
def test_other_files_are_held_to_the_units_of_training(
    train: str, other: str, warned: str | None, refused: str, tmp_path: Path
) -> None:
    """In a test file, at another site with the same encoder, and in new rows."""
    load(tmp_path, {"v": written(train)})
    lines = [f"{NOISE[i]},{text},{['no', 'yes'][i % 2]}" for i, text in enumerate(written(other)[:40])]
    (tmp_path / "b.csv").write_text("\n".join(["noise,v,y", *lines]) + "\n")
    source = Table(path=str(tmp_path / "a.csv"), label="y")
    data = source.load()
    assert data.encoder is not None
    write_encoder(data.encoder, tmp_path / "encoder.json")
    assert read_encoder(tmp_path / "encoder.json") == data.encoder
    site = Table(path=str(tmp_path / "b.csv"), label="y", encoder=str(tmp_path / "encoder.json"), test=0.2)
    with_test = Table(path=str(tmp_path / "a.csv"), test_path=str(tmp_path / "b.csv"), label="y")
    if warned is None:
        for read in (site.load, with_test.load, lambda: list(source.read(str(site.path), data.task, data.encoder))):
            with pytest.raises(GenfedError, match=f"b.csv: column 'v' .*{refused}"):
                read()
        return
    (rows,) = source.read(str(site.path), data.task, data.encoder)
    for said in (site.load().summary.warnings, with_test.load().summary.warnings, rows.warnings):
        found = [line for line in said if "data.units" in line]
        assert bool(found) == bool(warned)
        assert not warned or re.search(f"b.csv: column 'v': {warned}", found[0])


def test_numbers_of_a_typed_file_lack_the_unit_of_training(tmp_path: Path) -> None:
    data = load(tmp_path, {"v": written("{} %")})
    parquet.write_table(pyarrow.table({"noise": V, "v": V}), tmp_path / "a.parquet")
    source = Table(path=str(tmp_path / "a.csv"), label="y")
    (rows,) = source.read(str(tmp_path / "a.parquet"), data.task, data.encoder)
    assert any("column 'v': not the unit of training: none 120" in line for line in rows.warnings)


@pytest.mark.parametrize(
    ("units", "says"),
    [
        ({"w": {"cm": 1.0}}, "column 'w' is not there"),
        ({"v": {"5 cm": 1.0}}, "data.units.v: '5 cm' is no unit"),
        ({"v": {"cm": 0.0}}, "data.units.v.cm = 0.0: a finite factor that is not 0 is allowed"),
        ({"v": {"kg": 1.0}}, r"column 'v': several units: none \d+ \('1\.\d+'\), cm \d+ \('1\d\d cm'\)"),
        ({"y": {"cm": 1.0}}, "column 'y' is named twice"),
    ],
)
def test_wrong_units_are_refused(units: dict[str, dict[str, float]], says: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=says):
        load(tmp_path, {"v": HEIGHTS}, units=units)


def test_units_are_given_in_any_spelling_and_for_one_column_alone(tmp_path: Path) -> None:
    texts = written("${}M", "€{}M")
    data = load(tmp_path, {"v": texts}, units={"v": {"$M": 1, "M €": 2}}, scale="none")
    assert np.allclose(column(data), sorted(v * (1 + i % 2) for i, v in enumerate(V)))
    assert data.summary.warnings == ()
    assert list(schema(data).numbers) == ["noise", "v"]


DURATIONS = [f"1:{v % 60:02}:{v % 59:02}" for v in NUMBERS]


def test_minutes_and_seconds_beside_hours_are_named(tmp_path: Path) -> None:
    texts = [
        f"{v % 20:02}:{v % 59:02}" if i % 2 else d for i, (v, d) in enumerate(zip(NUMBERS, DURATIONS, strict=True))
    ]
    (line,) = load(tmp_path, {"v": texts}).summary.warnings
    assert re.search(r"'(\d\d:\d\d)' is read as hours and minutes beside hours.*write '00:\1'$", line)
    texts = [
        f"{v % 60:02}:{v % 59:02}" if i % 2 else d for i, (v, d) in enumerate(zip(NUMBERS, DURATIONS, strict=True))
    ]
    texts = [texts[i % 50] for i in range(N)]
    lines = load(tmp_path, {"v": texts}).summary.warnings
    says = r"column 'v': '\d\d:\d\d' is no time of day; taken as categories; write durations as numbers of seconds"
    assert any(re.fullmatch(says, line) for line in lines)
    with pytest.raises(GenfedError, match="is no time of day; write durations as numbers of seconds"):
        load(tmp_path, {"v": texts}, numeric=("v",))


def test_minutes_and_seconds_in_another_file_are_named(tmp_path: Path) -> None:
    data = load(tmp_path, {"v": DURATIONS})
    assert data.summary.warnings == ()
    (tmp_path / "b.csv").write_text("noise,v\n1,12:34\n2,1:02\n")
    (rows,) = Table(path="a.csv", label="y").read(str(tmp_path / "b.csv"), data.task, data.encoder)
    assert any("is read as hours and minutes" in line for line in rows.warnings)


@pytest.mark.parametrize("zone", ["Z", " UTC", "+02:00", " GMT"])
def test_moments_with_and_without_a_time_zone_are_named(zone: str, tmp_path: Path) -> None:
    plain = [f"2020-01-{v % 28 + 1:02} {v % 23:02}:30" for v in NUMBERS]
    zoned = [f"{text}{zone}" for text in plain]
    data = load(tmp_path, {"v": zoned})
    assert data.summary.warnings == ()
    assert schema(data).numbers["v"].notation.kind == "day"
    (line,) = load(tmp_path, {"v": [*zoned[:60], *plain[60:]]}).summary.warnings
    assert re.search(r"'2020-.* \d\d:30' is read as UTC; others have a time zone; write them alike$", line)
    for train, other, says in ((zoned, plain, "is read as UTC; others have a"), (plain, zoned, "has a time zone; the")):
        data = load(tmp_path, {"v": train})
        (tmp_path / "b.csv").write_text("noise,v\n" + "".join(f"0,{text}\n" for text in other))
        (rows,) = Table(path="a.csv", label="y").read(str(tmp_path / "b.csv"), data.task, data.encoder)
        assert any(says in line for line in rows.warnings)


def test_moments_of_a_parquet_file_keep_that_they_have_a_time_zone(tmp_path: Path) -> None:
    ticks = [1_580_000_000 + v * 1000 for v in NUMBERS]
    columns = {"noise": V, "y": ["no", "yes", "yes", "no"] * (N // 4)}
    found = {}
    for zone in (None, "UTC", "Europe/Berlin"):
        file = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"v": pyarrow.array(ticks, pyarrow.timestamp("s", zone)), **columns}), file)
        data = Table(path=str(file), label="y", scale="none", numeric=("v", "noise")).load()
        found[zone] = column(data)
        assert schema(data).numbers["v"].notation.forms == ("time zone" if zone else "no time zone",)
    assert found[None] == found["UTC"] == found["Europe/Berlin"]


def test_bytes_are_texts_where_they_are_utf_8(tmp_path: Path) -> None:
    towns = ["Malmö", "Oslo", "Łódź"]
    kinds = {
        "text": [t.encode() for t in towns],
        "latin": [b"Malm\xf6", b"Oslo", b"x"],
        "raw": [b"\x01\x00", b"ab", b"c"],
    }
    columns = {name: pyarrow.array([three[i // 2 % 3] for i in range(N)]) for name, three in kinds.items()}
    parquet.write_table(pyarrow.table({**columns, "v": V, "y": ["a", "b"] * (N // 2)}), tmp_path / "a.parquet")
    data = Table(path=str(tmp_path / "a.parquet"), label="y").load()
    assert schema(data).categories == {"text": tuple(sorted(towns))}
    assert "column 'latin', 'raw': neither numbers nor texts, not used" in data.summary.warnings
    with pytest.raises(GenfedError, match="column 'raw' is not of categories"):
        Table(path=str(tmp_path / "a.parquet"), label="y", categorical=("raw",)).load()
