"""Generators are evaluated once, by what they generate; arithmetic is counted; a run keeps the figures of papers."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genfed.artifacts.trained_model import load_trained, select_trial
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config, to_toml
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.phase import flatten_phases
from genfed.core.record import digest, pack
from genfed.core.rng import stream
from genfed.core.task import Data, Task
from genfed.experiment import run as runs
from genfed.experiment.checkpoint import Checkpoint, read_checkpoint
from genfed.experiment.evaluation import add_evaluation
from genfed.experiment.generator_quality import GeneratorEvaluator
from genfed.experiment.inputs import load_data
from genfed.experiment.partitioning import partition_data
from genfed.experiment.progress import Progress
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_server
from genfed.report.metrics_log import read_metrics as read_metrics
from genfed.report.results import from_json
from genfed.training.pixels import normalize_pixels
from genfed.training.synthetic_dataset import NO_CLIENT, SampleRequest, SyntheticBatch
from tests.conftest import left_by, start, tiny

TOYS = "tests.toys"


def evaluated(*toys: str, **changes: Any) -> dict[str, Any]:
    """Generators of every kind, with a reference classifier of all digits of 8×8."""
    method = {toy: {"kind": f"{TOYS}:{toy}", "rounds": 0} for toy in toys}
    settings: dict[str, Any] = {"metrics": {"samples": 200, "epochs": 15}, "method": method} | changes
    return tiny(*toys, federation={"max_examples": 1259}, **settings)


def test_a_leak_is_found_and_noise_is_silent(tmp_path: Path) -> None:
    leak, noise, burst, huge = start(evaluated("Copies", "Noise", "Burst", "Huge"), tmp_path / "run").trials
    assert leak.quality is not None
    assert noise.quality is not None
    assert leak.quality.samples == noise.quality.samples == 200
    assert leak.quality.architecture == "mlp"
    assert leak.quality.memorisation > 100 < leak.quality.memorisation_features  # of 1,000, about 160 stand in 200
    assert noise.quality.memorisation < 1 > noise.quality.memorisation_features

    assert leak.quality.train_on_real == noise.quality.train_on_real > 0.9
    assert leak.quality.train_on_synthetic > 0.8 > 0.3 > noise.quality.train_on_synthetic
    assert leak.quality.right_class > 0.95 > 0.3 > noise.quality.right_class
    assert leak.quality.frechet_real == noise.quality.frechet_real
    assert leak.quality.frechet < 2 * leak.quality.frechet_real < noise.quality.frechet
    for name in ("precision", "recall", "coverage"):
        assert getattr(leak.quality, name) > 0.7 > 0.3 > getattr(noise.quality, name), name

    for unfit in (burst, huge):
        assert unfit.quality is None
        assert unfit.failures == (
            "quality round 1: the generator's samples hold numbers that are not finite, or too large for a classifier: "
            "they are not evaluated",
        )


@pytest.mark.parametrize(("one", "two"), [(0, 1), (2, 5)])
def test_images_for_clients_by_hand(one: int, two: int, tmp_path: Path) -> None:
    """Client `one` has dark images, client `two` light ones, and nobody's image does not count. Where clients are
    excluded, their ids are not their places.
    """
    x = torch.randint(100, (40, 1, 8, 8), dtype=torch.uint8, generator=stream(0))
    x[20:] += 150
    infos = tuple(ClientInfo(i, "linear", 20) for i in (one, two))
    task = Task("image", (1, 8, 8), ("a", "b"))
    data = Data(x, torch.arange(40) % 2)
    shards: Any = FederatedData(task, infos, ((0, 20), (20, 40)), data, data)
    config = read_config(tiny("local", metrics={"samples": 10, "epochs": 20}))
    method, new_network = config.method["local"], Architectures().new
    judge = GeneratorEvaluator(config.metrics, torch.device("cpu"), shards, 0, new_network)
    fields = {"seed": 0, "method": method, "shards": shards, "folder": tmp_path, "compute": config.compute}
    trial: Any = SimpleNamespace(**fields, public=None, new_network=Architectures().new)
    labels, clients = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([one, one, one, two, NO_CLIENT])
    made = SyntheticBatch(x[[1, 2, 30, 31, 3]], SampleRequest(labels, clients, labels), labels)

    def sure(odds: float) -> dict[str, torch.Tensor]:
        return {"header.weight": torch.zeros(2, 64), "header.bias": torch.tensor([math.log(odds), 0.0])}

    told = judge._measure_clients(trial, SimpleNamespace(teachers={one: sure(3), two: sure(1)}), made)
    assert told == {
        "certainty": pytest.approx((0.75 + 0.25 + 0.75 + 0.5) / 4),
        "client_match": 3 / 4,  # the third of client `one` is light
        "clients_apart": 1.0,
    }
    assert judge._measure_clients(trial, SimpleNamespace(), made).keys() == {"client_match", "clients_apart"}
    nobody = dataclasses.replace(made.request, clients=torch.full_like(clients, NO_CLIENT))
    assert judge._measure_clients(trial, SimpleNamespace(), dataclasses.replace(made, request=nobody)) == {}


def test_a_stopped_run_is_judged_as_an_undisturbed_one_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = evaluated("Copies", "Noise", metrics={"samples": 30, "epochs": 1})
    whole = start(config, tmp_path / "whole")
    judge, calls = GeneratorEvaluator.__call__, list[str]()

    def stop(self: GeneratorEvaluator, trial: Any, state: Any, step: int) -> dict[str, Any]:
        calls.append(trial.label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(self, trial, state, step)

    monkeypatch.setattr(GeneratorEvaluator, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "run")
    again = start(config, tmp_path / "run", on_existing="resume")
    start(config, tmp_path / "run", on_existing="resume")
    assert calls == ["Copies", "Noise", "Noise"]
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    timeless = [[dataclasses.replace(t.quality, seconds=0.0) for t in r.trials if t.quality] for r in (whole, again)]
    assert timeless[0] == timeless[1]
    assert from_json((tmp_path / "run" / "report.json").read_text()).trials[0].quality is not None


def test_how_it_is_judged_may_change_on_resume(tmp_path: Path) -> None:
    config = evaluated("Noise", metrics={"samples": 0})
    assert start(config, tmp_path).trials[0].quality is None
    for samples in (20, 30, 0):
        changed = config | {"metrics": {"samples": samples, "epochs": 1, "architecture": "mlp-small"}}
        quality = start(changed, tmp_path, on_existing="resume").trials[0].quality
        assert (quality.samples if quality else 0) == samples
    assert not [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["phase"] == "quality"]


def test_another_seed_is_judged_otherwise(tmp_path: Path) -> None:
    one, other = start(evaluated("Copies", seeds=[0, 1], metrics={"samples": 30, "epochs": 1}), tmp_path).trials
    assert one.quality is not None
    assert other.quality is not None
    assert one.quality.frechet_real != other.quality.frechet_real


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("mpl", r"metrics.architecture: no such architecture: 'mpl'; did you mean 'mlp'"),
        ("cnn8", r"metrics.architecture: architecture cnn8: images of 8×8"),
        (f"{TOYS}:NoLinear", r"metrics.architecture = '.*NoLinear': it has no linear layer"),
    ],
)
def test_a_reference_that_cannot_judge_is_refused(architecture: str, says: str, tmp_path: Path) -> None:
    quality = {"samples": 20, "architecture": architecture}
    with pytest.raises(GenfedError, match=says):
        start(evaluated("Noise", metrics=quality), tmp_path / "run")
    start(tiny("local", metrics=quality), tmp_path / "run")  # there is nothing to judge


def test_arithmetic_is_counted_as_by_hand_and_changes_nothing(tmp_path: Path) -> None:
    (trial,) = start(tiny("fedavg"), tmp_path / "counted").trials
    # 20 examples a client, 2 rounds of 1 epoch; the first layer needs no gradient of its input.
    linear = 2 * 20 * (64 * 10) * 2
    mlp = 2 * 20 * (64 * 64) * 2 + 2 * 20 * (64 * 10) * 3
    assert trial.flops == 2 * (linear + mlp) / 2
    assert trial.parameters == (650 + (64 * 65 + 650)) / 2
    start(tiny("fedavg", metrics={"samples": 0, "flops": False}), tmp_path / "plain")
    counted, plain = left_by(tmp_path / "counted"), left_by(tmp_path / "plain")
    rows = [{k: v for k, v in row.items() if k not in ("flops", "parameters")} for row in counted.pop("metrics")]
    assert any(row.get("flops") for row in left_by(tmp_path / "counted")["metrics"])
    assert rows == plain.pop("metrics")
    assert counted.keys() == plain.keys()
    states = [
        dataclasses.replace(_checkpoint(tmp_path / name), rows_digest="", quality_digest="")
        for name in ("counted", "plain")
        for name in ("counted", "plain")
    ]
    assert digest(pack(states[0])) == digest(pack(states[1]))  # it names the rows that it counts on


def _checkpoint(out: Path) -> Checkpoint[Any]:
    at = read_checkpoint(read_config(out).method["fedavg"], out / "trials" / "fedavg" / "seed-0")
    assert at is not None
    return at


@pytest.mark.parametrize("first", [True, False])
def test_what_is_counted_in_some_phases_alone_is_no_count(first: bool, tmp_path: Path) -> None:
    """The run is resumed with another setting after its first phase."""

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    def counting(flops: bool) -> dict[str, Any]:
        return tiny("gefl", metrics={"samples": 0, "flops": flops})

    with pytest.raises(KeyboardInterrupt):
        start(counting(first), tmp_path, notify=stop)
    (trial,) = start(counting(not first), tmp_path, on_existing="resume").trials
    assert [cost.flops is not None for cost in trial.costs] == [first, not first, False]
    assert trial.flops is None
    assert trial.parameters is None


def test_only_the_first_seed_is_counted(tmp_path: Path) -> None:
    first, second = start(tiny("local", seeds=[3, 1]), tmp_path).of("local")[::-1]
    assert first.flops is not None
    assert second.flops is None
    assert second.parameters is None


PUBLISHED = {"accuracy": 95.47, "source": "arXiv 2412.18460, table II"}


def test_published_figures_are_kept_with_the_run(tmp_path: Path) -> None:
    config = read_config(tiny("fedavg", published={"fedavg": PUBLISHED, "gefl": PUBLISHED}))  # gefl is not run
    assert list(config.published) == ["fedavg"]
    report = runs.run(config, out=tmp_path)
    assert report.published["fedavg"].metric == "best round on test"
    assert json.loads((tmp_path / "report.json").read_text())["published"]["fedavg"]["accuracy"] == 95.47
    (tmp_path / "other.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "other.toml") == config
    without = runs.run(read_config(tiny("fedavg")), out=tmp_path, on_existing="resume")
    assert without.published == {}
    assert without.trials == report.trials


@pytest.mark.parametrize(
    ("figure", "says"),
    [
        ({"fedavgg": PUBLISHED}, r"published.fedavgg: no such method: 'fedavgg'; did you mean 'fedavg'"),
        ({"fedavg": PUBLISHED | {"accuracy": 101.0}}, r"published.fedavg.accuracy = 101.0: "),
        ({"fedavg": PUBLISHED | {"metric": "best"}}, r"published.fedavg.metric = 'best': .*best round on test"),
        ({"fedavg": {"accuracy": 1.0}}, r"published.fedavg.source: this setting is required"),
        ({"fedavg": 95.0}, r"published.fedavg = 95.0: expected a table"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(figure: Any, says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        read_config(tiny("fedavg", published=figure))


@pytest.mark.parametrize("name", ["quality", "evaluate"])
def test_a_phase_cannot_have_a_name_of_the_runs_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = read_config(tiny("fedavg")).method["fedavg"]
    (phase,) = flatten_phases(method.phases())
    monkeypatch.setattr(type(method), "phases", lambda self: [dataclasses.replace(phase, name=name)])
    with pytest.raises(GenfedError, match=f"has a phase named '{name}', which is the run's own"):
        add_evaluation(method, Data(torch.zeros(0, 1), torch.zeros(0)))


def test_a_generator_of_features_is_judged_among_features(tmp_path: Path) -> None:
    config = tiny("gefl_f") | {"metrics": {"samples": 60, "epochs": 2}}
    (trial,) = start(config, tmp_path / "run").trials
    assert trial.quality is not None
    assert trial.quality.architecture == "mlp"
    assert not trial.quality.stored
    rows = [row for row in left_by(tmp_path / "run")["metrics"] if row["phase"] == "quality"]
    start(config, tmp_path / "run", on_existing="resume")
    assert [row for row in left_by(tmp_path / "run")["metrics"] if row["phase"] == "quality"] == rows

    settings = read_config(tmp_path / "run")
    method, dataset = settings.method["gefl_f"], load_data(settings)
    chosen = select_trial(RunFolder(tmp_path / "run"), settings, "gefl_f", None, ["gefl_f"])
    clients = partition_data(settings, dataset, 0).clients
    server = new_server(chosen.at.task, clients, settings.compute, Architectures().new, 0, 0, "quality")
    x = dataset.test.x[:5]
    with torch.no_grad():
        expected = load_trained(chosen, 1).network.get_submodule("extractor").eval()(normalize_pixels(x))
    assert torch.equal(method.represent(server, chosen.at.state, x), expected)
