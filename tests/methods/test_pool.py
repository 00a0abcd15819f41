"""One pool of generated examples a round, drawn by the server for all clients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.phase import Reduced
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.inputs import load_data
from genfed.experiment.partitioning import partition_data
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_server
from tests.conftest import left_by, start, tiny


def run(out: Path, method: str, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The final state and the rows."""
    config = tiny(method)
    config["method"][method] = config["method"][method] | changes
    start(config, out)
    at = read_checkpoint(read_config(config).method[method], RunFolder(out).trial(method, 0))
    assert at is not None
    return at.state, left_by(out)["metrics"]


@pytest.mark.parametrize("method", ["gefl", "gefl_f"])
def test_a_pool_is_sent_in_place_of_the_generator(method: str, tmp_path: Path) -> None:
    wide = {"kind": "cvae", "width": 32, "latent_dim": 4}  # beside it the messages' headers are small
    whole, drawn_by_clients = run(tmp_path / "client", method, generator=wide)
    state, rows = run(tmp_path / "server", method, generator=wide, pool="server")
    assert whole.pool is None
    assert len(state.pool) == 16  # 20 examples each in batches of 8: two batches of generated ones
    assert state.pool.x.dtype == (torch.uint8 if method == "gefl" else torch.float32)
    assert state.pool.y.unique().numel() > 1

    def down(rows: list[dict[str, Any]]) -> int:
        return sum(row["down_bytes"] for row in rows if row["phase"] == "joint" and row["client"] == 0)

    generator = sum(value.numel() * value.element_size() for value in whole.generator.values())
    pool = state.pool.x.numel() * state.pool.x.element_size() + state.pool.y.numel() * 8
    # In each of the two joint rounds; what else is sent is the same.
    assert down(drawn_by_clients) - down(rows) == pytest.approx(2 * (generator - pool), rel=0.05)
    joint = [row for row in rows if row["phase"] == "joint" and row["client"] is not None]
    assert len({row["synthetic_loss"] for row in joint}) == len(joint)


def test_every_round_has_a_new_pool(tmp_path: Path) -> None:
    pools = [run(tmp_path / str(n), "gefl", pool="server", rounds=n)[0].pool for n in (1, 2)]
    assert not torch.equal(pools[0].x, pools[1].x)


def test_the_pool_is_as_large_as_the_largest_client_needs() -> None:
    config = read_config(tiny("gefl", partition={"kind": "quantity_skew", "alpha": 0.5}))
    method: Any = config.method["gefl"]
    shards = partition_data(config, load_data(config), 0)
    assert len({info.examples for info in shards.clients}) > 1
    server = new_server(shards.task, shards.clients, config.compute, Architectures().new, 0, 0, "pool")
    state = method.keep_pool(server, method.init(server), Reduced({}, ()))
    assert len(state.pool) == max(info.examples for info in shards.clients) // 8 * 8


@pytest.mark.parametrize("method", ["gefl", "gefl_f"])
def test_a_declared_number_of_examples_does_not_fill_the_servers_memory(method: str) -> None:
    """2³¹ numbers are allowed; a site declares its number of examples itself."""
    config = read_config(tiny(method))
    as_set: Any = config.method[method]
    clients = [ClientInfo(i, name, 20) for i, name in enumerate(config.federation.architectures)]
    shards = partition_data(config, load_data(config), 0)
    for pool, declared, fine in (("server", 10**9, False), ("client", 10**9, True), ("server", 20, True)):
        own = replace(as_set, pool=pool)
        infos = (clients[0], replace(clients[1], examples=declared))
        server = new_server(shards.task, infos, config.compute, Architectures().new, 0, 0, "init")
        if fine:
            own.init(server)
            continue
        with pytest.raises(GenfedError, match=r'^pool = "server": client 1 declares 1000000000 examples, so .* 100000'):
            own.init(server)
        few = own.init(replace(server, clients=tuple(clients)))
        with pytest.raises(GenfedError, match="client 1 declares 1000000000 examples"):
            own.keep_pool(server, few, Reduced({}, ()))


def test_a_round_without_generated_examples_needs_no_pool(tmp_path: Path) -> None:
    state, rows = run(tmp_path / "run", "gefl", pool="server", synthetic_epochs=0)
    assert len(state.pool) == 0
    assert not any("synthetic_loss" in row for row in rows)


def test_generated_examples_alone(tmp_path: Path) -> None:
    """The ablation, T_r = 0: the classifier learns from generated examples and nothing else."""
    alone = {"epochs": 0, "batch_size": 8}
    trained, rows = run(tmp_path / "run", "gefl", training=alone)
    joint = [row for row in rows if row["phase"] == "joint" and row["client"] is not None]
    assert all(row["loss"] == 0.0 and row["synthetic_loss"] > 0 for row in joint)
    untrained, _ = run(tmp_path / "none", "gefl", training=alone, synthetic_epochs=0)
    for architecture, weights in untrained.classifiers.items():
        assert any(not torch.equal(value, trained.classifiers[architecture][name]) for name, value in weights.items())
