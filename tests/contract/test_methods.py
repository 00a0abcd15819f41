"""What every method must do, whichever it is: one suite for all that the registry knows."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.config import registry
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo, Collect, Mean, list_groups
from genfed.core.errors import GenfedError
from genfed.core.phase import flatten_phases
from genfed.core.record import Packed, digest, from_bytes, pack, to_bytes, unpack
from genfed.core.task import Data
from genfed.engines.client_runner import ClientRunner
from genfed.engines.in_process import InProcess
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure, Job
from genfed.experiment import evaluation, local_clients
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.evaluation import add_evaluation
from genfed.experiment.trial_loop import TrialLoop
from genfed.secure_aggregation.fixed_point import pack_vectors
from genfed.secure_aggregation.protocol import reason_to_refuse_secure
from tests.conftest import STORING, TINY_GENERATORS, fields_of, left_by, start, tiny

METHODS = [*sorted(registry.list_classes(registry.METHODS)), STORING]
TRAINLESS = [name for name in METHODS if name != STORING and "training" not in fields_of({"method": {}}, name)]
"""Methods without training: what they know they have computed."""
pytestmark = pytest.mark.parametrize("method", METHODS)


class StoppedError(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What an undisturbed run of a method leaves; it is run when it is first asked for."""

    class Left(dict[str, dict[str, Any]]):
        def __missing__(self, method: str) -> dict[str, Any]:
            out = tmp_path_factory.mktemp(method) / "run"
            start(tiny(method), out)
            return self.setdefault(method, left_by(out))

    return Left()


def test_repeats(method: str, once: dict[str, Any], tmp_path: Path) -> None:
    start(tiny(method), tmp_path / "run")
    assert left_by(tmp_path / "run") == once[method]


def test_another_seed_differs(method: str, once: dict[str, Any], tmp_path: Path) -> None:
    start(tiny(method, seeds=[1]), tmp_path / "run")
    left = left_by(tmp_path / "run")
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (left["metrics"], once[method]["metrics"])]
    if method in TRAINLESS:
        states = (
            left[f"trials/{method}/seed-1/state.safetensors"],
            once[method][f"trials/{method}/seed-0/state.safetensors"],
        )
        losses = [[state] for state in states]
    assert len(losses[0]) == len(losses[1]) > 0
    assert all(a != b for a, b in zip(*losses, strict=True))


def test_an_upload_that_is_collected_is_looked_at(method: str) -> None:
    for phase in flatten_phases(read_config(tiny(method)).method[method].phases()):
        if any(isinstance(how, Collect) for how in phase.aggregate.values()):
            assert phase.check is not None, phase.name


def test_numbers_that_no_client_can_have_exclude_their_client(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client uploads 1e15 in every number with a point, in every phase."""
    wrong: set[tuple[str, int]] = set()
    work = ClientRunner.work

    def exaggerate(site: ClientRunner, step: RoundId, client: int, sent: Packed) -> PackedReply:
        answer, phase = work(site, step, client, sent), site._phases[step.phase]
        if client != 1:
            return answer
        upload = _enlarge(unpack(phase.wire_types.uploaded, answer.upload))
        if digest(packed := pack(upload)) == digest(answer.upload):
            return answer
        wrong.add((step.phase, step.round))
        return dataclasses.replace(answer, upload=packed)

    monkeypatch.setattr(ClientRunner, "work", exaggerate)
    start(tiny(method, federation={"quorum": 0.5}), tmp_path / "run")
    rows = left_by(tmp_path / "run")["metrics"]
    failed = {(row["phase"], row["round"]) for row in rows if "1" in row.get("failed", {})}
    assert failed == wrong
    at: Any = read_checkpoint(read_config(tmp_path / "run").method[method], tmp_path / f"run/trials/{method}/seed-0")
    for path, tensor in pack(at.state).tensors.items():
        assert not tensor.is_floating_point() or not tensor.numel() or float(tensor.abs().max()) < 1e9, path


def _enlarge(value: Any) -> Any:
    """Returns a record's value with 1e15 for all numbers that have a point."""
    if isinstance(value, torch.Tensor):
        return torch.full_like(value, 1e15) if value.is_floating_point() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: _enlarge(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    if isinstance(value, dict):
        return {key: _enlarge(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_enlarge, value))
    return 1e15 if isinstance(value, float) else value


@pytest.mark.usefixtures("in_pool")
def test_workers_do_not_change_it(method: str, once: dict[str, Any], tmp_path: Path) -> None:
    start(tiny(method, compute={"workers": 2}), tmp_path / "run")
    assert left_by(tmp_path / "run") == once[method]


def test_resumes_after_a_stop_at_any_client(method: str, once: dict[str, Any], tmp_path: Path) -> None:
    """Stops at every third client of the run, and each time goes on in a new `run`."""
    out = tmp_path / "run"
    stops = 0
    while True:
        # A round and its scoring tell 10 times at most, so each restart gets further than the one before. The first
        # stop is in the first round: some methods have no other.
        left = 11 + stops % 8 if stops else 4

        def stop(progress: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise StoppedError

        try:
            start(tiny(method), out, on_existing="resume", notify=stop)
            break
        except StoppedError:
            stops += 1
            assert stops < 50
    assert stops >= 1
    assert left_by(out) == once[method]


def test_order_of_completion_does_not_change_it(
    method: str, once: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards(InProcess):
        def exchange(self, step: RoundId, jobs: Iterable[Job]) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
            yield from reversed(list(super().exchange(step, jobs)))

    monkeypatch.setattr(local_clients, "InProcess", Backwards)
    start(tiny(method), tmp_path / "run")
    assert left_by(tmp_path / "run") == once[method]


def test_records_round_trip_and_inputs_are_not_mutated(
    method: str, once: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record that crosses is watched: it survives the codec, and neither side changes what it was given."""
    crossed = 0
    work = ClientRunner.work

    def watched(site: ClientRunner, step: RoundId, client: int, sent: Packed) -> PackedReply:
        nonlocal crossed
        before, data = digest(sent), digest(pack(site._federation))
        answer = work(site, step, client, sent)
        assert digest(sent) == before, f"{step} changed in place what it was sent"
        assert digest(pack(site._federation)) == data, f"{step} changed the client's data in place"
        phase = site._phases[step.phase]
        for kind, packed in ((phase.wire_types.sent, sent), (phase.wire_types.uploaded, answer.upload)):
            there = unpack(kind, from_bytes(to_bytes(packed)))
            assert digest(pack(there)) == digest(packed)
        assert {f.name for f in dataclasses.fields(phase.wire_types.uploaded)} == phase.aggregate.keys(), (
            "an upload field is not reduced"
        )
        crossed += 1
        return answer

    asked = TrialLoop._run_round

    def unmoved(run: TrialLoop, phase: Any, step: RoundId, at: Any) -> Any:
        before = digest(pack(at.state))
        result = asked(run, phase, step, at)
        assert digest(pack(at.state)) == before, f"{step}: a server function changed the state in place"
        return result

    monkeypatch.setattr(ClientRunner, "work", watched)
    monkeypatch.setattr(TrialLoop, "_run_round", unmoved)
    start(tiny(method), tmp_path / "run")
    assert crossed > 0
    assert left_by(tmp_path / "run") == once[method]


def test_no_form_under_masks_depends_on_the_examples(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A masked upload says how its numbers are arranged, without a mask; clients differ only by their examples."""
    seen: dict[tuple[str, int, str], set[str]] = {}
    work = ClientRunner.work

    def watched(site: ClientRunner, step: RoundId, client: int, sent: Packed) -> PackedReply:
        answer, phase, info = work(site, step, client, sent), site._phases[step.phase], site._federation.clients[client]
        if reason_to_refuse_secure(phase) is None:
            upload = unpack(phase.wire_types.uploaded, answer.upload)
            members = dict.fromkeys(list_groups(phase.aggregate, info), 1)
            for group, vector in pack_vectors(upload, 1.0, phase.aggregate, info, members).items():
                seen.setdefault((phase.name, step.round, group), set()).add(vector.form)
        return answer

    monkeypatch.setattr(ClientRunner, "work", watched)
    start(tiny(method, partition={"kind": "dirichlet"}, evaluation={"every": 0}), tmp_path / "run")
    assert all(len(forms) == 1 for forms in seen.values()), seen


def test_everybody_is_scored_as_if_alone(
    method: str, once: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients who were sent the same share a score, unless what they kept makes the difference."""
    number = itertools.count()
    monkeypatch.setattr(evaluation, "digest", lambda packed: f"never twice {next(number)}")
    start(tiny(method), tmp_path / "run")
    assert next(number) > 0
    assert left_by(tmp_path / "run") == once[method]


def test_partial_participation_and_unequal_clients(method: str, tmp_path: Path) -> None:
    changes = {"federation": {"client_fraction": 0.5}, "partition": {"kind": "quantity_skew", "alpha": 0.5}}
    report = start(tiny(method, **changes), tmp_path / "run")
    assert not any(trial.failures for trial in report.trials)
    rows = left_by(tmp_path / "run")["metrics"]
    alone = {
        phase.name for phase in flatten_phases(read_config(tiny(method)).method[method].phases()) if phase.work is None
    }
    trained = {(r["step"], r["phase"]) for r in rows if r["phase"] not in alone}
    for key in trained:
        clients = [r for r in rows if (r["step"], r["phase"]) == key and r["client"] is not None]
        made = read_config(tiny(method)).method[method]
        everybody = 2 if made.pooled else 4
        whole = made.reference or key[1] == "evaluate"  # references train everybody, and everybody is scored
        assert len(clients) == (everybody if whole else everybody // 2)


def test_one_client(method: str, tmp_path: Path) -> None:
    first = tiny(method)["federation"]["architectures"][:1]
    start(tiny(method, federation={"clients": 1, "architectures": first}), tmp_path / "run")


def test_augmentation_changes_the_training_or_is_refused(method: str, tmp_path: Path) -> None:
    """A setting that nobody reads would make "with MixUp" a row that is none."""
    if method in TRAINLESS:
        with pytest.raises(GenfedError, match="training"):
            start(tiny(method, defaults={"training": {"augmentation": "mixup"}}), tmp_path / "run")
        return
    augmented = tiny(method)
    own = augmented["method"].get(method, {})
    training = own["client_training"] if "client_training" in own else augmented["defaults"]["training"]
    training |= {"augmentation": "mixup"}
    if "training" in read_config(tiny(method)).method[method].unaugmented:
        with pytest.raises(GenfedError, match="this method does not augment there"):
            start(augmented, tmp_path / "mixup")
        return
    start(tiny(method), tmp_path / "none")
    start(augmented, tmp_path / "mixup")
    seen = []
    for out in (tmp_path / "none", tmp_path / "mixup"):
        at: Any = read_checkpoint(read_config(out).method[method], out / "trials" / method / "seed-0")
        losses = [row.get("loss") for row in left_by(out)["metrics"]]
        seen.append((digest(pack(at.state)), losses))  # the one where a server trains, the other where clients do
    assert seen[0] != seen[1]


def test_is_private_or_refused(method: str, tmp_path: Path) -> None:
    """Under [privacy] a method is refused before training, or every client pays and nothing else leaves."""
    config = tiny(method, privacy={"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"})
    config["federation"]["architectures"] = [
        f"{name}-gn" if name.startswith("cnn") else name for name in config["federation"]["architectures"]
    ]
    if config["method"].get(method, {}).get("generator", {}).get("kind") in TINY_GENERATORS:
        config["method"][method] |= {"generator": config["method"][method]["generator"] | {"norm": "group"}}
    if read_config(config).method[method].private_trainings() is None or method == "avgkd":
        with pytest.raises(GenfedError, match=rf"{method} cannot be run under \[privacy\]"):
            start(config, tmp_path / "run")
        return
    (trial,) = start(config, tmp_path / "run").trials
    assert not trial.failures
    assert trial.protection is not None
    assert trial.protection.epsilon is not None
    assert trial.protection.epsilon > 0
    rows = left_by(tmp_path / "run")["metrics"]
    assert not any(row.keys() & {"loss", "synthetic_loss", "flops"} or row.get("own") for row in rows)


def test_is_client_private_or_refused(method: str, tmp_path: Path) -> None:
    """Under client-level privacy a method is refused before training, or each round with uploads is charged."""
    # With more noise a model may diverge in some draws, and its client is excluded.
    config = tiny(method, privacy={"kind": "dp_fedavg", "noise_multiplier": 0.1, "delta": 1e-3, "accountant": "rdp"})
    known = read_config(config).method[method]
    if known.pooled:
        assert start(config, tmp_path / "run").trials[0].protection is None
        return
    uploading = [phase for phase in flatten_phases(known.phases()) if phase.aggregate]
    if not all(isinstance(how, Mean) for phase in uploading for how in phase.aggregate.values()):
        with pytest.raises(GenfedError, match=rf"{method} cannot be run under client-level privacy"):
            start(config, tmp_path / "run")
        return
    (trial,) = start(config, tmp_path / "run").trials
    assert not trial.failures
    assert trial.protection is not None
    assert trial.protection.steps == sum(phase.rounds for phase in uploading if isinstance(phase.rounds, int))


def test_every_phase_is_well_formed(method: str) -> None:
    config = read_config(tiny(method))
    phases = add_evaluation(config.method[method], Data(torch.zeros(0, 1), torch.zeros(0)))
    assert len(phases) > 1
    for phase in flatten_phases(config.method[method].phases()):
        assert phase.name.isidentifier()
