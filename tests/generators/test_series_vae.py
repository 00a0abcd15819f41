"""The autoencoder of series: its loss by hand, its samples, what it refuses, and that it learns."""

import math

import pytest
import torch
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.task import Data, Task
from genfed.generators.series_vae import SeriesVAE, SeriesVAENetwork
from genfed.training.fit import fit


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(channels: int = 2, steps: int = 16) -> SeriesVAENetwork:
    return SeriesVAE(width=4, latent_dim=3).new(Task("series", (channels, steps), ("a", "b")), rng())


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SeriesVAE(width=4, latent_dim=2).new(Task("series", (1, 8), ("a", "b")), rng())
    mean, log_variance = torch.tensor([[0.0, 0.0], [1.0, -2.0]]), torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]])
    drawn = torch.randn(2, 2, generator=rng(7))
    codes: list[Tensor] = []

    def decode(z: Tensor, y: Tensor) -> Tensor:
        codes.append(z)
        return torch.full((2, 1, 8), 0.5)

    monkeypatch.setattr(network, "encode", lambda x, y: (mean, log_variance))
    monkeypatch.setattr(network, "decode", decode)
    with torch.no_grad():
        network.log_deviation[1] = math.log(2.0)
    loss = network.loss(torch.stack([torch.zeros(1, 8), torch.ones(1, 8)]), torch.tensor([0, 1]), rng(7))
    # 8 numbers, each ½ off: deviation 1: 8·(¼/2); deviation 2: 8·(1/16/2 + ln 2). KL: 0; ½(1+4−ln 4−1) + ½(4+1−0−1).
    expected = torch.tensor([1.0, 0.25 + 8 * math.log(2) + (4 - math.log(4)) / 2 + 2])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        codes[0], torch.stack([drawn[0], torch.tensor([1.0, -2.0]) + drawn[1] * torch.tensor([2, 1])])
    )


@pytest.mark.parametrize("shape", [(1, 8), (9, 128), (2, 30)])
def test_samples_have_the_shape_of_windows_and_repeat(shape: tuple[int, int]) -> None:
    network, y = small(*shape), torch.tensor([0, 1, 1])
    x = network.sample(y, rng(3))
    assert x.shape == (3, *shape)
    assert torch.equal(x, network.sample(y, rng(3)))
    assert not torch.equal(x[1], x[2])


def test_a_sample_is_what_is_decoded_plus_noise_of_its_class() -> None:
    network, y = small(1, 8), torch.arange(2).repeat(2000)
    with torch.no_grad():
        network.log_deviation[:, 0, 0] = torch.tensor([0.1, 3.0]).log()
        for weight in (network.decoder.get_parameter(f"{place}.weight") for place in (0, len(network.decoder) - 1)):
            torch.nn.init.zeros_(weight)
    x = network.sample(y, rng())
    assert float(x[y == 0].std(0).mean()) == pytest.approx(0.1, rel=0.05)
    assert float(x[y == 1].std(0).mean()) == pytest.approx(3, rel=0.05)


def test_it_learns_two_classes() -> None:
    y = torch.arange(64) % 2
    x = (2 * y - 1.0).view(-1, 1, 1) + 0.1 * torch.randn(64, 2, 16, generator=rng())
    network = small()
    fit(network.objectives(), Data(x, y), epochs=80, batch_size=16, rng=rng())
    made = network.sample(torch.arange(20) % 2, rng()).mean((1, 2))
    assert made[0::2].mean() < -0.7
    assert made[1::2].mean() > 0.7


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Task("table", (4,), ("a", "b")), r"generator series_vae: .*\(4,\), a table; allowed are series"),
        (Task("image", (1, 8, 8), ("a", "b")), "images; allowed are series"),
        (Task("series", (1, 7), ("a", "b")), "generator series_vae: windows of 7 steps; 8 or more are allowed"),
    ],
)  # fmt: skip
def test_other_examples_are_refused(task: Task, reason: str) -> None:
    with pytest.raises(GenfedError, match=reason):
        SeriesVAE().new(task, rng())
