"""`genfed forget`: what is left is what a run without the client has, to the bit."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genfed.artifacts import forget as forgetting
from genfed.artifacts.forget import forget
from genfed.config.reader import read_config
from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.record import digest, pack
from genfed.experiment import run as runs
from genfed.experiment.checkpoint import read_checkpoint
from genfed.methods.fedcgs import FedCGS
from genfed.methods.fedcvae_ens import FedCVAEEns
from tests.conftest import start, tiny


def states(out: Path) -> dict[str, str]:
    """A fingerprint of the state of every trial."""
    found = {}
    for label, method in read_config(out).method.items():
        for seed in read_config(out).seeds:
            at: Any = read_checkpoint(method, out / "trials" / label / f"seed-{seed}")
            found[f"{label} {seed}"] = digest(pack(at.state))
    return found


METHODS = ("fedcgs", "fedcvae_ens", "fedavg", "local", "centralised")


@pytest.mark.parametrize("partition", ["iid", "disjoint_labels"])
def test_the_state_is_that_of_a_run_without_the_client(partition: str, tmp_path: Path) -> None:
    config = tiny(*METHODS, partition={"kind": partition}, seeds=[0, 1])
    start(config, tmp_path / "with")
    done = forget(tmp_path / "with", 2, tmp_path / "forgot")
    start(
        tiny(*METHODS, partition={"kind": partition}, seeds=[0, 1], federation={"excluded": [2]}), tmp_path / "without"
    )
    assert states(tmp_path / "forgot") == states(tmp_path / "without")
    assert done.removed == ("fedcgs", "fedcvae_ens")
    assert done.retrained == ("fedavg", "local", "centralised")
    scores = [
        [(trial.method, trial.seed, trial.accuracy) for trial in json_report(tmp_path / name)]
        for name in ("forgot", "without")
    ]
    assert scores[0] == scores[1]


def json_report(out: Path) -> Any:
    from genfed.experiment.run_folder import RunFolder

    return RunFolder(out).read_report().trials


def test_clients_are_removed_one_after_another(tmp_path: Path) -> None:
    start(tiny("fedcgs"), tmp_path / "with")
    forget(tmp_path / "with", 0, tmp_path / "one")
    forget(tmp_path / "one", 3, tmp_path / "two")
    start(tiny("fedcgs", federation={"excluded": [0, 3]}), tmp_path / "without")
    assert states(tmp_path / "two") == states(tmp_path / "without")


def test_a_method_that_subtracts_asks_no_other_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tiny("fedcgs", "fedcvae_ens"), tmp_path / "with")
    forget(tmp_path / "with", 1, tmp_path / "forgot")
    rows = [json.loads(line) for line in (tmp_path / "forgot" / "metrics.jsonl").read_text().splitlines()]
    assert 1 not in {row["client"] for row in rows}
    assert not list((tmp_path / "forgot").rglob("clients/*/*.safetensors"))
    (cost,) = [c for c in json_report(tmp_path / "forgot")[0].costs if c.phase == "statistics"]
    (before,) = [c for c in json_report(tmp_path / "with")[0].costs if c.phase == "statistics"]
    assert cost.up_bytes == before.up_bytes


def test_under_masks_the_client_is_subtracted_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"secure_aggregation": {}, "federation": {"clients": 6, "max_examples": 120}}
    start(tiny("fedcgs", **settings), tmp_path / "with")
    assert forget(tmp_path / "with", 5, tmp_path / "forgot").removed == ("fedcgs",)
    settings["federation"] |= {"excluded": [5]}
    start(tiny("fedcgs", **settings), tmp_path / "without")
    assert states(tmp_path / "forgot") == states(tmp_path / "without")


def test_where_clients_were_drawn_all_is_done_again(tmp_path: Path) -> None:
    start(tiny("fedcgs", federation={"client_fraction": 0.5}), tmp_path / "with")
    done = forget(tmp_path / "with", 1, tmp_path / "forgot")
    assert (done.removed, done.retrained) == ((), ("fedcgs",))
    start(tiny("fedcgs", federation={"client_fraction": 0.5, "excluded": [1]}), tmp_path / "without")
    assert states(tmp_path / "forgot") == states(tmp_path / "without")


PLAIN = {"fedcgs": {"encoder": {"kind": "identity"}}}


def fail_once(monkeypatch: pytest.MonkeyPatch, method: type[Any], work: str, client: int) -> None:
    """Has the first work of a client fail, as by a lack of memory."""
    original: Any = getattr(method, work)
    failed = list[int]()

    @functools.wraps(original)
    def flaky(self: Any, here: Client, sent: Any) -> Any:
        if here.info.id == client and not failed:
            failed.append(client)
            raise MemoryError
        return original(self, here, sent)

    monkeypatch.setattr(method, work, flaky)


@pytest.mark.parametrize("client", [1, 3])
def test_where_a_client_had_failed_all_is_done_again(
    client: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, FedCGS, "measure", 3)
    fail_once(monkeypatch, FedCVAEEns, "train_decoder", 3)
    start(tiny("fedcgs", "fedcvae_ens"), tmp_path / "with")
    assert [len(trial.failures) for trial in json_report(tmp_path / "with")] == [1, 1]
    done = forget(tmp_path / "with", client, tmp_path / "forgot")
    assert (done.removed, done.retrained) == ((), ("fedcgs", "fedcvae_ens"))
    start(tiny("fedcgs", "fedcvae_ens", federation={"excluded": [client]}), tmp_path / "without")
    assert states(tmp_path / "forgot") == states(tmp_path / "without")


def test_what_a_client_wrote_into_the_encoding_is_not_left_in_silence(tmp_path: Path) -> None:
    """A client that alone has a category of a table, or the largest of pixels on no known scale."""
    rows = [f"{'ABCD'[i % 4]},{i % 7},{'odd' if i % 4 == 3 else 'usual'},{i // 4 % 2}" for i in range(160)]
    (tmp_path / "table.csv").write_text("\n".join(["hospital,age,finding,label", *rows]))
    x = np.random.default_rng(0).uniform(0, 40, (160, 1, 8, 8))
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(160) % 2)
    table = {"kind": "table", "path": str(tmp_path / "table.csv"), "label": "label"}
    images = {"kind": "npz", "path": str(tmp_path / "images.npz")}
    for number, (data, remedy) in enumerate(((table, "set data.encoder"), (images, "set data.pixels"))):
        config = tiny("fedcgs", method=PLAIN) | {"data": data}
        start(config, out := tmp_path / f"with-{number}")
        with pytest.raises(GenfedError, match=rf"excluded = \[3\]: the run would keep something of them.*{remedy}"):
            forget(out, 3, tmp_path / f"forgot-{number}")
        assert not (tmp_path / f"forgot-{number}").exists()
        config["federation"] |= {"excluded": [3]}
        with pytest.raises(GenfedError, match=remedy):
            start(config, tmp_path / f"without-{number}")
    given = table | {"encoder": str(tmp_path / "with-0" / "encoder.json")}
    start(tiny("fedcgs", method=PLAIN) | {"data": given}, tmp_path / "given")
    assert forget(tmp_path / "given", 3, tmp_path / "forgot").removed == ("fedcgs",)


def test_a_common_scale_of_pixels_says_nothing_of_a_client(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (160, 1, 8, 8), dtype=np.uint8)
    for name, stored in (("bytes", x), ("floats", x / 255)):
        np.savez(tmp_path / f"{name}.npz", x=stored, y=np.arange(160) % 2)
        start(tiny("fedcgs") | {"data": {"kind": "npz", "path": str(tmp_path / f"{name}.npz")}}, tmp_path / name)
        assert forget(tmp_path / name, 3, tmp_path / f"{name}-forgot").removed == ("fedcgs",)


def test_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    def stop(*args: Any, **kwargs: Any) -> None:
        raise StoppedError

    start(tiny("fedcgs", "fedcvae_ens"), tmp_path / "with")
    for place in ("save", "write_file", "run"):
        with monkeypatch.context() as patch:
            patch.setattr(runs if place == "run" else forgetting, place, stop)
            with pytest.raises(StoppedError):
                forget(tmp_path / "with", 1, tmp_path / "forgot")
    forget(tmp_path / "with", 1, tmp_path / "forgot")
    start(tiny("fedcgs", "fedcvae_ens", federation={"excluded": [1]}), tmp_path / "without")
    assert states(tmp_path / "forgot") == states(tmp_path / "without")


@pytest.mark.parametrize(
    ("client", "changes", "reason"),
    [
        (4, {}, "there is no client 4; there are: 0, 1, 2, 3"),
        (2, {"federation": {"excluded": [2]}}, "there is no client 2; there are: 0, 1, 3"),
    ],
)
def test_refuses(client: int, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    start(tiny("fedcgs", **changes), tmp_path / "with")
    with pytest.raises(GenfedError, match=reason):
        forget(tmp_path / "with", client, tmp_path / "forgot")


def test_refuses_a_run_with_noise(tmp_path: Path) -> None:
    noise = {"kind": "dp_fedavg", "noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"}
    start(tiny("fedavg", privacy=noise), tmp_path / "with")
    with pytest.raises(GenfedError, match="a second release"):
        forget(tmp_path / "with", 0, tmp_path / "forgot")


@pytest.mark.parametrize(
    ("excluded", "reason"), [([7], "there is no client 7; they are 0 to 3"), ([0, 1, 2, 3], "names all clients")]
)
def test_excluded_clients_are_checked(excluded: list[int], reason: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=reason):
        start(tiny("fedcgs", federation={"excluded": excluded}), tmp_path / "run")


def test_the_others_keep_their_examples(tmp_path: Path) -> None:
    start(tiny("fedavg", partition={"kind": "dirichlet", "alpha": 0.5}), tmp_path / "with")
    start(
        tiny("fedavg", partition={"kind": "dirichlet", "alpha": 0.5}, federation={"excluded": [1]}),
        tmp_path / "without",
    )
    rows = [
        {
            row["client"]: (row["architecture"], row["examples"])
            for row in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if row["client"] is not None and row["phase"] == "train"
        }
        for name in ("with", "without")
    ]
    assert rows[1] == {client: about for client, about in rows[0].items() if client != 1}
