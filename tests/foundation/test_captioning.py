"""Captions: what a model of transformers says of images, how it stands in prompts, and that nobody else reads it."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty
from genfed.core.rng import stream
from genfed.core.task import Data, Task
from genfed.experiment.checkpoint import read_checkpoint
from genfed.foundation import captioning, loading
from genfed.foundation.captioning import Captioner, load_captioner, truncate_caption
from genfed.foundation.loading import load_foundation
from genfed.foundation.settings import Foundation
from genfed.methods.bases.condition_upload import ConditionUpload
from genfed.methods.fgl import FGL
from genfed.methods.oscar import OSCAR
from genfed.training.pixels import normalize_pixels
from tests.conftest import TINY, left_by, start, tiny, tiny_foundation
from tests.foundation import toys

CPU = torch.device("cpu")
TASK = Task("image", (1, 8, 8), ("a", "b", "c"))
DESCRIBED: dict[str, Any] = {"level": "instance", "templates": ("{class} {caption}",), "caption_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.captioner(tmp_path_factory.mktemp("captioner") / "blip")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    captioning._open_cached.cache_clear()
    shutil.copytree(folder, tmp_path / "blip")
    return tmp_path / "blip"


def pixels(n: int, *shape: int) -> Tensor:
    return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=stream(0, "x"))


def opened(path: Path, tokens: int = 4) -> Captioner:
    return load_captioner(str(path), tokens, CPU)


# What it says.


@pytest.mark.parametrize("kind", ["blip", "git", "vision-encoder-decoder"])
def test_images_have_captions_of_their_own_that_repeat(kind: str, tmp_path: Path) -> None:
    captioner, images = opened(toys.captioner(tmp_path / kind, kind)), normalize_pixels(pixels(12, 1, 8, 8))
    said = captioner(images)
    assert len(said) == 12
    assert len(set(said)) > 2, "they depend on the image"
    words = [caption.split() for caption in said]
    assert {word for caption in words for word in caption} <= set(toys.WORDS)
    assert max(map(len, words)) <= 4
    torch.manual_seed(5)
    assert captioner(images) == said
    assert captioner(images, batch_size=5) == said
    assert captioner(images.expand(-1, 3, -1, -1)) == said, "grey is RGB of one tone"


def test_images_are_of_any_size_and_none_need_torchvision(folder: Path) -> None:
    captioner = opened(folder)
    assert len(captioner(normalize_pixels(pixels(2, 3, 5, 11)))) == 2
    assert len(captioner(normalize_pixels(pixels(2, 3, 8, 8)), precision="bfloat16")) == 2
    assert captioner(torch.empty(0, 3, 8, 8)) == []
    assert type(captioner.processor).__name__.endswith("Pil")
    assert opened(folder) is captioner
    assert not any(p.requires_grad for p in captioner.model.parameters())


def test_loading_and_captioning_say_nothing(
    copy: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    toys.edit(copy / "generation_config.json", max_length=9, temperature=0.5)
    level = transformers.utils.logging.get_verbosity()
    with caplog.at_level(logging.DEBUG):
        opened(copy)(normalize_pixels(pixels(2, 1, 8, 8)))
    assert capfd.readouterr() == ("", "")
    assert not any(word in record.getMessage() for record in caplog.records for word in toys.WORDS)
    assert transformers.utils.logging.get_verbosity() == level


def test_a_caption_loses_words_until_the_prompt_can_be_read() -> None:
    """The text encoder reads ten tokens, and each letter is one."""
    model = load_foundation(tiny_foundation())

    def left(template: str, caption: str) -> str:
        return truncate_caption(model, lambda words: template.format(caption=words), caption)

    assert left("a {caption}", "cat on mat") == "cat on mat"
    assert left("a {caption}", "cats on mats") == "cats on"
    assert left("two {caption}", "bisons") == "bisons"
    assert left("two {caption}", "raccoons") == ""
    assert left("{caption}, {caption}", "cat on mat") == "cat"
    assert left("a {caption}", "") == ""


# What clients do with it.


def client(y: list[int], number: int = 0) -> Client:
    info = ClientInfo(number, "linear", len(y))
    kept: Any = None

    def new_network(name: str, rng: torch.Generator) -> torch.nn.Module:
        return Architectures().new(name, TASK, rng)

    data = Data(pixels(len(y), *TASK.shape), torch.tensor(y))
    return Client(info, TASK, data, kept, stream(number), 0, CPU, "float32", new_network)


def make_upload(cls: type[FGL] | type[OSCAR], who: Client, folder: Path, **changes: Any) -> ConditionUpload:
    foundation = Foundation(model=tiny_foundation(), steps=2, resize=True)
    method = cls(foundation=foundation, captioner=str(folder), **(DESCRIBED | changes))
    return method.upload_conditions(who, Empty()).upload


def test_what_is_told_are_the_embeddings_of_prompts_with_captions(folder: Path) -> None:
    """And OSCAR tells their mean."""
    who = client([2, 0, 2, 2, 0])
    said = opened(folder)(normalize_pixels(who.data.x))
    model = load_foundation(tiny_foundation())
    pairs = [("a", said[1]), ("a", said[4]), ("no", said[0]), ("no", said[2]), ("no", said[3])]
    prompts = [f"{name} {truncate_caption(model, f'{name} {{}}'.format, caption)}" for name, caption in pairs]
    by_hand = model.encode_condition(prompts)
    upload = make_upload(FGL, who, folder, aliases={"c": "no"})
    assert upload.labels.tolist() == [0, 0, 2, 2, 2]
    assert len(torch.unique(by_hand, dim=0)) > 2
    torch.testing.assert_close(upload.conditions, by_hand)
    mean = make_upload(OSCAR, who, folder, aliases={"c": "no"})
    torch.testing.assert_close(mean.conditions, torch.stack([by_hand[:2].mean(0), by_hand[2:].mean(0)]))


def test_a_client_whose_template_has_no_caption_writes_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Captioner, *args: Any, **options: Any) -> list[str]:
        raise AssertionError

    opened(folder)
    monkeypatch.setattr(Captioner, "__call__", never)
    templates = ("{class} {caption}", "an {class}")
    upload = make_upload(FGL, client([2, 0, 2], number=1), folder, templates=templates)
    expected = load_foundation(tiny_foundation()).encode_condition(["an a", "an c"])
    assert torch.equal(upload.conditions, expected[[0, 1, 1]])
    with pytest.raises(AssertionError):
        make_upload(FGL, client([2], number=2), folder, templates=templates)


def settings(label: str, folder: Path, **changes: Any) -> dict[str, Any]:
    kept = {key: value for key, value in TINY[label].items() if key not in ("attributes", "probes")}
    return kept | DESCRIBED | {"captioner": str(folder), "templates": ["{class} {caption}"]} | changes


def test_a_run_repeats_and_nobody_can_read_what_was_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny("fgl", method={"fgl": settings("fgl", folder)}, federation={"max_examples": 40})
    with caplog.at_level(logging.DEBUG):
        (trial,) = start(config, tmp_path / "run").trials
    assert not trial.failures
    at: Any = read_checkpoint(
        read_config(tmp_path / "run").method["fgl"], tmp_path / "run" / "trials" / "fgl" / "seed-0"
    )
    assert len(at.state.requested) == 40
    assert 10 < len(torch.unique(at.state.requested.conditions, dim=0)) < 40
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert written
    said = {word.encode() for word in toys.WORDS}
    assert not any(word in file.read_bytes() for file in written for word in said)
    assert not any(word in record.getMessage() for record in caplog.records for word in toys.WORDS)
    start(config, tmp_path / "again")
    assert left_by(tmp_path / "again") == left_by(tmp_path / "run")


# What is refused, before training and in one line.

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such directory": ({"captioner": "nowhere"}, "captioner nowhere: no such directory; a directory of transf"),
    "a directory of something else": ({"captioner": "tests"}, "no directory of transformers, it has no config.json"),
    "another kind of model": (
        {"captioner": "TEXT"},
        "a clip_text_model is no image-to-text model; blip, blip-2, git and vision-encoder-decoder are some",
    ),
    "no captioner": (
        {"captioner": None},
        "templates: '{class} {caption}' cannot be filled in; there are: {class}; {caption} needs a captioner",
    ),
    "no caption": ({"templates": ["{class}"]}, "no template has {caption}"),
    "classes": ({"level": "class"}, 'captioner is for level = "instance": a class has no caption'),
    "two descriptions": ({"attributes": {"how": ["thin"]}}, "captioner and attributes: an example is described by one"),
    "a template without room": (
        {"templates": ["a photograph of {class} {caption}"]},
        "the text encoder reads 10",
    ),
    "braces": ({"templates": ["{caption} {how}"]}, "'{caption} {how}' cannot be filled in; there are: {class}, {capt"),
    "no tokens": ({"caption_tokens": 0}, "method.fgl.caption_tokens = 0"),
    "more tokens than it writes": (
        {"caption_tokens": 100},
        "it cannot write 100 tokens about an image without a question (index out of range",
    ),
    "no words for numbers": (
        {"foundation": {"model": "CLASS", "steps": 2}},
        "captions need a text-to-image foundation",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_settings_are_refused_before_training(what: str, folder: Path, tmp_path: Path) -> None:
    changes, says = BAD[what]
    if changes.get("captioner") == "TEXT":
        toys.text_encoder().save_pretrained(tmp_path / "text")
        changes = {"captioner": str(tmp_path / "text")}
    if "foundation" in changes:
        model = toys.class_conditional(tmp_path / "class", names=tuple("0123456789"), embeds=11)
        changes = {"foundation": changes["foundation"] | {"model": str(model)}}
    method = settings("fgl", folder, **changes)
    if method["captioner"] is None:
        del method["captioner"]
    with pytest.raises(GenfedError) as raised:
        start(tiny("fgl", method={"fgl": method}), tmp_path / "run")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged config": (lambda f: (f / "config.json").write_text("{"), "it cannot be read (Expecting property name"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin is pickled, and may run code when it is read; .safetensors are allowed",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there are no weights"),
    "damaged weights": (lambda f: os.truncate(f / "model.safetensors", 1000), "it cannot be read (Error while dese"),
    "weights of another shape": (lambda f: _shape(f / "config.json"), "it cannot be read ("),
    "weights that lack one": (lambda f: _drop(f / "model.safetensors"), "the weights lack text_decoder."),
    "no image processor": (lambda f: (f / "preprocessor_config.json").unlink(), "it lacks an image processor"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "it lacks a tokenizer (tokenizer.json)"),
    "a kernel of others": (
        lambda f: toys.edit(f / "config.json", attn_implementation="a/b"),
        "attn_implementation = a/b may run code of others",
    ),
    "code of its own": (
        lambda f: toys.edit(f / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine"}),
        "it cannot be read (",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_directory_is_one_line(what: str, copy: Path) -> None:
    damage, says = BROKEN[what]
    damage(copy)
    with pytest.raises(GenfedError) as raised:
        opened(copy)
    assert says in str(raised.value)
    assert str(raised.value).startswith(f"captioner {copy}: ")
    assert "\n" not in str(raised.value)


def test_a_model_that_wants_a_question_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(self: Any, **options: Any) -> None:
        raise ValueError("You have to specify input_ids\nand more")

    monkeypatch.setattr(transformers.BlipForConditionalGeneration, "generate", asks)
    with pytest.raises(GenfedError, match=r"cannot write 4 tokens about an image without a question \(You have to sp"):
        opened(copy)


def test_a_name_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        if name == "nobody/nothing":
            raise OSError("404\nnot found")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert opened(Path("someone/model")).tokens == 4
    assert not any(pattern.endswith(".bin") for pattern in calls[0][1]["allow_patterns"])
    with pytest.raises(GenfedError, match=r"nobody/nothing: no such directory, and the hub does not give it \(404\)"):
        opened(Path("nobody/nothing"))


def test_a_missing_extra_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "import_library", loading.import_library.__wrapped__)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(GenfedError, match=r"needs the extra \"foundation\" .*: pip install"):
        opened(copy)


def _shape(file: Path) -> None:
    config = json.loads(file.read_text())
    config["text_config"]["vocab_size"] = 20
    file.write_text(json.dumps(config))


def _drop(file: Path) -> None:
    import safetensors.torch

    weights = safetensors.torch.load_file(file)
    weights.pop(next(name for name in sorted(weights) if name.startswith("text_decoder.bert.encoder")))
    safetensors.torch.save_file(weights, file, {"format": "pt"})
