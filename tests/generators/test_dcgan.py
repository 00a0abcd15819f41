"""The DCGAN: shapes, its two losses by hand, who learns in whose step, what travels."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.task import Task
from genfed.data.digits import Digits
from genfed.generators.dcgan import DCGAN, DCGANNetwork
from genfed.generators.generator import kept_weights, uploaded_weights
from genfed.generators.strided_conv import StridedConv4
from genfed.training.fit import fit, train_step
from genfed.training.pixels import normalize_pixels

MAKING = ("noise_to_map.", "label_to_map.", "generator.")
SMALL = DCGAN(width=8, discriminator_width=8, latent_dim=6)


def task(*shape: int, kind: str = "image") -> Task:
    return Task(kind, shape, ("a", "b", "c"))  # type: ignore[arg-type]


def network(*shape: int, kind: str = "image", config: DCGAN = SMALL) -> DCGANNetwork:
    return config.new(task(*shape, kind=kind), stream(0, "dcgan"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 28, 20), (1, 64, 64)])
def test_samples_have_the_shape_and_scale_of_images(shape: tuple[int, ...]) -> None:
    samples = network(*shape).sample(torch.tensor([0, 1, 2, 0]), stream(1))
    assert samples.shape == (4, *shape)
    assert float(samples.abs().max()) <= 1
    assert not samples.requires_grad


def test_features_are_not_negative() -> None:
    samples = network(3, 16, 16, kind="features").sample(torch.zeros(3, dtype=torch.long), stream(1))
    assert samples.shape == (3, 3, 16, 16)
    assert float(samples.min()) >= 0


@pytest.mark.parametrize(
    ("shape", "kind", "says"),
    [((4,), "table", "shape \\(4,\\)"), ((1, 7, 8), "image", "images of 7×8"), ((1, 8, 65), "image", "images of 8×65")],
)
def test_refuses_what_it_cannot_make(shape: tuple[int, ...], kind: str, says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        network(*shape, kind=kind)


def test_published_sizes() -> None:
    """At width 128 the 4×4 maps have 4d channels, half from the noise and half from the label."""
    big = DCGAN().new(Task("image", (1, 32, 32), tuple("0123456789")), stream(0))
    assert big.noise_to_map.weight.shape == (256 * 16, 100)
    assert big.label_to_map.weight.shape == (256 * 16, 10)
    up, down = (
        [tuple(m.weight.shape) for m in side if isinstance(m, StridedConv4)]
        for side in (big.generator, big.discriminator)
    )
    assert up == [(4, 4, 256, 512), (4, 4, 128, 256), (4, 4, 1, 128)]
    assert down == [(4, 4, 128, 256), (4, 4, 256, 512)]
    image: Any = big.see_image[0]
    label: Any = big.see_label[0]
    assert image.weight.shape == (4, 4, 1, 64)
    assert label.weight.shape == (4, 4, 10, 64)
    assert abs(float(image.weight.detach().std()) - 0.02) < 0.003


def test_it_is_the_published_network_of_whole_convolutions() -> None:
    """Layer by layer from torch's own convolutions with the same weights, both sides."""
    gan = network(1, 32, 32).eval()
    z, y = torch.randn(3, 6), torch.tensor([2, 0, 2])
    onehot = F.one_hot(y, 3).float()[..., None, None]

    def kernel(layer: object) -> torch.Tensor:
        assert isinstance(layer, StridedConv4)
        return layer.weight.permute(3, 2, 0, 1)

    first = [gan.noise_to_map.weight.T.view(6, -1, 4, 4), gan.label_to_map.weight.T.view(3, -1, 4, 4)]
    maps = [F.conv_transpose2d(v, w) for v, w in zip((z[..., None, None], onehot), first, strict=True)]
    x = torch.cat(maps, 1)
    layer: Any
    for layer in list(gan.generator)[1:-1]:
        x = F.conv_transpose2d(x, kernel(layer), stride=2, padding=1) if isinstance(layer, StridedConv4) else layer(x)
    bias: Any = gan.generator[-1].bias
    samples = torch.tanh(x + bias)
    torch.testing.assert_close(gan.generate(z, y), samples, rtol=1e-4, atol=1e-6)

    see: Any
    seen = []
    for v, see in ((samples, gan.see_image), (onehot.expand(-1, -1, 32, 32), gan.see_label)):
        seen.append(F.conv2d(v, kernel(see[0]), see[1].bias.flatten(), 2, 1))
    x = torch.cat(seen, 1)
    for layer in list(gan.discriminator)[:-2]:
        x = F.conv2d(x, kernel(layer), stride=2, padding=1) if isinstance(layer, StridedConv4) else layer(x)
    last: Any = gan.discriminator[-1]
    logit = F.conv2d(x, last.weight.view(1, -1, 4, 4), last.bias).flatten()
    torch.testing.assert_close(gan.discriminate(samples, y), logit, rtol=1e-4, atol=1e-6)


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """With logits 0.5 for real and −1 for generated ones: BCE(0.5, 1) + BCE(−1, 0), and BCE(−1, 1)."""
    gan = network(1, 8, 8)
    real = torch.ones(2, 1, 8, 8)

    def judge(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x),), 0.5 if bool((x == 1).all()) else -1.0)

    monkeypatch.setattr(gan, "discriminate", judge)
    first, second = gan.objectives()
    y = torch.tensor([0, 2])
    expected = math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1.0))
    torch.testing.assert_close(first.loss(real, y, stream(0)), torch.full((2,), expected))
    torch.testing.assert_close(second.loss(real, y, stream(0)), torch.full((2,), math.log1p(math.e)))


def test_each_player_changes_its_own_side_alone() -> None:
    gan = network(1, 8, 8)
    x, y = torch.rand(8, 1, 8, 8) * 2 - 1, torch.arange(8) % 3
    for place, objective in enumerate(gan.objectives()):
        before = {n: p.detach().clone() for n, p in gan.named_parameters()}
        train_step(objective, x, y, stream(2))
        changed = {n for n, p in gan.named_parameters() if not torch.equal(p, before[n])}
        making = {n for n in before if n.startswith(MAKING)}
        assert changed
        assert changed <= (making if place else before.keys() - making)
        assert all(p.requires_grad for p in gan.parameters())


def test_the_discriminator_can_stay_at_home() -> None:
    whole, half = network(1, 8, 8), network(1, 8, 8, config=DCGAN(width=8, latent_dim=6, keep_discriminator=True))
    assert not kept_weights(whole)
    assert uploaded_weights(half).keys() | kept_weights(half).keys() == half.state_dict().keys()
    assert all(name.startswith(MAKING) for name in uploaded_weights(half))


def test_samples_of_digits_follow_their_labels() -> None:
    """Ten epochs on real 8×8 digits: most samples are nearer the mean of their own class than that of any other."""
    digits = Digits(size=8).load()
    gan = DCGAN(width=32, discriminator_width=32, latent_dim=8, learning_rate=2e-3).new(digits.task, stream(3))
    fit(gan.objectives(), digits.train, epochs=10, batch_size=32, rng=stream(4))
    y = torch.arange(10).repeat(20)
    samples = gan.sample(y, stream(5))
    means = torch.stack([normalize_pixels(digits.train.x[digits.train.y == c]).mean(0) for c in range(10)])
    nearest = (samples[:, None] - means).square().flatten(2).sum(2).argmin(1)
    assert float((nearest == y).float().mean()) > 0.7
