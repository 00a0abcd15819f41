"""The backend on tiny directories that plain diffusers wrote."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.task import Task
from genfed.foundation.loading import load_foundation
from genfed.foundation.model import FoundationModel, new_generators
from genfed.foundation.settings import Foundation
from tests.foundation import toys


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foundation")


@pytest.fixture(scope="module")
def latent(folder: Path) -> FoundationModel:
    return load_foundation(str(toys.latent(folder / "latent")))


@pytest.fixture(scope="module")
def pixel(folder: Path) -> FoundationModel:
    return load_foundation(str(toys.pixel(folder / "pixel")))


@pytest.fixture(scope="module")
def classes(folder: Path) -> FoundationModel:
    return load_foundation(str(toys.class_conditional(folder / "class", names=("cat", "dog", "owl"))))


def test_the_three_kinds(latent: FoundationModel, pixel: FoundationModel, classes: FoundationModel) -> None:
    assert [m.kind for m in (latent, pixel, classes)] == ["latent", "pixel", "class"]
    assert [m.image_shape for m in (latent, pixel, classes)] == [(3, 8, 8), (3, 8, 8), (1, 8, 8)]
    assert [m.latent_shape for m in (latent, pixel, classes)] == [(4, 4, 4), (3, 8, 8), (1, 8, 8)]
    assert latent.encode_condition(["a cat", "a dog", "a cat"]).shape == (3, toys.TOKENS, 8)
    assert torch.equal(*latent.encode_condition(["a cat", "a cat"]))
    assert classes.encode_condition(["dog", "cat"]).tolist() == [1, 0]
    assert classes.encode_unconditional(2).tolist() == [3, 3]
    for model, texts in ((latent, ["a cat", "a dog"]), (pixel, ["a cat", "a dog"]), (classes, ["cat", "dog"])):
        images = model.generate(model.encode_condition(texts), toys.rngs(2), steps=3, guidance=2.0)
        assert images.shape == (2, *model.image_shape)
        assert images.abs().max() <= 1
        assert not any(p.requires_grad for p in model.network.parameters())


def test_text_is_encoded_as_diffusers_does(latent: FoundationModel, folder: Path) -> None:
    pipeline = _pipeline(folder / "latent")
    ours = latent.encode_condition(["a cat", "a dog"])
    theirs, none = pipeline.encode_prompt(["a cat", "a dog"], "cpu", 1, True)
    assert torch.equal(ours, theirs)
    assert torch.equal(latent.encode_unconditional(2), none)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]
)
def test_images_are_those_of_diffusers(
    latent: FoundationModel, folder: Path, scheduler: str, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = _pipeline(folder / "latent")
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    model = dataclasses.replace(latent, scheduler=pipeline.scheduler)
    noise = latent.draw_noise(toys.rngs(2))
    rngs = toys.rngs(2, seed=1)
    theirs = pipeline(
        prompt=["a cat", "a dog"],
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise,
        generator=toys.rngs(2, seed=1),
        output_type="pt",
    ).images
    monkeypatch.setattr(FoundationModel, "draw_noise", lambda self, rngs: noise)
    ours = model.generate(model.encode_condition(["a cat", "a dog"]), rngs, steps=4, guidance=guidance)
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-5)


def test_x0_and_eps_by_hand(latent: FoundationModel) -> None:
    """ᾱ = 0.36: z = 0.6·x0 + 0.8·ε with x0 = 2 and ε = −1 is 0.4, and v = 0.6·ε − 0.8·x0 is −2.2."""
    x0, eps = torch.full((1, 4, 4, 4), 2.0), torch.full((1, 4, 4, 4), -1.0)
    for kind, output in (("epsilon", eps), ("sample", x0), ("v_prediction", torch.full_like(x0, -2.2))):
        scheduler = diffusers.DDIMScheduler(prediction_type=kind)
        scheduler.alphas_cumprod = torch.full((1000,), 0.36)
        model = dataclasses.replace(latent, scheduler=scheduler)
        z = model.add_noise(x0, eps, 7)
        torch.testing.assert_close(z, torch.full_like(z, 0.4))
        torch.testing.assert_close(model.recover_clean(output, z, 7), x0)
        torch.testing.assert_close(model.recover_noise(output, z, torch.tensor([7])), eps)


def test_a_step_of_ddim_goes_through_clean_and_eps(latent: FoundationModel) -> None:
    """z_{t−1} = √ᾱ_{t−1}·x0 + √(1 − ᾱ_{t−1})·ε, with our x0 and ε."""
    sampler, z = latent.new_sampler(4, "ddim"), latent.draw_noise(toys.rngs(2))
    t, after = sampler.timesteps[:2]
    output = latent.predict(z, t, latent.encode_condition(["a cat", "a dog"]))
    expected = latent.add_noise(latent.recover_clean(output, z, t), latent.recover_noise(output, z, t), after)
    torch.testing.assert_close(sampler.step(output, t, z, toys.rngs(2)), expected)


def test_gradients_reach_z_and_the_condition(latent: FoundationModel, pixel: FoundationModel) -> None:
    for model in (latent, pixel):
        network = model.network.double()
        z = model.draw_noise(toys.rngs(1)).double().requires_grad_()
        condition = model.encode_condition(["a cat"]).double().requires_grad_()
        none = model.encode_unconditional(1).double()
        if model.kind == "latent":
            model.space.vae.double()  # type: ignore[attr-defined]

        def loss(z: Tensor, condition: Tensor, model: FoundationModel = model, none: Tensor = none) -> Tensor:
            both, steps = torch.cat([none, condition]), torch.tensor([300, 300])
            without, of = model.conditions.predict(model.network, torch.cat([z, z]), steps, both).chunk(2)
            signal, noise = (level.double() for level in model.noise_levels(300, z))
            output = without + 3 * (of - without)
            x0 = (z - noise * output) / signal if model.prediction == "epsilon" else signal * z - noise * output
            return model.space.decode(x0).square().sum()

        loss(z, condition).backward()  # type: ignore[no-untyped-call]
        for value, place in ((z, (0, 1, 2, 3)), (condition, (0, 1, 4))):
            shift = torch.zeros_like(value)
            shift[place] = 1e-5
            with torch.no_grad():
                up = loss(z + shift, condition) if value is z else loss(z, condition + shift)
                down = loss(z - shift, condition) if value is z else loss(z, condition - shift)
            assert value.grad is not None
            assert float(value.grad[place]) == pytest.approx(float(up - down) / 2e-5, rel=1e-4, abs=1e-7)
        assert all(p.grad is None for p in network.parameters())
        network.float()
        if model.kind == "latent":
            model.space.vae.float()  # type: ignore[attr-defined]


def test_the_models_own_operations_have_the_same_gradient(latent: FoundationModel) -> None:
    z = latent.draw_noise(toys.rngs(1)).requires_grad_()
    condition, none = latent.encode_condition(["a cat"]), latent.encode_unconditional(1)

    def loss(z: Tensor) -> Tensor:
        output = latent.predict_guided(z, 300, condition, none, 3.0)
        return latent.decode(latent.recover_clean(output, z, 300) / 4).square().sum()  # /4: away from the cut

    (slope,) = torch.autograd.grad(loss(z), z)
    direction = slope / slope.norm()
    with torch.no_grad():
        numerical = (loss(z + 1e-2 * direction) - loss(z - 1e-2 * direction)) / 2e-2
    assert float(numerical) == pytest.approx(float(slope.norm()), rel=0.02)
    assert not latent.generate(condition, toys.rngs(1), steps=2).requires_grad


def test_guidance_one_asks_once(latent: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    forward = latent.network.forward

    def counted(z: Tensor, *rest: Any, **options: Any) -> Any:
        asked.append(len(z))
        return forward(z, *rest, **options)

    monkeypatch.setattr(latent.network, "forward", counted)
    condition = latent.encode_condition(["a cat", "a dog", "an owl"])
    latent.generate(condition, toys.rngs(3), steps=2, guidance=1.0)
    assert asked == [3, 3]
    asked.clear()
    latent.generate(condition, toys.rngs(3), steps=2, guidance=3.0)
    assert asked == [6, 6]


def test_guidance_by_hand(latent: FoundationModel) -> None:
    z, condition, none = (
        latent.draw_noise(toys.rngs(2)),
        latent.encode_condition(["a cat", "a dog"]),
        latent.encode_unconditional(2),
    )
    of, without = latent.predict(z, 500, condition), latent.predict(z, 500, none)
    torch.testing.assert_close(
        latent.predict_guided(z, 500, condition, none, 3.0), 3 * of - 2 * without, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(latent.predict_guided(z, 500, condition, none, 0.0), without, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
def test_an_image_does_not_depend_on_its_batch(latent: FoundationModel, scheduler: Any) -> None:
    condition = latent.encode_condition(["a cat", "a dog", "an owl", "a cow", "a fox"])
    whole, parts = (
        latent.generate(condition, toys.rngs(5), steps=4, guidance=2.0, scheduler=scheduler, batch_size=size)
        for size in (5, 2)
    )
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-4)
    assert torch.equal(latent.draw_noise(toys.rngs(5))[3:], latent.draw_noise(toys.rngs(5)[3:]))
    again = latent.generate(condition, toys.rngs(5), steps=4, guidance=2.0, scheduler=scheduler, batch_size=5)
    assert torch.equal(whole, again)
    other = latent.generate(condition, toys.rngs(5, seed=1), steps=4, guidance=2.0, scheduler=scheduler)
    assert not torch.equal(whole, other)


def test_nothing_reads_the_global_stream(latent: FoundationModel) -> None:
    before = torch.get_rng_state()
    latent.generate(latent.encode_condition(["a cat"]), new_generators(1, stream(0)), steps=2, scheduler="ddpm")
    assert torch.equal(before, torch.get_rng_state())


def test_generators_of_images_differ() -> None:
    draws = [float(torch.rand((), generator=rng)) for rng in new_generators(5, stream(0))]
    assert len(set(draws)) == 5
    assert draws == [float(torch.rand((), generator=rng)) for rng in new_generators(5, stream(0))]


def test_decode_and_encode_use_the_vaes_own_factor(latent: FoundationModel, pixel: FoundationModel) -> None:
    vae = latent.space.vae  # type: ignore[attr-defined]
    images = torch.rand(2, 3, 8, 8, generator=stream(0)) * 2 - 1
    with torch.no_grad():
        z = latent.encode(images)
        torch.testing.assert_close(z, 0.7 * vae.encode(images).latent_dist.mean)
        torch.testing.assert_close(latent.decode(z), vae.decode(z / 0.7).sample.clamp(-1, 1))
        assert torch.equal(pixel.decode(pixel.encode(images)), images)


def test_bfloat16_is_near(folder: Path, latent: FoundationModel) -> None:
    half = load_foundation(str(folder / "latent"), precision="bfloat16")
    z, condition = latent.draw_noise(toys.rngs(2)), latent.encode_condition(["a cat", "a dog"])
    output = half.predict(z, 500, condition)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, latent.predict(z, 500, condition), rtol=0.1, atol=0.05)
    assert not torch.equal(output, latent.predict(z, 500, condition))
    assert math.isfinite(float(half.decode(z).sum()))


@pytest.mark.usefixtures("latent")
def test_half_weights_and_a_variant_are_read(folder: Path, tmp_path: Path) -> None:
    pipeline = _pipeline(folder / "latent")
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    model = load_foundation(str(tmp_path / "half"))
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert model.generate(model.encode_condition(["a cat"]), toys.rngs(1), steps=2).isfinite().all()


def test_a_long_prompt_is_refused(latent: FoundationModel, classes: FoundationModel) -> None:
    with pytest.raises(GenfedError, match="takes 13 tokens; the text encoder reads 10") as raised:
        latent.encode_condition(["a cat", "elephantidae!"[:13]])
    assert "\n" not in str(raised.value)
    latent.encode_condition(["elephantid"])  # ten
    with pytest.raises(GenfedError, match="no class 'cow'; it has: cat, dog, owl"):
        classes.encode_condition(["cow"])
    with pytest.raises(GenfedError, match="no negative prompt"):
        classes.encode_unconditional(1, "blurred")
    with pytest.raises(GenfedError, match="steps = 1001: 1 to 1000"):
        latent.new_sampler(1001)


def test_the_loop_of_the_docs(folder: Path, latent: FoundationModel) -> None:
    """Each guided step goes down the loss of the image that it was taken from."""
    page = (Path(__file__).parents[2] / "docs" / "foundation.md").read_text("utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "sampler.step" in block)

    class Case:
        foundation = Foundation(model=str(folder / "latent"), steps=3, guidance_scale=2.0)

    def loss(images: Tensor) -> Tensor:
        return images.square().sum()

    server = SimpleNamespace(
        task=Task("image", (3, 8, 8), ("0", "1")), device=torch.device("cpu"), precision="float32", rng=stream(0)
    )
    code = code.replace("seven", "7").replace("a digit", "digit").replace("sampler(50", "sampler(3")
    names = {"self": Case, "server": server, "new_generators": new_generators, "torch": torch, "loss": loss}
    exec(compile(code, "docs/foundation.md", "exec"), names)
    assert names["z"].shape == (8, 4, 4, 4)  # type: ignore[attr-defined]
    assert names["gradient"].abs().sum() > 0  # type: ignore[attr-defined]


def _pipeline(folder: Path) -> Any:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
