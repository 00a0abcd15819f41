import dataclasses
import logging
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from genfed.config.architectures import Architectures
from genfed.config.reader import build_settings, read_config
from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.phase import Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.record import Packed, digest, load, pack
from genfed.core.settings import settings
from genfed.engines.client_runner import ClientRunner
from genfed.engines.client_storage import INDEX, StoredReply
from genfed.engines.messages import RoundId
from genfed.experiment import compatibility, partitioning
from genfed.experiment.inputs import load_data
from genfed.experiment.local_clients import new_runner
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_trial, trial_server
from genfed.methods.bases.averaging import FederatedAveraging
from genfed.privacy.accounting import epsilon, fits_budget, noise_for
from genfed.privacy.compatibility import check_method
from genfed.privacy.example_level import read_ledger
from genfed.privacy.ledger import sum_by_mechanism
from genfed.privacy.plan import PLAN, PrivacyPlan, count_trainings
from genfed.privacy.settings import DPSGD
from genfed.report.page import build_page
from genfed.report.privacy_guarantees import describe_guarantees
from genfed.report.summary_table import build_summary
from genfed.training.weights import Model, weights_of
from tests.conftest import left_by, start, tiny

NOISY: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"}


def private(*methods: str, privacy: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Two clients with a linear classifier under DP-SGD."""
    few = {"clients": 2, "architectures": ["linear"]}
    return tiny(*methods, privacy={"kind": "dp_sgd"} | (privacy or NOISY), **({"federation": few} | changes))


def rdp_by_hand(rate: float, steps: int, order: int, noise: float = 1.12) -> float:
    """Rényi divergence of the subsampled Gaussian at a whole order, Mironov, Talwar, Zhang, arXiv 1908.10530, Eq. 3."""
    terms = (
        math.comb(order, k) * (1 - rate) ** (order - k) * rate**k * math.exp(k * (k - 1) / (2 * noise**2))
        for k in range(order + 1)
    )
    return steps * math.log(sum(terms)) / (order - 1)


def test_rdp_is_that_of_the_formula() -> None:
    rate, steps, delta = 0.01, 500, 1e-5
    found = epsilon([(1.12, rate, steps)], delta, "rdp")
    # Balle et al., arXiv 1905.09982, Theorem 21, at whole orders; Opacus also tries those in between.
    by_hand = min(
        rdp_by_hand(rate, steps, a) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in range(2, 30)
    )
    assert by_hand * 0.98 < found <= by_hand * (1 + 1e-9)


def test_a_published_figure() -> None:
    """TensorFlow Privacy's MNIST tutorial: 60,000 examples, batches of 256, noise 1.12, 60 epochs, δ = 1e-5: ε = 2.92
    by the older conversion, min over orders of RDP + log(1/δ)/(α − 1).
    """
    mechanism = (1.12, 256 / 60000, 60 * 60000 // 256)
    older = min(rdp_by_hand(*mechanism[1:], a) + math.log(1e5) / (a - 1) for a in range(2, 30))
    assert older == pytest.approx(2.92, abs=0.01)
    rdp, prv = epsilon([mechanism], 1e-5, "rdp"), epsilon([mechanism], 1e-5, "prv")
    assert 2.0 < prv < rdp < older  # each tighter than the one before


def test_prv_is_that_of_the_gaussian_mechanism() -> None:
    """Whole batches: δ(ε) is known exactly, Balle and Wang, arXiv 1805.06530, Theorem 8; n steps are one with σ/√n."""
    found = epsilon([(4.0, 1.0, 4)], 1e-4, "prv")

    def delta(e: float, noise: float = 2.0) -> float:
        below = NormalDist().cdf
        return below(1 / (2 * noise) - e * noise) - math.exp(e) * below(-1 / (2 * noise) - e * noise)

    assert delta(found) <= 1e-4 < delta(found - 0.03)


def test_epsilon_of_nothing_and_without_noise() -> None:
    assert epsilon([], 1e-5, "prv") == 0
    assert epsilon([(1.0, 0.1, 0)], 1e-5, "prv") == 0
    assert epsilon([(1.0, 0.1, 10), (0.0, 0.1, 1)], 1e-5, "rdp") == math.inf
    assert epsilon([(1.0, 0.1, 5), (1.0, 0.1, 5)], 1e-5, "rdp") == pytest.approx(
        epsilon([(1.0, 0.1, 10)], 1e-5, "rdp"), rel=1e-9
    )


@pytest.mark.parametrize("target", [1.0, 8.0])
def test_noise_is_as_little_as_the_target_needs(target: float) -> None:
    privacy = DPSGD(epsilon=target, delta=1e-4, accountant="rdp")
    trainings = [(0.1, 50), (0.25, 20)]
    noise = noise_for(trainings, privacy)
    assert fits_budget([(noise, rate, steps) for rate, steps in trainings], privacy)
    assert not fits_budget([(noise / 1.02, rate, steps) for rate, steps in trainings], privacy)


def test_prv_needs_less_noise() -> None:
    by_rdp = noise_for([(0.1, 30)], DPSGD(epsilon=3.0, delta=1e-4, accountant="rdp"))
    assert noise_for([(0.1, 30)], DPSGD(epsilon=3.0, delta=1e-4)) < by_rdp


def test_every_round_is_charged_and_shown(tmp_path: Path) -> None:
    config = private("gefl", "local", method={"gefl": {"generator": {"kind": "cvae", "width": 4, "norm": "group"}}})
    config["method"]["gefl"] |= {"generator_rounds": 1, "generator_epochs": 1, "generator_batch_size": 16}
    report = start(config, tmp_path / "run")
    # 40 examples: ⌈40/16⌉ = 3 steps of the generator, then 5 in each of two joint rounds.
    ledger = read_ledger(RunFolder(tmp_path / "run").trial("gefl", 0) / "clients" / "1")
    assert [(c.step, c.rate, c.steps) for c in ledger.charges] == [(0, 1 / 3, 3), (1, 1 / 5, 5), (2, 1 / 5, 5)]
    spent = [epsilon(sum_by_mechanism(ledger.charges[: i + 1]), 1e-3, "rdp") for i in range(3)]
    assert 0 < spent[0] < spent[1] < spent[2]
    of_gefl = report.of("gefl")[0].protection
    assert of_gefl is not None
    assert of_gefl.epsilon == pytest.approx(spent[2])
    assert (of_gefl.steps, of_gefl.delta, of_gefl.noise_multiplier) == (13, 1e-3, (1.0, 1.0))
    table = build_summary(report)
    assert table.rows[0][table.head.index("ε")] == f"{spent[2]:.2f} (δ = 0.001)"
    assert f"ε = {spent[2]:.2f} at δ = 0.001" in build_page(report, {})
    rows = left_by(tmp_path / "run")["metrics"]
    assert not any("loss" in row or "flops" in row or row.get("own") for row in rows)  # nothing leaves by the way


def test_without_noise_epsilon_is_infinite(tmp_path: Path) -> None:
    report = start(private("fedavg", privacy={"noise_multiplier": 0, "delta": 1e-3}), tmp_path / "run")
    found = report.trials[0].protection
    assert found is not None
    assert found.epsilon is None
    assert build_summary(report).rows[0][build_summary(report).head.index("ε")] == "∞"
    assert "ε = ∞" in describe_guarantees(report)[0]


def test_two_runs_of_one_seed_have_other_noise_unless_it_is_reproducible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        start(private("fedavg"), tmp_path / name)
    assert left_by(tmp_path / "one") != left_by(tmp_path / "two")
    fixed = private("fedavg", privacy=NOISY | {"reproducible_noise": True})
    with caplog.at_level(logging.WARNING, "genfed"):
        reports = [start(fixed, tmp_path / name) for name in ("three", "four")]
    assert left_by(tmp_path / "three") == left_by(tmp_path / "four")
    assert build_summary(reports[0]).rows[0][build_summary(reports[0]).head.index("ε")] == "not private"
    assert "not private" in describe_guarantees(reports[0])[0]


def test_a_target_is_met_and_planned_for_once(tmp_path: Path) -> None:
    config = private("fedavg", privacy={"epsilon": 3.0, "delta": 1e-3, "accountant": "rdp"})
    report = start(config, tmp_path / "run")
    found = report.trials[0].protection
    assert found is not None
    assert found.epsilon is not None
    assert 2.8 < found.epsilon <= 3.0
    noise = load(PrivacyPlan, RunFolder(tmp_path / "run").trial("fedavg", 0) / PLAN).noise_multiplier
    assert noise[0] == noise[1] == found.noise_multiplier[0] > 0.5


def trial_of(tmp_path: Path, config: dict[str, Any]) -> Any:
    settings = read_config(config)
    shards = partitioning.partition_data(settings, load_data(settings), 0)
    return new_trial(
        settings,
        settings.methods[0],
        0,
        folder=RunFolder(tmp_path / "run"),
        shards=shards,
        new_network=Architectures().new,
    )


def test_the_plan_knows_who_will_take_part(tmp_path: Path) -> None:
    few = {"clients": 4, "architectures": ["linear"], "client_fraction": 0.5}
    config = private("fedavg", federation=few, defaults={"rounds": 6, "training": {"epochs": 1, "batch_size": 8}})
    ahead = count_trainings(trial_of(tmp_path, config).schedule)
    assert sum(sum(uses.values()) for uses in ahead.values()) == 6 * 2
    start(config, tmp_path / "run")
    for client, uses in ahead.items():
        ledger = read_ledger(RunFolder(tmp_path / "run").trial("fedavg", 0) / "clients" / str(client))
        assert len(ledger.charges) == sum(uses.values())


def sent_by(site: ClientRunner, trial: Any) -> Any:
    server = trial_server(trial, 0, "init")
    return pack(trial.method.send_classifier(server, trial.method.init(server), trial.shards.clients[0]))


def test_a_client_asked_again_gives_the_same_reply_and_pays_once(tmp_path: Path) -> None:
    trial = trial_of(tmp_path, private("fedavg"))
    site = new_runner(trial)
    folder, sent = trial.folder / "clients" / "0", sent_by(site, trial)
    first = site.work(RoundId("train", 0, 0), 0, sent)
    assert digest(new_runner(trial).work(RoundId("train", 0, 0), 0, sent).upload) == digest(first.upload)
    assert first.metrics == {}
    assert len(read_ledger(folder).charges) == 1
    # Killed after the charge and before the index was written: nothing left, so it is charged once, with fresh noise.
    (folder / INDEX).unlink()
    again = new_runner(trial).work(RoundId("train", 0, 0), 0, sent)
    assert digest(again.upload) != digest(first.upload)
    assert len(read_ledger(folder).charges) == 1
    # A later round follows; whoever asks for the first one again pays again.
    site.work(RoundId("train", 1, 1), 0, sent)
    site.work(RoundId("train", 0, 0), 0, sent)
    assert [charge.step for charge in read_ledger(folder).charges] == [0, 1, 0]


def test_a_client_stops_before_its_budget_is_passed(tmp_path: Path) -> None:
    one = (1.0, 1 / 5, 5)
    budget = epsilon([(*one[:2], 10)], 1e-3, "rdp") * 1.001  # two rounds of 5 steps, and no third
    trial = trial_of(tmp_path, private("fedavg", privacy=NOISY | {"epsilon": budget}))
    site = new_runner(trial)
    sent = sent_by(site, trial)
    for number in range(2):
        site.work(RoundId("train", number, number), 0, sent)
    with pytest.raises(GenfedError, match=r"another round would exceed its privacy budget of ε = "):
        site.work(RoundId("train", 2, 2), 0, sent)
    assert len(read_ledger(trial.folder / "clients" / "0").charges) == 2


class StoppedError(Exception):
    pass


def test_kill_and_resume_neither_refund_nor_release_fresh_noise(tmp_path: Path) -> None:
    out, seen = tmp_path / "run", 0

    def stop(progress: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:  # the first client has answered in the first round, the second has not
            raise StoppedError

    with pytest.raises(StoppedError):
        start(private("fedavg"), out, notify=stop)
    client = RunFolder(out).trial("fedavg", 0) / "clients" / "0"
    before = load(StoredReply, client / "reply.0")
    kept = digest(Packed({k: t.clone() for k, t in before.tensors.items()}, before.skeleton))
    assert len(read_ledger(client).charges) == 1
    replies = []
    work = ClientRunner.work

    def watched(site: ClientRunner, step: RoundId, client: int, sent: Any) -> Any:
        answer = work(site, step, client, sent)
        replies.append((step.number, client, digest(answer.upload)))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientRunner, "work", watched)
        start(private("fedavg"), out, on_existing="resume")
    assert (0, 0, kept) in replies
    assert [charge.step for charge in read_ledger(client).charges] == [0, 1]


def refused(config: dict[str, Any], tmp_path: Path, match: str) -> None:
    with pytest.raises(GenfedError, match=match):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (
            "fedproto",
            "fedproto cannot be run under .privacy.: its clients upload the mean representation of each",
        ),
        ("fedcvae_ens", "its clients upload how many examples of each class a client has"),
        ("avgkd", "avgkd cannot be run under .privacy.: it does not declare what its clients train"),
    ],
)
def test_a_method_that_shares_more_is_refused(method: str, match: str, tmp_path: Path) -> None:
    refused(private(method), tmp_path, match)


@settings
class Leaky(FederatedAveraging):
    """Declares nothing of its own, and has its own work."""

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        return Reply(Model(weights_of(self.classifier(client, sent))), metrics={"loss": float(client.seed)})


@settings
class Forgetful(FederatedAveraging):
    """Declares a training that does not go through DP-SGD."""

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        return super().train(dataclasses.replace(client, privacy=None), sent)


def test_a_declaration_does_not_hold_for_other_work(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="it does not declare what its clients train"):
        check_method("leaky", Leaky())
    check_method("forgetful", Forgetful())
    config = private("forgetful", method={"forgetful": {"kind": "tests.privacy.test_example_level:Forgetful"}})
    with pytest.raises(GenfedError, match="was declared by the method, but not trained by DP-SGD"):
        start(config, tmp_path / "run")


def test_batchnorm_is_refused_with_what_to_use(tmp_path: Path) -> None:
    cnn = {"clients": 2, "architectures": ["cnn1"]}
    refused(
        private("fedavg", federation=cnn),
        tmp_path,
        r'architecture cnn1 cannot be trained under \[privacy\]: extractor\.1 is BatchNorm.*; use "cnn1-gn"',
    )
    refused(private("gefl"), tmp_path, r'the generator cannot be trained .*BatchNorm.*; set norm = "group" for it')


def test_other_bad_input(tmp_path: Path) -> None:
    half = private("fedavg")
    half["compute"] = half["compute"] | {"precision": "bfloat16"}
    refused(half, tmp_path, 'compute.precision = "bfloat16": under .privacy. only "float32" is allowed')
    mixed = private("fedavg")
    mixed["defaults"]["training"] |= {"augmentation": "mixup"}
    refused(mixed, tmp_path, 'method.fedavg.training.augmentation = "mixup": .privacy. allows only "none"')
    vit = {"clients": 2, "architectures": ["vit-tiny"]}
    refused(private("fedavg", federation=vit), tmp_path, "architecture vit-tiny cannot be trained under .*: Opacus")
    for table, match in (
        ({"delta": 1e-5}, "privacy: set epsilon"),
        ({"noise_multiplier": 0.0, "epsilon": 1.0, "delta": 1e-5}, "without noise no privacy.epsilon can be kept"),
        ({"epsilon": 1.0}, "privacy.delta"),
        ({"epsilon": 1.0, "delta": 2.0}, "privacy.delta"),
    ):
        with pytest.raises(GenfedError, match=match):
            build_settings(DPSGD, table, "privacy.")


def test_delta_that_is_too_large_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    config = read_config(private("fedavg", privacy=NOISY | {"delta": 0.1}))
    with caplog.at_level(logging.WARNING, "genfed"):
        shards = partitioning.partition_data(config, load_data(config), 0)
        compatibility.check_example_privacy(config, shards.task, shards.clients, Architectures().new)
    assert "privacy.delta = 0.1 is not below 1/n = 0.025 (a client has 40 examples)" in caplog.text


def test_reproducible_noise_is_the_same_after_stops(tmp_path: Path) -> None:
    fixed = private("local", "fedavg", privacy=NOISY | {"reproducible_noise": True})
    start(fixed, tmp_path / "whole")
    stops = 0

    def stop(progress: object) -> None:
        nonlocal stops
        stops += 1
        if stops % 8 == 0:
            raise StoppedError

    for _ in range(30):
        try:
            start(fixed, tmp_path / "stopped", on_existing="resume", notify=stop)
            break
        except StoppedError:
            continue
    assert stops > 8
    assert left_by(tmp_path / "stopped") == left_by(tmp_path / "whole")
