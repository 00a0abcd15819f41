"""Copies are found and shown; fresh draws are none; of planted duplicates all are found."""

import dataclasses

import pytest
import torch

from genfed.audits.audit import NotPossible
from genfed.audits.findings import Findings
from genfed.audits.memorisation import ABOVE, COPIES, RATIO, Memorisation
from genfed.core.task import Data
from genfed.training.pixels import normalize_pixels
from tests.audits.cases import case, drawn, samples_of


def examined(made: Data) -> Findings:
    toy = case(samples=samples_of(normalize_pixels(made.x), made.y))
    return Memorisation(planted=40, shown=3).examine(toy.as_seen(("samples",)))


def test_copies_are_found_and_shown() -> None:
    train, fresh = drawn(240, "train"), drawn(200, "more")
    mixed = Data(torch.cat([fresh.x[:160], train.x[[7, 99, *range(38)]]]), fresh.y)
    found = examined(mixed)
    ratio, copies = found.readings
    assert copies.verdict == "leak"
    assert copies.run[COPIES].value == pytest.approx(0.2, abs=0.02)  # 40 of 200, and what passes by chance
    assert copies.control[COPIES].value == pytest.approx(40 / 200 + 0.2, abs=0.02)  # in the place of fresh ones
    assert "of which 40 were found as copies" in found.notes[2]
    assert ratio.control[RATIO].value > 2
    (picture,) = found.pictures
    assert picture.images.shape == (2, 3, 1, 8, 8)
    assert torch.equal(picture.images[0], picture.images[1])  # the nearest pairs are the same image


def test_fresh_draws_are_no_copies() -> None:
    found = examined(drawn(200, "more"))
    assert [reading.verdict for reading in found.readings] == ["no leak found", "no leak found"], found.readings


def test_blurred_samples_are_no_copies() -> None:
    others = drawn(2000, "others")  # nobody trained on these; means of eight lie near everything
    x = torch.stack([others.x[others.y == i % 3][8 * (i // 3) :][:8].float().mean(0) for i in range(198)])
    found = examined(Data(x.round().byte(), torch.arange(198) % 3))
    assert found.readings[0].run[RATIO].low > 1.1
    assert [reading.verdict for reading in found.readings] == ["no leak found", "no leak found"], found.readings


def test_training_examples_of_another_kind_than_held_out_ones_are_no_memory() -> None:
    """Samples of that kind, none of which anybody trained on, lie nearer to training examples than to held-out ones."""

    def darker(data: Data) -> Data:
        return Data((data.x.float() * 0.8).byte(), data.y)

    made = darker(drawn(200, "more"))
    toy = dataclasses.replace(
        case(samples=samples_of(normalize_pixels(made.x), made.y)), train=darker(drawn(240, "train"))
    )
    found = Memorisation(planted=40).examine(toy.as_seen(("samples",)))
    assert found.readings[0].run[ABOVE].low > 0
    assert found.readings[0].verdict == "false positive"


def test_nothing_but_copies() -> None:
    found = examined(drawn(240, "train"))
    assert [reading.verdict for reading in found.readings] == ["leak", "leak"]
    assert found.readings[1].run[COPIES].value == 1


def test_copies_under_much_noise_are_a_leak_that_it_cannot_see() -> None:
    toy = case(samples=samples_of(normalize_pixels(drawn(200, "more").x), drawn(200, "more").y))
    found = Memorisation(planted=40, noise=20.0, shown=3).examine(toy.as_seen(("samples",)))
    assert [reading.verdict for reading in found.readings] == ["underpowered", "underpowered"], found.readings


def test_what_it_cannot_do() -> None:
    with pytest.raises(NotPossible, match="4 synthetic examples"):
        Memorisation().examine(case(samples=samples_of(torch.zeros(4, 1, 8, 8), torch.zeros(4).long())))
    with pytest.raises(NotPossible, match="20 held-out examples"):
        Memorisation().examine(case(held_out=20, samples=samples_of(torch.zeros(40, 1, 8, 8), torch.zeros(40).long())))
