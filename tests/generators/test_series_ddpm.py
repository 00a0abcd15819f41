"""The diffusion model of series: its loss by hand, classes as channels, samples, and what it refuses."""

import pytest
import torch
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.generators.series_ddpm import SeriesDDPM, SeriesDDPMNetwork


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(channels: int = 2, steps: int = 16, levels: int = 1) -> SeriesDDPMNetwork:
    task = Task("series", (channels, steps), ("a", "b", "c"))
    return SeriesDDPM(levels=levels, steps=4, last_beta=0.2).new(task, rng())


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small()
    x, y = torch.randn(5, 2, 16, generator=rng(1)), torch.arange(5) % 3
    draws = rng(7)
    t = torch.randint(4, (5,), generator=draws)
    noise = torch.randn(x.shape, generator=draws)
    given: list[Tensor] = []

    def predict_noise(noisy: Tensor, t: Tensor, y: Tensor) -> Tensor:
        given.append(noisy)
        return torch.zeros_like(noisy)

    monkeypatch.setattr(network, "predict_noise", predict_noise)
    torch.testing.assert_close(network.loss(x, y, rng(7)), noise.square().mean((1, 2)))
    kept = (1 - torch.linspace(1e-4, 0.2, 4)).cumprod(0)[t].view(-1, 1, 1)
    torch.testing.assert_close(given[0], kept.sqrt() * x + (1 - kept).sqrt() * noise)


def test_the_network_sees_the_class_as_channels() -> None:
    network, seen = small(), []
    network.unet.register_forward_pre_hook(lambda module, given: seen.append(given))
    network.predict_noise(torch.ones(2, 2, 16), torch.tensor([0, 2]), torch.tensor([1, 3]))
    x, t = seen[0]
    assert x[0, :, 0].tolist() == [1, 1, 0, 1, 0]
    assert x[1, :, 0].tolist() == [1, 1, 0, 0, 0], "no class is zeros"
    assert t.tolist() == [0, 0.5]


@pytest.mark.parametrize("shape", [(1, 8, 3), (9, 128, 2), (2, 30, 3)])
def test_samples_have_the_shape_of_windows_and_repeat(shape: tuple[int, int, int]) -> None:
    network, y = small(*shape), torch.tensor([0, 1, 1])
    x = network.sample(y, rng(3))
    assert x.shape == (3, *shape[:2])
    assert torch.equal(x, network.sample(y, rng(3)))
    assert float(x.abs().max()) > 1, "numbers are not clipped as pixels are"


def test_other_examples_are_refused() -> None:
    with pytest.raises(GenfedError, match=r"generator series_ddpm: .*images; allowed are series"):
        SeriesDDPM().new(Task("image", (1, 8, 8), ("a", "b")), rng())
    with pytest.raises(GenfedError, match="generator series_ddpm: windows of 7 steps"):
        SeriesDDPM().new(Task("series", (1, 7), ("a", "b")), rng())
