"""Augmentations of series: what they change, by how much, and where they are refused."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.experiment.checks import check_augmentation
from genfed.methods.fedavg import FedAvg
from genfed.training.augmentation import AUGMENTATIONS, augment
from genfed.training.classifier import Training
from genfed.training.fit import cross_entropy
from genfed.training.series_augmentation import ANGLE, FACTOR, NOISE, SERIES, jitter, rotate, rotations, scale

X = torch.randn(200, 6, 40, generator=torch.Generator().manual_seed(0))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_jitter_adds_noise_to_every_number() -> None:
    assert float((jitter(X, rng()) - X).std()) == pytest.approx(NOISE, rel=0.02)


def test_scale_has_one_factor_for_each_channel_of_a_window() -> None:
    factors = scale(X, rng()) / X
    torch.testing.assert_close(factors, factors[..., :1].expand_as(X), rtol=1e-3, atol=1e-3)
    assert float(factors[..., 0].std()) == pytest.approx(FACTOR, rel=0.1)
    assert float(factors[..., 0].mean()) == pytest.approx(1, abs=0.01)


def test_a_rotation_by_hand() -> None:
    turn = rotations(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([math.pi / 2]))[0]
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))
    torch.testing.assert_close(turn @ torch.tensor([0.0, 0, 2]), torch.tensor([0.0, 0, 2]))


def test_rotate_turns_all_sensors_of_a_window_alike() -> None:
    turned = rotate(X, rng())
    for sensor in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(turned[:, sensor].norm(dim=1), X[:, sensor].norm(dim=1))
    same = rotate(torch.cat([X[:, :3], X[:, :3]], 1), rng())
    torch.testing.assert_close(same[:, :3], same[:, 3:])
    angle = torch.nn.functional.cosine_similarity(turned[:, :3], X[:, :3], dim=1).clamp(max=1).arccos()
    assert float(angle.max()) <= math.radians(ANGLE) + 1e-2


@pytest.mark.parametrize("name", sorted(SERIES))
def test_classes_stay_as_they_are(name: str) -> None:
    mixed = AUGMENTATIONS[name](X, rng())
    assert mixed.share == 1
    assert mixed.x.shape == X.shape
    assert torch.equal(mixed.x, AUGMENTATIONS[name](X, rng()).x)


@pytest.mark.parametrize(
    ("augmentation", "task", "reason"),
    [
        ("mixup", Task("series", (3, 8), ("a", "b")), 'series, where only "none", "jitter", "scale", "rotate" is'),
        ("jitter", Task("image", (3, 8, 8), ("a", "b")), 'images, where only "none", "mixup"'),
        ("jitter", Task("table", (3,), ("a", "b")), 'a table, where only "none" is allowed'),
        ("rotate", Task("series", (4, 8), ("a", "b")), r"4 channels; a multiple of 3 \(x, y, z\) is allowed"),
    ],
)  # fmt: skip
def test_augmentation_of_another_kind_is_refused(augmentation: Any, task: Task, reason: str) -> None:
    with pytest.raises(GenfedError, match=reason):
        check_augmentation("fedavg", FedAvg(training=Training(augmentation=augmentation)), task)
    check_augmentation("fedavg", FedAvg(training=Training(augmentation="rotate")), Task("series", (6, 8), ("a", "b")))


@pytest.mark.parametrize("name", sorted(SERIES))
def test_training_on_series_is_augmented(name: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(240, 2))
    loss, plain = augment(network, name), cross_entropy(network)
    y = torch.arange(len(X)) % 2
    assert loss(X, y, rng()).shape == y.shape
    assert not torch.equal(loss(X, y, rng()), plain(X, y, rng()))
