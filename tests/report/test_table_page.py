"""The page of a synthetic table: what stands first, what a reader is warned of, and that no text is code."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from genfed.metrics.table_fidelity import shuffle_columns
from genfed.metrics.tables import SiteRows, TableQuality, measure_table
from genfed.report.table_page import build_table_page, write_table_headlines, write_table_page
from tests.metrics.tables import make_patients

EVIL = "<script>alert(1)</script>\x1b[2K\u202e & \"'"


@pytest.fixture(scope="module")
def tables() -> tuple[Any, Any, Any]:
    return make_patients(150), make_patients(120, seed=2), make_patients(100, seed=1)


@pytest.fixture(scope="module")
def quality(tables: tuple[Any, Any, Any]) -> TableQuality:
    real, synthetic, test = tables
    sites = SiteRows(["Bonn", "Kiel", "Rom"] * 50, ["Bonn", "Kiel"] * 50)
    return measure_table(real, synthetic, test, "ill", sites=sites, sensitive="sex")


def test_headlines_name_no_shape(quality: TableQuality) -> None:
    lines = write_table_headlines(quality)
    assert f"AUC of {quality.tstr['gradient boosting'].auc:.3f} on real test rows" in lines[0]
    assert f"{100 * quality.pair_trends.synthetic:.1f} %" in lines[1]
    assert f"{quality.c2st.synthetic:.3f}" in lines[2]
    assert f"[{100 * quality.nearness.nearer.low:.1f}, " in lines[3]
    assert not re.search("shape", " ".join(lines), re.I)


def test_the_page_loads_nothing_and_marks_the_worst_site(
    quality: TableQuality, tables: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    write_table_page(quality, *tables[:2], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert len(page) < 2_000_000
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page.replace("xlink:", ""))
    assert quality.worst_site is not None
    assert page.count("← served worst") == 1
    assert f"{quality.worst_site.name} ← served worst" in page
    assert page.count("<figure>") == 7 + 2  # columns, pairs, sites
    assert "Learned from synthetic rows" in page


def test_copies_and_shuffled_columns_are_warned_of(tables: tuple[Any, Any, Any]) -> None:
    real, _, test = tables
    copies = build_table_page(measure_table(real, real, test, "ill"), real, real)
    assert "100.0 % of the synthetic rows equal a training row" in copies
    assert "some may be near copies" in copies
    shuffled = shuffle_columns(real, np.random.default_rng(0))
    page = build_table_page(measure_table(real, shuffled, test, "ill"), real, shuffled)
    assert "easily recognised" in page
    assert "closer to none" in page
    assert "equal a training row;" not in page
    assert 'id="sites"' not in page
    assert 'id="fairness"' not in page


def test_hostile_names_are_texts(tables: tuple[Any, Any, Any]) -> None:
    def rename(frame: Any) -> Any:
        return frame.rename(columns={"age": EVIL, "ill": f"{EVIL} ill"}).replace({"f": EVIL, "yes": f"$x$ {EVIL}"})

    real, synthetic, test = map(rename, tables)
    sites = SiteRows([EVIL, f"b{EVIL}"] * 75)
    found = measure_table(real, synthetic, test, f"{EVIL} ill", sites=sites, sensitive="sex")
    page = build_table_page(found, real, synthetic)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    parser = HTMLParser()
    parser.feed(page)
    parser.close()


def test_many_columns_are_cut_and_nothing_is_drawn_of_empty_ones() -> None:
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {f"column {i}": rng.normal(size=40) for i in range(43)}
        | {"empty": np.nan, "none": None, "flat": 2, "day": pandas.Timestamp("2024-05-01"), "y": ["a", "b"] * 20}
    )
    found = measure_table(frame, frame, frame, "y")
    low = {**dict.fromkeys(found.columns, 1.0), "empty": 0.1, "none": 0.1, "flat": 0.1, "day": 0.1}
    page = build_table_page(replace(found, shapes=low), frame, frame)
    assert page.count("<figure>") == 24 + 1
    assert "The first 40 columns." in page
    assert "all values are missing" in page
    assert "2024-0" in page
    assert len(page) < 2_000_000


def test_a_test_part_of_one_class_has_an_accuracy(tables: tuple[Any, Any, Any]) -> None:
    real, synthetic, test = tables
    found = measure_table(real, synthetic, test[test.ill == "no"], "ill")
    assert "has an accuracy of" in write_table_headlines(found)[0]
    assert "–" in build_table_page(found, real, synthetic)
