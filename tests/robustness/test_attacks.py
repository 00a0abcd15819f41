"""What bad clients do, by hand."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.record import pack, unpack
from genfed.core.task import Data, Task
from genfed.robustness.attack import Attack
from genfed.robustness.attacks import Backdoor, FreeRider, LabelFlip, Scaling, SignFlip
from genfed.training.low_rank import FactoredWeights
from tests.training.clients import client_of


@dataclass(frozen=True)
class Sent:
    weights: dict[str, Tensor]
    hint: float = 0.5


@dataclass(frozen=True)
class Upload:
    weights: dict[str, Tensor]
    extra: Tensor


SENT = Sent({"w": torch.tensor([1.0, -2.0]), "var": torch.tensor([1.0, 4.0]), "n": torch.tensor(3)})
OWN = Upload(
    {"w": torch.tensor([2.0, 0.0]), "var": torch.tensor([4.0, 1.0]), "n": torch.tensor(5)}, torch.tensor([7.0])
)


def uploaded(attack: Attack, seed: int = 0) -> Upload:
    sent, own = pack(SENT), pack(OWN)
    return unpack(Upload, attack.upload(sent, own, torch.Generator().manual_seed(seed)))


def test_a_turned_update() -> None:
    got = uploaded(SignFlip(factor=2.0))
    assert got.weights["w"].tolist() == [1 - 2 * 1, -2 - 2 * 2]
    assert got.weights["var"].tolist() == [0.0, 10.0]  # 1 − 6 would be no variance
    assert got.weights["n"].item() == 5
    assert got.extra.tolist() == [-14.0]  # nothing like it was sent: it is an update itself


def test_a_longer_update() -> None:
    got = uploaded(Scaling(factor=10.0))
    assert got.weights["w"].tolist() == [11.0, 18.0]
    assert got.extra.tolist() == [70.0]
    assert uploaded(Scaling(factor=1.0)).weights["w"].tolist() == OWN.weights["w"].tolist()


@dataclass(frozen=True)
class Factored:
    update: FactoredWeights


@pytest.mark.parametrize(("attack", "factor"), [(SignFlip(factor=2.0), -2.0), (Scaling(factor=10.0), 10.0)])
def test_an_update_in_factors_is_changed_once(attack: Attack, factor: float) -> None:
    """Two turned factors would have the product that they had."""
    left, right = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, 5.0]])
    own = Factored(FactoredWeights({"b": torch.tensor([1.0])}, {"w": left}, {"w": right}))
    got = unpack(Factored, attack.upload(pack(SENT), pack(own), torch.Generator())).update
    assert got.whole["b"].tolist() == [factor]
    assert torch.equal(got.left["w"] @ got.right["w"], factor * (left @ right))


def test_a_free_rider_gives_back_what_it_was_sent() -> None:
    got = uploaded(FreeRider())
    assert got.weights["w"].tolist() == SENT.weights["w"].tolist()
    assert got.weights["var"].tolist() == SENT.weights["var"].tolist()
    assert got.extra.tolist() == OWN.extra.tolist()  # which it was not sent


def test_a_disguised_free_rider_adds_noise_from_its_stream() -> None:
    noisy = FreeRider(noise=0.5)
    got = uploaded(noisy)
    assert got.weights["w"].tolist() != SENT.weights["w"].tolist()
    assert (
        got.weights["w"].tolist() == uploaded(noisy).weights["w"].tolist() != uploaded(noisy, 1).weights["w"].tolist()
    )
    large = replace(SENT, weights={"w": torch.arange(20_000.0)})
    own = replace(OWN, weights={"w": torch.zeros(20_000)})
    packed = noisy.upload(pack(large), pack(own), torch.Generator().manual_seed(0))
    added = unpack(Upload, packed).weights["w"].double() - torch.arange(20_000.0)
    assert added.std() == pytest.approx(0.5 * 20_000 / 12**0.5, rel=0.03)


def test_false_labels() -> None:
    client = client_of(Data(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2, 2])), classes=3)
    assert LabelFlip().data(client).y.tolist() == [2, 1, 0, 0]
    assert client.data.y.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(("dtype", "bright"), [(torch.uint8, 255), (torch.float32, 1.0)])
def test_a_backdoor_marks_a_part_of_the_examples(dtype: torch.dtype, bright: float) -> None:
    client = client_of(Data(torch.zeros(8, 1, 4, 4, dtype=dtype), torch.arange(8) % 2 + 1), classes=3)
    data = Backdoor(target=0, size=2, fraction=0.5).data(client)
    marked = data.y == 0
    assert marked.sum() == 4
    assert (data.x[marked][..., 2:, 2:] == bright).all()
    assert data.x[marked].double().sum() == 4 * 4 * bright  # and no other pixel
    assert not data.x[~marked].any()
    assert (data.y[~marked] == client.data.y[~marked]).all()
    assert not client.data.x.any()
    again = Backdoor(target=0, size=2, fraction=0.5).data(replace(client, rng=torch.Generator().manual_seed(9)))
    assert torch.equal(again.y, data.y)


def test_a_backdoor_is_scored_on_other_classes() -> None:
    held_out = Data(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2, 0]))
    data, target = Backdoor(target=0, size=1).triggered(held_out, Task("image", (1, 4, 4), ("a", "b", "c")))
    assert (data.y.tolist(), target) == ([1, 2], 0)
    assert data.x[..., -1, -1].tolist() == [[255], [255]]


def phase(work: Any, **aggregate: Any) -> Phase[Any]:
    def keep(server: Server, state: Any, reduced: Reduced) -> Any:
        raise AssertionError

    return Phase("p", keep, lambda *_: None, work, aggregate=aggregate)


def trains(client: Client, sent: Sent) -> Reply[Upload]:
    raise AssertionError


def uploads(client: Client, sent: Empty) -> Reply[Upload]:
    raise AssertionError


def alone(client: Client, sent: Empty) -> Reply[Empty]:
    raise AssertionError


def test_which_phases_are_met() -> None:
    training = phase(trains, weights=Mean(), extra=Mean())
    assert SignFlip().targets_phase(training)
    assert not SignFlip().targets_phase(phase(alone))
    assert not SignFlip(phases=("q",)).targets_phase(training)


def test_what_cannot_be_done() -> None:
    image, table = Task("image", (1, 8, 8), ("a", "b")), Task("table", (5,), ("a", "b"))
    training, once = phase(trains, weights=Mean(), extra=Mean()), phase(uploads, weights=Mean(), extra=Mean())
    assert FreeRider().reason_to_refuse(image, [once, training]) is None
    assert FreeRider().reason_to_refuse(image, [once]) == "clients are sent nothing that they could give back"
    assert Backdoor().reason_to_refuse(table, [training]) == "a square can be put into images alone"
    assert "there are 2 classes" in (Backdoor(target=2).reason_to_refuse(image, [training]) or "")
    assert "8×8 pixels" in (Backdoor(size=9).reason_to_refuse(image, [training]) or "")


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.3, 3), (0.31, 4), (1.0, 10)])
def test_as_many_clients_as_are_asked_for(share: float, count: int) -> None:
    clients = [ClientInfo(3 * i, "a", 1) for i in range(10)]
    bad = SignFlip(share=share).attackers(clients, 0)
    assert len(bad) == count
    assert set(bad) <= {info.id for info in clients}
    assert bad == tuple(sorted(bad)) == Scaling(share=share).attackers(clients[::-1], 0)
    assert SignFlip(share=0.3).attackers(clients, 0) != SignFlip(share=0.3).attackers(clients, 1)
