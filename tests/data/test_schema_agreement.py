"""Sites with unlike files agree on one schema, or are refused."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from genfed import GenfedError
from genfed.data.cells import Cells, number_cells, text_cells
from genfed.data.features import RARE, TableSummary, summarize_table
from genfed.data.numerals import PLAIN, Notation
from genfed.data.schema_agreement import agree


def site(least: int = 1, **columns: Sequence[float | None] | Sequence[str]) -> TableSummary:
    numbers: dict[str, tuple[Cells, Notation]] = {}
    texts: dict[str, Cells] = {}
    for name, values in columns.items():
        if any(isinstance(value, str) for value in values):
            texts[name] = text_cells([str(value) for value in values])
        else:
            numbers[name] = number_cells(np.array(values, np.float64)), PLAIN
    return summarize_table(numbers, texts, "a file", least)


def code(cells: Sequence[str], sites: Mapping[str, TableSummary]) -> list[list[float]]:
    schema = agree(sites).schema
    return schema.encode({name: text_cells(cells) for name in schema.categories}, "a file").x.tolist()


def test_one_category_has_one_place_at_all_sites() -> None:
    """At each alone, B would be the second place at one and AB at the other."""
    sites = {"north": site(blood=["0", "A", "B"]), "south": site(blood=["0", "AB", "B"])}
    assert agree(sites).schema.categories == {"blood": ("0", "A", "AB", "B")}
    assert code(["AB", "B"], sites) == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_numbers_are_scaled_by_the_rows_of_all() -> None:
    ages = np.array([30.0, 40.0, 50.0, 80.0, 90.0])
    about = agree({"a": site(age=list(ages[:3])), "b": site(age=list(ages[3:]))}).schema.numbers["age"]
    assert (about.shift, about.scale) == pytest.approx((ages.mean(), ages.std()))
    assert about.missing == 50
    assert [cell.low for cell in about.cells] == list(ages)


def test_missing_numbers_count_as_the_median() -> None:
    about = agree({"a": site(age=[1.0, 2.0, None]), "b": site(age=[6.0])}).schema.numbers["age"]
    filled = np.array([1.0, 2.0, 2.0, 6.0])
    assert (about.shift, about.scale) == pytest.approx((filled.mean(), filled.std()))
    assert about.gaps


def test_the_order_of_the_sites_does_not_count() -> None:
    sites = {name: site(age=[i, 2.5, 7.1 * i], sex=["f", f"x{i}", "m"]) for i, name in enumerate("cab")}
    assert agree(sites) == agree(dict(reversed(sites.items())))


def test_a_column_that_a_site_lacks_is_missing_in_its_rows() -> None:
    found = agree({"a": site(age=[1, 2, 3], sex=["f", "m", "f"]), "b": site(age=[4, 5])})
    assert found.schema.categories == {"sex": ("(missing)", "f", "m")}
    assert "column 'sex' is not at b: it is missing in all their rows" in found.summary.warnings
    numbers = agree({"a": site(age=[1, 2], weight=[60, 70]), "b": site(age=[3])}).schema.numbers
    assert (numbers["age"].gaps, numbers["weight"].gaps) == (False, True)


def test_what_may_mean_the_same_is_said_and_not_merged() -> None:
    sites = {"a": site(sex=["female", "male", "male"]), "b": site(sex=["F", "Male", "F"])}
    found = agree(sites)
    assert found.schema.categories == {"sex": ("F", "Male", "female", "male")}
    lines = [line for line in found.summary.warnings if "are two categories" in line]
    rare = agree(sites, least_sites=2)
    assert rare.schema.categories == {"sex": (RARE,)}
    assert [line for line in rare.summary.warnings if "are two categories" in line] == lines
    assert any("'Male' (b) and 'male' (a)" in line for line in lines)
    assert any("'F' (b) and 'female' (a)" in line for line in lines)


def test_codes_that_are_numbered_in_other_ways_are_named() -> None:
    """As in the four files of heart disease, of which one counts types of pain from 0 and the others from 1."""
    sites = {
        "a": site(pain=["0", "1", "2", "3"]),
        "b": site(pain=["1", "2", "3", "4"]),
        "c": site(pain=["1", "2", "3"]),
    }
    (line,) = (line for line in agree(sites).summary.warnings if "codes" in line)
    assert line.startswith("column 'pain' has the codes 0, 1, 2, 3 at a and 1, 2, 3, 4 at b: if a code does not mean")
    del sites["a"]
    assert not agree(sites).summary.warnings


def test_rare_categories_have_one_name() -> None:
    sites = {"a": site(2, job=["x", "x", "y", "z"]), "b": site(2, job=["x", "x", "w", "w"])}
    found = agree(sites, least_sites=2)
    assert found.schema.categories == {"job": (RARE, "x")}
    x = found.schema.encode({"job": text_cells(["x", "y", "unheard of"])}, "a file").x
    assert x.tolist() == [[0, 1], [1, 0], [1, 0]]


def test_numbers_at_one_site_and_texts_at_another_are_refused() -> None:
    sites = {"north": site(age=[1, 2]), "south": site(age=["old", "young"]), "west": site(age=[3])}
    with pytest.raises(GenfedError, match=r"'age' is of numbers at north, west and of categories at south .*'old'"):
        agree(sites)


def test_other_units_are_refused() -> None:
    kilos, pounds = (Notation(units={unit: 1.0}) for unit in ("kg", "lb"))
    sites = {
        name: summarize_table({"weight": (number_cells(np.ones(3)), notation)}, {}, "a file")
        for name, notation in {"a": kilos, "b": pounds}.items()
    }
    with pytest.raises(GenfedError, match=r"'weight' is of numbers in kg at a and of numbers in lb at b"):
        agree(sites)


def test_thousands_of_categories_keep_the_most_frequent() -> None:
    names = [f"c{i}" for i in range(3000)]
    found = agree({"a": site(city=names + names[:900])})
    assert len(found.schema.categories["city"]) == 1001
    assert set(names[:900]) < set(found.schema.categories["city"])
