"""Every method that trains a generator must run with each kind, and leave the same bits for any number of workers."""

from pathlib import Path

import pytest

from genfed.config import registry
from genfed.generators.row_generator import RowGenerator
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.methods.bases.federated_generator import FederatedGenerator
from tests.conftest import SERIES_GENERATORS, TINY, TINY_GENERATORS, left_by, start, tiny, tiny_series

GENERATORS = sorted(
    name
    for name, cls in registry.list_classes(registry.GENERATORS).items()
    if not issubclass(cls, StatisticsGenerator | RowGenerator)  # estimated, not trained; or for tables alone
)
METHODS = sorted(n for n, c in registry.list_classes(registry.METHODS).items() if issubclass(c, FederatedGenerator))


OF_SERIES = [("gefl", name) for name in sorted(SERIES_GENERATORS)]
OF_MAPS = [(method, name) for method in METHODS for name in GENERATORS if name not in SERIES_GENERATORS]


@pytest.mark.usefixtures("in_pool")
@pytest.mark.parametrize(("method", "generator"), OF_MAPS + OF_SERIES)
def test_repeats_with_workers(method: str, generator: str, tmp_path: Path) -> None:
    settings = {method: TINY[method] | {"generator": (TINY_GENERATORS | SERIES_GENERATORS)[generator]}}
    make = tiny_series if generator in SERIES_GENERATORS else tiny
    report = start(make(method, method=settings), tmp_path / "alone")
    assert not any(trial.failures for trial in report.trials)
    start(make(method, method=settings, compute={"workers": 2}), tmp_path / "together")
    left = left_by(tmp_path / "alone")
    assert left == left_by(tmp_path / "together")
    losses = {row["loss"] for row in left["metrics"] if row["phase"] == "generator" and "loss" in row}
    assert len(losses) == 8  # 2 rounds of 4 clients, who all learn
