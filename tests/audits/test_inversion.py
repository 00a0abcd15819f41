"""Images are rebuilt from the updates of small networks, and not from those of other images."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from genfed.audits.audit import Case, NotPossible
from genfed.audits.inversion import LABELS, Inversion, classifier_gradients, read_label
from genfed.audits.reconstruction import ABOVE, match_images, psnr, ssim
from genfed.core.client import Server
from genfed.core.rng import seeded, stream
from genfed.methods.fedavg import FedAvg
from genfed.methods.gefl_f import GeFLF
from genfed.methods.local import Local
from tests.audits.cases import case, server


def mlp(architecture: str, rng: torch.Generator) -> nn.Sequential:
    with seeded(rng):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 3))


def toy(**changes: Any) -> Case:
    def there(*path: str | int) -> Server:
        return dataclasses.replace(server(*path), new_network=mlp)

    fields: dict[str, Any] = {"method": FedAvg(), "server": there}
    return case(**fields | changes)


def test_images_are_rebuilt_from_updates() -> None:
    found = Inversion(examples=4, steps=120).examine(toy().as_seen(("uploads",)))
    (reading,) = found.readings
    assert reading.verdict == "leak", reading
    assert reading.run[ABOVE].value > 3
    assert reading.run[LABELS].value == 1
    assert reading.null[ABOVE].value < 0
    assert found.pictures[0].images.shape == (3, 4, 1, 8, 8)


def test_who_uploads_no_classifier_cannot_be_inverted() -> None:
    with pytest.raises(NotPossible, match="no client of toy uploads a classifier"):
        Inversion().examine(toy(method=Local()))
    Inversion(examples=2, batch=2, steps=1).examine(toy(method=GeFLF()))  # extractor and header are one


def test_the_label_is_told_from_the_last_bias() -> None:
    network, x = mlp("", stream(0)), torch.rand(1, 1, 8, 8)
    assert [read_label(network, classifier_gradients(network, x, torch.tensor([c]))) for c in range(3)] == [0, 1, 2]
    assert read_label(nn.Flatten(), []) is None


def test_parameters_that_are_frozen_or_idle_do_no_harm() -> None:
    network, x, y = mlp("", stream(0)), torch.rand(1, 1, 8, 8), torch.tensor([1])
    network.register_parameter("idle", nn.Parameter(torch.ones(2)))
    network[1].requires_grad_(False)
    found = classifier_gradients(network, x, y)
    assert [len(g) for g in found] == [2, 3, 3]  # idle, last weights, last bias
    assert not found[0].any()
    assert read_label(network, found) == 1
    network[3].requires_grad_(False)
    assert read_label(network, found[:1]) is None


def test_measures_by_hand() -> None:
    x = torch.rand(3, 1, 8, 8, generator=stream(0)) * 2 - 1
    assert psnr(x, x).tolist() == [60] * 3
    assert psnr(x + 0.2, x).tolist() == pytest.approx([20.0] * 3, abs=1e-3)  # 10·log10(4/0.04)
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3)
    assert float(ssim(x[[1, 2, 0]], x).max()) < 0.3  # of unlike noise
    assert match_images(x[[2, 0, 1]], x).tolist() == [1, 2, 0]
