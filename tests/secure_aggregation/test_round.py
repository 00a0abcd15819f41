"""Runs whose server learns sums alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.aggregate import Fold
from genfed.core.errors import GenfedError
from genfed.core.phase import Reduced, flatten_phases
from genfed.core.record import Packed, digest, pack, unpack
from genfed.engines.client_runner import ClientRunner
from genfed.engines.in_process import InProcess
from genfed.engines.messages import PackedReply, RoundId
from genfed.experiment import local_clients, partitioning
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.inputs import load_data
from genfed.experiment.local_clients import new_runner
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_trial, trial_server
from genfed.report.metrics_log import read_metrics as read_metrics
from genfed.report.privacy_section import read_audits
from genfed.secure_aggregation.messages import OfferedKeys, RevealedShares, SecureSession
from genfed.secure_aggregation.protocol import make_secure
from tests.conftest import start, tiny

LINEAR: dict[str, Any] = {
    "federation": {"clients": 5, "max_examples": 100, "architectures": ["linear"]},
    "evaluation": {"every": 0},
}


def final(config: dict[str, Any], out: Path, **options: Any) -> torch.Tensor:
    start(config, out, **options)
    at = read_checkpoint(read_config(config).method["fedavg"], out / "trials" / "fedavg" / "seed-0")
    assert at is not None
    weights: torch.Tensor = torch.cat([w.flatten() for _, w in sorted(at.state.classifiers["linear"].items())])
    return weights


def test_it_ends_where_a_plain_run_does_and_repeats_to_the_bit(tmp_path: Path) -> None:
    plain = final(tiny("fedavg", **LINEAR), tmp_path / "plain")
    config = tiny("fedavg", **LINEAR, secure_aggregation={"minimum_group": 3})
    hidden = final(config, tmp_path / "hidden")
    assert torch.allclose(hidden, plain, atol=1e-5)
    assert torch.equal(final(config | {"compute": {"workers": 2}}, tmp_path / "workers"), hidden)
    rows = [json.loads(line) for line in (tmp_path / "hidden" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["phase"] == "train" and row["client"] is not None]
    assert len(trained) == 10
    assert not any(row.keys() & {"loss", "flops", "parameters"} for row in trained)  # no upload but the masked one
    assert all(row["up_bytes"] > 8 * len(hidden) for row in trained)
    scored = {
        out: [r for r in read_metrics(tmp_path / out / "metrics.jsonl") if "own" in r] for out in ("plain", "hidden")
    }
    assert len(scored["plain"]) == len(scored["hidden"]) == 5
    assert all(row["own"] is not None for row in scored["plain"])
    assert all(row["own"] is None for row in scored["hidden"]), "it is weighted by the classes that a client has"


class StoppedError(Exception):
    pass


def start_and_stop(config: dict[str, Any], out: Path, rows: int) -> None:
    """Starts a run, and stops it after `rows` calls of `notify`."""
    left = rows

    def stop(progress: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise StoppedError

    with pytest.raises(StoppedError):
        start(config, out, notify=stop)


def test_it_goes_on_after_a_stop(tmp_path: Path) -> None:
    config = tiny("fedavg", **LINEAR, secure_aggregation={})
    start_and_stop(config, tmp_path / "run", 8)  # in the second round
    again = final(config, tmp_path / "run", on_existing="resume")
    assert torch.equal(again, final(config, tmp_path / "whole"))


def generator(out: Path, changes: dict[str, Any], **options: Any) -> torch.Tensor:
    config = tiny("gefl", **({"federation": {"clients": 6, "max_examples": 120}} | changes))
    start(config, out, **options)
    at = read_checkpoint(read_config(config).method["gefl"], out / "trials" / "gefl" / "seed-0")
    assert at is not None
    weights: torch.Tensor = torch.cat([w.flatten() for _, w in sorted(at.state.generator.items())])
    return weights


def test_optimizers_go_on_as_without_masks_unless_a_client_misses_a_round(tmp_path: Path) -> None:
    masks: dict[str, Any] = {"secure_aggregation": {}}
    hidden = generator(tmp_path / "hidden", masks)
    assert torch.allclose(hidden, generator(tmp_path / "plain", {}), atol=1e-6)
    some = {"federation": {"clients": 6, "max_examples": 120, "client_fraction": 0.7, "architectures": ["cnn1"]}}
    forgot, plain = generator(tmp_path / "forgot", some | masks), generator(tmp_path / "some", some)
    assert torch.allclose(forgot, plain, atol=1e-2)
    assert not torch.allclose(forgot, plain, atol=1e-5)
    config = tiny("gefl", federation={"clients": 6, "max_examples": 120}, **masks)
    start_and_stop(config, tmp_path / "stopped", 8)  # in the second generator round
    assert torch.equal(generator(tmp_path / "stopped", masks, on_existing="resume"), hidden)


@pytest.mark.parametrize(
    ("methods", "changes", "says"),
    [
        (["ensemble"], {}, "of ensemble cannot be aggregated securely: its server needs every single classifier"),
        (["fedgen"], {}, "its server needs every single header"),
        (
            ["fedavg"],
            {"aggregation": {"kind": "median"}},
            "[secure_aggregation] hides single uploads, which [aggregation] reads",
        ),
        (
            ["fedavg"],
            {"attack": {"kind": "sign_flip"}},
            "[secure_aggregation] hides single uploads, which [attack] changes",
        ),
        (
            ["fedavg"],
            {"privacy": {"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-3}},
            "[secure_aggregation] with DP-SGD is not implemented: its exchanges are not charged; remove one of them",
        ),
        (["fedavg"], {}, "a sum would have 2 uploads of architecture linear"),
        (
            ["fedavg"],
            {
                "federation": {"clients": 12, "max_examples": 240, "architectures": ["linear"]},
                "secure_aggregation": {"neighbors": 4},
            },
            "secure_aggregation.neighbors = 4: in phase train of fedavg an upload of one of 12 clients could be read",
        ),
        (
            ["fedavg"],
            {"secure_aggregation": {"threshold": 0.5}},
            "secure_aggregation.threshold = 0.5: input should be greater than 0.5",
        ),
        (
            ["fedavg"],
            {"secure_aggregation": {"neighbors": 3}},
            "secure_aggregation.neighbors = 3: an even number is needed",
        ),
    ],
)
def test_what_is_refused_before_training(
    methods: list[str], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = tiny(*methods, **({"secure_aggregation": {}} | changes))
    with pytest.raises(GenfedError) as caught:
        start(config, tmp_path / "run")
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_single_upload_is_there_to_be_audited(tmp_path: Path) -> None:
    start(tiny("fedavg", **LINEAR, secure_aggregation={}, audits=["inversion"]), tmp_path / "run")
    found = read_audits(tmp_path / "run")
    assert found
    assert found.results[0].not_possible == "uploads were sent under masks: no single upload can be attacked"


class Curious:
    """A server that asks one client of a round what it likes."""

    def __init__(self, tmp_path: Path) -> None:
        config = read_config(tiny("fedavg", **LINEAR, secure_aggregation={}))
        shards = partitioning.partition_data(config, load_data(config), 0)
        trial = new_trial(
            config, "fedavg", 0, folder=RunFolder(tmp_path), shards=shards, new_network=Architectures().new
        )
        assert trial.secure is not None
        self.site, self.server = new_runner(trial), trial_server(trial, 0, "train")
        self.clients, self.session = shards.clients, SecureSession(trial.method.init(trial_server(trial, 0, "init")))
        (phase,) = flatten_phases(trial.method.phases())
        self.exchanges = make_secure(replace(phase, rounds=1), trial.secure, len(shards.clients))

    def asks(self, place: int, client: int, number: int | None = None, session: SecureSession | None = None) -> Packed:
        exchange = self.exchanges[place]
        assert exchange.send is not None
        sent = pack(exchange.send(self.server, session or self.session, self.clients[client]))
        return self.site.work(RoundId(exchange.name, 0, place if number is None else number), client, sent).upload

    def goes_on(self, place: int) -> None:
        exchange = self.exchanges[place]
        fold = Fold(exchange.aggregate, list(self.clients))
        for info in self.clients:
            fold.add(info, unpack(exchange.wire_types.uploaded, self.asks(place, info.id)), 1.0)
        self.session = exchange.update(self.server, self.session, Reduced(fold.finish(), self.clients))


def without(session: SecureSession, client: int) -> SecureSession:
    """As if that one had left before its masked upload."""
    return replace(
        session, survivors={group: tuple(i for i in ids if i != client) for group, ids in session.survivors.items()}
    )


def test_a_client_answers_an_exchange_once(tmp_path: Path) -> None:
    """Two answers would give the server both secrets of a neighbour, or a mask, and with them an upload."""
    server = Curious(tmp_path)
    for place in range(3):
        server.goes_on(place)
    masked = digest(server.asks(2, 0))
    assert digest(server.asks(2, 0, session=replace(server.session, neighbors={}))) == masked
    with pytest.raises(
        GenfedError, match=r"train\.shares only after train\.keys of the same round; .* was to train\.masked"
    ):
        server.asks(1, 0)
    signed = digest(server.asks(3, 0))
    assert digest(server.asks(3, 0, session=without(server.session, 1))) == signed, "one list of survivors"
    server.goes_on(3)
    honest = digest(server.asks(4, 0))
    assert digest(server.asks(4, 0, session=without(server.session, 1))) == honest, "the same shares, of one secret"
    for number in (5, 8):
        with pytest.raises(GenfedError, match=r"train\.reveal only after train\.agree of the same round"):
            server.asks(4, 0, number, without(server.session, 1))
        with pytest.raises(GenfedError, match=r"train\.masked only after train\.shares of the same round"):
            server.asks(2, 0, number)
    with pytest.raises(GenfedError, match=r"train\.masked only after .* its last reply was to train\.reveal"):
        server.asks(2, 0)


def test_a_round_done_again_has_new_keys_and_nothing_of_the_old(tmp_path: Path) -> None:
    server = Curious(tmp_path)
    for place in range(3):
        server.goes_on(place)
    old, first = server.session, {place: digest(server.asks(place, 1)) for place in (2,)}
    server.goes_on(0)
    with pytest.raises((GenfedError, KeyError)):
        server.asks(3, 0, session=old)
    for place in (1, 2):
        server.goes_on(place)
    assert digest(server.asks(2, 1)) != first[2], "other masks"
    with pytest.raises(GenfedError, match=r"train\.shares only after train\.keys of the same round"):
        server.asks(1, 0, 9)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (1, "its keys were used in a round: it makes new ones first"),
        (2, "its masks were used before, or it has shared no secrets"),
        (4, "it has no secrets of this round"),
    ],
)
def test_no_secret_is_used_twice_even_where_requests_may_come_in_any_order(
    place: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClientRunner, "_recall", lambda *_: None)
    server = Curious(tmp_path)
    for each in range(place + 1):
        server.goes_on(each)
    with pytest.raises(GenfedError, match=says):
        server.asks(place, 0, place + 1)


@pytest.mark.parametrize(
    ("exchange", "change", "says"),
    [
        ("keys", lambda upload: replace(upload, keys={}), "its message is about other groups than its own"),
        ("reveal", lambda upload: replace(upload, shares={}), "its upload is in the sum, but then: its message"),
    ],
)
def test_a_run_goes_on_and_names_the_client_of_a_bad_message(
    exchange: str,
    change: Any,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = {"keys": OfferedKeys, "reveal": RevealedShares}

    class Tampered(InProcess):
        def exchange(self, step: RoundId, jobs: Any) -> Any:
            for info, answer in super().exchange(step, jobs):
                if info.id == 3 and step.phase.endswith(exchange) and isinstance(answer, PackedReply):
                    upload = pack(change(unpack(kinds[exchange], answer.upload)))
                    yield info, replace(answer, upload=upload)
                else:
                    yield info, answer

    monkeypatch.setattr(local_clients, "InProcess", Tampered)
    config = tiny("fedavg", **LINEAR, secure_aggregation={}, compute={"workers": 0})
    config["federation"] |= {"quorum": 0.5}
    start(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if row["phase"] == "train" and row["client"] is None]
    assert len(rounds) == 2
    assert all(row["failed"].keys() == {"3"} and row["failed"]["3"].startswith(says) for row in rounds)
    assert len([row for row in rows if row["phase"] == "train" and row["client"] is not None]) == 8
    assert f"client 3 excluded from train round 1: {says}" in (tmp_path / "run" / "run.log").read_text()


def test_masks_where_clients_are_excluded(tmp_path: Path) -> None:
    """Ids have gaps then, and are not below the number of clients that take part."""
    federation = LINEAR["federation"] | {"excluded": [0, 2]}
    (masked, *_) = start(tiny("fedavg", federation=federation, secure_aggregation={}), tmp_path / "masked").trials
    (plain, *_) = start(tiny("fedavg", federation=federation), tmp_path / "plain").trials
    assert not masked.failures
    assert [score.client for score in masked.clients] == [1, 3, 4]
    assert masked.accuracy == pytest.approx(plain.accuracy, abs=0.02)
