"""GeFL on tables, with generators of rows."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.artifacts.samples import write_samples
from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.core.task import Weights
from genfed.experiment.checkpoint import read_checkpoint
from tests.conftest import left_by, start, tiny

KINDS: list[dict[str, Any]] = [{"kind": "mixture", "components": 3, "em_steps": 2}, {"kind": "tan"}]


def config(folder: Path, generator: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rows = [f"{i % 7 or ''},{i * 3 % 11},{'ab'[i % 5 > 2]},{'yes' if i % 2 else 'no'}" for i in range(120)]
    (folder / "rows.csv").write_text("\n".join(["age,visits,ward,ill", *rows]))
    own = {"rounds": 1, "training": {"epochs": 1, "batch_size": 4}, "generator": generator}
    table = tiny("gefl", method={"gefl": own}, **changes)
    return table | {"data": {"kind": "table", "path": str(folder / "rows.csv"), "label": "ill"}}


def generator_of(out: Path, table: dict[str, Any]) -> Weights:
    (trial,) = start(table, out).trials
    assert not trial.failures
    at = read_checkpoint(read_config(table).method["gefl"], out / "trials" / "gefl" / "seed-0")
    assert at is not None
    found: Weights = at.state.generator
    return found


@pytest.mark.parametrize("generator", KINDS, ids=lambda each: str(each["kind"]))
def test_the_generator_is_the_same_for_any_partition_and_under_masks(generator: dict[str, Any], tmp_path: Path) -> None:
    secure = {"secure_aggregation": {}, "federation": {"clients": 6, "quorum": 1.0}}
    found = [
        generator_of(tmp_path / "iid", config(tmp_path, generator)),
        generator_of(tmp_path / "unequal", config(tmp_path, generator, partition={"kind": "quantity_skew"})),
        generator_of(tmp_path / "masked", config(tmp_path, generator, **secure)),
    ]
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("generator", KINDS, ids=lambda each: str(each["kind"]))
def test_a_run_repeats_with_workers(generator: dict[str, Any], tmp_path: Path) -> None:
    start(config(tmp_path, generator), tmp_path / "alone")
    start(config(tmp_path, generator, compute={"workers": 2}), tmp_path / "together")
    assert left_by(tmp_path / "alone") == left_by(tmp_path / "together")


def test_rows_of_a_run_have_its_columns(tmp_path: Path) -> None:
    start(config(tmp_path, KINDS[1]), tmp_path / "run")
    assert write_samples(tmp_path / "run", tmp_path / "rows-drawn.csv", 50) == 50
    with (tmp_path / "rows-drawn.csv").open() as file:
        drawn = list(csv.DictReader(file))
    assert list(drawn[0]) == ["age", "visits", "ward", "ill"]
    assert {row["ward"] for row in drawn} == {"a", "b"}
    assert {row["age"] for row in drawn} <= {"", *map(str, range(1, 7))}
    assert "" in {row["age"] for row in drawn}
    write_samples(tmp_path / "run", tmp_path / "again.csv", 50)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "rows-drawn.csv").read_bytes()


def test_images_have_no_rows(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="examples of kind image; generators of rows allow tables alone"):
        start(tiny("gefl", method={"gefl": {"generator": {"kind": "tan"}}}), tmp_path / "run")
