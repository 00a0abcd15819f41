from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.phase import Reduced, Reply
from genfed.core.rng import seeded, stream
from genfed.core.task import Data, Task
from genfed.engines.client_storage import DiskStorage
from genfed.methods.bases.averaging import Classifiers, FederatedAveraging
from genfed.methods.bases.local_training import LocalTraining
from genfed.methods.fedavg import FedAvg
from genfed.methods.fedprox import FedProx
from genfed.training.classifier import Training, train
from genfed.training.weights import (
    Model,
    initial_classifiers,
    initial_weights,
    load_weights,
    squared_distance,
    weights_of,
)

TASK = Task("table", (2,), ("a", "b"))
DATA = Data(torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
CPU = torch.device("cpu")


def new_network(architecture: str, rng: torch.Generator) -> nn.Module:
    with seeded(rng):
        return nn.Linear(2, 2) if architecture == "small" else nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def client(folder: Path, number: int = 0, architecture: str = "small", seed: int = 5, step: int = 0) -> Client:
    return Client(
        info=ClientInfo(number, architecture, 3),
        task=TASK,
        data=DATA,
        storage=DiskStorage(folder / str(number), step, LocalTraining().phases()[0].slots),
        rng=stream(seed, "train", step, number),
        seed=seed,
        device=CPU,
        precision="float32",
        new_network_of=new_network,
    )


def server(seed: int = 5) -> Server:
    clients = tuple(ClientInfo(i, "small" if i % 2 else "large", 3) for i in range(4))
    return Server(TASK, clients, 0, stream(seed, "init", "server"), seed, CPU, "float32", new_network)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# Distance, by hand.


def test_the_squared_distance_and_its_gradient() -> None:
    network = nn.Linear(2, 1)
    network.weight.data, network.bias.data = torch.tensor([[3.0, 1.0]]), torch.tensor([-1.0])
    anchor = {"weight": torch.tensor([[1.0, 1.0]]), "bias": torch.tensor([0.0])}
    distance = squared_distance(network, anchor)
    assert distance.item() == 2**2 + 0 + 1  # and not its root
    distance.backward()  # type: ignore[no-untyped-call]
    assert network.weight.grad is not None
    assert network.bias.grad is not None
    assert network.weight.grad.tolist() == [[4.0, 0.0]]
    assert network.bias.grad.tolist() == [-2.0]


def test_buffers_do_not_count_as_distance() -> None:
    network = nn.BatchNorm1d(2)
    anchor = {k: v.clone() for k, v in network.state_dict().items()}
    anchor["running_mean"] += 100
    anchor["num_batches_tracked"] += 100
    assert squared_distance(network, anchor).item() == 0.0


def test_fedprox_pulls_with_mu_times_the_way_gone() -> None:
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[3.0, -1.0]])
    penalty = FedProx(mu=0.5).penalty(network, {"weight": torch.tensor([[1.0, 1.0]])})()
    assert penalty.item() == 0.25 * (4 + 4)
    penalty.backward()  # type: ignore[no-untyped-call]
    assert network.weight.grad is not None
    assert network.weight.grad.tolist() == [[0.5 * 2, 0.5 * -2]]  # μ(w − w_t)


def test_fedprox_holds_a_client_near_and_without_mu_is_fedavg(tmp_path: Path) -> None:
    start = Model(initial_weights(client(tmp_path)))
    far = {}
    for name, method in {"avg": FedAvg(), "zero": FedProx(mu=0.0), "prox": FedProx(mu=5.0)}.items():
        upload = method.train(client(tmp_path), start).upload.classifier
        far[name] = sum(float((upload[k] - start.classifier[k]).square().sum()) for k in upload)
    assert far["avg"] == far["zero"]
    assert 0 < far["prox"] < far["avg"] / 2


# Weights as records.


def test_weights_come_and_go() -> None:
    one, other = (new_network("large", stream(0, n)) for n in "ab")
    assert not same(weights_of(one), weights_of(other))
    assert load_weights(other, weights_of(one)) is other
    assert same(weights_of(one), weights_of(other))
    assert weights_of(one).keys() >= {"1.running_mean", "1.num_batches_tracked", "0.weight"}
    assert not any(v.requires_grad for v in weights_of(one).values())


def test_loading_copies() -> None:
    one, other = (new_network("small", stream(0, n)) for n in "ab")
    weights = weights_of(one)
    load_weights(other, weights)
    with torch.no_grad():
        other.get_parameter("weight").zero_()
    assert weights["weight"].abs().sum() > 0


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(new_network("small", stream(0)), {})


# The same start for all.


def test_initial_weights_are_common_to_methods_clients_and_server(tmp_path: Path) -> None:
    at_server = initial_classifiers(server())
    assert list(at_server) == ["large", "small"]
    for number in range(3):
        for name in ("small", "large"):
            assert same(initial_weights(client(tmp_path, number, name, step=number)), at_server[name])
    assert same(weights_of(LocalTraining().classifier(client(tmp_path), _nothing())), at_server["small"])
    for method in (FedAvg(), FedProx()):
        assert all(same(method.init(server()).classifiers[a], at_server[a]) for a in at_server)
    assert not same(initial_weights(client(tmp_path, seed=6)), at_server["small"])


def _nothing() -> Any:
    return LocalTraining().init(server())


# Local training as methods do it.


def test_training_by_hand(tmp_path: Path) -> None:
    """One full batch of logistic regression from zero: both scores are ½."""
    network = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(network.weight)
    settings = Training(epochs=1, batch_size=10, learning_rate=0.6)
    loss = train(network, client(tmp_path), settings)
    assert loss == pytest.approx(0.6931472)
    # ∂/∂w_0 = mean((½ − [y = 0])·x) = ⅓(−½(1, 2) + ½(3, −1) + ½(0, 1)) = (⅓, −⅓), and w_1 the other way
    assert torch.allclose(network.weight, torch.tensor([[-0.2, 0.2], [0.2, -0.2]]))


def test_training_takes_other_data_and_epochs(tmp_path: Path) -> None:
    network = new_network("small", stream(0))
    before = weights_of(network)["weight"].clone()
    assert train(network, client(tmp_path), Training(), epochs=0) == 0.0
    assert torch.equal(network.get_parameter("weight"), before)
    one, other = (load_weights(new_network("small", stream(1)), weights_of(network)) for _ in range(2))
    train(one, client(tmp_path), Training(), data=DATA[:2])
    train(other, client(tmp_path), Training())
    assert not same(weights_of(one), weights_of(other))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 2},
        {"batch_size": 1},
        {"optimizer": "adam"},
        {"learning_rate": 0.2},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
    ],
)
def test_every_setting_of_training_changes_its_outcome(tmp_path: Path, change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"epochs": 3, "batch_size": 64}
    outcomes = []
    for settings in (base, base | change):
        network = new_network("small", stream(0))
        train(network, client(tmp_path), Training(**settings))
        outcomes.append(weights_of(network))
    assert not same(*outcomes)


def test_training_puts_the_network_in_training_mode(tmp_path: Path) -> None:
    network = new_network("large", stream(0)).eval()
    settings = Training(epochs=1)
    nn.Module.train(network, False)
    train(nn.Sequential(network, nn.Linear(3, 2)), client(tmp_path), settings)
    assert int(network.get_buffer("1.num_batches_tracked")) == 1


# The shapes of methods.


def commit(worked: Client) -> None:
    assert isinstance(worked.storage, DiskStorage)
    worked.storage.commit()


def test_alone_goes_on_from_where_it_was_and_tells_nothing(tmp_path: Path) -> None:
    method = LocalTraining()
    before = client(tmp_path, step=0)
    first: Reply[Any] = method.train(before, _nothing())
    commit(before)
    then = client(tmp_path, step=1)
    method.train(then, _nothing())
    commit(then)
    after = [weights_of(method.classifier(client(tmp_path, step=s), _nothing())) for s in (0, 1, 2)]
    assert not same(after[0], after[1])
    assert not same(after[1], after[2])
    assert first.metrics.keys() == {"loss"}
    assert method.keep(server(), _nothing(), None) == _nothing()  # type: ignore[arg-type]


def test_averaging_weighs_by_examples_and_keeps_what_nobody_answered_for(tmp_path: Path) -> None:
    method = FederatedAveraging()
    state = method.init(server())
    reply = method.train(client(tmp_path), method.send_classifier(server(), state, ClientInfo(0, "small", 3)))
    assert reply.weight == 3
    now = method.keep(server(), state, Reduced({"classifier": {"small": reply.upload.classifier}}, ()))
    assert isinstance(now, Classifiers)
    assert same(now.classifiers["large"], state.classifiers["large"])
    assert same(now.classifiers["small"], reply.upload.classifier)
    assert not same(now.classifiers["small"], state.classifiers["small"])
