"""Runs under client-level differential privacy: what is charged, refused and told."""

import dataclasses
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core import errors
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase
from genfed.core.schedule import Schedule
from genfed.core.settings import settings
from genfed.engines.client_runner import ClientRunner
from genfed.engines.messages import RoundId
from genfed.experiment import compatibility, partitioning
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.inputs import load_data
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_trial
from genfed.methods.bases.averaging import Classifiers, FederatedAveraging
from genfed.privacy.accounting import epsilon
from genfed.privacy.client_level import ReleaseLedger, read_releases
from genfed.privacy.plan import count_charged_rounds
from genfed.report.metrics_log import read_metrics as read_metrics
from genfed.report.page import build_page
from genfed.report.privacy_guarantees import describe_guarantees
from genfed.report.privacy_section import read_audits
from genfed.report.summary_table import build_summary
from tests.conftest import fingerprint, left_by, start, tiny

CLIENTS: Any = {"kind": "dp_fedavg"}
NOISY: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"}
FIXED = NOISY | {"reproducible_noise": True}


def private(*methods: str, how: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Four clients with a linear classifier, protected."""
    few = {"clients": 4, "max_examples": 80, "architectures": ["linear"]}
    return tiny(*methods, privacy={"kind": "dp_fedavg"} | (how or NOISY), **({"federation": few} | changes))


def account(out: Path, method: str = "fedavg") -> ReleaseLedger:
    return read_releases(RunFolder(out).trial(method, 0))


def weights(out: Path) -> torch.Tensor:
    at = read_checkpoint(read_config(out).method["fedavg"], RunFolder(out).trial("fedavg", 0))
    assert at is not None
    return torch.cat([w.flatten() for _, w in sorted(at.state.classifiers["linear"].items())])


def test_epsilon_grows_every_round_and_is_that_of_the_formula(tmp_path: Path) -> None:
    report = start(private("fedavg", "local", baselines=["centralised"]), tmp_path / "run")
    releases = account(tmp_path / "run").releases
    assert [(r.step, r.phase, r.clients) for r in releases] == [(0, "train", (0, 1, 2, 3)), (1, "train", (0, 1, 2, 3))]
    spent = [epsilon([(1.0, 1.0, rounds)], 1e-3, "rdp") for rounds in (1, 2)]
    assert 0 < spent[0] < spent[1]
    found = report.of("fedavg")[0].protection
    assert found is not None
    assert (found.level, found.steps, found.noise_multiplier, found.max_grad_norm) == ("client", 2, (1.0, 1.0), 1.0)
    assert found.epsilon == spent[1]
    # Everybody takes part: RDP T·α/(2z²), and Balle et al., arXiv 1905.09982, Theorem 21.
    by_hand = min(
        2 * a / 2 + math.log((a - 1) / a) - (math.log(1e-3) + math.log(a)) / (a - 1)
        for a in (1 + x / 1000 for x in range(1, 20_000))
    )
    assert by_hand <= spent[1] < by_hand * 1.005
    table = build_summary(report)
    cells = {row[0]: row[table.head.index("ε")] for row in table.rows}
    assert cells == {"fedavg": f"{spent[1]:.2f} (δ = 0.001)", "local": "–", "centralised": "–"}
    html = build_page(report, {})
    assert f"ε = {spent[1]:.2f} at δ = 0.001" in html
    assert "every client with all its examples" in html
    assert "The server itself sees each upload, and must be trusted" in html
    assert describe_guarantees(report)[1].startswith("local: not protected. No client uploads anything")
    assert describe_guarantees(report)[2].startswith("centralised: not protected.")


def test_a_huge_clip_without_noise_changes_nothing_and_protects_nothing(tmp_path: Path) -> None:
    start(private("fedavg") | {"privacy": None}, tmp_path / "plain")
    report = start(private("fedavg", how={"noise_multiplier": 0, "delta": 1e-3, "clip_norm": 1e9}), tmp_path / "run")
    assert torch.allclose(weights(tmp_path / "run"), weights(tmp_path / "plain"), atol=1e-6)  # clients of 20 each
    assert build_summary(report).rows[0][build_summary(report).head.index("ε")] == "∞"
    assert "updates were clipped to 1e+09, but no noise was added: ε = ∞" in describe_guarantees(report)[0]


@pytest.mark.usefixtures("in_pool")
def test_the_seed_does_not_determine_the_noise_unless_it_is_reproducible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        start(private("fedavg"), tmp_path / name)
    assert not torch.equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    with caplog.at_level(logging.WARNING, "genfed"):
        report = start(private("fedavg", how=FIXED), tmp_path / "three")
    assert "privacy.reproducible_noise: any party that knows the seed can" in caplog.text
    start(private("fedavg", how=FIXED, compute={"workers": 2}), tmp_path / "four")
    assert left_by(tmp_path / "three") == left_by(tmp_path / "four")
    assert build_summary(report).rows[0][build_summary(report).head.index("ε")] == "not private"


def test_a_client_pays_for_the_rounds_that_it_is_asked_in(tmp_path: Path) -> None:
    few = {"clients": 5, "max_examples": 100, "architectures": ["linear"], "client_fraction": 0.4}
    short = {"rounds": 6, "training": {"epochs": 1, "batch_size": 8}}
    config = private("fedavg", federation=few, defaults=short)
    report = start(config, tmp_path / "run")
    found = account(tmp_path / "run").rounds()
    infos = tuple(ClientInfo(i, "linear", 20) for i in range(5))
    settings = read_config(config)
    assert settings.client_privacy
    schedule = Schedule(settings.method["fedavg"], infos, 0.4, 0)
    assert max(found.values()) == count_charged_rounds(settings.client_privacy, schedule)
    assert sum(found.values()) == 6 * 2
    of = report.trials[0].protection
    assert of is not None
    assert of.epsilon == epsilon([(1.0, 1.0, max(found.values()))], 1e-3, "rdp")


def secretly(sample: float = 0.4, rounds: int = 6, **how: Any) -> dict[str, Any]:
    """Five clients who are drawn in secret."""
    few = {"clients": 5, "max_examples": 100, "architectures": ["linear"], "client_fraction": sample}
    short = {"rounds": rounds, "training": {"epochs": 1, "batch_size": 8}}
    return private("fedavg", how=FIXED | {"secret_sampling": True} | how, federation=few, defaults=short)


@pytest.mark.usefixtures("in_pool")
def test_of_clients_drawn_in_secret_all_pay_less_for_every_round(tmp_path: Path) -> None:
    report = start(secretly(), tmp_path / "run")
    assert [r.clients for r in account(tmp_path / "run").releases] == [()] * 6
    of = report.trials[0].protection
    assert of is not None
    assert of.epsilon == epsilon([(1.0, 0.4, 6)], 1e-3, "rdp") < epsilon([(1.0, 1.0, 3)], 1e-3, "rdp")
    assert of.steps == 6
    assert of.mechanism.endswith("of clients that are selected in secret, each with probability 0.4")
    start(secretly() | {"compute": {"workers": 2}}, tmp_path / "workers")
    assert torch.equal(weights(tmp_path / "workers"), weights(tmp_path / "run"))
    asked = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "train"]
    sizes = Counter(row["round"] for row in asked if row["client"] is not None)
    assert len(set(sizes.values())) > 1  # not two of five in each, which would tell of one by the others


def test_less_noise_meets_a_target_where_clients_are_drawn_in_secret(tmp_path: Path) -> None:
    config = secretly(noise_multiplier=None, epsilon=4.0)
    found = start(config, tmp_path / "run").trials[0].protection
    config["privacy"]["secret_sampling"] = False
    other = start(config, tmp_path / "known").trials[0].protection
    assert found is not None
    assert other is not None
    assert found.noise_multiplier < other.noise_multiplier
    assert found.epsilon is not None
    assert 3.8 < found.epsilon <= 4.0


def test_a_round_of_which_nobody_was_drawn_is_noise_alone(tmp_path: Path) -> None:
    report = start(secretly(0.01, noise_multiplier=0.0, epsilon=None), tmp_path / "run")
    none = start(secretly(0.01, rounds=0, noise_multiplier=0.0, epsilon=None), tmp_path / "none")
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "none"))
    assert report.trials[0].accuracy == none.trials[0].accuracy
    start(secretly(0.01), tmp_path / "noisy")
    assert not torch.equal(weights(tmp_path / "noisy"), weights(tmp_path / "none"))


def test_who_fails_does_not_show_whom_else_the_coins_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quorum would stop rounds by the coins of those who answer, and these would be drawn anew for nothing."""
    work, told = ClientRunner.work, list[tuple[ClientInfo, ...]]()

    def fails(self: ClientRunner, step: Any, client: int, sent: Any) -> Any:
        if step.phase == "train" and client:
            raise GenfedError("it does not want to")
        return work(self, step, client, sent)

    def keep(self: FederatedAveraging, server: Any, state: Any, reduced: Any) -> Any:
        told.append(reduced.clients)
        return kept(self, server, state, reduced)

    kept = FederatedAveraging.keep
    monkeypatch.setattr(ClientRunner, "work", fails)
    monkeypatch.setattr(FederatedAveraging, "keep", keep)
    report = start(secretly(rounds=20) | {"compute": {"workers": 0}}, tmp_path / "run")
    assert len(account(tmp_path / "run").releases) == 20
    assert any("it does not want to" in line for line in report.trials[0].failures)
    assert told == [()] * 20  # and a method is not told whom it could tell


def test_secret_draws_are_independent_and_do_not_follow_from_the_seed(tmp_path: Path) -> None:
    settings = read_config(secretly(reproducible_noise=False))
    shards = partitioning.partition_data(settings, load_data(settings), 0)
    folder = RunFolder(tmp_path / "run")
    trial = new_trial(settings, "fedavg", 0, folder=folder, shards=shards, new_network=Architectures().new)
    drawer = trial.client_level()
    assert drawer is not None
    rounds = [drawer.participants(RoundId("train", 0, 0)) for _ in range(2000)]
    drawn = torch.tensor([[info in asked for info in shards.clients] for asked in rounds])
    share = drawn.double().mean(0)
    assert bool(((share - 0.4).abs() < 5 * (0.4 * 0.6 / 2000) ** 0.5).all())
    together = (drawn[:, 0] & drawn[:, 1]).double().mean()
    assert abs(together - 0.16) < 5 * (0.16 * 0.84 / 2000) ** 0.5


def test_a_target_is_met_over_all_phases(tmp_path: Path) -> None:
    report = start(private("gefl", how={"epsilon": 8.0, "delta": 1e-3}), tmp_path / "run")
    assert Counter(r.phase for r in account(tmp_path / "run", "gefl").releases) == {"generator": 2, "joint": 2}
    found = report.trials[0].protection
    assert found is not None
    assert found.epsilon is not None
    assert 7.5 < found.epsilon <= 8.0
    assert found.steps == 4


def test_the_clip_moves_in_each_phase_by_itself_and_over_stops(tmp_path: Path) -> None:
    how = {"noise_multiplier": 0, "delta": 1e-3, "clip_norm": 1e-6, "adaptive": {"rate": 1.0, "quantile": 0.25}}
    config = private("gefl", how=how)

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        start(config, tmp_path / "run", notify=stop)
    start(config, tmp_path / "run", on_existing="resume")
    once, twice = 1e-6 * math.exp(0.25), 1e-6 * math.exp(0.5)  # no update is so short
    clips = {(r.phase, r.step): r.clip for r in account(tmp_path / "run", "gefl").releases}
    expected = {("generator", 0): once, ("generator", 1): twice, ("joint", 2): once, ("joint", 3): twice}
    assert clips == pytest.approx(expected)


class StoppedError(Exception):
    pass


def test_a_round_is_paid_for_once_it_is_released(tmp_path: Path) -> None:
    """A stop before all have answered costs nothing; one after the state has gone out costs the round again."""
    out, seen = tmp_path / "run", list[tuple[str, int]]()

    def stop_at(phase: str, clients: int) -> Any:
        def stop(progress: Any) -> None:
            seen.append((progress.phase, progress.client))
            if (progress.phase, progress.client) == (phase, clients):
                raise StoppedError

        return stop

    config = private("fedavg", how=FIXED)
    start(config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        start(config, out, notify=stop_at("train", 3))
    assert account(out).releases == ()
    with pytest.raises(StoppedError):
        start(config, out, on_existing="resume", notify=stop_at("evaluate", 2))
    assert [r.step for r in account(out).releases] == [0]
    report = start(config, out, on_existing="resume")
    assert [r.step for r in account(out).releases] == [0, 0, 1]
    assert report.trials[0].protection is not None
    assert report.trials[0].protection.epsilon == epsilon([(1.0, 1.0, 3)], 1e-3, "rdp")
    name = "trials/fedavg/seed-0/state.safetensors"
    assert fingerprint(out / name) == fingerprint(tmp_path / "whole" / name)


@pytest.mark.parametrize("others", [{}, {"secure_aggregation": {}}], ids=["server", "clients"])
def test_a_run_stops_before_its_budget_is_passed(
    others: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before anybody trains for the round that would pass it, whoever adds the noise."""
    out, stops, worked, work = tmp_path / "run", 0, list[int](), ClientRunner.work

    def counted(self: ClientRunner, step: Any, client: int, sent: Any) -> Any:
        if step.phase.startswith("train"):
            worked.append(step.round)
        return work(self, step, client, sent)

    def stop(progress: Any) -> None:
        nonlocal stops
        if progress.phase == "evaluate" and stops == 0:
            stops = 1
            raise StoppedError

    monkeypatch.setattr(ClientRunner, "work", counted)
    config = private("fedavg", how={"epsilon": 5.0, "delta": 1e-3}, **others) | {"compute": {"workers": 0}}
    with pytest.raises(StoppedError):
        start(config, out, notify=stop)
    with pytest.raises(GenfedError, match=r"train round 2 would exceed privacy.epsilon = 5: .* charged twice"):
        start(config, out, on_existing="resume")
    assert [r.step for r in account(out).releases] == [0, 0]
    assert set(worked) == {0}


def test_who_fails_adds_nothing_and_the_rest_is_divided_by_all(tmp_path: Path) -> None:
    how = {"noise_multiplier": 0, "delta": 1e-3, "clip_norm": 1e9}
    config = private("wrong", how=how, method={"wrong": {"kind": "tests.toys:WrongShape"}})
    report = start(config, tmp_path / "run")
    assert report.trials[0].failures
    found = report.trials[0].protection
    assert found is not None
    assert found.steps == 2


def test_audits_say_who_reads_what(tmp_path: Path) -> None:
    small = {"inversion": {"steps": 2, "examples": 2}}
    start(private("fedavg", audits=["membership_samples", "inversion"], audit=small), tmp_path / "run")
    found = read_audits(tmp_path / "run")
    assert found is not None
    notes = [note for each in found.results if each.audit == "inversion" for note in each.notes]
    assert any("This attacker is the server, which reads an upload before it is clipped" in note for note in notes)
    (train,) = [each.protection for each in found.shared]
    assert train == (
        "the server, which can read every upload, clips and adds noise: ε protects every client against others"
    )


def refused(config: dict[str, Any], tmp_path: Path, says: str) -> None:
    with pytest.raises(GenfedError) as caught:
        start(config, tmp_path / "run")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@settings
class Open(FederatedAveraging):
    """Says how many rounds there are only when they begin."""

    def phases(self) -> list[Phase[Classifiers]]:
        return [dataclasses.replace(phase, rounds=lambda state: 2) for phase in super().phases()]


def test_rounds_that_are_not_known_are_charged_as_they_come(tmp_path: Path) -> None:
    own = {"open": {"kind": "tests.privacy.test_client_level:Open"}}
    refused(
        private("open", method=own, how={"epsilon": 5.0, "delta": 1e-3}), tmp_path,
        "open: the number of rounds is not known in advance, so no noise can be computed from privacy.epsilon",
    )  # fmt: skip
    start(private("open", method=own), tmp_path / "run")
    assert len(account(tmp_path / "run", "open").releases) == 2


@pytest.mark.parametrize(
    ("methods", "changes", "says"),
    [
        (["fedproto"], {}, "fedproto cannot be run under client-level privacy: in phase train the server adds up sums"),
        (["ensemble"], {}, "in phase train the server uses each client's classifier by itself"),
        (
            ["feddf"],
            {},
            "the server uses each client's classifier by itself, and only means of clipped updates get noise",
        ),
        (["fedgen"], {}, "the server uses each client's header by itself"),
        (
            ["fedavg"],
            {"aggregation": {"kind": "median"}},
            'privacy.kind = "dp_fedavg" with [aggregation], which replaces',
        ),
        (
            ["fedavg"],
            {"secure_aggregation": {}, "privacy": CLIENTS | NOISY | {"adaptive": {}}},
            "privacy.adaptive with [secure_aggregation]: the server cannot count the updates that were clipped",
        ),
        (
            ["fedavg"],
            {"secure_aggregation": {}, "privacy": CLIENTS | NOISY | {"secret_sampling": True}},
            "privacy.secret_sampling with [secure_aggregation]: clients must know which clients' masks are in a sum",
        ),
        (
            ["fedavg"],
            {"privacy": CLIENTS | NOISY | {"secret_sampling": True}},
            "privacy.secret_sampling: federation.client_fraction = 1 selects every client; set it lower",
        ),
        (
            ["fedkd"],
            {
                "privacy": CLIENTS | NOISY | {"secret_sampling": True},
                "federation": {"clients": 4, "max_examples": 80, "architectures": ["linear"], "client_fraction": 0.5},
            },
            "in phase train update is not sent, so secret_sampling has nothing to release in a round without a client",
        ),
        (
            ["fedavg"],
            {"privacy": CLIENTS | NOISY | {"epsilon": 1.0}},
            "fedavg: privacy.epsilon = 1: with noise_multiplier = 1, 2 rounds cost a client ε = 5.",
        ),
        (
            ["fedavg"],
            {"privacy": CLIENTS | NOISY | {"adaptive": {"count_noise": 0.5}}},
            "fedavg: privacy.adaptive.count_noise = 0.5: more than half the noise multiplier of 1 is required",
        ),
        (["fedavg"], {"privacy": CLIENTS | {"delta": 1e-3}}, "privacy: set epsilon (the noise is computed from it)"),
        (["fedavg"], {"privacy": CLIENTS | {"epsilon": 1.0}}, "privacy.delta: this setting is required"),
        (["fedavg"], {"privacy": CLIENTS | NOISY | {"clip_norm": 0}}, "privacy.clip_norm = 0"),
        (["fedavg"], {"privacy": CLIENTS | NOISY | {"adaptive": {"quantile": 1.0}}}, "privacy.adaptive.quantile"),
        (
            ["fedavg"],
            {"privacy": CLIENTS | {"noise_multiplier": 0.0, "epsilon": 1.0, "delta": 1e-3}},
            "privacy.noise_multiplier = 0: without noise no privacy.epsilon can be kept",
        ),
    ],
)
def test_what_is_refused_before_training(
    methods: list[str], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = private(*methods) | changes
    with pytest.raises(GenfedError) as caught:
        start(config, tmp_path / "run")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_without_opacus_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    refused(private("fedavg"), tmp_path, '[privacy] kind = "dp_fedavg" needs the extra "privacy": pip install')


def test_delta_that_is_too_large_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    config = read_config(private("fedavg", how=NOISY | {"delta": 0.25}))
    with caplog.at_level(logging.WARNING, "genfed"):
        compatibility.check_client_privacy(config, [ClientInfo(i, "linear", 20) for i in range(4)], 0)
    assert "privacy.delta = 0.25 is not below 1/n = 0.25 (there are 4 clients)" in caplog.text


def test_an_attack_is_clipped_like_any_update(tmp_path: Path) -> None:
    attack = {"kind": "scaling", "factor": 1e6, "share": 0.25}
    start(private("fedavg", how={"noise_multiplier": 0, "delta": 1e-3}, attack=attack), tmp_path / "run")
    initial = read_checkpoint_before(tmp_path)
    assert float((weights(tmp_path / "run") - initial).norm()) <= 2.0 + 1e-4  # two rounds of at most 1


def read_checkpoint_before(tmp_path: Path) -> torch.Tensor:
    none = {"rounds": 0, "training": {"epochs": 1, "batch_size": 8}}
    start(private("fedavg", defaults=none), tmp_path / "before")
    return weights(tmp_path / "before")


# Noise that clients add under masks.


@pytest.mark.usefixtures("in_pool")
def test_clients_own_noise_protects_against_the_server_too(tmp_path: Path) -> None:
    config = private("fedavg", how=FIXED, secure_aggregation={})
    report = start(config, tmp_path / "run")
    found = report.trials[0].protection
    assert found is not None
    assert found.distributed
    assert [r.step for r in account(tmp_path / "run").releases] == [0, 1]
    plain = private("fedavg", how=FIXED)
    assert found.epsilon == start(plain, tmp_path / "central").trials[0].protection.epsilon  # type: ignore[union-attr]
    assert "sees only sums" in describe_guarantees(replace_noise(report))[0]
    workers = start(config | {"compute": {"workers": 2}}, tmp_path / "workers")
    assert workers.trials[0].accuracy == report.trials[0].accuracy
    assert torch.equal(weights(tmp_path / "workers"), weights(tmp_path / "run"))
    start(private("fedavg", secure_aggregation={}), tmp_path / "other")
    assert not torch.equal(weights(tmp_path / "other"), weights(tmp_path / "run"))


def replace_noise(report: Any) -> Any:
    """As if its noise had come from the operating system."""
    of = dataclasses.replace(report.trials[0].protection, reproducible_noise=False)
    return dataclasses.replace(report, trials=(dataclasses.replace(report.trials[0], protection=of),))


def test_without_noise_it_is_the_mean_of_clipped_updates(tmp_path: Path) -> None:
    for clip in (1e9, 0.01):
        how = {"noise_multiplier": 0, "delta": 1e-3, "clip_norm": clip}
        start(private("fedavg", how=how), tmp_path / f"central-{clip}")
        start(private("fedavg", how=how, secure_aggregation={}), tmp_path / f"masked-{clip}")
        assert torch.allclose(weights(tmp_path / f"central-{clip}"), weights(tmp_path / f"masked-{clip}"), atol=1e-6)


def test_the_noise_of_the_smallest_sum_allowed_suffices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What four clients add to a sum of which three must do: 4/3 of the variance that is needed."""
    once = {"rounds": 1, "training": {"epochs": 1, "batch_size": 8}}
    how = {"noise_multiplier": 50.0, "delta": 1e-3, "clip_norm": 2.0, "accountant": "rdp"}
    start(private("fedavg", how=how, secure_aggregation={}, defaults=once), tmp_path / "run")
    start(
        private("fedavg", how=how | {"noise_multiplier": 0}, secure_aggregation={}, defaults=once), tmp_path / "still"
    )
    noise = weights(tmp_path / "run") - weights(tmp_path / "still")
    assert len(noise) == 650
    assert float(noise.double().std()) == pytest.approx(50.0 * 2.0 * math.sqrt(4 / 3) / 4, rel=0.12)  # 4 sd of 2.8 %
    many = {"clients": 12, "max_examples": 240, "architectures": ["linear"]}
    with caplog.at_level(logging.WARNING, "genfed"):
        compatibility.check_client_privacy(
            read_config(private("fedavg", secure_aggregation={}, federation=many)),
            [ClientInfo(i, "linear", 20) for i in range(12)],
            0,
        )
    assert "the noise of this number of clients must be enough" in caplog.text
    assert "so the 12 clients of fedavg add 2.0 times the noise that is needed" in caplog.text
    caplog.clear()
    each = [ClientInfo(i, f"cnn{i % 4 + 1}", 20) for i in range(12)]
    compatibility.check_client_privacy(read_config(private("fedavg", secure_aggregation={}, federation=many)), each, 0)
    assert "the noise of this number of clients" not in caplog.text, "every sum is as small as it may be"


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "lg_fedavg", "gefl", "gefl_f", "fml", "fedkd", "avgkd"])
def test_every_method_that_the_server_could_protect_protects_itself(method: str, tmp_path: Path) -> None:
    few = {"clients": 4, "max_examples": 80, "architectures": ["cnn1"]}
    config = private(method, how=FIXED, secure_aggregation={}, federation=few)
    report = start(config, tmp_path / "run")
    assert not report.trials[0].failures
    assert report.trials[0].protection is not None
    assert report.trials[0].protection.distributed


def test_a_sum_is_paid_for_before_it_is_uncovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = private("fedavg", how=FIXED, secure_aggregation={})
    work, stop_in = ClientRunner.work, ["train.reveal", "train.masked"]

    class KilledError(KeyboardInterrupt):
        pass

    def stops(self: ClientRunner, step: Any, client: int, sent: Any) -> Any:
        if step.phase in stop_in[-1:]:
            stop_in.pop()
            raise KilledError
        return work(self, step, client, sent)

    monkeypatch.setattr(ClientRunner, "work", stops)
    config["compute"] = {"workers": 0}
    for paid in (0, 1):
        with pytest.raises(KilledError):
            start(config, tmp_path / "run", on_existing="resume" if (tmp_path / "run").exists() else "refuse")
        assert len(account(tmp_path / "run").releases) == paid
    start(config, tmp_path / "run", on_existing="resume")
    assert [r.step for r in account(tmp_path / "run").releases] == [0, 0, 1]
