"""Steering: each number by hand on stubs whose loss is known, then what holds for any model."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.rng import seeded, stream
from genfed.core.task import Task
from genfed.foundation import classifier_guidance
from genfed.foundation.classifier_guidance import (
    ClassifierGuidance,
    Teacher,
    check_sampler,
    generate_guided,
    shift_images,
)
from genfed.foundation.loading import load_foundation
from genfed.foundation.model import Conditions, FoundationModel, Pixels
from genfed.foundation.settings import Foundation
from tests.foundation import toys

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guide")


@pytest.fixture(scope="module")
def latent(folder: Path) -> FoundationModel:
    return load_foundation(str(toys.latent(folder / "latent")))


@pytest.fixture(scope="module")
def pixel(folder: Path) -> FoundationModel:
    return load_foundation(str(toys.pixel(folder / "pixel")))


@pytest.fixture(autouse=True)
def _warns_anew() -> None:
    classifier_guidance._warn.cache_clear()


# The teacher.


def test_the_gap_of_an_image_by_hand() -> None:
    """Pixels 1 and 5 have mean 3 and variance 4, 2 and 2 have mean 2 and variance 0."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    teacher = Teacher(nn.Sequential(norm, nn.Flatten(), nn.Linear(4, 3)))
    logits, gap = teacher(torch.tensor([[[[1.0, 5.0]], [[2.0, 2.0]]]]))
    assert logits.shape == (1, 3)
    assert gap.tolist() == [pytest.approx(math.hypot(4 - 2, 0 - 1) + math.hypot(3 - 1, 2 - 0))]


def test_gaps_add_up_over_layers_and_see_what_goes_into_them() -> None:
    norms = [nn.BatchNorm2d(1), nn.BatchNorm2d(1)]
    norms[1].running_mean = torch.tensor([7.0])
    teacher = Teacher(nn.Sequential(*norms, nn.Flatten(), nn.Linear(2, 2)))
    _, gap = teacher(torch.tensor([[[[-3.0, 3.0]]]]))  # mean 0, variance 9; the first changes it by a factor 1/√(1 + ε)
    assert gap.tolist() == [pytest.approx(8 + 0 + 8 + 7, abs=1e-3)]


def test_a_batch_has_the_gaps_and_logits_of_single_images() -> None:
    with seeded(stream(0)):
        teacher = Teacher(convolutional())
    x = torch.randn(5, *SHAPE, generator=stream(1))
    for whole, single in zip(teacher(x), zip(*(teacher(one[None]) for one in x), strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(single))
    assert teacher(x)[1].min() > 0


def test_without_batch_norm_over_positions_there_is_no_gap() -> None:
    for model in (
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(4, 2)),
    ):
        assert Teacher(model)(torch.randn(3, 1, 2, 2, generator=stream(0)))[1].tolist() == [0, 0, 0]


def test_a_teacher_is_frozen_and_asked_in_eval_mode() -> None:
    model = convolutional()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, *SHAPE, generator=stream(0)).requires_grad_()
    _, gap = Teacher(model)(x)
    gap.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


# A step by hand: a model that keeps 0.36 of an image's variance at every t and always answers 0, so that with
# v-prediction x0 = 0.6·z, and a step of DDIM leaves z as it is but for the last, which gives x0.


class Silent(Conditions):
    """Answers 0, with a gradient that is 0."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.zeros(len(texts), 1, 1)

    def encode_none(self, n: int, negative: str) -> Tensor:
        return torch.zeros(n, 1, 1)

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return 0 * z


class Faint(FoundationModel):
    """Its noise is small: no image comes near the cut."""

    def draw_noise(self, rngs: Any) -> Tensor:
        return super().draw_noise(rngs) / 4


def stub(kept: float = 0.36, prediction: str = "v_prediction", shape: tuple[int, int, int] = (1, 1, 1)) -> Faint:
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=8, trained_betas=[1 - kept, *[0.0] * 7], prediction_type=prediction, clip_sample=False
    )
    cpu = torch.device("cpu")
    return Faint("stub", "pixel", nn.Identity(), Pixels(), Silent(), scheduler, shape, shape, cpu, "float32")


class Square(nn.Module):
    """A teacher that does not know a class from another, and whose gap is ½‖x‖²."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x), 2), x.square().flatten(1).sum(1) / 2


class Brightness(nn.Module):
    """Sure of class 0 by how bright an image is; no gap."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.flatten(1).sum(1)
        return torch.stack([total, 0 * total], 1), 0 * total


def generate(
    model: FoundationModel,
    guidance: ClassifierGuidance,
    teachers: Any,
    labels: list[int],
    clients: list[int],
    *,
    steps: int = 4,
    scheduler: Any = "ddim",
    rngs: list[torch.Generator] | None = None,
) -> Tensor:
    sampling = Foundation(steps=steps, guidance_scale=1.0, scheduler=scheduler)
    condition = model.encode_condition(["a"] * len(labels))
    return generate_guided(
        model,
        sampling,
        guidance,
        teachers,
        condition,
        torch.tensor(labels),
        torch.tensor(clients),
        rngs or toys.rngs(len(labels)),
        model.image_shape,
    )


@pytest.mark.parametrize(
    ("guidance", "pulls"),
    [
        (ClassifierGuidance(step=0.5, statistics=0.3, noise_edits=3), 3 + 4),
        (ClassifierGuidance(step=0.5, statistics=0.3, noise_edits=0), 4),
        (ClassifierGuidance(step=0.5, statistics=0.3, noise_edits=1, begin=0.5), 1 + 2),
        (ClassifierGuidance(step=0.5, statistics=0.3, noise_edits=0, begin=0.25, end=0.75), 2),
        (ClassifierGuidance(step=0.5, statistics=0.3, noise_edits=2, end=0.0), 2),
        (
            ClassifierGuidance(step=0.5, statistics=0.3, noise_edits=2, augmented_views=3),
            2 + 4,
        ),  # one pixel looks the same from everywhere
        (ClassifierGuidance(step=0.5, statistics=0.0), 0),
        (ClassifierGuidance(step=0.0, statistics=0.3), 0),
    ],
)
def test_steps_down_a_quadratic_loss_by_hand(guidance: ClassifierGuidance, pulls: int) -> None:
    """L = λ·½‖0.6·z‖², so each step multiplies z by 1 − step·λ·0.36."""
    model = stub()
    images = generate(model, guidance, {0: Square()}, [0, 1], [0, 0])
    z = model.draw_noise(toys.rngs(2))
    torch.testing.assert_close(images, 0.6 * z * (1 - 0.5 * 0.3 * 0.36) ** pulls)


def test_a_step_towards_a_class_by_hand() -> None:
    """−log σ(0.6·z) has the slope −0.6·(1 − σ(0.6·z))."""
    model = stub()
    (image,) = generate(model, ClassifierGuidance(step=2.0, noise_edits=1, end=0.0), {5: Brightness()}, [0], [5])
    z = model.draw_noise(toys.rngs(1))
    torch.testing.assert_close(image[None], 0.6 * (z + 2 * 0.6 * (1 - torch.sigmoid(0.6 * z))))


def test_each_image_heeds_its_own_clients_teacher_and_its_own_label() -> None:
    model, guidance = stub(), ClassifierGuidance(step=1.0, statistics=0.5, noise_edits=0)
    teachers = {3: Square(), 8: Brightness()}
    images = generate(model, guidance, teachers, [0, 0, 1, 1], [3, 8, 8, 3])
    z = model.draw_noise(toys.rngs(4))
    for i in (0, 3):
        torch.testing.assert_close(images[i], 0.6 * z[i] * (1 - 0.5 * 0.36) ** 4)
    assert float(images[1]) > float(0.6 * z[1])
    assert float(images[2]) < float(0.6 * z[2])


def test_noise_that_cannot_be_edited_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """With ᾱ = 10⁻⁶ an ε of 0 makes x0 a thousand times z: all is cut."""
    model, guidance = stub(kept=1e-6, prediction="epsilon"), ClassifierGuidance(noise_edits=5, end=0.0)
    with caplog.at_level(logging.WARNING):
        images = generate(model, guidance, {0: Square()}, [0, 0], [0, 0])
        generate(model, guidance, {0: Square()}, [0, 0], [0, 0])
    assert images.abs().min() == 1
    assert [r.getMessage() for r in caplog.records] == [
        "stub: the initial noise cannot be edited: at the first step (t = 6) images are clipped to [−1, 1] everywhere, "
        "where gradients are 0; set edits = 0, or use a model that keeps some of the image there"
    ]
    caplog.clear()
    generate(stub(), guidance, {0: Square()}, [0, 0], [0, 0])
    assert not caplog.records


class Uneven(Faint):
    """Its first image is large, its second small."""

    def draw_noise(self, rngs: Any) -> Tensor:
        return super().draw_noise(rngs) * torch.tensor([1.0, 1e-5])[: len(rngs)].view(-1, 1, 1, 1)


def test_an_image_that_cannot_be_edited_draws_as_much_alone_as_beside_one_that_can() -> None:
    model = Uneven(**vars(stub(kept=1e-6, prediction="epsilon")))
    after = []
    for n in (1, 2):
        rngs = toys.rngs(n)
        generate(
            model,
            ClassifierGuidance(noise_edits=3, augmented_views=2),
            {0: Square()},
            [0] * n,
            [0] * n,
            scheduler="ddpm",
            rngs=rngs,
        )
        after.append(rngs[0].get_state())
    assert torch.equal(*after)


# With real networks.


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
def test_it_is_the_papers_algorithm_an_image_at_a_time(
    prediction: str, scheduler: str, latent: FoundationModel
) -> None:
    """Written anew from the paper, on plain diffusers: the noise edited at the first step; then the gradient first, the
    output anew and the scheduler's step."""
    with seeded(stream(4)):
        client = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
        ).eval()
        for norm in client[1], client[3]:
            norm.load_state_dict({k: v + 0.5 for k, v in norm.state_dict().items()})
    plan = diffusers.DDIMScheduler(**toys.OLD, prediction_type=prediction)
    model, texts, labels = dataclasses.replace(latent, scheduler=plan), ["a cat", "a dog"], [2, 0]
    own = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[scheduler].from_config(plan.config)
    own.set_timesteps(3)
    unet, vae, none = model.network, model.space.vae, model.encode_unconditional(1)  # type: ignore[attr-defined]

    def output(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        without, of = (unet(z, t, encoder_hidden_states=c).sample for c in (none, text))
        guided: Tensor = without + 2.5 * (of - without)
        return guided

    def loss(z: Tensor, t: Tensor, text: Tensor, label: int) -> Tensor:
        kept, raw = own.alphas_cumprod[t], output(z, t, text)
        x0 = {
            "epsilon": (z - (1 - kept).sqrt() * raw) / kept.sqrt(),
            "v_prediction": kept.sqrt() * z - (1 - kept).sqrt() * raw,
            "sample": raw,
        }[prediction]
        h, gap = 2 * (vae.decode(x0 / 0.7).sample / 2 + 0.5).clip(0, 1) - 1, torch.zeros(())
        for layer in client:
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                gap = gap + (h.var((0, 2, 3), correction=0) - layer.running_var).norm()
                gap = gap + (h.mean((0, 2, 3)) - layer.running_mean).norm()
            h = layer(h)
        return nn.functional.cross_entropy(h, torch.tensor([label])) + 0.3 * gap

    def step(z: Tensor, t: Tensor, text: Tensor, label: int) -> Tensor:
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(z, t, text, label), z)
        return (z - 0.5 * gradient).detach()

    expected = []
    for text, label, rng in zip(torch.split(model.encode_condition(texts), 1), labels, toys.rngs(2), strict=True):
        z = torch.randn(1, *model.latent_shape, generator=rng)
        for _ in range(2):
            z = step(z, own.timesteps[0], text, label)
        for t in own.timesteps:
            z = step(z, t, text, label)
            with torch.no_grad():
                z = own.step(output(z, t, text), t, z, generator=rng).prev_sample
        with torch.no_grad():
            expected.append(vae.decode(z / 0.7).sample.clip(-1, 1))
    sampling: Any = Foundation(steps=3, guidance_scale=2.5, scheduler=scheduler)  # type: ignore[arg-type]
    images = generate_guided(
        model, sampling, ClassifierGuidance(step=0.5, statistics=0.3, noise_edits=2), {0: Teacher(client)},
        model.encode_condition(texts), torch.tensor(labels), torch.tensor([0, 0]), toys.rngs(2), SHAPE,
    )  # fmt: skip
    torch.testing.assert_close(images, torch.cat(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
@pytest.mark.parametrize("kind", ["latent", "pixel"])
def test_unsteered_it_is_generation_bit_for_bit(kind: str, scheduler: Any, request: pytest.FixtureRequest) -> None:
    model: FoundationModel = request.getfixturevalue(kind)
    sampling = Foundation(steps=3, guidance_scale=2.0, scheduler=scheduler)
    condition = model.encode_condition(["a cat", "a dog", "an owl"])
    for guidance in (ClassifierGuidance(step=0.0), ClassifierGuidance(noise_edits=0, begin=1.0)):
        images = generate_guided(
            model, sampling, guidance, {0: Teacher(convolutional())}, condition, torch.tensor([0, 1, 2]),
            torch.zeros(3, dtype=torch.int64), toys.rngs(3), SHAPE,
        )  # fmt: skip
        assert torch.equal(images, sampling.generate(model, condition, toys.rngs(3)))


@pytest.mark.parametrize("views", [0, 2])
def test_an_image_is_steered_as_if_alone(pixel: FoundationModel, views: int) -> None:
    """Whoever else is in the batch, and whosever teacher steers these."""
    with seeded(stream(4)):
        teachers = {k: Teacher(convolutional()) for k in (0, 1, 2)}
    guidance = ClassifierGuidance(step=5.0, noise_edits=2, augmented_views=views)
    labels, clients = [0, 1, 2, 0], [2, 0, 2, 1]
    whole = generate(pixel, guidance, teachers, labels, clients, steps=3, scheduler="ddpm")
    for i in range(4):
        only = {clients[i]: teachers[clients[i]]}
        rngs = [toys.rngs(4)[i]]
        alone = generate(pixel, guidance, only, [labels[i]], [clients[i]], steps=3, scheduler="ddpm", rngs=rngs)
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-3)
    unsteered = generate(pixel, ClassifierGuidance(step=0.0), teachers, labels, clients, steps=3, scheduler="ddpm")
    assert float((whole - unsteered).abs().mean()) > 0.01


def test_steering_brings_images_nearer_to_what_the_teacher_knows(pixel: FoundationModel) -> None:
    with seeded(stream(4)):
        teacher = Teacher(convolutional())

    def loss(guidance: ClassifierGuidance) -> float:
        images = generate(pixel, guidance, {0: teacher}, [0, 1, 2] * 3, [0] * 9, steps=3)
        logits, gap = teacher(images)
        ce = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2] * 3), reduction="none")
        return float((ce + 0.1 * gap).detach().sum())

    assert loss(ClassifierGuidance(step=30.0, noise_edits=3)) < loss(ClassifierGuidance(step=0.0)) - 0.1


def test_bfloat16_steers_nearly_as_float32(pixel: FoundationModel) -> None:
    with seeded(stream(4)):
        teachers = {0: Teacher(convolutional())}
    half = dataclasses.replace(pixel, precision="bfloat16")
    unsteered, full, rough = (
        generate(model, guidance, teachers, [0, 1, 2], [0, 0, 0], steps=3)
        for model, guidance in (
            (pixel, ClassifierGuidance(step=0.0)),
            (pixel, ClassifierGuidance(step=20.0, noise_edits=2)),
            (half, ClassifierGuidance(step=20.0, noise_edits=2)),
        )
    )
    way, rough_way = (full - unsteered).flatten(), (rough - unsteered).flatten()
    assert float(nn.functional.cosine_similarity(way, rough_way, dim=0)) > 0.9


# Views, and what is refused.


def test_views_are_the_image_moved_by_its_own_draws() -> None:
    x = torch.arange(2 * 16 * 8, dtype=torch.float32).view(2, 1, 16, 8)
    views = shift_images(x, toys.rngs(2))
    assert views.shape == x.shape
    assert torch.equal(shift_images(x[1:], toys.rngs(2)[1:]), views[1:])
    inner = views[0, 0, 2:-2, 1:-1] - x[0, 0, 2:-2, 1:-1]
    (by,) = set(inner.flatten().tolist())  # all pixels moved alike: by up to 2 rows of 8 and up to one column
    assert by in {8.0 * down + right for down in range(-2, 3) for right in (-1, 0, 1)}
    moves = {float(shift_images(x[:1], [stream(i)])[0, 0, 8, 4]) for i in range(60)}
    assert len(moves) == 15
    flat = torch.full((3, 2, 8, 8), 0.3)
    assert torch.equal(shift_images(flat, toys.rngs(3)), flat)


def test_a_sampler_that_remembers_is_refused(pixel: FoundationModel) -> None:
    for scheduler in ("own", "ddpm", "ddim"):
        check_sampler(pixel, Foundation(scheduler=scheduler))
    with pytest.raises(GenfedError) as raised:
        check_sampler(pixel, Foundation(scheduler="dpmsolver"))
    assert str(raised.value) == (
        'foundation.scheduler = "dpmsolver": a DPMSolverMultistepScheduler remembers earlier steps, which guidance has '
        "changed since; ddpm and ddim are allowed"
    )
    with pytest.raises(GenfedError, match=r"classifier_guidance.begin = 0.8 is after classifier_guidance.end = 0.5"):
        ClassifierGuidance(begin=0.8, end=0.5)


def test_images_of_a_larger_model_are_steered_at_the_tasks_size(latent: FoundationModel) -> None:
    task = Task("image", (1, 5, 5), ("a", "b"))
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(25, 2)))
    images = generate_guided(
        latent, Foundation(steps=2, guidance_scale=1.0), ClassifierGuidance(noise_edits=1), {0: teacher},
        latent.encode_condition(["a"]), torch.tensor([1]), torch.tensor([0]), toys.rngs(1), task.shape,
    )  # fmt: skip
    assert images.shape == (1, 1, 5, 5)
