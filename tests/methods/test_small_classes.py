"""A client leaves out of its sums every class of which it has few examples; what is left is a sum as before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genfed import ClientInfo, Data, GenfedError, Task
from genfed.artifacts.forget import forget
from genfed.config.reader import read_config
from genfed.core.phase import flatten_phases
from genfed.experiment.checkpoint import read_checkpoint
from genfed.generators.gaussian import Gaussian
from genfed.generators.ppca import PPCA
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.methods.bases.feature_statistics import Statistics, measure_features, screen_statistics
from tests.conftest import start, tiny
from tests.methods.test_fedcgs import same, state_of

TASK = Task("features", (3,), ("a", "b", "c"))
FEW: dict[str, Any] = {"encoder": {"kind": "identity"}, "generator": {"kind": "gaussian", "minimum_class_count": 3}}
SKEWED: dict[str, Any] = {"kind": "dirichlet", "alpha": 0.5}


@pytest.mark.parametrize("kind", [Gaussian, PPCA])
def test_classes_of_few_examples_are_left_out_and_their_number_is_said(kind: type[StatisticsGenerator]) -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    data = Data(torch.randn(6, 3), y)
    for minimum, kept in ((0, [3, 2, 1]), (1, [3, 2, 1]), (2, [3, 2, 0]), (3, [3, 0, 0]), (4, [0, 0, 0])):
        reply = measure_features(kind(minimum_class_count=minimum), data, TASK, 6, {})
        assert reply.upload.statistics["counts"].tolist() == kept
        assert reply.weight == 6
        assert reply.metrics == ({"left_out": 6 - sum(kept)} if minimum else {})
        expected = kind().measure(data[torch.tensor(kept)[y] > 0], TASK)
        assert all(torch.equal(value.long(), expected[name]) for name, value in reply.upload.statistics.items())


def test_the_counts_of_an_upload_add_up_to_no_more_than_the_client_has() -> None:
    generator, info = Gaussian(minimum_class_count=2), ClientInfo(0, "linear", 6)
    statistics = Gaussian().measure(Data(torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 1])), TASK)
    screen_statistics(generator, Statistics(statistics), TASK, info, 0)
    for who, how_many in ((generator, 4), (Gaussian(), 6)):
        with pytest.raises(GenfedError, match=f"do not add up to its {how_many} examples"):
            screen_statistics(who, Statistics(statistics), TASK, ClientInfo(0, "linear", how_many), 0)


def test_masks_and_a_client_that_withdraws_are_as_before(tmp_path: Path) -> None:
    federation = {"clients": 5, "max_examples": 120, "architectures": ["linear"]}
    config = tiny("fedcgs", method={"fedcgs": FEW}, federation=federation, partition=SKEWED)
    plain = state_of(tmp_path / "plain", config)
    assert 0 < int(plain.statistics["counts"].sum()) < 120
    masked = state_of(tmp_path / "masked", config | {"secure_aggregation": {}})
    assert same(plain.statistics, masked.statistics)
    forget(tmp_path / "plain", 2, tmp_path / "forgotten")
    rest = tiny("fedcgs", method={"fedcgs": FEW}, federation=federation | {"excluded": [2]}, partition=SKEWED)
    without = state_of(tmp_path / "rest", rest)
    left = read_checkpoint(read_config(rest).method["fedcgs"], tmp_path / "forgotten" / "trials" / "fedcgs" / "seed-0")
    assert left is not None
    assert same(left.state.statistics, without.statistics)
    assert same(left.state.head, without.head)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("gh_ofl", {"kind": "gaussian_mixture"}),
        ("gefl", {"kind": "local_pca"}),
        ("fedcgs", {"kind": "gaussian", "shrinkage": "held_out"}),
    ],
)
def test_generators_that_add_up_parts_of_a_class_are_refused(method: str, own: dict[str, Any]) -> None:
    with pytest.raises(GenfedError, match="minimum_class_count = 2: clients add up parts of a class too"):
        read_config(tiny(method, method={method: {"generator": own | {"minimum_class_count": 2}}}))


def test_privacy_of_sums_is_refused_since_one_example_can_bring_in_several(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    noise = {"kind": "dp_sum", "epsilon": 3.0, "delta": 1e-3}
    with pytest.raises(GenfedError, match="with minimum_class_count = 3: one example more can bring several"):
        start(tiny("fedcgs", method={"fedcgs": FEW}, privacy=noise), tmp_path / "run")


def test_every_phase_of_sums_says_what_it_leaves_out() -> None:
    own = FEW | {"whitening": "diagonal", "rounds": 1}
    method = read_config(tiny("gefl_f", method={"gefl_f": own})).method["gefl_f"]
    assert [(phase.name, phase.smallest_class) for phase in flatten_phases(method.phases())] == [
        ("whiten", 3),
        ("generator", 3),
        ("joint", 0),
    ]
