"""Images are rebuilt from a first step of a small diffusion model, and not from that on other images."""

from typing import Any

import pytest
import torch

from genfed.audits.audit import Case, NotPossible
from genfed.audits.inversion_diffusion import (
    InversionDiffusion,
    denoiser_gradients,
    first_of_adam,
    first_of_sgd,
    temper,
)
from genfed.audits.reconstruction import ABOVE
from genfed.core.rng import stream
from genfed.generators.cvae import CVAE
from genfed.generators.ddpm import DDPM, DDPMNetwork
from genfed.methods.fedavg import FedAvg
from genfed.methods.gefl import GeFL
from genfed.methods.gefl_f import GeFLF
from tests.audits.cases import case, task

SMALL = DDPM(width=8, levels=2, steps=100)


def network() -> DDPMNetwork:
    return SMALL.new(task(), stream(0)).eval()


def toy(**changes: Any) -> Case:
    return case(**{"method": GeFL(generator=SMALL)} | changes)


def test_images_are_rebuilt_from_a_first_step() -> None:
    audit = InversionDiffusion(examples=2, steps=120)
    found = audit.examine(toy().as_seen(("uploads",)))
    (reading,) = found.readings
    assert reading.verdict == "leak", reading
    assert reading.run[ABOVE].value > 1
    assert reading.control[ABOVE].value > reading.run[ABOVE].value
    assert reading.null[ABOVE].value < 0
    assert found.pictures[0].images.shape == (3, 2, 1, 8, 8)


def test_gradients_are_those_of_a_step_and_its_forms_by_hand() -> None:
    model, x = network(), torch.zeros(1, 1, 8, 8)
    t, y, noise = torch.tensor([5]), torch.tensor([1]), torch.randn(1, 1, 8, 8, generator=stream(2))
    gradient = denoiser_gradients(model, x, y, t, noise)
    before = [p.detach().clone() for p in model.parameters()]
    for form, optimizer in (
        (first_of_sgd, torch.optim.SGD(model.parameters(), lr=0.1)),
        (first_of_adam, torch.optim.Adam(model.parameters(), lr=0.1)),
    ):
        for p, old, g in zip(model.parameters(), before, gradient, strict=True):
            p.data.copy_(old)
            p.grad = g.clone()
        optimizer.step()
        for p, old, step in zip(model.parameters(), before, form(gradient), strict=True):
            torch.testing.assert_close(old - p.detach(), 0.1 * step, atol=1e-5, rtol=1e-3)
    assert temper([torch.tensor([3.0, -1.0]), torch.zeros(2)])[0].tolist() == pytest.approx([0.6, -1 / 3])


def test_what_it_cannot_do() -> None:
    audit = InversionDiffusion()
    for method in (FedAvg(), GeFLF()):
        with pytest.raises(NotPossible, match="no client of toy uploads a generator of images"):
            audit.examine(toy(method=method))
    with pytest.raises(NotPossible, match="the generator of toy is no diffusion model"):
        audit.examine(toy(method=GeFL(generator=CVAE(width=4, latent_dim=4))))
