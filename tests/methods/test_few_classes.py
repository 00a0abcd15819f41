"""GeFL with few classes per client: exact generator rounds, balanced joint rounds, and the verdict on labels."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from genfed.config.reader import read_config
from genfed.core.client import Client, Slot
from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.digits import Digits
from genfed.experiment.progress import Progress, RunProgressBar
from genfed.generators.cvae import CVAE
from genfed.generators.ddpm import DDPM
from genfed.generators.generator import Generator, GeneratorNetwork
from genfed.methods.bases.federated_generator import GENERATOR_MEMORY
from genfed.methods.bases.warm_start import WarmStart, distillation_loss
from genfed.methods.gefl import GeFL, GeFLState
from genfed.methods.gefl_f import GeFLF
from genfed.report.results import Report
from genfed.training.fit import Objective
from genfed.training.pixels import normalize_pixels
from genfed.training.server_optimizer import ServerMoments, ServerOptimizer
from tests.conftest import TINY_GENERATORS, left_by, start, tiny
from tests.methods.test_reductions import state
from tests.training.clients import client_of

EXACT: dict[str, Any] = {"generator_steps": 1, "generator_learning_rate": 0.1}


class Prototypes(GeneratorNetwork):
    """A picture per class; the loss is ½ of its squared distance to an example, so a step is known by hand."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.pictures = nn.Parameter(torch.zeros(len(task.classes), *task.shape))

    def objectives(self) -> list[Objective]:
        def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            return (self.pictures[y] - x).square().flatten(1).sum(1) / 2

        return [Objective(loss, torch.optim.Adam(self.parameters(), lr=0.5), network=self)]

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        return self.pictures.detach()[y].clone()


@settings
class Averages(Generator):
    """Settings of `Prototypes`."""

    def new(self, task: Task, rng: torch.Generator) -> Prototypes:
        return Prototypes(task)


class Holds:
    """The storage of a client."""

    def __init__(self) -> None:
        self.records: dict[Any, Any] = {}

    def get(self, slot: Slot[Any]) -> Any:
        return self.records.get(slot)

    def put(self, slot: Slot[Any], record: Any) -> None:
        self.records[slot] = record


def one_class(label: int, *pixels: float) -> Client:
    """A client with 1×1×1 images of one of three classes."""
    data = Data(torch.tensor(pixels).reshape(-1, 1, 1, 1), torch.full((len(pixels),), label))
    return dataclasses.replace(client_of(data, 3, number=label), storage=Holds())


def clients() -> list[Client]:
    return [one_class(0, 1.0, 3.0), one_class(1, -1.0, -2.0), one_class(2, 0.5, 0.5)]


def round_of(method: GeFL, sent: dict[str, Tensor], members: list[Client]) -> dict[str, Tensor]:
    """The mean of the clients' generators after one round."""
    trained = [method.train_local_generator(c, c.task, sent, c.data)[0] for c in members]
    return {name: torch.stack([weights[name] for weights in trained]).mean(0) for name in sent}


def test_one_step_of_sgd_at_each_client_is_one_step_on_all_their_examples() -> None:
    members = clients()
    method = GeFL(generator=Averages(), generator_batch_size=2, **EXACT)
    sent = {"pictures": torch.full((3, 1, 1, 1), 0.25)}
    mean = round_of(method, sent, members)["pictures"].flatten()
    # The gradient of the mean loss over all six examples: each class is a third of them.
    assert mean.tolist() == pytest.approx([0.25 - 0.1 / 3 * (0.25 - m) for m in (2.0, -1.5, 0.5)])
    assert all(not c.storage.records for c in members)  # type: ignore[attr-defined]  # SGD remembers nothing


def test_the_same_holds_for_a_cvae_normalized_by_groups() -> None:
    """A CVAE's gradient on all clients' images, with the same draws of its codes."""
    task = Task("image", (1, 8, 8), ("0", "1", "2"))
    config = CVAE(width=4, latent_dim=2, norm="group", weight_decay=0.0)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = torch.arange(3).repeat_interleave(4)
    network = config.new(task, torch.Generator().manual_seed(0))

    def gradients(rows: slice, rng: torch.Generator) -> list[Tensor]:
        network.zero_grad()
        network.loss(x[rows], y[rows], rng).mean().backward()  # type: ignore[no-untyped-call]
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    together = gradients(slice(0, 12), torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    noise = torch.randn(12, 2, generator=rng)
    apart = []
    for k in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda *shape, k=k, **more: noise[4 * k : 4 * k + 4])
            apart.append(gradients(slice(4 * k, 4 * k + 4), rng))
    for whole, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-6)


def test_steps_are_counted_and_go_on_into_further_epochs() -> None:
    steps: list[int] = []

    class Counts(Prototypes):
        def objectives(self) -> list[Objective]:
            (objective,) = super().objectives()

            def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
                steps.append(len(x))
                return objective.loss(x, y, rng)

            return [dataclasses.replace(objective, loss=loss)]

    @settings
    class Counted(Averages):
        def new(self, task: Task, rng: torch.Generator) -> Prototypes:
            return Counts(task)

    client = one_class(0, *range(5))
    sent = {"pictures": torch.zeros(3, 1, 1, 1)}
    GeFL(generator=Counted(), generator_batch_size=2, generator_steps=5).train_local_generator(
        client, client.task, sent, client.data
    )
    assert steps == [2, 3, 2, 3, 2]  # the single fifth example joins the batch before it
    assert client.storage.get(GENERATOR_MEMORY) is not None  # Adam's moments


def test_the_proximal_term_by_hand() -> None:
    """Two steps of SGD on ½(w − 2)² + (μ/2)(w − w_t)² from w_t = 0: the term is felt in the second."""
    client = one_class(0, 2.0, 2.0)
    sent = {"pictures": torch.zeros(3, 1, 1, 1)}
    more: dict[str, Any] = {
        "generator": Averages(),
        "generator_batch_size": 2,
        "generator_steps": 2,
        "generator_learning_rate": 0.5,
    }
    for mu in (0.0, 0.6):
        trained, _ = GeFL(generator_mu=mu, **more).train_local_generator(client, client.task, sent, client.data)
        first = 0.5 * 2.0
        assert trained["pictures"].flatten()[0].item() == pytest.approx(first - 0.5 * ((first - 2) + mu * first))


def test_the_server_optimizer_goes_on_from_round_to_round(tmp_path: Path) -> None:
    own = {"kind": "cvae", "width": 4, "latent_dim": 4, "norm": "batch"}
    more = {"generator_rounds": 2, "generator": own, "server_optimizer": {"kind": "adam"}}
    config = tiny("gefl", method={"gefl": EXACT | more | {"interleaved": 1}})
    start(config, tmp_path / "run")
    ended: GeFLState = state(tmp_path / "run", "gefl", read_config(config).method["gefl"])
    assert ended.moments.first.keys() == ended.moments.second.keys()
    statistics = {name for name in ended.generator if "running" in name or "num_batches" in name}
    assert statistics
    assert ended.moments.first.keys() == ended.generator.keys() - statistics
    assert all(value.isfinite().all() for value in ended.generator.values())


@pytest.mark.parametrize("method", ["gefl", "gefl_f"])
def test_a_plain_server_step_is_the_plain_mean(method: str, tmp_path: Path) -> None:
    """A rate of nearly 1 takes the way of the formula, and ends where the mean does."""
    ends = []
    for name, rate in (("mean", 1.0), ("formula", 1.0 + 1e-12)):
        config = tiny(method)
        config["method"][method] |= {"server_optimizer": {"learning_rate": rate}}
        start(config, tmp_path / name)
        ends.append(state(tmp_path / name, method, read_config(config).method[method]))
    for name, value in ends[0].generator.items():
        torch.testing.assert_close(ends[1].generator[name], value, rtol=1e-4, atol=1e-5)
    assert ends[0].moments == ServerMoments()
    assert ends[1].moments.first


@pytest.mark.parametrize("pool", ["client", "server"])
@pytest.mark.parametrize("method", ["gefl", "gefl_f"])
def test_balanced_joint_rounds(method: str, pool: str, tmp_path: Path) -> None:
    config = tiny(method, partition={"kind": "disjoint_labels"})
    config["method"][method] |= {"mix": "balanced", "pool": pool}
    start(config, tmp_path / "run")
    joint = [r for r in left_by(tmp_path / "run")["metrics"] if r["phase"] == "joint" and r["client"] is not None]
    assert joint
    assert all(row["loss"] > 0 and "synthetic_loss" not in row for row in joint)
    ended = state(tmp_path / "run", method, read_config(config).method[method])
    if pool == "server":  # it has every class, however few examples a client has
        assert set(ended.pool.y.tolist()) == set(range(10))


def test_a_balanced_round_without_epochs_trains_nothing(tmp_path: Path) -> None:
    config = tiny("gefl")
    config["method"]["gefl"] |= {"mix": "balanced", "synthetic_epochs": 0, "training": {"epochs": 0, "batch_size": 8}}
    start(config, tmp_path / "run")
    joint = [r for r in left_by(tmp_path / "run")["metrics"] if r["phase"] == "joint" and r["client"] is not None]
    assert all(row["loss"] == 0.0 for row in joint)


@pytest.mark.parametrize("change", [{"generator_steps": 1}, {"mix": "balanced"}])
@pytest.mark.parametrize("method", ["gefl", "gefl_f"])
def test_dp_sgd_refuses_what_it_does_not_account_for(method: str, change: dict[str, Any], tmp_path: Path) -> None:
    how = {"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-3}
    config = tiny(method, privacy=how)
    names = {"linear": "linear", "mlp-small": "mlp-small", "cnn1": "cnn1-gn", "cnn2": "cnn2-gn"}
    config["federation"]["architectures"] = [names[name] for name in config["federation"]["architectures"]]
    config["method"][method] |= change | {"generator": TINY_GENERATORS["cvae"] | {"norm": "group"}}
    with pytest.raises(GenfedError, match="does not declare what its clients train"):
        start(config, tmp_path / "run")


# The verdict.


@settings
class RealPictures(Generator):
    """Settings of a generator that begins with the mean real digit of each class."""

    def new(self, task: Task, rng: torch.Generator) -> Prototypes:
        network = Prototypes(task)
        with torch.device("cpu"):  # the size of a generator is found with a device that holds no numbers
            train = Digits(size=8).load().train
            means = torch.stack([normalize_pixels(train.x[train.y == c]).mean(0) for c in range(10)])
        network.pictures.data = means.to(network.pictures.device)
        return network


def judged(generator: dict[str, Any], out: Path) -> tuple[Report, list[str]]:
    """The report of a run whose generator is not trained, and the warnings while it ran."""
    own = {"generator_rounds": 0, "generator": generator, "rounds": 1}
    config = tiny(
        "gefl",
        federation={"max_examples": 1259},
        metrics={"samples": 200, "epochs": 15},
        method={"gefl": own},
    )
    warnings: list[str] = []

    def notify(progress: Progress) -> None:
        if progress.warning is not None:
            warnings.append(progress.warning)

    return start(config, out, notify=notify), warnings


def test_a_generator_that_ignores_labels_is_named_in_the_run_and_the_report(tmp_path: Path) -> None:
    report, warnings = judged(TINY_GENERATORS["cvae"], tmp_path / "run")
    (said,), (noted,) = warnings, report.notes
    for line in (said, noted):
        assert line.startswith("gefl, seed 0: the generator ignores labels: ")
        assert "% of its samples are of their class (by chance " in line
        assert 'generator.norm = "group", generator_steps = 1, generator_learning_rate = 0.01' in line
        assert "docs/methods/gefl.md" in line
    assert said in (tmp_path / "run" / "run.log").read_text("utf-8")


def test_a_generator_that_heeds_labels_is_not_mentioned(tmp_path: Path) -> None:
    report, warnings = judged({"kind": f"{__name__}:RealPictures"}, tmp_path / "run")
    assert report.trials[0].quality is not None
    assert report.trials[0].quality.right_class > 0.8
    assert (warnings, report.notes) == ([], ())


def test_the_terminal_shows_a_warning() -> None:
    console = Console(file=io.StringIO(), width=200)
    with RunProgressBar(console, 1) as bar:
        bar(Progress("gefl", 0, "joint", 0, 1, 5, 9, 0, 1, None, warning="[x] ignores labels"))
    assert "warning: [x] ignores labels" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_advice_names_only_what_is_not_set() -> None:
    exact: dict[str, Any] = EXACT | {"server_optimizer": ServerOptimizer(kind="adam")}
    more = "Set more generator_rounds, or another server_optimizer.learning_rate"
    assert GeFLF(generator=CVAE(norm="group"), **exact).advise_on_labels() == more
    assert GeFL(generator=DDPM(), **exact).advise_on_labels() == more
    other = f'{more}. Or set warm_start = {{}} and mix = "balanced"'
    assert GeFL(generator=CVAE(norm="group"), **exact).advise_on_labels() == other
    assert "warm_start" in GeFL(warm_start=WarmStart()).advise_on_labels()
    assert "norm" not in GeFL(generator=CVAE(norm="group")).advise_on_labels()
    assert "generator_steps" in GeFL(generator=CVAE(norm="group")).advise_on_labels()


# The warm start.


WARM: dict[str, Any] = {"epochs": 1, "samples": 32, "distillation_epochs": 2, "batch_size": 8}


def warm(**more: Any) -> dict[str, Any]:
    config = tiny("gefl", partition={"kind": "disjoint_labels"}, **more)
    config["method"]["gefl"] |= {"warm_start": WARM}
    return config


def test_a_warm_start_goes_on_into_generator_rounds_and_keeps_no_upload(tmp_path: Path) -> None:
    config = warm()
    assert read_config(config | {"method": {"gefl": {"warm_start": {}}}}).method["gefl"].warm_start == WarmStart()  # type: ignore[attr-defined]
    start(config, tmp_path / "run")
    rounds = [r["phase"] for r in left_by(tmp_path / "run")["metrics"] if r["client"] is None and r["phase"] != "joint"]
    assert rounds[:5] == ["decoder", "distil", "distil", "generator", "generator"]
    ended: GeFLState = state(tmp_path / "run", "gefl", read_config(config).method["gefl"])
    assert ended.warm_start is None


def test_a_warm_start_changes_decoder_and_encoder(tmp_path: Path) -> None:
    config = warm()
    config["method"]["gefl"] |= {"generator_rounds": 0}
    start(config, tmp_path / "warm")
    del config["method"]["gefl"]["warm_start"]
    start(config, tmp_path / "cold")
    warmed, cold = (
        state(tmp_path / name, "gefl", read_config(config).method["gefl"]).generator for name in ("warm", "cold")
    )
    assert warmed.keys() == cold.keys()
    for name in ("start.weight", "code.weight", "planes"):
        assert not torch.equal(warmed[name], cold[name])


def test_the_distillation_loss_by_hand() -> None:
    class Fixed:
        def decode(self, z: Tensor, y: Tensor) -> Tensor:
            return torch.full((1, 1, 1, 2), 0.5)

        def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(4.0), 0.0]])

    x, z = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[3.0, -1.0]])
    (loss,) = distillation_loss(Fixed(), x, torch.tensor([0]), z)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(2 * 0.25 + ((2**2 / 4 + math.log(4)) + (1 + 0)) / 2)


@pytest.mark.parametrize("generator", [TINY_GENERATORS["dcgan"], TINY_GENERATORS["cvae"] | {"keep_encoder": True}])
def test_a_warm_start_needs_a_whole_cvae(generator: dict[str, Any]) -> None:
    config = warm()
    config["method"]["gefl"] |= {"generator": generator}
    with pytest.raises(GenfedError, match="warm_start: the generator must be a cvae without keep_encoder"):
        read_config(config)


@pytest.mark.parametrize(
    ("protection", "match"),
    [
        ({"privacy": {"kind": "dp_fedavg", "noise_multiplier": 1.0, "delta": 1e-3}}, "decoder"),
        ({"secure_aggregation": {}}, "decoder"),
    ],
)
def test_a_warm_start_is_refused_under_protection(protection: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=match):
        start(warm(**protection), tmp_path / "run")
