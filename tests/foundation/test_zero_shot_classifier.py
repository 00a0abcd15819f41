"""Words and learnt embeddings for images, with models that know the answer."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from genfed.core.rng import stream
from genfed.foundation.model import Conditions, FoundationModel, Pixels
from genfed.foundation.textual_inversion import learn_embedding
from genfed.foundation.zero_shot_classifier import classify_by_noise

TEXTS = {"dark": -0.5, "light": 0.5, "grey": 0.0}


class Told(Conditions):
    """What is asked for is a tone; `answer` (z, tone [n, 1, 1, 1]) is what the network says."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.answer = answer

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([TEXTS[text] for text in texts]).view(-1, 1, 1)

    def encode_none(self, n: int, negative: str) -> Tensor:
        return torch.zeros(n, 1, 1)

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return self.answer(z, condition.view(-1, 1, 1, 1))


def stub(prediction: str, answer: Callable[[Tensor, Tensor], Tensor]) -> FoundationModel:
    scheduler: Any = diffusers.DDIMScheduler(num_train_timesteps=50, prediction_type=prediction)
    cpu, shape = torch.device("cpu"), (1, 2, 2)
    return FoundationModel(
        "stub", "pixel", nn.Identity(), Pixels(), Told(answer), scheduler, shape, shape, cpu, "float32"
    )


def tones(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_the_text_that_fits_is_found(batch_size: int) -> None:
    model = stub("sample", lambda z, tone: tone.expand_as(z))
    images = tones(0.45, -0.6, 0.1, -0.45, -0.1)
    found = classify_by_noise(model, images, list(TEXTS), probes=1, rng=stream(0), batch_size=batch_size)
    assert found.tolist() == [1, 0, 2, 0, 2]


def test_one_text_fits_all_and_is_not_asked_about() -> None:
    def answer(z: Tensor, tone: Tensor) -> Tensor:
        raise AssertionError

    rng = stream(0)
    before = rng.get_state()
    found = classify_by_noise(stub("sample", answer), tones(0.1, 0.2), ["dark"], probes=3, rng=rng)
    assert found.tolist() == [0, 0]
    assert torch.equal(rng.get_state(), before)
    knows = stub("sample", lambda z, tone: tone.expand_as(z))
    assert classify_by_noise(knows, tones(), ["dark", "light"], probes=3, rng=rng).shape == (0,)


def test_texts_are_compared_on_the_same_noise() -> None:
    """A network that does not heed the text finds all alike, so the first is taken, however noisy."""
    model = stub("epsilon", lambda z, tone: torch.zeros_like(z))
    assert classify_by_noise(model, tones(0.5, -0.5, 0.1), list(TEXTS), probes=1, rng=stream(0)).tolist() == [0, 0, 0]


def test_a_step_of_a_description_by_hand() -> None:
    """ε_θ = d everywhere, so (d − ε)² has the slope 2·mean(d − ε)."""
    model = stub("epsilon", lambda z, tone: tone.expand_as(z))
    start, rng = torch.tensor([[0.4]]), stream(3)
    description, loss = learn_embedding(
        model, tones(0.2), start, epochs=1, batch_size=1, learning_rate=0.1, rng=stream(3)
    )
    torch.randperm(1, generator=rng)
    torch.randint(50, (1,), generator=rng)
    eps = torch.randn(1, 1, 2, 2, generator=rng)
    assert loss == pytest.approx(float((0.4 - eps).square().mean()))
    torch.testing.assert_close(description, start - 0.1 * 2 * (0.4 - eps).mean())
    assert start.tolist() == [[pytest.approx(0.4)]], "what it starts from stays"


def test_a_description_comes_to_the_tone_of_the_images() -> None:
    """x0 = d is what the network says; ε is best predicted where d is the images' own tone."""
    model = stub("sample", lambda z, tone: tone.expand_as(z))
    images = tones(0.3, 0.3, 0.3, 0.3)
    options: dict[str, Any] = {"batch_size": 2, "learning_rate": 0.01}
    description, loss = learn_embedding(model, images, torch.tensor([[-0.5]]), epochs=60, rng=stream(0), **options)
    assert float(description) == pytest.approx(0.3, abs=3e-3)
    assert loss < 1e-2
    same, nothing = learn_embedding(model, images, torch.tensor([[-0.5]]), epochs=0, rng=stream(0), **options)
    assert (float(same), nothing) == (-0.5, 0)
    assert not same.requires_grad
