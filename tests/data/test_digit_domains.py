"""Public glyphs with prompts, and digits restyled into domains."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.data.digit_domains import DOMAINS, DigitDomains
from genfed.data.glyphs import Glyphs
from genfed.data.partition import ByColumn
from genfed.data.styles import Style, describe_character, paint


def test_a_shape_is_painted() -> None:
    shape = torch.zeros(1, 8, 8)
    shape[0, 2:6, 2:6] = 1
    x = paint(shape, [Style("red", "white")], stream(0))
    assert x.dtype == torch.uint8
    assert x[0, :, 3, 3].tolist() == [220, 30, 30]
    assert x[0, :, 0, 0].tolist() == [255, 255, 255]
    half = paint(shape / 2, [Style("black", "white")], stream(0))
    assert half[0, :, 3, 3].tolist() == [128, 128, 128]  # 127.5 to even
    rim = paint(shape, [Style("black", "white", "outlined")], stream(0))
    assert rim[0, 0, 3, 3] == 255
    assert rim[0, 0, 1, 3] == 0


def test_a_prompt_says_what_is_shown() -> None:
    assert Style("red", "white").write_prompt(describe_character("7")) == "a red digit seven on a white background"
    assert Style("red", "blue", "noisy").write_prompt(describe_character("K"), "slanted") == (
        "a red letter k on a blue background, slanted, noisy"
    )


def test_glyphs_are_what_their_prompts_say_and_the_same_every_time() -> None:
    settings = Glyphs(examples=200, colours=("red", "white"), effects=("plain",), slanted=0.5)
    data = settings.load()
    again = settings.load()
    assert torch.equal(data.train.x, again.train.x)
    assert data.columns == again.columns
    assert not torch.equal(data.train.x, replace(settings, seed=1).load().train.x)
    assert data.task.shape == (3, 16, 16)
    assert {len(values) for values in data.columns.values()} == {len(data.train)}
    assert data.train.y.bincount().min() == 14
    assert data.test_columns["word"] == tuple(
        describe_character(data.task.classes[label]) for label in data.test.y.tolist()
    )
    for i, prompt in enumerate(data.columns["prompt"]):
        background = data.columns["background"][i]
        corner = torch.tensor([255, 255, 255] if background == "white" else [220, 30, 30])
        assert (data.train.x[i, :, 0, 0] - corner).abs().max() < 60  # a large glyph may touch it
        assert prompt.startswith(f"a {data.columns['colour'][i]} {data.columns['word'][i]} on a {background}")
        assert data.columns["word"][i] == describe_character(data.task.classes[int(data.train.y[i])])
    slanted = sum(prompt.endswith("slanted") for prompt in data.columns["prompt"])
    assert 45 < slanted < 95  # half of 140


def test_letters_and_grey() -> None:
    data = Glyphs(examples=260, characters="letters", channels=1, size=8).load()
    assert data.task.shape == (1, 8, 8)
    assert len(data.task.classes) == 26
    assert data.columns["word"][0].startswith("letter ")


def test_looks_are_domains_that_clients_can_be_made_of() -> None:
    data = DigitDomains().load()
    assert set(data.columns["domain"]) == {"ink", "chalk", "neon", "blueprint"}
    parts = ByColumn(column="domain").split(data.train.y, 4, stream(0), data.columns)
    assert min(map(len, parts)) > 0.8 * max(map(len, parts))
    for rows in parts:
        assert len({data.columns["domain"][i] for i in rows.tolist()}) == 1
        assert len(set(data.train.y[rows].tolist())) == 10


def test_the_public_part_is_nobody_elses() -> None:
    """In ink alone the restyling can be undone, so that digits can be told apart."""
    ink = {part: DigitDomains(part=part, domains=("ink",), channels=1, size=8).load() for part in ("clients", "public")}
    seen = {
        part: {bytes(x) for d in (data.train, data.validation, data.test) for x in d.x.flatten(1).numpy()}
        for part, data in ink.items()
    }
    everything = {bytes(x) for x in (255 - load_digits().data * 255 / 16).round().astype("uint8")}
    assert not seen["clients"] & seen["public"]
    assert len(seen["clients"] | seen["public"]) == len(everything)
    assert sum(len(d) for d in (ink["public"].train, ink["public"].validation, ink["public"].test)) == 450


def test_a_model_of_public_digits_has_seen_no_clients_whatever_the_other_settings() -> None:
    """What a model has learnt from stays apart when a run asks for another cut, or for a larger public part."""

    def seen(settings: DigitDomains) -> set[bytes]:
        data = settings.load()
        return {bytes(x) for d in (data.train, data.validation, data.test) for x in d.x.flatten(1).numpy()}

    ink = DigitDomains(domains=("ink",), channels=1, size=8)
    public = seen(replace(ink, part="public"))
    assert not public & seen(replace(ink, split_seed=1))
    assert not public & seen(replace(ink, public=0.4))
    assert public == seen(replace(ink, part="public", split_seed=1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DigitDomains(domains=("oil",)), "domains: 'oil' is not there; there are: ink"),
        (lambda: DigitDomains(domains=()), "domains is empty"),
        (lambda: Glyphs(colours=("red", "mauve")), "colours: 'mauve' is not there"),
        (lambda: Glyphs(colours=("red", "red")), "at least two"),
        (lambda: Glyphs(effects=("torn",)), "effects: 'torn' is not there"),
    ],
)
def test_what_is_refused(make: object, says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        make()  # type: ignore[operator]


def test_every_look_differs() -> None:
    assert len(set(DOMAINS.values())) == len(DOMAINS) >= 4
