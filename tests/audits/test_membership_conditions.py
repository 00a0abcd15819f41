"""Conditions made of few examples betray them; those of others, or of whole classes, do not."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from genfed.audits.audit import Case, NotPossible
from genfed.audits.client_uploads import draw_alike, stand_in_client
from genfed.audits.findings import Reading
from genfed.audits.membership_conditions import ATTACKS, MembershipConditions, nearest_condition, noise_gain
from genfed.core.phase import Empty
from genfed.core.rng import stream
from genfed.core.task import Data
from genfed.foundation.model import Conditions, FoundationModel, Pixels
from genfed.foundation.settings import Foundation
from genfed.methods.bases.condition_upload import ConditionUpload, ConditionUploadMethod
from genfed.methods.bases.server_synthesis import ConditionSet, ServerSynthesisState
from genfed.methods.fedavg import FedAvg
from genfed.methods.feddeo import FedDEO
from genfed.methods.fgl import FGL
from genfed.methods.oscar import OSCAR
from genfed.training.synthetic_dataset import SyntheticDataset
from tests.audits.cases import case, drawn

WORDS = {"row": tuple("abcd"), "column": tuple("abcd")}
"""Of a prompt: where an image is bright, of 4×4 blocks of 2×2."""


ONE = {"row": ("a",), "column": ("b",)}


class Seen(Conditions):
    """A condition is an image: of "… at ab" one that is bright there; or any other."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        images = torch.zeros(len(texts), 1, 8, 8)
        for image, text in zip(images, texts, strict=True):
            if " at " in text:
                row, column = (WORDS["row"].index(letter) for letter in text.split(" at ")[1])
                image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
        return images.flatten(2)

    def encode_none(self, n: int, negative: str) -> Tensor:
        return torch.zeros(n, 1, 64)

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return condition.view(-1, 1, 8, 8)


MODEL = FoundationModel(
    "stub",
    "pixel",
    nn.Identity(),
    Pixels(),
    Seen(),
    diffusers.DDIMScheduler(num_train_timesteps=10, beta_start=0.3, beta_end=0.5, prediction_type="sample"),
    (1, 8, 8),
    (1, 8, 8),
    torch.device("cpu"),
    "float32",
)


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Foundation, "load", lambda *given: MODEL)


def spots(n: int, *path: str) -> Data:
    """Images of three classes, each bright in one random block."""
    rng, y = stream(5, *path), torch.arange(n) % 3
    blocks = nn.functional.one_hot(torch.randint(16, (n,), generator=rng), 16).view(n, 1, 4, 4)
    x = 128 + 120 * blocks.repeat_interleave(2, 2).repeat_interleave(2, 3) + 10 * torch.randn(n, 1, 8, 8, generator=rng)
    return Data(x.clamp(0, 255).byte(), y)


def described(**more: Any) -> dict[str, Any]:
    return {"level": "instance", "templates": ("{class} at {row}{column}",), "attributes": WORDS, "probes": 2} | more


def toy(method: ConditionUploadMethod, train: Data, of: Callable[[int], Data] | None = None, **changes: Any) -> Case:
    """Two clients, whose uploads are those of their own examples, or of `of` (client)."""
    made = dataclasses.replace(case(train=len(train), method=method), train=train, held_out=spots(160, "held out"))
    told = [
        method.upload_conditions(stand_in_client(made, h.client, of(i) if of else train[h.rows], "run"), Empty()).upload
        for i, h in enumerate(made.holdings)
    ]
    asked = ConditionSet(
        torch.cat([each.conditions for each in told]),
        torch.cat([each.labels for each in told]),
        torch.cat([torch.full_like(each.labels, i) for i, each in enumerate(told)]),
    )
    return dataclasses.replace(made, state=ServerSynthesisState({}, asked, SyntheticDataset(), {}, ""), **changes)


def read(audit: MembershipConditions, toy: Case) -> dict[str, Reading]:
    return {reading.attack: reading for reading in audit.examine(toy.as_seen(("uploads",))).readings}


FEW = MembershipConditions(draws=4, planted=2, planted_passes=20)
LEARNT = FedDEO(description_epochs=5, description_batch_size=4, description_learning_rate=5.0)
METHODS = [FGL(**described()), LEARNT]


@pytest.mark.parametrize("method", METHODS)
def test_conditions_of_few_examples_betray_them(method: ConditionUploadMethod) -> None:
    found = read(FEW, toy(method, spots(24, "train")))
    assert list(found) == list(ATTACKS)
    assert {reading.verdict for reading in found.values()} == {"leak"}, found


@pytest.mark.parametrize("method", METHODS)
def test_conditions_of_others_tell_nothing_and_the_planted_leak_is_found(method: ConditionUploadMethod) -> None:
    found = read(FEW, toy(method, spots(24, "train"), of=lambda i: spots(12, "others", str(i))))
    assert {reading.verdict for reading in found.values()} == {"no leak found"}, found


def test_the_mean_of_few_is_near_them() -> None:
    found = read(FEW, toy(OSCAR(**described()), spots(24, "train")))
    assert found[ATTACKS[0]].verdict == "leak", found


@pytest.mark.parametrize("method", [FGL(), OSCAR(), FedDEO(description_epochs=0), FGL(**described(attributes=ONE))])
def test_conditions_of_whole_classes_hold_no_example(method: ConditionUploadMethod) -> None:
    with pytest.raises(NotPossible, match="clients of toy would upload the same conditions"):
        FEW.examine(toy(method, spots(24, "train")))


def test_what_it_cannot_do() -> None:
    with pytest.raises(NotPossible, match="no client of toy uploads conditions"):
        FEW.examine(case(method=FedAvg()))
    made, nobody = toy(FGL(), spots(24, "train")), torch.empty(0, dtype=torch.int64)
    state = dataclasses.replace(made.state, requested=ConditionSet(torch.empty(0), nobody, nobody))
    with pytest.raises(NotPossible, match="the server has no client's conditions"):
        FEW.examine(dataclasses.replace(made, state=state))
    with pytest.raises(NotPossible, match="no held-out example of class 2"):
        draw_alike(drawn(2), torch.tensor([0, 2]), stream(0))


def test_examples_alike_are_of_the_same_classes() -> None:
    data, y = spots(30, "alike"), torch.tensor([2, 0, 0, 1, 2])
    found = draw_alike(data, y, stream(0))
    assert torch.equal(found.y, y)
    assert all((x == data.x[data.y == c]).flatten(1).all(1).any() for x, c in zip(found.x, y, strict=True))


def test_measures_by_hand() -> None:
    told = ConditionUpload(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]), torch.tensor([0, 0, 1]))
    found, far = nearest_condition(torch.tensor([[3.0, 3.0], [3.0, 3.0]]), torch.tensor([0, 1]), told)
    assert found.tolist() == [[3, 4], [1, 1]]
    assert far.tolist() == pytest.approx([1, 8**0.5])
    x, (signal, noise) = torch.zeros(2, 1, 8, 8), MODEL.noise_levels(5, torch.zeros(1, 1, 8, 8))
    tones = torch.tensor([0.0, 0.5]).view(2, 1, 1).expand(2, 1, 64)  # the image itself, and half a unit off
    other = torch.full((2, 1, 64), 0.25)
    by = noise_gain(MODEL, x, tones, other, 1, stream(0))  # the mistake in ε is that in x0 times √ᾱ/√(1 − ᾱ)
    wanted = [float((signal / noise) ** 2) * d for d in (0.25**2, 0.25**2 - 0.5**2)]
    assert by.tolist() == pytest.approx(wanted, rel=1e-3)
