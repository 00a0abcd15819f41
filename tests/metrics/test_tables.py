"""All measures of a synthetic table in one result, and of which site is served worst."""

import doctest
import warnings
from types import ModuleType

import numpy as np
import pytest

from genfed.core.errors import GenfedError
from genfed.metrics import table_fidelity, table_privacy
from genfed.metrics.table_fidelity import shuffle_columns
from genfed.metrics.table_utility import BOOSTING, LOGISTIC
from genfed.metrics.tables import SiteRows, TableQuality, measure_table
from tests.metrics.tables import make_patients

ROWS = 400


@pytest.fixture(scope="module")
def quality() -> TableQuality:
    """Sites are age groups; the synthetic rows have no old people."""
    real, test = make_patients(ROWS), make_patients(ROWS, seed=1)
    synthetic = make_patients(2 * ROWS, seed=2)
    synthetic = synthetic[synthetic.age < 60]
    sites = SiteRows(*(["old" if age > 65 else "young" for age in rows.age] for rows in (real, test)))
    return measure_table(real, synthetic, test, "ill", sites=sites, sensitive="sex")


def test_measures_stand_between_their_controls(quality: TableQuality) -> None:
    pairs, apart = quality.pair_trends, quality.c2st
    assert pairs.independent < pairs.real
    assert pairs.synthetic < pairs.real
    assert apart.real < apart.synthetic < apart.independent
    assert quality.nearness.nearer.share == pytest.approx(0.5, abs=0.1)
    assert set(quality.tstr) == set(quality.trtr) == {LOGISTIC, BOOSTING}
    assert (quality.trtr[BOOSTING].auc or 0) > (quality.tstr[BOOSTING].auc or 0)
    assert (quality.train_rows, quality.test_rows) == (ROWS, ROWS)
    assert len(quality.pairs) == len(quality.columns) == len(quality.shapes) == 7


def test_the_site_that_the_rows_lack_is_served_worst(quality: TableQuality) -> None:
    worst = quality.worst_site
    assert worst is not None
    assert worst.name == "old"
    assert worst.shortfall > 0.1
    assert sum(site.rows for site in quality.sites) == ROWS
    mean, least = quality.site_auc or (0, 0)
    assert least == min(site.tstr.auc or 1 for site in quality.sites if site.tstr)
    assert mean > least


def test_groups_are_compared_for_both(quality: TableQuality) -> None:
    assert quality.fairness is not None
    assert [found.positive for found in quality.fairness] == ["yes", "yes"]
    assert [group.name for group in quality.fairness[1].groups] == ["f", "m"]


def test_the_same_seed_gives_the_same_result() -> None:
    real, test = make_patients(120), make_patients(100, seed=1)
    synthetic = shuffle_columns(real, np.random.default_rng(0))
    first = measure_table(real, synthetic, test, "ill", seed=3)
    assert first == measure_table(real, synthetic, test, "ill", seed=3)
    assert first.sites == ()
    assert first.worst_site is None
    assert first.site_auc is None
    assert first.fairness is None
    assert first.c2st != measure_table(real, synthetic, test, "ill", seed=4).c2st


def test_a_site_without_test_rows_has_no_scores_there() -> None:
    real, test = make_patients(90), make_patients(60, seed=1)
    sites = SiteRows(["a", "b", "c"] * 30, ["a", "b"] * 30)
    found = measure_table(real, real, test, "ill", sites=sites).sites
    assert [(site.name, site.rows, site.tstr is None) for site in found] == [
        ("a", 30, False), ("b", 30, False), ("c", 30, True),
    ]  # fmt: skip
    alone = measure_table(real, real, test, "ill", sites=SiteRows(["a"] * 90)).sites
    assert [(site.pairs, site.tstr) for site in alone] == [(1.0, None)]


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (SiteRows(["a"]), "1 names for 30 training rows"),
        (SiteRows(["a"] * 30, ["a"]), "1 names for 20 test rows"),
        (SiteRows([]), "no names for 30 training rows"),
    ],
)
def test_each_row_needs_its_site(sites: SiteRows, words: str) -> None:
    real, test = make_patients(30), make_patients(20, seed=1)
    with pytest.raises(GenfedError, match=words):
        measure_table(real, real, test, "ill", sites=sites)


def test_columns_that_are_not_training_columns_do_not_count() -> None:
    real, test = make_patients(60), make_patients(60, seed=1)
    more = measure_table(real, real.assign(extra=1), test.assign(other="x", ward=range(60)), "ill")
    assert more == measure_table(real, real, test, "ill")


def test_awkward_tables_are_measured() -> None:
    """No warnings, and no numbers that are none."""

    def spoil(rows: int, seed: int) -> object:
        frame = make_patients(rows, seed).assign(nothing=np.nan, nowhere=None, flat=1, one="x")
        return frame.assign(huge=frame.age * 1e300, ids=[f"{seed}-{i}" for i in range(rows)])

    real, synthetic, test = spoil(60, 0), spoil(30, 1), spoil(40, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure_table(real, synthetic, test, "ill", sites=SiteRows(["a", "b"] * 30))
    numbers = [*found.shapes.values(), *np.ravel(found.pairs), found.c2st.synthetic, found.nearness.ratio, found.shape]
    assert np.isfinite(numbers).all()


@pytest.mark.parametrize("module", [table_fidelity, table_privacy])
def test_examples_run(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
