"""A miniature is trained, resumes to the same bits, and is a directory that plain diffusers opens."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tomli_w
import torch

from genfed.artifacts.pretrain import read_examples, read_pretraining, run_pretraining
from genfed.cli import main as cli
from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.foundation.loading import load_foundation
from genfed.foundation.pretraining import CHECKPOINT, TrainingProgress
from genfed.foundation.small_model import SmallDiffusion, new_parts, tokenize
from tests.foundation import toys

TINY: dict[str, Any] = {
    "name": "tiny",
    "public": {
        "glyphs": {
            "prompts": ["{prompt}", "a {word}"],
            "data": {"kind": "glyphs", "examples": 60, "size": 8, "effects": ["plain"], "colours": ["red", "white"]},
        }
    },
    "model": {"autoencoder": [8, 8], "unet": [8, 16], "text_width": 8, "text_layers": 1, "tokens": 24},
    "training": {"autoencoder_steps": 4, "text_steps": 5, "steps": 6, "batch_size": 4, "save_every": 3},
}


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(tomli_w.dumps(TINY | changes))
    return file


def weights(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    run_pretraining(read_pretraining(config(folder)), folder / "model")
    return folder / "model"


def test_diffusers_opens_it_and_draws_the_same_images(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(trained, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline, diffusers.StableDiffusionPipeline)
    model = load_foundation(str(trained))
    assert (model.kind, model.image_shape, model.latent_shape) == ("latent", (3, 8, 8), (4, 4, 4))
    assert model.prediction == "v_prediction"
    prompts = ["a red digit seven on a white background", "a digit two"]
    theirs = pipeline(
        prompt=prompts,
        num_inference_steps=5,
        guidance_scale=2.0,
        latents=model.draw_noise(toys.rngs(2)),
        output_type="pt",
    ).images
    ours = model.generate(model.encode_condition(prompts), toys.rngs(2), steps=5, guidance=2.0, scheduler="ddim")
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-5)
    assert ours.std() > 0.01


def test_the_vae_scales_latents_to_variance_one(trained: Path) -> None:
    model, config_ = load_foundation(str(trained)), read_pretraining(trained / "pretraining.toml")
    x = read_examples(config_).x.float() / 127.5 - 1
    with torch.no_grad():
        assert float(model.encode(x).std()) == pytest.approx(1, abs=0.01)  # the weights were made float16 since


def test_words_of_the_prompts_are_tokens(trained: Path) -> None:
    tokenizer = load_foundation(str(trained)).conditions.tokenizer  # type: ignore[attr-defined]
    found = tokenizer("a red digit seven").input_ids
    assert tokenizer.convert_ids_to_tokens(found[1:-1]) == ["a</w>", "red</w>", "digit</w>", "seven</w>"]
    assert len(tokenizer("zebra").input_ids) > 3  # spelled out, not unknown
    with pytest.raises(GenfedError, match=r"raise model.tokens \(24\)"):
        tokenize(tokenizer, ["incomprehensibilities and more"])


@pytest.mark.parametrize("at", [2, 4, 6, 8, 10, 13])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    at: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints stand after steps 3 (autoencoder), 7 (text), 12 (diffusion)."""
    settings = read_pretraining(config(tmp_path))

    def dying(seed: int, *path: Any) -> torch.Generator:
        if path == ("pretrain", at):
            raise KeyboardInterrupt
        return stream(seed, *path)

    monkeypatch.setattr("genfed.foundation.pretraining.stream", dying)
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(settings, tmp_path / "model")
    assert (tmp_path / "model" / CHECKPOINT).exists() == (at > 2)
    assert not (tmp_path / "model" / "model_index.json").exists()
    monkeypatch.setattr("genfed.foundation.pretraining.stream", stream)
    run_pretraining(settings, tmp_path / "model", on_existing="resume")
    assert weights(tmp_path / "model") == weights(trained)
    assert (tmp_path / "model" / "vae" / "config.json").read_bytes() == (trained / "vae" / "config.json").read_bytes()
    assert not (tmp_path / "model" / CHECKPOINT).exists()


def test_another_seed_differs_and_the_network_learns(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genfed.foundation.pretraining.EVERY", 20)
    told: list[TrainingProgress] = []
    table = TINY | {
        "seed": 1,
        "model": TINY["model"] | {"autoencoder": []},
        "training": {"text_steps": 200, "steps": 40, "batch_size": 8, "learning_rate": 3e-3},
    }
    about = run_pretraining(read_pretraining(config(tmp_path, **table)), tmp_path / "model", notify=told.append)
    stages = [(20 + 20 * i, 240, "text" if i < 10 else "diffusion") for i in range(12)]
    assert [(t.step, t.steps, t.stage) for t in told] == stages
    assert about.losses == tuple(t.loss for t in told)
    assert about.losses[9] < 0.9 * about.losses[0]
    assert about.losses[11] < 0.9 * about.losses[10]
    assert (
        weights(trained)["text_encoder/model.safetensors"]
        != weights(tmp_path / "model")["text_encoder/model.safetensors"]
    )
    # Without a VAE plain diffusers must be told so.
    model = load_foundation(str(tmp_path / "model"))
    assert (model.kind, model.latent_shape) == ("pixel", (3, 8, 8))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model", vae=None, local_files_only=True)
    assert torch.equal(pipeline.unet.conv_in.weight, model.network.get_parameter("conv_in.weight"))


def test_sources_are_joined_with_a_template_per_class(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 10)
    np.savez(tmp_path / "own.npz", x=np.zeros((20, 8, 8, 3), np.uint8), y=labels)
    public = TINY["public"] | {
        "own": {
            "prompts": ["a photo of a {class}"],
            "data": {"kind": "npz", "path": "own.npz", "classes": ["cat", "dog"], "layout": "NHWC"},
        }
    }
    examples = read_examples(read_pretraining(config(tmp_path, public=public, data_root=str(tmp_path))))
    assert examples.x.shape == (40 + 14, 3, 8, 8)
    assert examples.which.shape == (54, 2)
    assert examples.prompts[examples.which[-1, 0]] == examples.prompts[examples.which[-1, 1]] == "a photo of a dog"
    assert " digit zero on a " in examples.prompts[examples.which[0, 0]]
    assert examples.prompts[examples.which[0, 1]] == "a digit zero"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"public": {}}, "name at least one source"),
        ({"public": {"a": {"prompts": ["x"]}}}, "public.a: expected a table with a table data"),
        ({"public": {"a": {"data": {"kind": "glyph"}}}}, "did you mean 'glyphs'"),
        ({"public": {"a": {"data": {"kind": "glyphs", "sise": 8}}}}, "public.a.data.sise: no such setting"),
        ({"model": {"unets": [8]}}, "model.unets: no such setting: 'unets'; did you mean 'unet'"),
        ({"model": {"unet": [12]}}, "model.unet.0 = 12"),
        ({"training": {"steps": 0}}, "training.steps = 0"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"model": {"autoencoder": [8, 8, 8], "unet": [8, 8, 8]}}, "must be multiples of 16"),
        ({"model": {"tokens": 5}}, r"raise model.tokens \(5\)"),
        (
            {"public": {"a": {"prompts": ["{sort}"], "data": TINY["public"]["glyphs"]["data"]}}},
            "there are: {background}",
        ),
        (
            {"public": TINY["public"] | {"b": {"data": {"kind": "digits"}}}},
            r"public.b: images of shape \(1, 32, 32\), where public.glyphs has \(3, 8, 8\)",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=says) as raised:
        run_pretraining(read_pretraining(config(tmp_path, **changes)), tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_a_directory_is_not_overwritten(trained: Path, tmp_path: Path) -> None:
    settings = read_pretraining(config(tmp_path))
    with pytest.raises(GenfedError, match="holds a pretraining: go on with --resume"):
        run_pretraining(settings, trained)
    with pytest.raises(GenfedError, match=r"was started with another training\.steps"):
        run_pretraining(read_pretraining(config(tmp_path), ["training.steps=7"]), trained, on_existing="resume")
    before = weights(trained)
    assert run_pretraining(settings, trained, on_existing="resume").images == 40  # finished: nothing is done
    assert weights(trained) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(GenfedError, match="no pretraining of genfed"):
        run_pretraining(settings, tmp_path / "other", on_existing="replace")


def test_begun_anew_nothing_of_the_old_one_stays(tmp_path: Path) -> None:
    run_pretraining(read_pretraining(config(tmp_path)), tmp_path / "model")
    pixels = read_pretraining(config(tmp_path, model=TINY["model"] | {"autoencoder": []}))
    run_pretraining(pixels, tmp_path / "model", on_existing="replace")
    assert not (tmp_path / "model" / "vae").exists()
    assert load_foundation(str(tmp_path / "model")).kind == "pixel"


@pytest.mark.parametrize(("every", "step"), [(2, 2), (100, 4)])
def test_a_training_that_diverges_stops(every: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the last steps of a stage, which nobody is told of."""
    monkeypatch.setattr("genfed.foundation.pretraining.EVERY", every)
    monkeypatch.setattr("genfed.foundation.pretraining.F.mse_loss", lambda a, b: (a * float("nan")).mean())
    with pytest.raises(GenfedError, match=rf"the loss is nan by step {step}: lower training\.learning_rate"):
        run_pretraining(read_pretraining(config(tmp_path)), tmp_path / "model")
    assert not (tmp_path / "model" / "model_index.json").exists()


@pytest.mark.parametrize("sizes", [{"autoencoder": (12, 16)}, {"text_width": 104}, {"unet": (96, 104)}])
def test_every_size_that_a_config_may_name_can_be_made(sizes: dict[str, Any]) -> None:
    parts = new_parts(SmallDiffusion(**sizes), (3, 16, 16), ["a digit"])
    embedded = parts.text_encoder(tokenize(parts.tokenizer, ["a digit"]))[0]
    z = parts.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mode()
    assert parts.unet(z, torch.tensor([3]), encoder_hidden_states=embedded).sample.shape == z.shape
    assert parts.vae.decode(z).sample.shape == (1, 3, 16, 16)


def test_another_checkpoint_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(told: TrainingProgress) -> None:
        if told.step == 4:
            raise KeyboardInterrupt

    np.savez(tmp_path / "own.npz", x=np.zeros((20, 8, 8, 3), np.uint8), y=np.repeat([0, 1], 10))
    data = {"kind": "npz", "path": str(tmp_path / "own.npz"), "layout": "NHWC"}
    settings = read_pretraining(config(tmp_path, public={"own": {"data": data}}))
    monkeypatch.setattr("genfed.foundation.pretraining.EVERY", 4)
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(settings, tmp_path / "model", notify=killed)
    np.savez(tmp_path / "own.npz", x=np.ones((20, 8, 8, 3), np.uint8), y=np.repeat([0, 1], 10))
    with pytest.raises(GenfedError, match="was trained on other images or prompts; begin anew with --fresh"):
        run_pretraining(settings, tmp_path / "model", on_existing="resume")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    words = ["pretrain", str(config(tmp_path)), "--out", str(tmp_path / "model")]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert "40 images" in out
    assert weights(tmp_path / "model") == weights(trained)
    about = json.loads((tmp_path / "model" / "pretraining.json").read_text())
    assert about["images"] == 40
    assert {"seconds", "processor", "versions", "losses"} <= about.keys()
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--set", "training.stepss=3", "--fresh"])
    assert ended.value.code == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_the_shipped_config_is_valid() -> None:
    settings = read_pretraining("configs/pretrain/glyphs.toml", ["public.glyphs.data.examples=200"])
    examples = read_examples(settings)
    assert tuple(examples.x.shape[1:]) == (3, 16, 16)
    assert examples.which.shape[1] == len(settings.public["glyphs"].prompts)


@pytest.mark.parametrize(
    "model", [SmallDiffusion(autoencoder=(24, 40), unet=(96, 128), text_width=72), SmallDiffusion()]
)
def test_levels_of_any_allowed_widths_fit_together(model: SmallDiffusion) -> None:
    parts = new_parts(model, (3, 16, 16), ["a dog"])
    z = parts.vae.encode(torch.zeros(2, 3, 16, 16)).latent_dist.mode()
    told = parts.text_encoder(torch.tensor(parts.tokenizer(["a dog"]).input_ids))[0]
    output = parts.unet(z, torch.tensor([1, 2]), encoder_hidden_states=told.expand(2, -1, -1)).sample
    assert output.shape == z.shape
    assert parts.vae.decode(output).sample.shape == (2, 3, 16, 16)
