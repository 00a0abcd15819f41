"""From a data set to clients."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from genfed.cli import common
from genfed.cli import main as cli
from genfed.config.reader import read_config, to_toml
from genfed.config.settings import Compute, Config
from genfed.core.errors import GenfedError
from genfed.data.encoder import digest_encoder, write_encoder
from genfed.experiment.environment import command_line, count_workers
from genfed.experiment.inputs import load_data, load_public
from genfed.experiment.partitioning import assign_architectures, count_classes, partition_data, pool_clients
from tests.conftest import start, tiny


def shards(seed: int = 0, **changes: Any) -> Any:
    config = read_config(tiny("local", **changes))
    return partition_data(config, load_data(config), seed)


def test_architectures_in_turn_per_client_and_by_weight() -> None:
    assert assign_architectures(("a", "b"), 5) == ["a", "b", "a", "b", "a"]
    assert assign_architectures(("a", "b", "a"), 3) == ["a", "b", "a"]
    assert assign_architectures({"a": 3.0, "b": 1.0}, 8) == ["a"] * 6 + ["b"] * 2
    assert assign_architectures({"a": 1.0, "b": 1.0, "c": 1.0}, 4) == [
        "a",
        "a",
        "b",
        "c",
    ]  # the largest remainder, first come
    with pytest.raises(GenfedError, match=r"names 3 for federation.clients = 2"):
        assign_architectures({"a": 1.0, "b": 1.0, "c": 1.0}, 2)


def test_clients_are_ranges_of_the_examples_drawn() -> None:
    made = shards(federation={"clients": 3, "max_examples": 50})
    assert [c.examples for c in made.clients] == [17, 17, 16]
    assert made.ranges == ((0, 17), (17, 34), (34, 50))
    assert len(made.train) == 50
    assert sum(map(sum, count_classes(made))) == 50


def test_a_seed_gives_its_own_clients_and_the_same_ones_again() -> None:
    one, again, other = shards(0), shards(0), shards(1)
    assert torch.equal(one.train.x, again.train.x)
    assert not torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.held_out.x, other.held_out.x)


def test_no_test_example_is_trained_on() -> None:
    config = read_config(tiny("local"))
    data = load_data(config)
    parts = [{bytes(x.numpy().data) for x in part.x} for part in (data.train, data.validation, data.test)]
    # 8×8 digits of 17 levels: no two of the 1,797 are alike
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_the_part_scored_on_is_the_one_asked_for() -> None:
    config = read_config(tiny("local", evaluation={"split": "validation"}))
    data = load_data(config)
    assert torch.equal(partition_data(config, data, 0).held_out.x, data.validation.x)
    empty = read_config(tiny("local", data={"validation": 0.0}, evaluation={"split": "validation"}))
    with pytest.raises(GenfedError, match=r"evaluation.split = 'validation': the data set has no such part"):
        partition_data(empty, load_data(empty), 0)


def test_the_ceiling_has_one_client_per_architecture_with_all_data() -> None:
    made = pool_clients(shards())
    assert [(c.architecture, c.examples) for c in made.clients] == [("linear", 80), ("mlp-small", 80)]
    assert made.ranges == ((0, 80), (0, 80))


def test_references_train_everybody_in_every_round_whoever_is_selected(tmp_path: Path) -> None:
    """Local training of a few clients only would make every gain over it too large."""
    config = tiny("local", "centralised", "fedavg")
    some = start(config | {"federation": config["federation"] | {"client_fraction": 0.25}}, tmp_path / "some")
    rows = [json.loads(line) for line in (tmp_path / "some" / "metrics.jsonl").read_text().splitlines()]
    trained = [r["method"] for r in rows if r["phase"] == "train" and r["client"] is not None]
    assert [trained.count(name) for name in ("local", "centralised", "fedavg")] == [8, 4, 2]
    everybody = start(config, tmp_path / "all")
    for name in ("local", "centralised"):
        assert some.of(name)[0].clients == everybody.of(name)[0].clients


def test_workers_are_never_more_than_clients() -> None:
    assert count_workers(Compute(workers=9), 4) == 4


def test_workers_and_their_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many threads as cores would wait for one another most of the time."""
    monkeypatch.setattr("genfed.experiment.environment.count_cores", lambda: 4)
    for threads, workers in ((1, 4), (2, 2), (3, 1), (8, 1)):
        assert count_workers(Compute(threads=threads), 4) == workers


@pytest.mark.parametrize("method", ["fedavg", "gefl"])
def test_mixed_precision_runs_and_differs(method: str, tmp_path: Path) -> None:
    exact = start(tiny(method), tmp_path / "exact").trials[0]
    mixed = start(tiny(method, compute={"precision": "bfloat16"}), tmp_path / "mixed").trials[0]
    assert not mixed.failures
    assert [p.value for p in exact.losses] != [p.value for p in mixed.losses]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(tmp_path: Path) -> None:
    for method in ("fedavg", "gefl"):
        report = start(tiny(method, compute={"device": "cuda"}), tmp_path / method)
        assert not report.trials[0].failures


def test_a_table_and_natural_clients(tmp_path: Path) -> None:
    """Two hospitals of a CSV as clients, each with its own kind of network."""
    rows = [f"{i % 7},{'ab'[i % 2]},{('north', 'south')[i % 3 == 0]},{('ill', 'well')[i % 2]}" for i in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["age,kind,hospital,state", *rows]))
    config = tiny("fedavg") | {
        "data": {"kind": "table", "path": str(tmp_path / "t.csv"), "label": "state", "columns": ["hospital"]},
        "partition": {"kind": "by_column", "column": "hospital"},
        "federation": {"clients": 2, "architectures": ["linear", "mlp-small"]},
        "defaults": {"rounds": 20, "training": {"batch_size": 8}},
    }
    report = start(config, tmp_path / "run")
    assert report.classes == ("ill", "well")
    assert report.trials[0].accuracy == 1.0  # the kind says it all


def test_every_path_of_a_table_starts_from_data_root(tmp_path: Path) -> None:
    root = tmp_path / "it's here"
    root.mkdir()
    for name in ("a.csv", "b.csv"):
        (root / name).write_text("\n".join(["age,state", *(f"{i},{('ill', 'well')[i % 2]}" for i in range(40))]))
    table = {"kind": "table", "path": "a.csv", "test_path": "b.csv", "label": "state"}
    (tmp_path / "c.toml").write_text(tomli_w.dumps(tiny("fedavg") | {"data": table, "federation": {"clients": 2}}))
    words = ["run", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run"), "--data-root", str(root)]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--set", "federation.architectures=['linear']"])
    assert ended.value.code == 0


def test_the_command_can_be_copied(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/genfed/__main__.py", "run", "a b.toml", "--set", 'methods=["gefl"]'])
    assert command_line() == "genfed run 'a b.toml' --set 'methods=[\"gefl\"]'"
    assert common.explain_stop(common.open_console()).exit_code == 130
    assert "genfed run 'a b.toml' --set 'methods=[\"gefl\"]' --resume" in capsys.readouterr().out


@pytest.mark.usefixtures("page")
def test_images_of_floats_are_shown_like_any(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (200, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "f.npz", x=x, y=np.arange(200) % 2)
    config = tiny("gefl") | {"data": {"kind": "npz", "path": str(tmp_path / "f.npz")}}
    start(config, tmp_path / "run")
    assert "Real examples of class 1" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_importing_genfed_imports_nothing_heavy() -> None:
    code = "import sys, genfed; assert not {'torch', 'numpy', 'pydantic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_examples_are_read_and_must_be_like_the_clients(tmp_path: Path) -> None:
    config = read_config(tiny("fedavg") | {"public": {"kind": "digits", "size": 8}})
    assert config.public is not None
    public = load_public(config, load_data(config).task)
    assert public is not None
    assert public.shape[1:] == (1, 8, 8)
    assert read_config(tomllib.loads(to_toml(config))) == config
    with pytest.raises(GenfedError, match=r"public: image examples of shape \(1, 16, 16\), where the clients' are"):
        start(tiny("fedavg") | {"public": {"kind": "digits", "size": 16}}, tmp_path / "run")
    z = np.random.default_rng(0).standard_normal((40, 8, 8))
    np.savez(tmp_path / "z.npz", x=z, y=np.arange(40) % 2)
    with pytest.raises(GenfedError, match="public: its pixels are on another scale than the clients'"):
        start(tiny("fedavg") | {"public": {"kind": "npz", "path": str(tmp_path / "z.npz")}}, tmp_path / "run")


def test_public_rows_that_are_encoded_in_another_way_are_refused(tmp_path: Path) -> None:
    """A table has scales of its own, and the same columns in another order have the same width."""
    draw = np.random.default_rng(0).normal(size=(200, 2)).round(2)
    for name, columns in (("own", ("a", "b")), ("swapped", ("b", "a"))):
        rows = [f"{one},{other},{'yes' if one > 0 else 'no'}" for one, other in draw]
        (tmp_path / f"{name}.csv").write_text("\n".join([",".join((*columns, "ill")), *rows]) + "\n")

    def config(**public: str) -> Config:
        tables = {"kind": "table", "path": str(tmp_path / "own.csv"), "label": "ill"}
        return read_config(tiny("fedavg") | {"data": tables, "public": tables | public})

    data = load_data(config())
    digest = digest_encoder(data.encoder)
    assert load_public(config(), data.task, digest) is not None
    swapped = {"path": str(tmp_path / "swapped.csv")}
    with pytest.raises(GenfedError, match="public: its columns are encoded differently than the clients'"):
        load_public(config(**swapped), data.task, digest)
    assert data.encoder is not None
    write_encoder(data.encoder, tmp_path / "encoder.json")
    same = load_public(config(**swapped, encoder=str(tmp_path / "encoder.json")), data.task, digest)
    assert same is not None
