"""What a method must come to in the cases where it is another one, and what GeFL's phases do."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.config.reader import read_config
from genfed.core.client import Client
from genfed.core.record import load
from genfed.core.task import Data
from genfed.experiment.checkpoint import Checkpoint, read_checkpoint
from genfed.generators.cvae import CVAENetwork
from genfed.methods.bases import federated_generator
from genfed.methods.gefl import GeFL
from genfed.training import classifier, fit
from genfed.training.weights import Model
from tests.conftest import TINY, TINY_GENERATORS, left_by, start, tiny


def state(out: Path, label: str, method: Any) -> Any:
    at: Checkpoint[Any] | None = read_checkpoint(method, out / "trials" / label / "seed-0")
    assert at is not None
    return at.state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def classifiers(out: Path, label: str) -> Any:
    return state(out, label, read_config(out).method[label]).classifiers


def test_fedprox_without_its_term_is_fedavg(tmp_path: Path) -> None:
    start(tiny("fedavg", "fedprox", method={"fedprox": {"mu": 0.0}}), tmp_path / "run")
    start(tiny("fedprox", method={"fedprox": {"mu": 1.0}}), tmp_path / "strong")
    average, none, strong = (
        classifiers(tmp_path / run, label)
        for run, label in (("run", "fedavg"), ("run", "fedprox"), ("strong", "fedprox"))
    )
    for architecture, weights in average.items():
        assert same(weights, none[architecture])
        assert not same(weights, strong[architecture])


def test_with_one_client_fedavg_is_local_training_and_the_ceiling(tmp_path: Path) -> None:
    """One client holds all data, so the average, what it trains alone and the pooled model are one."""
    out = tmp_path / "run"
    alone = {"clients": 1, "max_examples": 40, "architectures": ["mlp-small"]}
    start(tiny("fedavg", "local", "centralised", federation=alone), out)
    averaged = classifiers(out, "fedavg")["mlp-small"]
    for label in ("local", "centralised"):
        kept = load(Model, out / "trials" / label / "seed-0" / "clients" / "0" / "model.1.safetensors")
        assert same(kept.classifier, averaged)


def test_gefl_without_generated_examples_is_fedavg(tmp_path: Path) -> None:
    """No generator rounds and no synthetic epochs: what is left of a joint round is FedAvg's, but for its draws."""
    small = {"kind": "cvae", "width": 4, "latent_dim": 4}
    nothing = {"generator_rounds": 0, "synthetic_epochs": 0, "generator": small}
    one_batch = {"rounds": 2, "training": {"epochs": 1, "batch_size": 100}}  # one step: its order does not matter
    start(tiny("gefl", "fedavg", method={"gefl": nothing}, defaults=one_batch), tmp_path / "run")
    ours, average = (classifiers(tmp_path / "run", label) for label in ("gefl", "fedavg"))
    for architecture, weights in average.items():
        for name, value in weights.items():
            torch.testing.assert_close(ours[architecture][name], value, rtol=1e-4, atol=1e-6)


def test_the_generator_learns_in_its_phase_and_stands_still_in_the_joint_rounds(tmp_path: Path) -> None:
    """Rounds of the generator change it (it is not thrown away), joint rounds do not, and every client's count."""
    method = tiny("gefl")["method"]["gefl"]
    begun, trained, both = (
        start_and_read(tmp_path / name, method | rounds, classifier_rounds)
        for name, rounds, classifier_rounds in (
            ("begun", {"generator_rounds": 0}, 0),
            ("trained", {"generator_rounds": 2}, 0),
            ("both", {"generator_rounds": 2}, 2),
        )
    )
    assert not same(begun.generator, trained.generator)
    assert same(trained.generator, both.generator)
    assert not same(trained.classifiers["linear"], both.classifiers["linear"])


def start_and_read(out: Path, method: dict[str, Any], rounds: int) -> Any:
    start(tiny("gefl", method={"gefl": method | {"rounds": rounds}}), out)
    return state(out, "gefl", read_config(out).method["gefl"])


def test_the_global_generator_is_the_plain_mean_of_the_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unweighted, over the whole state dict with BatchNorm's statistics, as the paper has it."""
    uploads: list[dict[str, torch.Tensor]] = []
    train = GeFL.train_generator

    @functools.wraps(train)
    def watched(self: GeFL, client: Client, sent: federated_generator.GeneratorStart) -> Any:
        reply = train(self, client, sent)
        uploads.append(reply.upload.generator)
        return reply

    monkeypatch.setattr(GeFL, "train_generator", watched)
    method = tiny("gefl")["method"]["gefl"] | {"generator_rounds": 1}
    method["generator"] = method["generator"] | {"norm": "batch"}
    skewed = {"kind": "quantity_skew", "alpha": 0.5, "minimum": 5}
    start(tiny("gefl", method={"gefl": method | {"rounds": 0}}, partition=skewed), tmp_path / "run")
    mean = state(tmp_path / "run", "gefl", read_config(tmp_path / "run").method["gefl"]).generator
    assert len(uploads) == 4
    assert any("running_var" in name for name in mean)
    for name, value in mean.items():
        if value.is_floating_point():
            expected = torch.stack([u[name].double() for u in uploads]).mean(0)
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_what_stays_at_home_goes_on_from_round_to_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept encoders make uploads smaller, are each client's own, and a round starts from what the one before left."""
    begun: list[dict[str, torch.Tensor]] = []

    def watched(objectives: Any, *args: Any, **options: Any) -> float:
        network = objectives[0].loss.__self__
        begun.append({k: v.clone() for k, v in network.state_dict().items() if not network.is_uploaded(k)})
        return fit.fit(objectives, *args, **options)

    monkeypatch.setattr(federated_generator, "fit", watched)
    up = []
    for keep in (False, True):
        begun.clear()
        generator = tiny("gefl")["method"]["gefl"]["generator"] | {"keep_encoder": keep}
        method = {"gefl": {"generator_rounds": 2, "generator_epochs": 1, "rounds": 0, "generator": generator}}
        start(tiny("gefl", method=method), tmp_path / str(keep))
        rows = left_by(tmp_path / str(keep))["metrics"]
        up.append([r["up_bytes"] for r in rows if r["phase"] == "generator" and r["client"] is not None])
    assert max(up[1]) < 0.6 * min(up[0])
    assert len(begun) == 2 * 4
    for client in range(4):
        folder = tmp_path / "True" / "trials" / "gefl" / "seed-0" / "clients" / str(client)
        left, at_the_end = (
            load(federated_generator.GeneratorMemory, folder / f"generator.{step}.safetensors").weights
            for step in (0, 1)
        )
        assert same(begun[4 + client], left)
        assert not same(left, begun[client])
        assert not same(left, at_the_end)
    assert not same(begun[4], begun[5])


@pytest.mark.parametrize(("kind", "keep"), [("cvae", "keep_encoder"), ("dcgan", "keep_discriminator")])
def test_the_first_round_is_the_same_whatever_stays_at_home(kind: str, keep: str, tmp_path: Path) -> None:
    """What stays begins at every client with the common initial weights, as if it had been sent."""
    whole, half = (
        start_and_read(tmp_path / str(at_home), TINY["gefl"] | {"generator": generator, "generator_rounds": 1}, 0)
        for at_home in (False, True)
        for generator in (TINY_GENERATORS[kind] | {keep: at_home},)
    )
    assert len(half.generator) < len(whole.generator)
    assert all(torch.equal(value, whole.generator[name]) for name, value in half.generator.items())


def test_generator_rounds_know_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of all generator rounds that is done, those between the joint ones with them; learning rates follow."""
    seen: list[tuple[float, float]] = []

    def watched(objectives: Any, *args: Any, **options: Any) -> float:
        network = objectives[0].loss.__self__
        seen.append((network.asked, objectives[0].optimizer.param_groups[0]["lr"]))
        return fit.fit(objectives, *args, **options)

    def pace(self: Any, progress: float) -> float:
        self.asked = progress
        return 1 - progress

    monkeypatch.setattr(federated_generator, "fit", watched)
    monkeypatch.setattr(CVAENetwork, "learning_rate_factor", pace)
    method = tiny("gefl")["method"]["gefl"] | {"interleaved": 2}
    start(tiny("gefl", method={"gefl": method}), tmp_path / "gefl")
    assert seen == [(t / 4, 1e-3 * (1 - t / 4)) for t in range(4) for _ in range(4)]
    seen.clear()
    start(tiny("gefl_f", defaults={"rounds": 0}), tmp_path / "gefl_f")
    assert seen == [(0.0, 1e-3)] * 4 + [(0.5, 5e-4)] * 4


def test_steps_on_generated_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T_s · max(1, ⌊n / B⌋) steps of B examples, y over all classes, before the real ones; n = 20, B = 8, T_s = 3."""
    seen: list[tuple[int, int | None]] = []
    learn = classifier.train

    def watched(
        network: Any, client: Client, how: Any, *, data: Data | None = None, epochs: Any = None, **options: Any
    ) -> float:
        seen.append((len(client.data) if data is None else len(data), epochs))
        if options.get("public"):
            assert data is not None
            assert int(data.y.min()) >= 0
            assert int(data.y.max()) <= 9
            assert float(data.x.abs().max()) <= 1, "real and generated examples are on one scale"
        return learn(network, client, how, data=data, epochs=epochs, **options)

    monkeypatch.setattr(federated_generator, "train", watched)
    method = tiny("gefl")["method"]["gefl"] | {"synthetic_epochs": 3, "rounds": 1}
    start(tiny("gefl", method={"gefl": method}), tmp_path / "run")
    assert seen == [(3 * 2 * 8, 1), (20, None)] * 4


def test_bytes_are_those_of_the_weights(tmp_path: Path) -> None:
    start(tiny("fedavg", federation={"clients": 2, "max_examples": 40, "architectures": ["linear"]}), tmp_path / "run")
    rows = [r for r in left_by(tmp_path / "run")["metrics"] if r["phase"] == "train" and r["client"] is not None]
    weights = 4 * (64 * 10 + 10)
    for row in rows:
        assert weights < row["up_bytes"] == row["down_bytes"] < weights + 300  # the names come on top
