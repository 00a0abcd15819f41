import copy
import math
from dataclasses import replace

import pydantic
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Data, Task
from genfed.generators.cvae import CVAE, CVAENetwork
from genfed.generators.generator import kept_weights, uploaded_weights
from genfed.generators.strided_conv import StridedConv4
from genfed.training.fit import fit, train_step
from genfed.training.pixels import normalize_pixels


def task(*shape: int, classes: int = 10) -> Task:
    return Task("image" if len(shape) == 3 else "table", shape, tuple(str(i) for i in range(classes)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(*shape: int, classes: int = 10, seed: int = 0) -> CVAENetwork:
    return CVAE(width=4, latent_dim=3).new(task(*shape, classes=classes), rng(seed))


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    network = CVAE(width=1, latent_dim=2).new(task(1, 8, 8, classes=2), rng())
    mean = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    log_variance = torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]])
    drawn = torch.randn(2, 2, generator=rng(7))
    codes: list[Tensor] = []

    def decode(z: Tensor, y: Tensor) -> Tensor:
        codes.append(z)
        return torch.full((2, 1, 8, 8), 0.5)

    monkeypatch.setattr(network, "encode", lambda x, y: (mean, log_variance))
    monkeypatch.setattr(network, "decode", decode)
    loss = network.loss(torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]), torch.tensor([0, 1]), rng(7))
    # 64 pixels, each ½ off: 16. KL: nothing; then ½(1 + 4 − ln 4 − 1) + ½(4 + 1 − 0 − 1).
    torch.testing.assert_close(loss, torch.tensor([16.0, 16.0 + (4 - math.log(4)) / 2 + 2]))
    torch.testing.assert_close(
        codes[0], torch.stack([drawn[0], torch.tensor([1.0, -2.0]) + drawn[1] * torch.tensor([2, 1])])
    )


class Whole(nn.Module):
    """A `StridedConv4` or `TransposedConv4` as torch's 4×4 convolution.

    The taps that ours lacks are 9, and meet padding alone.
    """

    def __init__(self, layer: StridedConv4) -> None:
        super().__init__()
        weight = layer.weight.detach().permute(3, 2, 0, 1)
        rows, columns = ((4 - side) // 2 for side in weight.shape[2:])
        self.weight = functional.pad(weight, (columns, columns, rows, rows), value=9.0)
        self.transposed = layer.transposed

    def forward(self, x: Tensor) -> Tensor:
        convolution = functional.conv_transpose2d if self.transposed else functional.conv2d
        return convolution(x, self.weight, stride=2, padding=1)


def with_whole_kernels(network: CVAENetwork) -> CVAENetwork:
    network = copy.deepcopy(network)
    for layers in (network.encoder, network.decoder):
        for i, layer in enumerate(layers):
            layers[i] = Whole(layer) if isinstance(layer, StridedConv4) else layer
    return network


@pytest.mark.parametrize("sides", [(32, 32), (20, 40)])
def test_loss_is_that_of_whole_kernels(sides: tuple[int, int]) -> None:
    network = CVAE(width=8, latent_dim=4).new(task(1, *sides), rng())
    x, y = torch.rand(6, 1, *sides, generator=rng()) * 2 - 1, torch.arange(6)
    expected, got = with_whole_kernels(network).loss(x, y, rng(1)), network.loss(x, y, rng(1))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("sides", "inner"), [((32, 32), (8, 8)), ((20, 40), (8, 16))])
def test_a_size_of_its_own(sides: tuple[int, int], inner: tuple[int, int]) -> None:
    """The network is that of small images; its images are enlarged, and compared with the whole ones pixel by pixel."""
    within = small(1, *inner)
    network = CVAE(width=4, latent_dim=3, size=8).new(task(1, *sides), rng())
    network.load_state_dict(within.state_dict())
    x, y, z = torch.rand(6, 1, *sides, generator=rng()) * 2 - 1, torch.arange(6), torch.randn(6, 3, generator=rng())
    for got, expected in zip(network.encode(x, y), within.encode(resize(x, inner), y), strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(network.decode(z, y), resize(within.decode(z, y), sides))
    mean, log_variance = network.encode(x, y)
    code = mean + torch.randn(mean.shape, generator=rng(1)) * torch.exp(log_variance / 2)
    error = (network.decode(code, y) - x).square().sum((1, 2, 3))
    divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
    share = inner[0] * inner[1] / (sides[0] * sides[1])
    torch.testing.assert_close(network.loss(x, y, rng(1)), error * share + divergence)


def resize(x: Tensor, sides: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, sides, mode="bilinear", antialias=True)


def test_its_own_size_is_no_larger_than_the_images() -> None:
    with pytest.raises(GenfedError, match=r"size = 16, but the images have 12×20; allowed is .* shorter side, 12"):
        CVAE(size=16).new(task(1, 12, 20), rng())


def test_paper_size() -> None:
    network = CVAE().new(task(1, 32, 32), rng())
    assert 9.7e6 < sum(p.numel() for p in network.parameters()) < 9.9e6  # 22.4M less the taps that never train
    norms = [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [64, 128, 256, 512, 1024, 512, 256, 128, 64]


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    classes=st.integers(1, 12),
    n=st.integers(2, 4),
)
def test_any_image(channels: int, height: int, width: int, classes: int, n: int) -> None:
    network = small(channels, height, width, classes=classes)
    x, y = torch.rand(n, channels, height, width) * 2 - 1, torch.randint(classes, (n,))
    (objective,) = network.objectives()
    loss = objective.loss(x, y, rng())
    assert loss.shape == (n,)
    assert loss.isfinite().all()
    loss.mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    samples = network.sample(y, rng())
    assert samples.shape == x.shape
    assert samples.abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 65), (3, 128, 128)])
def test_sizes_that_do_not_fit(shape: tuple[int, int, int]) -> None:
    with pytest.raises(GenfedError, match=rf"cvae: images of {shape[1]}×{shape[2]}; allowed are 8×8 to 64×64"):
        CVAE().new(task(*shape), rng())


def test_tables_are_refused() -> None:
    with pytest.raises(GenfedError, match=r"cvae: examples of shape \(13,\), a table; allowed are images"):
        CVAE().new(task(13), rng())


@pytest.mark.parametrize(
    "bad", [{"width": 0}, {"size": 7}, {"latent_dim": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}, {"beta": 1}]
)
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError):
        CVAE(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"width": 5}, {"latent_dim": 4}, {"learning_rate": 1e-2}, {"weight_decay": 50.0}])
def test_every_setting_counts(change: dict[str, float]) -> None:
    x, y = torch.rand(4, 1, 8, 8, generator=rng()) * 2 - 1, torch.arange(4)
    samples = []
    for config in (CVAE(width=4, latent_dim=3), replace(CVAE(width=4, latent_dim=3), **change)):  # type: ignore[arg-type]
        network = config.new(task(1, 8, 8), rng())
        (objective,) = network.objectives()
        for _ in range(3):
            train_step(objective, x, y, rng(1))
        samples.append(network.sample(y, rng(2)))
    assert not torch.equal(*samples)


def test_the_decay_is_the_published_one_for_a_batch_of_64() -> None:
    (objective,) = small(1, 8, 8).objectives()
    (group,) = objective.optimizer.param_groups
    assert group["weight_decay"] == 1e-3 / 64
    assert group["lr"] == 1e-3


def test_the_encoder_can_stay_at_home() -> None:
    """What travels is enough to decode; what makes codes is not in it."""
    whole = small(1, 8, 8)
    half = CVAE(width=4, latent_dim=3, keep_encoder=True).new(task(1, 8, 8), rng())
    assert not kept_weights(whole)
    assert uploaded_weights(half).keys() | kept_weights(half).keys() == whole.state_dict().keys()
    assert {name.partition(".")[0] for name in uploaded_weights(half)} == {"start", "decoder", "bias"}
    assert {name.partition(".")[0] for name in kept_weights(half)} == {"planes", "encoder", "code"}


def test_initialisation_and_training_repeat() -> None:
    x, y = torch.rand(6, 1, 12, 12, generator=rng()) * 2 - 1, torch.arange(6)
    networks = [small(1, 12, 12, seed=3), small(1, 12, 12, seed=3)]
    for network in networks:
        (objective,) = network.objectives()
        for i in range(2):
            train_step(objective, x, y, rng(i))
    first, second = (uploaded_weights(network) for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(small(1, 12, 12, seed=4).planes, small(1, 12, 12, seed=3).planes)


def test_sampling() -> None:
    network = small(1, 8, 8)
    y = torch.arange(300) % 10  # more than a chunk
    before, state = uploaded_weights(network), torch.get_rng_state()
    samples = network.sample(y, rng(5))
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in uploaded_weights(network).items())
    assert torch.equal(samples, network.sample(y, rng(5)))
    assert not torch.equal(samples, network.sample(y, rng(6)))
    assert not samples.requires_grad
    assert network.sample(y[:0], rng()).shape == (0, 1, 8, 8)
    network.eval()
    network.sample(y[:2], rng())
    assert not network.training
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    classifier(samples).sum().backward()  # samples may be trained on


def test_bfloat16_trains_alike() -> None:
    x, y = torch.rand(8, 1, 16, 16, generator=rng()) * 2 - 1, torch.arange(8)
    losses = []
    for precision in ("float32", "bfloat16"):
        (objective,) = small(1, 16, 16).objectives()
        losses.append(torch.stack([train_step(objective, x, y, rng(i), precision) for i in range(10)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0)


def test_it_learns_digits() -> None:
    digits = load_digits()
    x = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    data = Data(x, torch.from_numpy(digits.target).long())
    network = CVAE(width=16, latent_dim=8).new(task(1, 8, 8), rng())
    early = fit(network.objectives(), data, epochs=1, batch_size=64, rng=rng(1))
    late = fit(network.objectives(), data, epochs=12, batch_size=64, rng=rng(2))
    assert late < 0.6 * early
    means = torch.stack([normalize_pixels(x[data.y == c]).mean(0) for c in range(10)]).flatten(1)
    y = torch.arange(200) % 10
    nearest = torch.cdist(network.sample(y, rng(3)).flatten(1), means).argmin(1)
    assert (nearest == y).float().mean() > 0.7
