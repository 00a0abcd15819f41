"""Networks of any architecture whose representations are of one size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.config.architectures import Architectures
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.rng import seeded, stream
from genfed.core.task import Data, Task
from genfed.methods.bases.representation import RepresentationMethod, RepresentationNetwork, sum_by_class
from genfed.methods.fedgen import FedGen
from genfed.methods.fedgh import FedGH
from genfed.methods.fedproto import FedProto
from genfed.training.split_network import split_parts
from genfed.training.weights import weights_of

IMAGES = Task("image", (1, 32, 32), tuple("abcde"))
TABLE = Task("table", (3,), ("a", "b"))
WIDE = Task("table", (500,), ("a", "b"))
CPU = torch.device("cpu")


class LastComesFirst(nn.Module):
    """Registers its layers in another order than it uses them, and the last under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.body = nn.Linear(3, 4)
        self.alias = self.head

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.alias(torch.relu(self.body(x)))
        return scores


class Scaled(nn.Module):
    """Does something to its last layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) / 2  # type: ignore[no-any-return]


class Twice(nn.Module):
    """Uses its last layer on the way, too."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.widen(self.head(x)))
        return scores


class Functional(nn.Module):
    """Has no layer at the end, only its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(3, 3), nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), self.weight)


GOOD: dict[str, Any] = {
    "bare": lambda: nn.Linear(3, 2),
    "chain": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 2))),
    "first": LastComesFirst,
}
BAD: dict[str, Any] = {
    "scaled": Scaled,
    "twice": Twice,
    "functional": Functional,
    "softmax": lambda: nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)),
    "none": nn.Identity,
}


def made(architecture: str, rng: torch.Generator) -> nn.Module:
    with seeded(rng):
        network: nn.Module = (GOOD | BAD)[architecture]()
    return network


def server(*architectures: str, task: Task = TABLE, seed: int = 3, make: Any = made) -> Server:
    clients = tuple(ClientInfo(i, a, 5) for i, a in enumerate(architectures))
    return Server(task, clients, 0, stream(seed, "init", "server"), seed, CPU, "float32", make)


def client(architecture: str, data: Data, task: Task = TABLE, seed: int = 3, make: Any = made) -> Client:
    info = ClientInfo(0, architecture, len(data))
    return Client(info, task, data, None, stream(seed, "train", 0, 0), seed, CPU, "float32", make)  # type: ignore[arg-type]


METHOD: RepresentationMethod[Any] = FedProto(dimension=7)
OF_SERIES = {"cnn1d", "cnn1d-small", "gru", "transformer"}


@pytest.mark.parametrize("name", [name for name in Architectures().names() if name not in OF_SERIES])
def test_every_architecture_of_the_zoo_gives_representations_of_one_size(name: str) -> None:
    def make(architecture: str, rng: torch.Generator) -> nn.Module:
        return Architectures().new(architecture, IMAGES, rng)

    network = METHOD.network(server(name, task=IMAGES, make=make), name)
    assert network.training
    before = weights_of(make(name, server(name).common("classifier", name)))
    ours = {k.removeprefix("extractor."): v for k, v in weights_of(network).items()}
    kept = [k for k in before if k in ours and torch.equal(before[k], ours[k])]
    assert len(kept) == len(before) - 2, "all but the last layer's weight and bias begin as in every other method"
    x = torch.randn(3, 1, 32, 32, generator=stream(0))
    with torch.no_grad():
        z = network.extractor(x)
        assert network(x).shape == (3, 5)
    assert z.shape == (3, 7)
    assert float(z.min()) >= 0


@pytest.mark.parametrize("name", GOOD)
def test_the_last_layer_is_the_one_whose_output_is_the_networks(name: str) -> None:
    """By hand: what the network computes before its last layer, then Linear(→ dimension), ReLU and the header."""
    network = METHOD.network(server(name), name)
    x = torch.randn(6, 3)
    modules = [m for m in network.extractor.modules() if isinstance(m, nn.Linear)]
    first, last = (modules[0], modules[-1]) if name != "first" else (modules[1], modules[0])
    before = x if name == "bare" else torch.relu(first(x))
    assert last.out_features == 7
    expected = torch.relu(last(before))
    torch.testing.assert_close(network.extractor(x), expected)
    torch.testing.assert_close(network(x), network.header(expected))
    assert split_parts(weights_of(network))[1].keys() == {"weight", "bias"}


def test_the_layer_that_is_added_keeps_the_size_of_a_signal() -> None:
    """For h ~ N(0, I) and weights of variance 2 / inputs, E[ReLU(Wh)²] = ½ · inputs · 2 / inputs = 1 (torch's own
    weights have a sixth of that variance).
    """
    method: RepresentationMethod[Any] = FedProto(dimension=400)
    network = method.network(server("wide", make=lambda name, rng: nn.Linear(500, 2), task=WIDE), "wide")
    with torch.no_grad():
        z = network.extractor(torch.randn(400, 500, generator=stream(0)))
    assert float(z.square().mean()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("method", [FedProto(), FedGH(), FedGen()])
def test_a_network_without_such_a_layer_is_refused_in_init(name: str, method: Method[Any]) -> None:
    with pytest.raises(GenfedError, match=f"^architecture {name} does not end in an nn.Linear"):
        method.init(server("chain", name))


def test_client_and_server_begin_alike_and_another_seed_does_not() -> None:
    data = Data(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    at_server = METHOD.networks(server("first", "chain"))
    assert list(at_server) == ["chain", "first"]
    for name, network in at_server.items():
        there = weights_of(METHOD.network(client(name, data), name))
        assert all(torch.equal(v, there[k]) for k, v in weights_of(network).items())
        other = weights_of(METHOD.network(client(name, data, seed=4), name))
        assert not any(torch.equal(v, other[k]) for k, v in weights_of(network).items())
    one, two = (network.header.weight for network in at_server.values())
    assert torch.equal(one, two), "all architectures begin with one header"


def test_making_a_network_takes_nothing_from_the_clients_stream() -> None:
    at = client("chain", Data(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)))
    before, everywhere = at.rng.get_state(), torch.get_rng_state()
    METHOD.network(at, "chain")
    assert torch.equal(at.rng.get_state(), before)
    assert torch.equal(torch.get_rng_state(), everywhere)


def test_the_sums_and_means_of_a_class_by_hand() -> None:
    """An extractor that gives (x₁, x₂, 0); class c is missing."""
    task = Task("table", (2,), ("a", "b", "c"))
    layer = nn.Linear(2, 3)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.zeros(3)
    network = RepresentationNetwork(nn.Sequential(layer, nn.ReLU(), nn.Dropout(0.5)), nn.Linear(3, 3)).train()
    x = torch.tensor([[1.0, 2.0], [4.0, 0.5], [3.0, -1.0], [5.0, 6.0]])
    found = sum_by_class(network, client("any", Data(x, torch.tensor([1, 0, 1, 1])), task))
    assert found.sums.tolist() == [[4.0, 0.5, 0.0], [9.0, 8.0, 0.0], [0.0, 0.0, 0.0]]  # −1 is 0 after the ReLU
    assert found.counts.tolist() == [1, 3, 0]
    assert torch.equal(found.means(), torch.tensor([[4.0, 0.5, 0.0], [3.0, 8 / 3, 0.0], [0.0, 0.0, 0.0]]))
    assert not found.sums.requires_grad
    assert found.sums.dtype == torch.float32
