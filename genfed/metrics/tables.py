"""The quality of a synthetic table, in one result: what `docs/measures.md` describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genfed.core.errors import GenfedError
from genfed.core.rng import derive
from genfed.metrics.table_columns import align_tables
from genfed.metrics.table_fidelity import (
    Coverage,
    compare_pairs,
    compare_shapes,
    distinguish,
    mean_pair,
    measure_coverage,
    sample_rows,
    shuffle_columns,
)
from genfed.metrics.table_privacy import Nearness, share_nearer_to_training
from genfed.metrics.table_rules import Rule, find_broken_rules
from genfed.metrics.table_utility import (
    BOOSTING,
    Fairness,
    TablePredictions,
    TableScores,
    compare_groups,
    predict_test_rows,
)

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class WithControls:
    """A measure of the synthetic rows, between what it is for the worst and for the best rows."""

    synthetic: float
    independent: float
    """Its value for the real training rows with every column shuffled by itself: right columns, no relations."""
    real: float
    """Its value for the real training rows in the place of synthetic ones."""


@dataclass(frozen=True)
class SiteQuality:
    """How well the synthetic rows serve one site."""

    name: str
    rows: int
    """Number of its real training rows."""
    shape: float
    """Mean of `compare_shapes` of its rows with the synthetic ones."""
    pairs: float
    """Mean of `compare_pairs` of its rows with the synthetic ones."""
    pairs_of_as_many: float
    """The same for as many rows drawn from all sites: few rows alone lower it."""
    tstr: TableScores | None
    """Gradient boosting that learned from synthetic rows, on the site's test rows; None: it has none."""
    trtr: TableScores | None
    """The same, that learned from the real training rows of all sites."""

    @property
    def shortfall(self) -> float:
        """How much less like the synthetic rows the site's rows are than as many rows of all sites."""
        return self.pairs_of_as_many - self.pairs


@dataclass(frozen=True)
class TableQuality:
    """What was measured of a synthetic table."""

    label: str
    columns: tuple[str, ...]
    train_rows: int
    synthetic_rows: int
    test_rows: int
    tstr: Mapping[str, TableScores]
    """Scores on the test rows of each classifier that learned from the synthetic rows."""
    trtr: Mapping[str, TableScores]
    """The same, learned from the real training rows."""
    shapes: Mapping[str, float]
    """`compare_shapes` by column."""
    pairs: tuple[tuple[float, ...], ...]
    """`compare_pairs` in the order of `columns`."""
    pair_trends: WithControls
    """Mean of `pairs`, with the training rows; its control of real rows takes the test rows."""
    c2st: WithControls
    """`distinguish`, with the test rows."""
    nearness: Nearness
    coverage: Coverage
    broken_rules: tuple[Rule, ...]
    sites: tuple[SiteQuality, ...]
    """Sites in the order of their first row; empty: none were given."""
    fairness: tuple[Fairness, Fairness] | None
    """Groups under gradient boosting that learned from synthetic rows, and from real ones; None: no column given."""

    @property
    def shape(self) -> float:
        """Mean of `shapes`. Independent columns have a high one, so it says little alone."""
        return float(np.mean(list(self.shapes.values())))

    @property
    def worst_site(self) -> SiteQuality | None:
        """The site with the largest shortfall; None: no sites were given."""
        return max(self.sites, key=lambda site: site.shortfall, default=None)

    @property
    def site_auc(self) -> tuple[float, float] | None:
        """Mean over sites, and worst site, of the AUC of gradient boosting that learned from synthetic rows; None: no
        site has test rows of two classes.
        """
        known = [site.tstr.auc for site in self.sites if site.tstr is not None and site.tstr.auc is not None]
        return (float(np.mean(known)), min(known)) if known else None


@dataclass(frozen=True)
class SiteRows:
    """The site of each row."""

    train: Sequence[str]
    """The site of each real training row."""
    test: Sequence[str] | None = None
    """The site of each test row; None: unknown."""


def measure_table(
    real_train: DataFrame,
    synthetic: DataFrame,
    test: DataFrame,
    label: str,
    *,
    positive: str | None = None,
    sites: SiteRows | None = None,
    sensitive: str | None = None,
    seed: int = 0,
) -> TableQuality:
    """Measures synthetic rows, in the columns of `real_train`. All draws come from streams of the seed.

    Args:
        real_train: The real rows that the generator was trained on.
        synthetic: The synthetic rows.
        test: Real rows of the same kind that it was not trained on.
        label: The column that classifiers predict.
        positive: The class of which F1 and the rates of groups are; None: see `train_on_synthetic`.
        sites: The sites of the rows; None: no measures by site.
        sensitive: Column with groups of people; None: groups are not compared.
        seed: The seed of all draws.

    Raises:
        GenfedError: the tables do not fit together, or a named column, class or site is not there.
    """
    align_tables(training=real_train, synthetic=synthetic, test=test)  # refused before anything is measured
    names = list(real_train.columns)
    tables = _Tables(real_train, synthetic[names], test[names], seed)
    learned, real = (predict_test_rows(rows, tables.test, label, positive, seed) for rows in (synthetic, real_train))
    boosting = learned[BOOSTING], real[BOOSTING]
    pairs = compare_pairs(real_train, synthetic)
    return TableQuality(
        label=label,
        columns=tuple(map(str, names)),
        train_rows=len(real_train),
        synthetic_rows=len(synthetic),
        test_rows=len(test),
        tstr=_score(learned),
        trtr=_score(real),
        shapes=compare_shapes(real_train, synthetic),
        pairs=tuple(tuple(map(float, row)) for row in pairs),
        pair_trends=tables.control_pairs(mean_pair(pairs)),
        c2st=tables.control_distinguish(),
        nearness=share_nearer_to_training(tables.synthetic, real_train, tables.test, _draws(seed, "nearest")),
        coverage=measure_coverage(real_train, synthetic),
        broken_rules=find_broken_rules(real_train, synthetic),
        sites=measure_sites(real_train, synthetic, sites, boosting, seed) if sites else (),
        fairness=None if sensitive is None else _compare_both(boosting, test, sensitive),
    )


@dataclass(frozen=True)
class _Tables:
    """The tables with the columns of the training rows, to be measured with controls."""

    train: DataFrame
    synthetic: DataFrame
    test: DataFrame
    seed: int

    def shuffled(self) -> DataFrame:
        return shuffle_columns(self.train, _draws(self.seed, "shuffle"))

    def control_pairs(self, synthetic: float) -> WithControls:
        independent, real = (mean_pair(compare_pairs(self.train, rows)) for rows in (self.shuffled(), self.test))
        return WithControls(synthetic, independent, real)

    def control_distinguish(self) -> WithControls:
        rows = {"synthetic": self.synthetic, "independent": self.shuffled(), "real": self.train}
        found = {k: distinguish(self.test, table, _draws(self.seed, "distinguish", k)) for k, table in rows.items()}
        return WithControls(**found)


def measure_sites(
    real_train: DataFrame,
    synthetic: DataFrame,
    sites: SiteRows,
    predictions: tuple[TablePredictions, TablePredictions],
    seed: int = 0,
) -> tuple[SiteQuality, ...]:
    """Returns how well the synthetic rows serve each site.

    Args:
        real_train: The real training rows of all sites.
        synthetic: The synthetic rows.
        sites: The sites of the rows.
        predictions: What classifiers say of the test rows that learned from synthetic rows, and from real ones.
        seed: Draws as many rows from all sites as a site has.

    Raises:
        GenfedError: the number of names is not that of the rows.
    """
    train, test = _check_sites(sites, len(real_train), len(predictions[0].y))
    found = []
    for name in dict.fromkeys(train):
        rows = real_train[np.array([site == name for site in train])]
        as_many = sample_rows(real_train, len(rows), _draws(seed, "site", name))
        chosen = np.array([site == name for site in test], bool)
        scores = [each.score(chosen) if len(chosen) else None for each in predictions]
        found.append(
            SiteQuality(
                name,
                len(rows),
                float(np.mean(list(compare_shapes(rows, synthetic).values()))),
                mean_pair(compare_pairs(rows, synthetic)),
                mean_pair(compare_pairs(as_many, synthetic)),
                scores[0],
                scores[1],
            )
        )
    return tuple(found)


def _check_sites(sites: SiteRows, train_rows: int, test_rows: int) -> tuple[list[str], list[str]]:
    """Returns the names of the sites of the training and of the test rows; the latter empty where unknown."""
    train = [str(name) for name in sites.train]
    test = [] if sites.test is None else [str(name) for name in sites.test]
    for where, names, rows in (("training", train, train_rows), ("test", test, test_rows)):
        if names and len(names) != rows:
            raise GenfedError(f"sites: {len(names)} names for {rows} {where} rows; each row needs the name of its site")
    if not train:
        raise GenfedError(f"sites: no names for {train_rows} training rows; each row needs the name of its site")
    return train, test


def _compare_both(
    predictions: tuple[TablePredictions, TablePredictions], test: DataFrame, sensitive: str
) -> tuple[Fairness, Fairness]:
    learned, real = predictions
    return compare_groups(learned, test, sensitive), compare_groups(real, test, sensitive)


def _score(predictions: Mapping[str, TablePredictions]) -> dict[str, TableScores]:
    found = {name: each.score() for name, each in predictions.items()}
    return {name: scores for name, scores in found.items() if scores is not None}


def _draws(seed: int, *purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "table quality", *purpose))
