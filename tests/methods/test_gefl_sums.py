"""GeFL with a generator that is estimated from sums of the clients' images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genfed import GenfedError
from genfed.artifacts.samples import write_samples
from genfed.config.reader import read_config
from genfed.experiment.checkpoint import read_checkpoint
from tests.conftest import left_by, start, tiny

SETTINGS: dict[str, Any] = {
    "rounds": 1,
    "training": {"epochs": 1, "batch_size": 4},
    "generator": {"kind": "ppca", "rank": 3, "size": 8},
}


PARTS = SETTINGS["generator"] | {"kind": "local_pca", "parts": 2, "steps": 2}


@pytest.mark.parametrize("generator", [SETTINGS["generator"], PARTS], ids=lambda each: str(each["kind"]))
def test_gefl_has_the_same_generator_for_any_partition(generator: dict[str, Any], tmp_path: Path) -> None:
    generators = []
    for name in ("iid", "disjoint_labels"):
        table = tiny("gefl", partition={"kind": name}, method={"gefl": SETTINGS | {"generator": generator}})
        (trial,) = start(table, tmp_path / name).trials
        assert not trial.failures
        saved = read_checkpoint(read_config(table).method["gefl"], tmp_path / name / "trials" / "gefl" / "seed-0")
        assert saved is not None
        generators.append(saved.state.generator)
    iid, disjoint = generators
    assert all(torch.equal(iid[key], disjoint[key]) for key in iid)


def test_gefl_with_sums_repeats_with_workers(tmp_path: Path) -> None:
    start(tiny("gefl", method={"gefl": SETTINGS}), tmp_path / "alone")
    start(tiny("gefl", method={"gefl": SETTINGS}, compute={"workers": 2}), tmp_path / "together")
    assert left_by(tmp_path / "alone") == left_by(tmp_path / "together")


def test_a_generator_of_sums_is_not_interleaved() -> None:
    with pytest.raises(GenfedError, match="interleaved = 1: a PPCA is estimated once"):
        start(tiny("gefl", method={"gefl": SETTINGS | {"interleaved": 1}}), Path("unused"))


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    rows = "\n".join(f"{i % 7},{i * 3 % 11},{'yes' if i % 2 else 'no'}" for i in range(120))
    (tmp_path / "rows.csv").write_text(f"age,visits,ill\n{rows}\n")
    return {"kind": "table", "path": str(tmp_path / "rows.csv"), "label": "ill"}


@pytest.mark.parametrize("kind", ["gaussian", "ppca", "local_pca", "gaussian_mixture"])
def test_rows_of_a_table_are_refused_before_training(kind: str, table: dict[str, Any], tmp_path: Path) -> None:
    config = tiny("gefl", method={"gefl": SETTINGS | {"generator": {"kind": kind}}}) | {"data": table}
    with pytest.raises(GenfedError, match=r"examples of shape \(2,\), a table; allowed are images and series, gefl_f"):
        start(config, tmp_path / "run")


def test_rows_that_a_method_of_ones_own_draws_are_no_pictures(table: dict[str, Any], tmp_path: Path) -> None:
    """They are on the scale of networks, not in the columns of the table."""
    config = tiny("mine", method={"mine": {"kind": "tests.toys:Noise"}}, evaluation={"every": 0}) | {"data": table}
    start(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    with pytest.raises(GenfedError, match="--format npz: examples are of kind table, for which csv and parquet are"):
        write_samples(tmp_path / "run", tmp_path / "out.npz", 4)
    write_samples(tmp_path / "run", tmp_path / "out.csv", 4)
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "age,visits,ill"
