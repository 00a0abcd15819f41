"""Features that clients store are those of the extractor that they were sent."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from genfed.core.client import Client, Slot
from genfed.core.task import Data
from genfed.methods.bases.feature_space import SharedExtractor
from genfed.training.split_network import FEATURES, SplitNetwork, load_features, split_parts
from genfed.training.weights import weights_of
from tests.training.clients import client_of

EXAMPLES = Data(torch.arange(12.0).reshape(3, 1, 2, 2), torch.tensor([0, 1, 0]))


class Records:
    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.puts = 0

    def get(self, slot: Slot[Any]) -> Any:
        return self.kept.get(slot.name)

    def put(self, slot: Slot[Any], record: Any) -> None:
        self.kept[slot.name] = record
        self.puts += 1


class Doubles(nn.Module):
    """A network whose features are its pixels times a weight."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
        self.header = nn.Linear(4, 2)
        self.extractor[1].weight.data = factor * torch.eye(4)


def client() -> Client:
    return replace(client_of(EXAMPLES, 2), storage=Records(), new_network_of=lambda architecture, rng: Doubles(0.0))


def test_features_are_those_of_the_extractor_that_was_sent_last() -> None:
    """Else a server that gives up a round could have one client keep other features than the rest."""
    one = client()
    for factor in (0.0, 2.0, 3.0, 2.0):
        sent = SplitNetwork(*split_parts(weights_of(Doubles(factor))))
        assert torch.equal(load_features(one, Doubles(factor)).x, factor * EXAMPLES.x.reshape(3, 4))
        _, features = SharedExtractor().encode(one, sent.extractor)
        assert torch.equal(features.x, factor * EXAMPLES.x.reshape(3, 4))
        assert torch.equal(SharedExtractor().open_header(one, sent).features.x, features.x)
        assert torch.equal(features.y, EXAMPLES.y)


def test_features_of_one_extractor_are_computed_once() -> None:
    one, storage = client(), Records()
    one = replace(one, storage=storage)
    first = load_features(one, Doubles(2.0))
    assert torch.equal(load_features(one, Doubles(2.0)).x, first.x)
    assert storage.puts == 1
    changed = replace(one, data=replace(EXAMPLES, x=torch.zeros(3, 1, 2, 2)))
    assert not load_features(changed, Doubles(2.0)).x.any(), "those of other examples"
    assert storage.puts == 2
    assert storage.kept.keys() == {FEATURES.name}
