"""FedProto, FedGH and FedGen: their numbers by hand, what they come to without their own part, and what travels."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Fold, Mean
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Empty, Reduced, flatten_phases
from genfed.core.rng import seeded, stream
from genfed.core.task import Data, Task
from genfed.engines.client_storage import DiskStorage
from genfed.generators.representation_generator import RepresentationGenerator, combine_headers, diversity_loss
from genfed.methods.bases.representation import ClassStatistics, RepresentationMethod, RepresentationNetwork
from genfed.methods.fedgen import FedGen, FedGenSent, FedGenState
from genfed.methods.fedgh import FedGH, FedGHHeader
from genfed.methods.fedproto import FedProto, Prototypes
from genfed.training.classifier import Training, train
from genfed.training.split_network import SplitNetwork, join_parts, split_parts
from genfed.training.weights import load_weights, weights_of
from tests.conftest import left_by, start, tiny

TASK = Task("table", (3,), ("a", "b", "c"))
CPU = torch.device("cpu")
INFOS = (ClientInfo(0, "deep", 6), ClientInfo(1, "flat", 4), ClientInfo(2, "deep", 5))
TRAINING = Training(epochs=2, batch_size=2, learning_rate=0.1)
WHOLE = Training(epochs=1, batch_size=100, learning_rate=0.1)


def made(architecture: str, rng: torch.Generator) -> nn.Module:
    with seeded(rng):
        return nn.Linear(3, 3) if architecture == "flat" else nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


def server(number: int = 0) -> Server:
    return Server(TASK, INFOS, number, stream(5, "train", number, "update", "server"), 5, CPU, "float32", made)


def data(number: int) -> Data:
    """Client 1 has no example of class c."""
    n, rng = INFOS[number].examples, stream(5, "data", number)
    return Data(torch.randn(n, 3, generator=rng), torch.arange(n) % (2 if number == 1 else 3))


def client(method: Method[Any], folder: Path, number: int = 0, step: int = 0) -> Client:
    (phase,) = flatten_phases(method.phases())
    kept = DiskStorage(folder / str(number), step, phase.slots)
    rng = stream(5, "train", step, number)
    return Client(INFOS[number], TASK, data(number), kept, rng, 5, CPU, "float32", made)


def commit(at: Client) -> None:
    assert isinstance(at.storage, DiskStorage)
    at.storage.commit()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def alone(method: RepresentationMethod[Any], folder: Path, number: int, rounds: int) -> RepresentationNetwork:
    """The same network, trained by cross-entropy alone with the same draws."""
    network = method.network(client(method, folder, number), INFOS[number].architecture)
    for step in range(rounds):
        train(network, client(method, folder, number, step), method.training)
    return network


# FedProto.

KNOWN = Prototypes(torch.tensor([[3.0, 2.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([True, True, False]))


def test_the_distance_to_prototypes() -> None:
    z = torch.tensor([[1.0, 2.0], [4.0, 5.0], [7.0, 7.0]])
    assert KNOWN.distance(z, torch.tensor([0, 1, 2])).tolist() == [(4 + 0) / 2, (9 + 16) / 2, 0.0]


def test_a_prototype_is_the_mean_over_all_examples_of_its_class() -> None:
    """Class a with two clients, b with one, c with nobody in this round: it keeps its prototype, or has none still."""
    one = ClassStatistics(torch.tensor([[4.0, 2.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([2, 0, 0]))
    two = ClassStatistics(torch.tensor([[2.0, 4.0], [5.0, 5.0], [0.0, 0.0]]), torch.tensor([1, 4, 0]))
    (phase,) = FedProto().phases()
    fold = Fold(phase.aggregate, list(INFOS[:2]))
    fold.add(INFOS[0], one, 100.0)  # a weight is of no account
    fold.add(INFOS[1], two, 1.0)
    reduced = Reduced(fold.finish(), INFOS[:2])
    first = FedProto().keep(server(), FedProto(dimension=2).init(server()), reduced)
    assert first.prototypes.tolist() == [[2.0, 2.0], [1.25, 1.25], [0.0, 0.0]]
    assert first.known.tolist() == [True, True, False]
    before = Prototypes(torch.full((3, 2), 9.0), torch.tensor([True, False, True]))
    later = FedProto().keep(server(), before, reduced)
    assert later.prototypes.tolist() == [[2.0, 2.0], [1.25, 1.25], [9.0, 9.0]]
    assert later.known.tolist() == [True, True, True]


def test_the_loss_of_fedproto(tmp_path: Path) -> None:
    """One step on everything: the loss told is that of the initial network."""
    method = FedProto(dimension=2, prototype_weight=0.5, training=WHOLE)
    at = client(method, tmp_path)
    network = method.classifier(at, Empty())
    with torch.no_grad():
        z = network.extractor(at.data.x)
        apart = [((row - KNOWN.prototypes[y]) ** 2).sum() / 2 for row, y in zip(z, at.data.y, strict=True) if y != 2]
        expected = F.cross_entropy(network.header(z), at.data.y) + 0.5 * sum(apart) / len(at.data)
    assert method.train(at, KNOWN).metrics["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_fedproto_without_its_term_is_training_alone(tmp_path: Path) -> None:
    for weight, equal in ((0.0, True), (1.0, False)):
        method = FedProto(dimension=2, prototype_weight=weight, training=TRAINING)
        for step in range(3):
            at = client(method, tmp_path / str(weight), step=step)
            method.train(at, KNOWN)
            commit(at)
        kept = method.classifier(client(method, tmp_path / str(weight), step=3), Empty())
        assert same(weights_of(kept), weights_of(alone(method, tmp_path, 0, 3))) == equal


def test_before_there_are_prototypes_fedproto_trains_alone(tmp_path: Path) -> None:
    method = FedProto(dimension=2, prototype_weight=3.0, training=TRAINING)
    at = client(method, tmp_path)
    method.train(at, method.init(server()))
    commit(at)
    kept = method.classifier(client(method, tmp_path, step=1), Empty())
    assert same(weights_of(kept), weights_of(alone(method, tmp_path, 0, 1)))


def test_fedproto_draws_representations_to_the_prototypes(tmp_path: Path) -> None:
    ones, far = Prototypes(torch.ones(3, 8), torch.ones(3, dtype=torch.bool)), []
    for weight in (0.0, 5.0):
        how = Training(epochs=100, optimizer="adam", learning_rate=0.02)
        method = FedProto(dimension=8, prototype_weight=weight, training=how)
        sums = method.train(client(method, tmp_path), ones).upload
        far.append(float((sums.means() - 1).square().mean()))
    assert far[1] < far[0] / 4


# FedGH.


def test_the_header_learns_from_every_pair_of_representation_and_class() -> None:
    """Logistic regression from zero, one step on (1, 0) → a and (0, 2) → b: every score is ⅓, so that
    ∂/∂w_a = ½((⅓ − 1)(1, 0) + ⅓(0, 2)), and what stands for an absent class counts for nothing.
    """
    method = FedGH(dimension=2, header_training=Training(epochs=1, batch_size=9, learning_rate=1.0))
    zero = FedGHHeader({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    means = {0: torch.tensor([[1.0, 0.0], [9.0, 9.0], [9.0, 9.0]]), 2: torch.tensor([[9.0, 9.0], [0.0, 2.0], [9, 9]])}
    present = {0: torch.tensor([True, False, False]), 2: torch.tensor([False, True, False])}
    now = method.keep(server(), zero, Reduced({"means": means, "present": present}, (INFOS[0], INFOS[2]))).header
    torch.testing.assert_close(now["weight"], torch.tensor([[1 / 3, -1 / 3], [-1 / 6, 2 / 3], [-1 / 6, -1 / 3]]))
    torch.testing.assert_close(now["bias"], torch.tensor([1 / 6, 1 / 6, -1 / 3]))
    assert not zero.header["weight"].any()


def test_what_a_client_tells_fedgh(tmp_path: Path) -> None:
    """The mean of each class that it has, by the extractor that it trained."""
    method = FedGH(dimension=2, training=TRAINING)
    at = client(method, tmp_path, 1)
    upload = method.train(at, method.init(server())).upload
    commit(at)
    extractor = method.classifier(client(method, tmp_path, 1, step=1), method.init(server())).extractor
    with torch.no_grad():
        z = extractor(at.data.x)
    expected = [z[at.data.y == c].mean(0) for c in (0, 1)] + [torch.zeros(2)]
    torch.testing.assert_close(upload.means, torch.stack(expected))
    assert upload.present.tolist() == [True, True, False]


def test_clients_get_the_header_and_keep_their_extractor(tmp_path: Path) -> None:
    method = FedGH(dimension=2, training=TRAINING)
    initial, other = method.init(server()), FedGHHeader({"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    at = client(method, tmp_path)
    method.train(at, initial)
    commit(at)
    extractor, header = split_parts(weights_of(method.classifier(client(method, tmp_path, step=1), other)))
    assert same(header, other.header)
    assert same(
        extractor, split_parts(weights_of(alone(method, tmp_path, 0, 1)))[0]
    )  # its first round is training alone


def test_a_header_without_training_stays_as_it_began() -> None:
    method = FedGH(dimension=2, header_training=Training(epochs=0))
    means = {i: torch.ones(3, 2) for i in range(3)}
    present = {i: torch.tensor([True, True, False]) for i in range(3)}
    state = method.init(server())
    assert same(method.keep(server(), state, Reduced({"means": means, "present": present}, INFOS)).header, state.header)


# FedGen.


def test_the_diversity_loss() -> None:
    """Two pairs of different ones: (ε_1 − ε_2)² = 4 and |z_1 − z_2| = (1 + 3) / 2; two of the same: 0."""
    noise, z = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0, 1.0], [2.0, 4.0]])
    assert diversity_loss(noise, z).item() == pytest.approx(math.exp(-(8 + 8 + 0 + 0) / 4))
    assert diversity_loss(noise, torch.ones(2, 2)).item() == 1.0
    assert diversity_loss(torch.zeros(2, 1), z).item() == 1.0


def test_a_header_counts_by_its_clients_share_of_the_class() -> None:
    """Of class a the clients have 3 and 1, of b 0 and 4, of c nobody has any."""
    headers = [
        {"weight": torch.tensor([[1.0], [0.0], [2.0]]), "bias": torch.tensor([0.0, 1.0, 0.0])},
        {"weight": torch.tensor([[5.0], [0.0], [0.0]]), "bias": torch.tensor([0.0, 0.0, 4.0])},
    ]
    vote = combine_headers(headers, torch.tensor([[3, 0, 0], [1, 4, 0]]), CPU)
    logits = vote(torch.tensor([[2.0], [2.0], [2.0]]), torch.tensor([0, 1, 2]))
    # the first header says (2, 1, 4), the second (10, 0, 4)
    assert logits.tolist() == [[0.75 * 2 + 0.25 * 10, 0.75, 4.0], [10.0, 0.0, 4.0], [0.0, 0.0, 0.0]]


SMALL: dict[str, Any] = {
    "dimension": 2,
    "noise_dim": 2,
    "hidden_dim": 4,
    "generator_steps": 3,
    "generator_batch_size": 4,
}


def everything(method: FedGen, state: FedGenState, number: int = 0) -> FedGenSent:
    return method.send(server(), state, INFOS[number])


def test_the_loss_of_a_client_of_fedgen(tmp_path: Path) -> None:
    """A generator that says (1, 2) whatever it is asked, and only class b asked for."""
    method = FedGen(**SMALL, generated_weight=0.5, training=WHOLE)
    sent = everything(method, method.init(server()))
    constant = {k: torch.zeros_like(v) for k, v in sent.generator.items()} | {"layers.2.bias": torch.tensor([1.0, 2.0])}
    at = client(method, tmp_path)
    network = method.classifier(at, SplitNetwork(sent.extractor, sent.header))
    with torch.no_grad():
        real = F.cross_entropy(network(at.data.x), at.data.y)
        generated = F.cross_entropy(network.header(torch.tensor([1.0, 2.0])), torch.tensor(1))
    reply = method.train(at, FedGenSent(sent.extractor, sent.header, constant, torch.tensor([0, 7, 0])))
    assert reply.metrics["loss"] == pytest.approx(float(real + 0.5 * generated), rel=1e-6)
    assert reply.upload.counts.tolist() == [2, 2, 2]


def uploads(method: FedGen, state: FedGenState, folder: Path) -> dict[int, Any]:
    return {i: method.train(client(method, folder, i), everything(method, state, i)) for i in range(3)}


def reduced(method: FedGen, replies: dict[int, Any]) -> Reduced:
    (phase,) = method.phases()
    fold = Fold(phase.aggregate, list(INFOS))
    for info in INFOS:
        fold.add(info, replies[info.id].upload, replies[info.id].weight)
    return Reduced(fold.finish(), INFOS)


def test_fedgen_without_generated_representations_is_averaging(tmp_path: Path) -> None:
    """Bit for bit: the extractor over an architecture, the header over all, weighted by examples; two rounds."""
    method = FedGen(**SMALL, generated_weight=0.0, training=TRAINING)
    state = method.init(server())
    extractors, header = state.extractors, state.header
    for _ in range(2):
        state = method.keep(server(), state, reduced(method, uploads(method, state, tmp_path)))
        means = Fold({"extractor": Mean(by="architecture"), "header": Mean()}, list(INFOS))
        for info in INFOS:
            at = client(method, tmp_path, info.id)
            weights = join_parts(extractors[info.architecture], header)
            network = load_weights(method.network(at, info.architecture), weights)
            train(network, at, TRAINING)
            means.add(info, SplitNetwork(*split_parts(weights_of(network))), info.examples)
        extractors, header = means.finish().values()
        assert same(state.header, header)
        assert all(same(state.extractors[a], extractors[a]) for a in ("deep", "flat"))


def test_nothing_is_generated_before_the_generator_has_learned(tmp_path: Path) -> None:
    replies = []
    for weight in (0.0, 5.0):
        method = FedGen(**SMALL, generated_weight=weight, training=TRAINING)
        state = method.init(server())
        first = uploads(method, state, tmp_path)
        state = method.keep(server(), state, reduced(method, first))
        replies.append((first, uploads(method, state, tmp_path)))
    (off, off_later), (on, on_later) = replies
    for i in range(3):
        assert same(off[i].upload.header, on[i].upload.header)
        assert not same(off_later[i].upload.header, on_later[i].upload.header)


def test_the_generator_learns_what_the_headers_know_and_adam_goes_on() -> None:
    """Two clients with a class each: of what is generated for it, each class is told by who knows it."""
    method = FedGen(dimension=4, generator_steps=80, generator_learning_rate=0.01)
    knows = [torch.zeros(3, 4), torch.zeros(3, 4)]
    knows[0][0, 0], knows[1][1, 1] = 3.0, 3.0
    headers = [{"weight": weight, "bias": torch.zeros(3)} for weight in knows]
    counts = torch.tensor([[5, 0, 0], [0, 5, 0]])
    state = method.init(server())
    y = torch.arange(200) % 2
    right = []
    for step in range(2):
        weights, moments = method.train_generator(server(step), state, headers, counts)
        assert float(moments.values[0]["step"]) == 80 * (step + 1)
        assert not same(weights, state.generator)
        state = FedGenState(state.extractors, state.header, weights, moments, counts.sum(0))
        generator = method.generator(server())
        generator.load_state_dict(weights)
        right.append(combine_headers(headers, counts, CPU)(generator.sample(y, stream(0)), y).argmax(1) == y)
    assert float(right[-1].float().mean()) > 0.95
    spread = generator.sample(torch.zeros(50, dtype=torch.int64), stream(1)).std(0)
    assert float(spread.max()) > 0.1, "not one representation per class"


def test_more_diversity_gives_more_diverse_representations() -> None:
    headers = [{"weight": torch.eye(3), "bias": torch.zeros(3)}]
    spread = []
    for weight in (0.0, 5.0):
        method = FedGen(dimension=3, diversity=weight, generator_steps=60, generator_learning_rate=0.01)
        weights, _ = method.train_generator(server(), method.init(server()), headers, torch.tensor([[4, 4, 4]]))
        generator = RepresentationGenerator(method.noise_dim, 3, method.hidden_dim, 3, stream(0))
        generator.load_state_dict(weights)
        spread.append(float(generator.sample(torch.zeros(100, dtype=torch.int64), stream(0)).std(0).mean()))
    assert spread[1] > 1.2 * spread[0]


# Whole runs.


@pytest.mark.parametrize(("method", "field"), [(FedGen, "generator"), (FedGH, "header"), (FedProto, "prototypes")])
def test_what_the_server_learns_reaches_the_clients_anew_in_every_round(
    method: type[Method[Any]], field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not trained and thrown away: all clients of a round get the same, and another one in the next."""
    received: list[Any] = []
    work = method.train  # type: ignore[attr-defined]

    @functools.wraps(work)
    def watched(self: Any, client: Client, sent: Any) -> Any:
        value = getattr(sent, field)
        received.append(
            {"it": value.clone()} if isinstance(value, Tensor) else {k: v.clone() for k, v in value.items()}
        )
        return work(self, client, sent)

    monkeypatch.setattr(method, "train", watched)
    start(tiny(method.__name__.lower(), defaults={"rounds": 4}), tmp_path / "run")
    rounds = [received[i : i + 4] for i in range(0, 16, 4)]
    assert all(same(of_round[0], other) for of_round in rounds for other in of_round)
    first = [of_round[0] for of_round in rounds]
    for i in range(4):
        for j in range(i):
            assert not any(torch.equal(first[i][k], first[j][k]) for k in first[i]), f"rounds {j} and {i}"


@pytest.mark.parametrize("method", ["fedproto", "fedgh", "fedgen"])
def test_clients_that_share_no_class_and_take_turns(method: str, tmp_path: Path) -> None:
    changes = {
        "federation": {"client_fraction": 0.5},
        "partition": {"kind": "disjoint_labels"},
        "defaults": {"rounds": 4},
    }
    report = start(tiny(method, **changes), tmp_path / "run")
    assert not report.trials[0].failures


def test_bytes_are_those_of_the_representations(tmp_path: Path) -> None:
    """10 classes of 64 numbers, and a count or a flag each; the names come on top. No weights of a network travel."""
    start(tiny("fedproto", "fedgh"), tmp_path / "run")
    rows = [r for r in left_by(tmp_path / "run")["metrics"] if r["phase"] == "train" and r["client"] is not None]
    means, header = 4 * 10 * 64, 4 * (10 * 64 + 10)
    bounds = {"fedproto": (means + 80, means + 10), "fedgh": (means + 10, header)}
    for row in rows:
        up, down = bounds[row["method"]]
        assert up <= row["up_bytes"] < up + 200
        assert down <= row["down_bytes"] < down + 200
