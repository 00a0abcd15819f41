"""What the baselines by distillation compute, and the cases in which they are FedAvg or local training."""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Reduced
from genfed.core.record import load
from genfed.core.rng import stream
from genfed.core.task import Data, Task
from genfed.experiment.checkpoint import Checkpoint, read_checkpoint
from genfed.methods import avgkd, fedkd
from genfed.methods.bases.averaging import Classifiers
from genfed.methods.feddf import FedDF
from genfed.methods.fedkd import FedKD
from genfed.methods.fml import FML
from genfed.training import distillation
from genfed.training.low_rank import FactoredWeights
from genfed.training.weights import Model
from tests.conftest import left_by, start, tiny

CPU = torch.device("cpu")
TASK = Task("table", (2,), ("a", "b"))
LOG3 = math.log(3)
SKEWED = {"kind": "quantity_skew", "alpha": 0.5, "minimum": 5}


def state(out: Path, label: str) -> Any:
    at: Checkpoint[Any] | None = read_checkpoint(read_config(out).method[label], out / "trials" / label / "seed-0")
    assert at is not None
    return at.state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def kept(out: Path, label: str, client: int, step: int) -> dict[str, Tensor]:
    file = out / "trials" / label / "seed-0" / "clients" / str(client) / f"model.{step}.safetensors"
    return load(Model, file).classifier


def trained(out: Path, label: str = "train") -> list[dict[str, Any]]:
    return [r for r in left_by(out)["metrics"] if r["phase"] == label and r["client"] is not None]


def watched(monkeypatch: pytest.MonkeyPatch, method: type[Any]) -> list[tuple[int, Any, Any]]:
    """Gathers (examples, what was sent, the upload) of every client's round."""
    seen: list[tuple[int, Any, Any]] = []
    train = method.train

    @functools.wraps(train)
    def watch(self: Any, client: Client, sent: Any) -> Any:
        reply = train(self, client, sent)
        seen.append((len(client.data), sent, reply.upload))
        return reply

    monkeypatch.setattr(method, "train", watch)
    return seen


class Constant(nn.Module):
    """The same logits for every example."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), 2)


def constant(*logits: float) -> dict[str, Tensor]:
    return {"logits": torch.tensor(logits)}


# AvgKD.


def test_the_first_round_of_avgkd_is_fedavg_and_the_second_is_not(tmp_path: Path) -> None:
    for rounds in (1, 2):
        out = tmp_path / str(rounds)
        start(tiny("fedavg", "avgkd", defaults={"rounds": rounds}), out)
        average, ours = (state(out, label).classifiers for label in ("fedavg", "avgkd"))
        assert all(same(average[a], ours[a]) == (rounds == 1) for a in average)


def test_the_targets_of_avgkd_by_hand() -> None:
    """¼ and ¾ from one other, ½ and ½ from another, 1 and 0 from the label: 1.75 and 1.25 in all."""
    unused: Any = None
    data = Data(torch.zeros(2, 2), torch.tensor([0, 1]))
    client = Client(
        ClientInfo(0, "a", 2), TASK, data, unused, stream(0), 0, CPU, "float32", lambda name, rng: Constant()
    )
    got = avgkd.mix_targets(client, {"b": constant(0.0, LOG3), "c": constant(5.0, 5.0)})
    first, second = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.75 + 0.5 - 0.25 - 0.5 + 1))
    assert got.tolist() == [pytest.approx([first, 1 - first]), pytest.approx([second, 1 - second])]
    alone = 1 / (1 + math.exp(-1))
    alike = avgkd.mix_targets(client, {})
    assert alike.tolist() == [pytest.approx([alone, 1 - alone]), pytest.approx([1 - alone, alone])]


def test_avgkd_sends_every_architecture_from_round_two_on(tmp_path: Path) -> None:
    start(tiny("avgkd"), tmp_path / "run")
    linear, small = 4 * (64 * 10 + 10), 4 * (64 * 64 + 64 + 64 * 10 + 10)
    for row in trained(tmp_path / "run"):
        own = linear if row["architecture"] == "linear" else small
        down = own if row["round"] == 0 else linear + small
        assert down < row["down_bytes"] < down + 600  # the names come on top
        assert own < row["up_bytes"] < own + 600


# FedDF.


def test_feddf_without_distillation_is_fedavg(tmp_path: Path) -> None:
    start(tiny("fedavg", "feddf", method={"feddf": {"distillation_steps": 0}}), tmp_path / "none")
    start(tiny("feddf", method={"feddf": {"distillation_steps": 1}}), tmp_path / "one")
    average, none = (state(tmp_path / "none", label).classifiers for label in ("fedavg", "feddf"))
    one = state(tmp_path / "one", "feddf").classifiers
    for architecture, weights in average.items():
        assert same(weights, none[architecture])
        assert not same(weights, one[architecture])


def test_feddf_teaches_the_mean_of_all_clients_logits() -> None:
    """Logits (3·log 3, 0), (0, 0) and (0, 0) have the mean (log 3, 0): ¾ and ¼, for each architecture that answered."""
    clients = (ClientInfo(0, "a", 1), ClientInfo(1, "a", 3), ClientInfo(2, "b", 1), ClientInfo(3, "c", 1))
    public = torch.zeros(20, 2)
    server = Server(TASK, clients, 0, stream(0), 0, CPU, "float32", lambda name, rng: Constant(), public)
    received = {0: constant(3 * LOG3, 0.0), 1: constant(0.0, 0.0), 2: constant(0.0, 0.0)}
    begun = Classifiers({name: constant(0.5, 0.0) for name in "abc"})
    reduced = Reduced({"classifier": received}, clients[:3])
    method = FedDF(distillation_steps=300, distillation_batch_size=8, distillation_learning_rate=0.05)
    after = method.fuse(server, begun, reduced).classifiers
    for name in "ab":
        assert torch.softmax(after[name]["logits"], 0).tolist() == pytest.approx([0.75, 0.25], abs=1e-3)
    assert after["c"]["logits"].tolist() == [0.5, 0.0]
    assert received[0]["logits"].tolist() == pytest.approx([3 * LOG3, 0.0])
    means = FedDF(distillation_steps=0).fuse(server, begun, reduced).classifiers
    assert means["a"]["logits"].tolist() == pytest.approx([3 * LOG3 / 4, 0.0])  # by examples, 1 and 3


def test_the_rate_of_feddf_falls_to_nothing() -> None:
    """Adam's first steps are as long as its rate: over k steps of a cosine they sum to (k + 1) / 2 of them."""
    server = Server(TASK, (), 0, stream(0), 0, CPU, "float32", lambda name, rng: Constant(), torch.zeros(3, 2))
    method = FedDF(distillation_steps=9, distillation_batch_size=2, distillation_learning_rate=1e-3)
    after = method.distill(server, {"a": constant(0.0, 0.0)}, [("a", constant(50.0, 0.0))])
    assert after["a"]["logits"].tolist() == pytest.approx([5e-3, -5e-3], rel=0.01)


def test_feddf_needs_public_examples(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=r"feddf needs public examples: name a data source in the table \[public\]"):
        start(tiny("feddf") | {"public": None}, tmp_path / "run")


def test_feddf_needs_a_public_example() -> None:
    server = Server(TASK, (), 0, stream(0), 0, CPU, "float32", lambda name, rng: Constant(), torch.zeros(0, 2))
    with pytest.raises(
        GenfedError, match=r"feddf needs public examples, and the source in the table \[public\] has none"
    ):
        FedDF().init(server)


def test_feddf_leaves_the_clients_statistics() -> None:
    """The public examples are far from the clients': what BatchNorm knows of the clients' must survive them."""
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    begun = {k: v.clone() for k, v in network.state_dict().items()}
    public = torch.full((4, 2), 5.0)
    server = Server(TASK, (), 0, stream(0), 0, CPU, "float32", lambda name, rng: copy.deepcopy(network), public)
    method = FedDF(distillation_steps=3, distillation_batch_size=1)
    other = begun | {"1.bias": torch.tensor([5.0, 0.0])}
    after = method.distill(server, {"a": begun}, [("a", other)])["a"]
    assert torch.equal(after["0.running_mean"], begun["0.running_mean"])
    assert not torch.equal(after["1.weight"], begun["1.weight"])


# FML.


def test_fml_that_heeds_labels_alone_is_local_training(tmp_path: Path) -> None:
    start(tiny("local", "fml", method={"fml": {"alpha": 1.0}}), tmp_path / "run")
    start(tiny("fml", method={"fml": {"alpha": 0.9}}), tmp_path / "less")
    for client in range(4):
        alone = kept(tmp_path / "run", "local", client, 1)
        assert same(kept(tmp_path / "run", "fml", client, 1), alone)
        assert not same(kept(tmp_path / "less", "fml", client, 1), alone)


def test_the_loss_of_fml_by_hand() -> None:
    """p_local = ¾, ¼ and p_meme = ½, ½, the label is the first class; each model gets its own gradient alone."""
    local, meme = (torch.tensor([[x, 0.0]], requires_grad=True) for x in (LOG3, 0.0))
    loss = FML(alpha=0.25, beta=0.5).loss(local, meme, torch.tensor([0]))
    to_local = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    to_meme = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = -0.25 * math.log(0.75) + 0.75 * to_local - 0.5 * math.log(0.5) + 0.5 * to_meme
    assert loss.tolist() == [pytest.approx(expected)]
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert local.grad is not None
    assert meme.grad is not None
    # α·(p − onehot) + (1 − α)·(p − p_other)
    assert local.grad[0, 0].item() == pytest.approx(0.25 * (0.75 - 1) + 0.75 * (0.75 - 0.5))
    assert meme.grad[0, 0].item() == pytest.approx(0.5 * (0.5 - 1) + 0.5 * (0.5 - 0.75))


def test_the_meme_is_the_mean_by_examples_and_all_that_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, FML)
    start(tiny("fml", partition=SKEWED, defaults={"rounds": 1}, method={"fml": {"meme": "linear"}}), tmp_path / "run")
    meme = state(tmp_path / "run", "fml").meme
    assert len({examples for examples, _, _ in seen}) > 1
    for name, value in meme.items():
        total = sum((u.meme[name].double() * n for n, _, u in seen), torch.zeros_like(value).double())
        torch.testing.assert_close(value.double(), total / 80, rtol=1e-6, atol=1e-7)
    weights = 4 * (64 * 10 + 10)
    for row in trained(tmp_path / "run"):
        assert weights < row["up_bytes"] == row["down_bytes"] < weights + 300


@pytest.mark.parametrize(("method", "field"), [("fml", "meme"), ("fedkd", "mentee")])
def test_a_shared_architecture_that_does_not_fit_is_refused(method: str, field: str, tmp_path: Path) -> None:
    for name, reason in (("mlp-smal", "mlp-small"), ("cnn10", "images of 8×8; the smallest that fit are 32×32")):
        with pytest.raises(GenfedError, match=reason):
            start(tiny(method, method={method: {field: name}}), tmp_path / "run")


# FedKD.


def test_the_loss_of_fedkd_by_hand() -> None:
    """Two examples: the divisor is the batch's mean of both models' cross-entropies."""
    mentor, mentee = torch.tensor([[LOG3, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    tasks = [-math.log(0.75) - math.log(0.5), -2 * math.log(0.5)]
    apart = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    apart += 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    got = fedkd.adaptive_loss(mentor, mentee, torch.tensor([0, 0]))
    assert got.tolist() == pytest.approx([tasks[0] + apart / (sum(tasks) / 2), tasks[1]], rel=1e-5)


def test_a_batch_that_is_learned_by_heart_has_a_finite_loss() -> None:
    mentor, mentee = (torch.tensor([[x, 0.0]], requires_grad=True) for x in (60.0, 90.0))
    loss = fedkd.adaptive_loss(mentor, mentee, torch.tensor([0]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert mentor.grad is not None
    assert bool(torch.isfinite(torch.cat([loss, mentor.grad[0]])).all())


def test_the_energy_of_fedkd_rises_to_its_end() -> None:
    method = FedKD(rounds=4, energy_start=0.5, energy_end=0.9)
    unused: Any = None
    servers = [Server(TASK, (), number, stream(0), 0, CPU, "float32", unused) for number in range(4)]
    assert [method.energy(s) for s in servers] == pytest.approx([0.6, 0.7, 0.8, 0.9])


def test_with_all_energy_the_mentee_is_the_mean_of_the_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, Tensor]]] = []
    train_pair = distillation.train_pair

    def watch(mentor: nn.Module, mentee: nn.Module, client: Client, training: Any, loss: Any) -> float:
        told = train_pair(mentor, mentee, client, training, loss)
        seen.append((len(client.data), {k: v.detach().clone() for k, v in mentee.state_dict().items()}))
        return told

    monkeypatch.setattr(fedkd, "train_pair", watch)
    everything = {"energy_start": 1.0, "energy_end": 1.0}
    start(tiny("fedkd", partition=SKEWED, method={"fedkd": everything}), tmp_path / "run")
    for name, value in state(tmp_path / "run", "fedkd").mentee.items():
        total = sum((w[name].double() * n for n, w in seen[4:]), torch.zeros_like(value).double())
        torch.testing.assert_close(value.double(), total / 80, rtol=1e-5, atol=1e-6)


def test_fedkd_sends_updates_in_few_bytes_both_ways(tmp_path: Path) -> None:
    """A mentee with matrices of 256×256 and 128×256; only the first of two rounds sends it whole."""
    changes = {"data": {"kind": "digits", "size": 16}, "method": {"fedkd": {"mentee": "mlp"}}}
    start(tiny("fedkd", **changes), tmp_path / "run")
    whole = 4 * (256 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10)
    for row in trained(tmp_path / "run"):
        assert row["up_bytes"] < whole / 5
        assert whole < row["down_bytes"] < whole + 600 if row["round"] == 0 else row["down_bytes"] < whole / 5


def test_clients_of_fedkd_hold_the_servers_mentee_though_only_updates_were_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 clients 2 take part in each of 6 rounds: some were there in the round before, some were not."""
    ways: list[bool] = []
    at_server: list[dict[str, Tensor]] = []
    received, send = fedkd.receive_mentee, FedKD.send

    @functools.wraps(send)
    def sending(self: FedKD, server: Server, state: fedkd.FedKDState, info: ClientInfo) -> fedkd.FedKDSent:
        at_server.append(state.mentee)
        return send(self, server, state, info)

    def receiving(client: Client, sent: fedkd.FedKDSent) -> dict[str, Tensor]:
        mentee = received(client, sent)
        ways.append(sent.last is not None)
        assert (sent.last is None) != (sent.mentee is None)
        assert same(mentee, at_server[-1])
        return mentee

    monkeypatch.setattr(fedkd, "receive_mentee", receiving)
    monkeypatch.setattr(FedKD, "send", sending)
    report = start(tiny("fedkd", federation={"client_fraction": 0.5}, defaults={"rounds": 6}), tmp_path / "run")
    assert not any(trial.failures for trial in report.trials)
    assert not any(ways[:2])
    assert {True, False} <= set(ways[2:])


def test_an_update_without_the_mentee_it_is_for_is_no_use() -> None:
    class Empty:
        def get(self, slot: Any) -> None:
            return None

        def put(self, slot: Any, record: Any) -> None:
            raise AssertionError

    unused: Any = None
    client = Client(ClientInfo(0, "a", 1), TASK, unused, Empty(), stream(0), 0, CPU, "float32", unused)
    with pytest.raises(GenfedError, match="is not stored here any more"):
        fedkd.receive_mentee(client, fedkd.FedKDSent(None, FactoredWeights({}, {}, {}), 0.9))
