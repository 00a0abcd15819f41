"""GeFL-F with fixed encoders, and with generators that are estimated from sums."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed import GenfedError
from genfed.config.reader import read_config
from genfed.core.task import Data, Task
from genfed.encoders.random_conv import RandomConv
from genfed.experiment.checkpoint import read_checkpoint
from genfed.generators.gaussian import Gaussian
from genfed.methods.bases.feature_space import Whitening, estimate_whitening, whiten, whitening_statistics
from genfed.methods.gefl_f import GeFLF, GeFLFState
from tests.conftest import TINY, TINY_GENERATORS, left_by, start, tiny

TASK = Task("features", (3,), ("a", "b"))
GAUSSIAN: dict[str, Any] = {"kind": "gaussian"}
MIXTURE: dict[str, Any] = {"kind": "gaussian_mixture", "components": 2, "em_steps": 2}
RANDOM: dict[str, Any] = {"kind": "random_conv", "filters": 8}


def config(*, shared: bool, generator: dict[str, Any], **changes: Any) -> dict[str, Any]:
    own = TINY["gefl_f"] | {"generator": generator} | changes.pop("settings", {})
    return tiny("gefl_f", method={"gefl_f": own if shared else own | {"encoder": RANDOM}}, **changes)


def state_of(out: Path, table: dict[str, Any]) -> GeFLFState:
    (trial,) = start(table, out).trials
    assert not trial.failures
    at = read_checkpoint(read_config(table).method["gefl_f"], out / "trials" / "gefl_f" / "seed-0")
    assert at is not None
    assert isinstance(at.state, GeFLFState)
    return at.state


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("generator", [GAUSSIAN, MIXTURE, *TINY_GENERATORS.values()], ids=lambda each: each["kind"])
def test_any_encoder_goes_with_any_generator(shared: bool, generator: dict[str, Any], tmp_path: Path) -> None:
    table = config(shared=shared, generator=generator)
    state = state_of(tmp_path / "run", table)
    rows = left_by(tmp_path / "run")["metrics"]
    rounds = {phase: len({r["round"] for r in rows if r["phase"] == phase}) for phase in {r["phase"] for r in rows}}
    passes = {"gaussian": 1, "gaussian_mixture": 3}.get(generator["kind"], 2)
    assert (rounds.get("extractor", 0), rounds["generator"], rounds["joint"]) == (2 * shared, passes, 2)
    assert set(state.headers) == {"cnn1", "cnn2"}
    assert shared or state.extractor.keys() == {"digest", "mean", "factor"}
    losses = [row["synthetic_loss"] for row in rows if "synthetic_loss" in row]
    assert len(losses) == 8  # 2 rounds of 4 clients, who all learn from draws
    assert all(torch.isfinite(torch.tensor(losses)))


@pytest.mark.parametrize("generator", [GAUSSIAN, MIXTURE], ids=lambda each: each["kind"])
@pytest.mark.parametrize("shared", [True, False])
def test_workers_and_pools_change_nothing(
    shared: bool, generator: dict[str, Any], tmp_path: Path, in_pool: None
) -> None:
    table = config(shared=shared, generator=generator, settings={"pool": "server"})
    state_of(tmp_path / "alone", table)
    state_of(tmp_path / "together", table | {"compute": {"workers": 2}})
    assert left_by(tmp_path / "alone") == left_by(tmp_path / "together")


def test_the_generator_is_the_same_for_any_split(tmp_path: Path) -> None:
    tables = [
        config(shared=False, generator=MIXTURE, partition=each, federation={"clients": 10, "max_examples": 200})
        for each in ({"kind": "iid"}, {"kind": "disjoint_labels"})
    ]
    iid, disjoint = (state_of(tmp_path / str(i), table).generator for i, table in enumerate(tables))
    assert all(torch.equal(iid[name], disjoint[name]) for name in iid)


def test_the_generator_is_that_of_fedcgs(tmp_path: Path) -> None:
    ours = state_of(tmp_path / "gefl_f", config(shared=False, generator=GAUSSIAN, settings={"whitening": "none"}))
    table = config(shared=False, generator=GAUSSIAN)
    table["methods"], table["method"] = ["fedcgs"], {"fedcgs": {"encoder": RANDOM}}
    del table["defaults"]
    start(table, tmp_path / "fedcgs")
    theirs = read_checkpoint(read_config(table).method["fedcgs"], tmp_path / "fedcgs" / "trials" / "fedcgs" / "seed-0")
    assert theirs is not None
    assert all(torch.equal(ours.generator[name], value) for name, value in theirs.state.generator.items())


def test_masks_change_nothing(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"federation": {"clients": 6, "max_examples": 120}, "defaults": {"rounds": 0}}
    plain = state_of(tmp_path / "plain", config(shared=False, generator=MIXTURE, **changes))
    masked = state_of(tmp_path / "masked", config(shared=False, generator=MIXTURE, secure_aggregation={}, **changes))
    assert all(torch.equal(plain.generator[name], masked.generator[name]) for name in plain.generator)


def test_draws_teach_clients_of_one_class_all_classes(tmp_path: Path) -> None:
    """Without real examples, since each client's are of one class."""
    training = {"epochs": 0, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.003}
    table = config(
        shared=False,
        generator=GAUSSIAN,
        partition={"kind": "disjoint_labels"},
        federation={"clients": 10, "max_examples": 600, "architectures": ["linear", "mlp-small", "cnn1"]},
        settings={"training": training, "synthetic_epochs": 100},
    )
    table["method"]["gefl_f"]["encoder"] = {"kind": "random_conv", "filters": 24}
    (trial,) = start(table, tmp_path / "run").trials
    by_architecture = {score.architecture: score.accuracy for score in trial.clients}
    assert min(by_architecture.values()) > 0.9


def test_real_and_drawn_features_are_mixed(tmp_path: Path) -> None:
    state = state_of(tmp_path / "run", config(shared=False, generator=GAUSSIAN, settings={"mix": "balanced"}))
    rows = left_by(tmp_path / "run")["metrics"]
    losses = [row["loss"] for row in rows if row["phase"] == "joint" and "loss" in row]
    assert len(losses) == 8
    assert all(bool(value.isfinite().all()) for header in state.headers.values() for value in header.values())


def test_headers_have_the_widths_of_their_architecture(tmp_path: Path) -> None:
    headers = state_of(tmp_path / "run", config(shared=False, generator=GAUSSIAN)).headers
    shapes = {name: [tuple(v.shape) for k, v in header.items() if "weight" in k] for name, header in headers.items()}
    assert shapes == {"cnn1": [(16, 72), (10, 16)], "cnn2": [(16, 72), (32, 16), (10, 32)]}


def test_another_encoder_of_a_client_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = RandomConv.new

    def other(self: RandomConv, task: Task, rng: torch.Generator) -> torch.nn.Module:
        network = new(self, task, rng)
        assert isinstance(network.filters, torch.Tensor)
        network.filters[0, 0, 0, 0] += next(drift)
        return network

    drift = itertools.count()  # no two are equal
    monkeypatch.setattr(RandomConv, "new", other)
    with pytest.raises(GenfedError, match="its encoder"):
        start(config(shared=False, generator=GAUSSIAN), tmp_path / "run")


def test_it_is_private_only_with_a_generator_that_is_trained() -> None:
    def phases(**settings: Any) -> set[str] | None:
        found = GeFLF(**settings).private_trainings()
        return None if found is None else set(found)

    assert phases() == {"extractor", "generator", "joint"}
    assert phases(encoder=RandomConv(), whitening="none") == {"generator", "joint"}
    assert phases(encoder=RandomConv()) is None
    assert phases(encoder=RandomConv(), generator=Gaussian(), whitening="none") is None


def test_a_private_run_with_a_fixed_encoder(tmp_path: Path) -> None:
    privacy = {"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"}
    cvae = TINY_GENERATORS["cvae"] | {"norm": "group"}
    # The ten CNNs have BatchNorm, their headers of features have none.
    table = config(
        shared=False,
        generator=cvae,
        privacy=privacy,
        federation={"architectures": ["cnn1-gn", "mlp-small"]},
        settings={"whitening": "none"},
    )
    (trial,) = start(table, tmp_path / "run").trials
    assert not trial.failures
    assert trial.protection is not None


def test_an_extractor_that_is_trained_is_for_gefl_f_alone(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="encoder shared: only gefl_f trains one"):
        start(tiny("fedcgs", method={"fedcgs": {"encoder": {"kind": "shared"}}}), tmp_path / "run")


def test_an_architecture_without_features_is_refused(tmp_path: Path) -> None:
    table = config(shared=False, generator=GAUSSIAN, federation={"architectures": ["resnet8"]})
    with pytest.raises(GenfedError, match="resnet8"):
        start(table, tmp_path / "run")


def skewed(count: int = 400) -> Data:
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(2, (count,), generator=rng)
    mix = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.5, 0.2], [0.0, 0.0, 2.0]])
    return Data(torch.randn(count, 3, generator=rng) @ mix + y[:, None] * 1.5 + 0.5, y)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_whitened_features_have_mean_0_and_variance_1_within_classes(kind: Any) -> None:
    data = skewed()
    how = estimate_whitening(kind, TASK, whitening_statistics(kind).measure(data, TASK))
    white = whiten(data.x, how)
    torch.testing.assert_close(white.mean(0), torch.zeros(3), atol=0.01, rtol=0)
    within = torch.cat([white[data.y == label] - white[data.y == label].mean(0) for label in range(2)])
    covariance = within.T @ within / len(within)
    torch.testing.assert_close(covariance.diagonal(), torch.ones(3), atol=0.02, rtol=0)
    if kind == "full":
        torch.testing.assert_close(covariance, torch.eye(3), atol=0.02, rtol=0)
    assert torch.equal(Whitening(how)(data.x), white)


def test_features_are_whitened_alike_for_any_split(tmp_path: Path) -> None:
    extractors = [
        state_of(
            tmp_path / kind,
            config(
                shared=False, generator=GAUSSIAN, partition={"kind": kind},
                federation={"clients": 10, "max_examples": 200, "architectures": ["mlp-small"]},
                settings={"whitening": "full"},
            ),
        ).extractor
        for kind in ("iid", "disjoint_labels")
    ]  # fmt: skip
    assert all(torch.equal(extractors[0][name], extractors[1][name]) for name in ("digest", "mean", "factor"))


def test_unwhitened_features_are_those_of_the_encoder(tmp_path: Path) -> None:
    state = state_of(tmp_path / "run", config(shared=False, generator=GAUSSIAN, settings={"whitening": "none"}))
    assert state.extractor.keys() == {"digest"}


def test_features_are_whitened_in_single_precision_whatever_the_run_asks_for(tmp_path: Path) -> None:
    table = config(shared=False, generator=GAUSSIAN, settings={"whitening": "full"}, compute={"precision": "bfloat16"})
    assert state_of(tmp_path / "run", table).headers
    statistics = Gaussian(covariance="tied").measure(Data(torch.randn(40, 3), torch.arange(40) % 2), TASK)
    how = estimate_whitening("full", TASK, statistics)
    x = torch.randn(5, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(Whitening(how)(x), whiten(x.float(), how))
