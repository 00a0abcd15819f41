"""FedCGS: the head is that of all examples in one place, whoever has which of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genfed
from genfed import ClientInfo, Data, GenfedError, Server, Task
from genfed.config.reader import read_config
from genfed.core.aggregate import Fold
from genfed.encoders.identity import Identity
from genfed.experiment.checkpoint import read_checkpoint
from genfed.generators.gaussian import linear_discriminant
from genfed.generators.statistics_generator import narrow
from genfed.methods.bases.feature_statistics import Statistics, StatisticsState
from genfed.methods.fedcgs import FedCGS
from tests.conftest import TINY, start, tiny


def state_of(out: Path, config: dict[str, Any]) -> StatisticsState:
    start(config, out)
    at = read_checkpoint(read_config(config).method["fedcgs"], out / "trials" / "fedcgs" / "seed-0")
    assert at is not None
    assert isinstance(at.state, StatisticsState)
    return at.state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_any_partition_ends_with_the_same_bits(tmp_path: Path) -> None:
    partitions: list[dict[str, Any]] = [
        {"kind": "iid"},
        {"kind": "dirichlet", "alpha": 0.1},
        {"kind": "disjoint_labels"},
    ]
    states = [
        state_of(
            tmp_path / each["kind"],
            tiny("fedcgs", partition=each, federation={"clients": 10, "architectures": ["linear"]}),
        )
        for each in partitions
    ]
    one = state_of(tmp_path / "one", tiny("fedcgs", federation={"clients": 1, "architectures": ["linear"]}))
    for state in states:
        assert same(state.statistics, one.statistics)
        assert same(state.head, one.head)


@pytest.mark.parametrize("secure", [{}, {"minimum_group": 4}])
def test_masks_change_nothing(secure: dict[str, Any], tmp_path: Path) -> None:
    federation = {"clients": 6, "max_examples": 120}
    plain = state_of(tmp_path / "plain", tiny("fedcgs", federation=federation))
    masked = state_of(tmp_path / "masked", tiny("fedcgs", federation=federation, secure_aggregation=secure))
    assert same(plain.statistics, masked.statistics)
    assert same(plain.head, masked.head)


def test_the_head_is_that_of_the_gaussians(tmp_path: Path) -> None:
    state = state_of(tmp_path / "run", tiny("fedcgs"))
    assert same(state.head, linear_discriminant(state.generator))


def test_a_head_must_be_linear() -> None:
    with pytest.raises(GenfedError, match='covariance = "tied"'):
        read_config(tiny("fedcgs", method={"fedcgs": {"generator": {"kind": "gaussian", "covariance": "full"}}}))


def test_tables_have_the_identity(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,b,y\n" + "".join(f"{i % 7},{i * 3 % 5},{'yes' if i % 7 > 3 else 'no'}\n" for i in range(120)))
    config = tiny("fedcgs") | {"data": {"kind": "table", "path": str(file), "label": "y", "test": 0.2}}
    config["federation"] = {"clients": 3, "architectures": ["mlp-small"]}
    with pytest.raises(GenfedError, match="random_conv takes images"):
        start(config, tmp_path / "refused")
    config["method"] = {"fedcgs": {"encoder": {"kind": "identity"}}}
    state = state_of(tmp_path / "run", config)
    assert state.statistics["counts"].sum() > 60


def test_what_no_honest_client_uploads_is_excluded() -> None:
    info, method = ClientInfo(0, "linear", 8), FedCGS(encoder=Identity())
    task = Task("features", (3,), ("a", "b"))
    server = Server(
        task, (info,), 0, torch.Generator(), 0, torch.device("cpu"), "float32", lambda name, rng: torch.nn.Identity()
    )
    honest = narrow(method.generator.measure(Data(torch.randn(8, 3), torch.arange(8) % 2), task), 8)
    method.screen(server, info, Statistics(honest))
    with pytest.raises(GenfedError, match="not those of 8 examples"):
        method.screen(server, info, Statistics(honest | {"sums": honest["sums"] * 100}))
    phase = method.phases()[0]
    assert phase.screen is not None
    assert phase.expected is not None
    round_ = Fold(phase.aggregate, [info], phase.expected(server))
    with pytest.raises(GenfedError, match="different shapes or types"):
        round_.add(info, Statistics({name: value.long() for name, value in honest.items()}), 8.0)
    round_.add(info, Statistics(honest), 8.0)
    assert same(round_.finish()["statistics"], honest)


@pytest.mark.parametrize(("factor", "shift", "shown"), [(30.0, 100.0, "from "), (0.001, 0.0, "from "), (1.0, 0.0, "")])
@pytest.mark.parametrize("method", ["fedcgs", "fedpft", "gefl_f"])
def test_features_on_a_scale_of_their_own_are_refused(
    method: str, factor: float, shift: float, shown: str, tmp_path: Path
) -> None:
    """They are clipped to ±8 and rounded to 1/64, so they would say nothing, without a word."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = (rng.normal(size=(200, 4)) + y[:, None] * 2) * factor + shift
    np.savez(tmp_path / "a.npz", x=x.astype(np.float32), y=y)
    data = {"kind": "npz", "path": str(tmp_path / "a.npz"), "scale": "none"}
    own: dict[str, Any] = {"encoder": {"kind": "identity"}}
    if method == "gefl_f":
        own |= {"generator": {"kind": "gaussian"}, "whitening": "none"}
    if method == "fedpft":
        own |= TINY["fedpft"]
    federation = {"clients": 4, "max_examples": 80, "architectures": ["linear", "mlp-small"]}
    config = tiny(method, data=data, method={method: own}, federation=federation)
    if not shown:
        assert not start(config, tmp_path / "run").trials[0].failures
        return
    with pytest.raises(
        GenfedError, match=r"its features are from .* added up within ±8 in steps of 1/64; scale the data"
    ):
        start(config, tmp_path / "run")


@pytest.mark.parametrize("label", ["fedcgs", "gh_ofl"])
def test_a_head_in_closed_form_is_the_same_in_a_run_of_less_precision(label: str, tmp_path: Path) -> None:
    found = [
        genfed.run(
            tiny(label, evaluation={"every": 0}, metrics={"samples": 0}, compute={"precision": precision}),
            out=tmp_path / precision,
        ).trials[0]
        for precision in ("float32", "bfloat16")
    ]
    assert found[0].accuracy == found[1].accuracy
