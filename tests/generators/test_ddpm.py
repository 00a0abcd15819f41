"""The DDPM: its loss and guidance by hand, the paper's β, calls of the network, shapes, and that it learns."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.task import Data, Task
from genfed.generators import diffusion
from genfed.generators.ddpm import DDPM, DDPMNetwork
from genfed.generators.generator import uploaded_weights
from genfed.training.fit import fit, train_step

TINY = DDPM(width=4, levels=2, steps=5)
CLASSES = 3


def network(*shape: int, kind: str = "image", config: DDPM = TINY) -> DDPMNetwork:
    return config.new(Task(kind, shape, ("a", "b", "c")), stream(0, "ddpm"))  # type: ignore[arg-type]


def watched(
    model: DDPMNetwork, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Puts `answer` in the place of the network; returns what it is asked, (x, t, y) a call."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def noise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        calls.append((x.clone(), t, y))
        return answer(x, t, y)

    monkeypatch.setattr(model, "predict_noise", noise)
    return calls


def noise_on(x_0: Tensor, x: Tensor, kept: Tensor) -> Tensor:
    """ε of x = √ᾱ·x_0 + √(1 − ᾱ)·ε, ᾱ [n]."""
    kept = kept[:, None, None, None]
    return (x - kept.sqrt() * x_0) / (1 - kept).sqrt()


def test_beta_is_the_papers() -> None:
    model = network(1, 8, 8, config=DDPM(width=4, levels=1))
    betas = model.diffusion.betas
    assert len(betas) == 100
    torch.testing.assert_close(betas, torch.tensor([1e-4 + (0.02 - 1e-4) * i / 99 for i in range(100)]))


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch, drop: float) -> None:
    """A network that says 0.25 for the class and 0 for none; x_t from ᾱ_t as the product of 1 − β."""
    model, n = network(1, 8, 8, config=replace(TINY, drop=drop)), 40
    calls = watched(model, monkeypatch, lambda x, t, y: 0.25 * (y != CLASSES)[:, None, None, None].expand_as(x))
    x, y = torch.rand(n, 1, 8, 8) * 2 - 1, torch.arange(n) % CLASSES
    loss = model.loss(x, y, stream(1))
    rng = stream(1)
    t, noise = torch.randint(5, (n,), generator=rng), torch.randn(x.shape, generator=rng)
    hidden = torch.rand(n, generator=rng) < drop
    kept = [math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 4) for i in range(k + 1)) for k in t.tolist()]
    noisy = torch.stack([math.sqrt(a) * x[i] + math.sqrt(1 - a) * noise[i] for i, a in enumerate(kept)])
    ((seen, when, labels),) = calls
    torch.testing.assert_close(seen, noisy)
    assert torch.equal(when, t)
    assert torch.equal(labels, torch.where(hidden, CLASSES, y))
    assert bool(hidden.any()) == (drop > 0)
    torch.testing.assert_close(loss, torch.stack([(noise[i] - 0.25 * (~hidden[i])).square().mean() for i in range(n)]))


def test_guidance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network says 1 for class 0, 2 for class 1 and 0.5 for none; w = 2: 3·1 − 2·½ and 3·2 − 2·½."""
    model, said = network(1, 8, 8, config=replace(TINY, guidance_scale=2.0)), torch.tensor([1.0, 2.0, 9.0, 0.5])
    watched(model, monkeypatch, lambda x, t, y: said[y][:, None, None, None].expand_as(x))
    noise = model.predict_guided_noise(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), 3)
    torch.testing.assert_close(noise[:, 0, 0, 0], torch.tensor([2.0, 5.0]))


def test_one_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one step alone, the sampler returns x_0 = (x_1 − √β·ε) / √(1 − β), cut to [−1, 1]."""
    model = network(1, 8, 8, config=DDPM(width=4, levels=1, steps=2, sampling_steps=1, last_beta=0.5))
    calls = watched(model, monkeypatch, lambda x, t, y: torch.full_like(x, 0.1))
    samples = model.sample(torch.tensor([0]), stream(1))
    ((x, t, _),) = calls
    kept = (1 - 1e-4) * 0.5
    assert t.tolist() == [1]
    assert torch.equal(x, torch.randn(1, 1, 8, 8, generator=stream(1)))
    torch.testing.assert_close(samples, ((x - math.sqrt(1 - kept) * 0.1) / math.sqrt(kept)).clamp(-1, 1))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver"])
@pytest.mark.parametrize(("steps", "calls"), [(None, 20), (20, 20), (7, 7), (1, 1)])
@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 2), (0.5, 4)])
def test_calls(
    sampler: Any, steps: int | None, calls: int, guidance: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call per sampling step, from the noisiest on; of a doubled batch only where there is guidance."""
    config = DDPM(width=4, levels=1, steps=20, sampler=sampler, sampling_steps=steps, guidance_scale=guidance)
    model = network(1, 8, 8, config=config)
    samples = watched(model, monkeypatch, lambda x, t, y: torch.zeros_like(x))
    model.sample(torch.tensor([0, 2]), stream(1))
    assert len(samples) == calls
    assert [len(x) for x, _, _ in samples] == [rows] * calls
    times = [int(t[0]) for _, t, _ in samples]
    assert times == sorted(times, reverse=True)
    assert times[0] == 19
    assert all(y.tolist() == ([0, 2] if guidance == 0 else [0, 2, 3, 3]) for _, _, y in samples)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver"])
def test_samplers_find_the_image_that_the_network_knows(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that always sees the noise on one picture: all samplers make that picture."""
    model = network(1, 8, 8, config=DDPM(width=4, levels=1, sampler=sampler, sampling_steps=10, last_beta=0.2))
    picture = torch.where(torch.rand(1, 8, 8) > 0.5, 0.9, -0.9)

    watched(model, monkeypatch, lambda x, t, y: noise_on(picture, x, model.diffusion.alphas_cumprod[t]))
    torch.testing.assert_close(
        model.sample(torch.tensor([0, 1]), stream(1)), picture.expand(2, -1, -1, -1), atol=0.1, rtol=0
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 21), (2, 33, 10), (4, 13, 8)])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_any_image(shape: tuple[int, ...], levels: int) -> None:
    model = network(*shape, config=replace(TINY, levels=levels, steps=2))
    y = torch.tensor([0, 2])
    loss = model.loss(torch.rand(2, *shape) * 2 - 1, y, stream(0))
    assert loss.shape == (2,)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    samples = model.sample(y, stream(1))
    assert samples.shape == (2, *shape)
    assert samples.isfinite().all()
    assert samples.abs().max() <= 1


@pytest.mark.parametrize("shape", [(3, 2, 2), (10, 16, 16), (5, 3, 7)])
def test_features_of_any_scale(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network meets features of mean 0 and variance 1, and samples come back on their scale, at least 0."""
    model = network(*shape, kind="features", config=replace(TINY, levels=3))
    x = torch.relu(torch.randn(64, *shape, generator=stream(0))) * 300
    y = torch.zeros(64, dtype=torch.long)
    assert model.loss(x, y, stream(0)).mean() < 5
    assert {"scale.moments", "scale.batches"} <= uploaded_weights(model).keys()
    clean = []

    def add_noise(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        clean.append(x)
        return noise

    monkeypatch.setattr(model.diffusion, "add_noise", add_noise)
    model.loss(x, y, stream(0))
    torch.testing.assert_close(clean[0].std((0, 2, 3), correction=0), torch.ones(shape[0]), atol=1e-3, rtol=0)
    kept, known = model.diffusion.alphas_cumprod, torch.tensor([1.0, -9.0])[:, None, None, None]
    watched(model, monkeypatch, lambda x, t, y: noise_on(known, x, kept[t]))
    above, below = model.sample(y[:2], stream(1))
    expected = (x.mean((0, 2, 3)) + x.std((0, 2, 3), correction=0))[:, None, None].expand(shape)
    torch.testing.assert_close(above, expected, atol=30.0, rtol=0)
    assert torch.equal(below, torch.zeros(shape))


def test_one_example_at_a_time() -> None:
    model = network(3, 2, 2, kind="features")
    assert model.loss(torch.rand(1, 3, 2, 2), torch.tensor([1]), stream(0)).isfinite().all()


def test_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    model, y = network(1, 8, 8), torch.arange(20) % CLASSES
    before, state = {k: v.clone() for k, v in uploaded_weights(model).items()}, torch.get_rng_state()
    samples = model.sample(y, stream(5))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in uploaded_weights(model).items())
    assert torch.equal(samples, model.sample(y, stream(5)))
    assert not torch.equal(samples, model.sample(y, stream(6)))
    monkeypatch.setattr(diffusion, "CHUNK", 7)
    torch.testing.assert_close(samples, model.sample(y, stream(5)))
    assert not samples.requires_grad
    assert model.sample(y[:0], stream(0)).shape == (0, 1, 8, 8)
    model.eval()
    model.sample(y[:2], stream(0))
    assert not model.training
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    classifier(samples).sum().backward()  # samples may be trained on


def test_published_size() -> None:
    model = DDPM().new(Task("image", (1, 32, 32), tuple("0123456789")), stream(0))
    assert 7.5e6 < sum(p.numel() for p in model.parameters()) < 7.8e6
    assert model.unet.class_embedding.num_embeddings == 11


def test_initialisation_and_training_repeat() -> None:
    x, y = torch.rand(6, 1, 8, 8) * 2 - 1, torch.arange(6) % CLASSES
    models = [network(1, 8, 8), network(1, 8, 8)]
    for model in models:
        (objective,) = model.objectives()
        for i in range(2):
            train_step(objective, x, y, stream(i))
    first, second = (uploaded_weights(model) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_learning_rate_falls_linearly() -> None:
    model = network(1, 8, 8, config=DDPM(width=4))
    assert [group["lr"] for objective in model.objectives() for group in objective.optimizer.param_groups] == [1e-4]
    assert [model.learning_rate_factor(t / 4) for t in range(4)] == [1, 0.75, 0.5, 0.25]


def test_bfloat16_trains_alike() -> None:
    x, y = torch.rand(8, 1, 8, 8) * 2 - 1, torch.arange(8) % CLASSES
    losses = []
    for precision in ("float32", "bfloat16"):
        (objective,) = network(1, 8, 8).objectives()
        losses.append(torch.stack([train_step(objective, x, y, stream(i), precision) for i in range(5)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0)


def test_it_learns_two_classes() -> None:
    """Images bright on the left or on the right: the loss falls, and samples are bright where their label says."""
    y = torch.arange(64) % 2
    half = torch.cat([torch.full((8, 4), 0.8), torch.full((8, 4), -0.8)], 1)
    x = torch.where(y == 0, 1, -1)[:, None, None, None] * half + torch.randn(64, 1, 8, 8, generator=stream(0)) / 20
    task = Task("image", (1, 8, 8), ("left", "right"))
    config = DDPM(width=8, levels=2, steps=20, last_beta=0.5, guidance_scale=2.0, learning_rate=1e-2)
    model = config.new(task, stream(3))
    early = fit(model.objectives(), Data(x, y), epochs=1, batch_size=16, rng=stream(1))
    late = fit(model.objectives(), Data(x, y), epochs=20, batch_size=16, rng=stream(2))
    assert late < 0.5 * early
    y = torch.arange(20) % 2
    samples = (model.sample(y, stream(4)) * half).mean((1, 2, 3))
    assert ((samples > 0) == (y == 0)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("shape", "kind", "says"),
    [
        ((4,), "table", r"generator ddpm: examples of shape \(4,\), a table"),
        ((1, 7, 8), "image", "generator ddpm: images of 7×8"),
        ((1, 8, 65), "image", "images of 8×65"),
        ((3, 1, 65), "features", "features of 1×65; allowed are 1×1 to 64×64"),
    ],
)
def test_refuses_what_it_cannot_make(shape: tuple[int, ...], kind: str, says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        network(*shape, kind=kind)


@pytest.mark.parametrize(
    "bad",
    [{"width": 6}, {"levels": 0}, {"steps": 1}, {"guidance": -0.1}, {"drop": 1.0}, {"sampler": "euler"},
     {"sampling_steps": 0}, {"learning_rate": 0.0}, {"last_beta": 1.0}],
)  # fmt: skip
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        DDPM(**bad)


def test_no_more_sampling_steps_than_steps() -> None:
    with pytest.raises(GenfedError, match="sampling_steps = 101: at most steps = 100 is allowed"):
        DDPM(sampling_steps=101)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(GenfedError) as error:
        network(1, 8, 8)
    assert str(error.value) == """generator ddpm needs the extra "diffusers": pip install 'genfed[diffusers]'"""
