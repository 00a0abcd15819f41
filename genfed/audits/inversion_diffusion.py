"""Inversion of a diffusion model's update: a client's image, from one step of training on it.

Gradient matching as Zhu, Liu, Han, Deep Leakage from Gradients, NeurIPS 2019, arXiv 1906.08935, and Geiping,
Bauermeister, Dröge, Moeller, Inverting Gradients – How Easy Is It to Break Privacy in Federated Learning?, NeurIPS
2020, arXiv 2003.14053, Eq. 4; here of the denoising loss, and of what Adam makes of its gradient.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.findings import Estimate, Findings, Reading
from genfed.audits.membership_metrics import mean_with_interval
from genfed.audits.reconstruction import ABOVE, Gradient, cosine, search_images, select_images
from genfed.core.settings import settings
from genfed.generators.ddpm import DDPMNetwork
from genfed.methods.bases.federated_generator import FederatedGenerator
from genfed.methods.bases.generator_building import build_generator

Form = Callable[[Gradient], list[Tensor]]
"""Gradient → the first step of an optimizer, divided by its learning rate."""


@settings
class InversionDiffusion(Audit):
    """Rebuilds a client's images from the update of a diffusion model after one step on one of them."""

    sees = ("uploads",)
    attacker = (
        "The server, or anyone who reads what a client sends: they know the weights that the client began with "
        "(those of the first round), its settings, its draws (step of the diffusion and noise: they follow from the "
        "run's seed), the class, and the update after one step on one example, and have some real examples of the same "
        "kind. The worst case: a client of the run takes many steps on many examples before it uploads, which hides "
        "more."
    )

    examples: Annotated[int, Field(ge=2)] = 4
    """Number of attacked images."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Steps of the search per image."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of Adam on the signs of the gradient; divided by 10 after 3/8, 5/8 and 7/8 of the steps."""
    smoothness: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the image's total variation."""

    def examine(self, case: Case) -> Findings:
        images = select_images(case, self.examples)
        network = _denoiser(case)
        x, y, draws = images.x, images.y, case.rng("inversion_diffusion", "draws")
        t = torch.randint(network.config.steps, (len(x),), generator=draws)
        noise = torch.randn(x.shape, generator=draws)

        def attack(name: str, form: Form, sent: Tensor) -> tuple[dict[str, Estimate], Tensor]:
            case.notify(f"{len(x)} images, {self.steps} steps: {name}")
            found = []
            for i in range(len(x)):
                one, label, step, eps = (part[i : i + 1].to(case.device) for part in (sent, y, t, noise))
                given = label, step, eps
                update = form(denoiser_gradients(network, one, *given))
                start = torch.randn(one.shape, generator=case.rng("inversion_diffusion", "start", i)).clamp_(-1, 1)
                found.append(self._search(network, update, form, given, start.to(case.device)))
            rebuilt = torch.cat(found)
            rng = case.rng("inversion_diffusion", "bootstrap", name)
            return {n: mean_with_interval(v, rng) for n, v in images.measures(rebuilt).items()}, rebuilt

        run, rebuilt = attack("this run", first_of_adam, x)
        control, _ = attack("planted leak", first_of_sgd, x)
        null, _ = attack("nothing to find", first_of_adam, images.other)
        notes = (
            f"Client {case.holdings[0].client.id}, one step of Adam on one image, the class not hidden.",
            "A guess is the mean of the attacker's own images of the class.",
            "Planted leak: a step of SGD, which keeps a gradient's sizes, where Adam's first keeps little but signs.",
            "Nothing to find: the update is of another image of the same class.",
        )
        reading = Reading("inverting a first step", ABOVE, 0.0, run, control, null)
        sizes = {"images": len(x), "steps of search": self.steps}
        return Findings((reading,), sizes, notes, (images.picture(rebuilt),))

    def _search(
        self,
        network: DDPMNetwork,
        update: Gradient,
        form: Form,
        given: tuple[Tensor, Tensor, Tensor],
        start: Tensor,
    ) -> Tensor:
        """Returns an image [1, C, H, W] whose update, for the given class, step and noise, has the direction of
        `update`; on the CPU.
        """

        def misfit(x: Tensor) -> Tensor:
            found = denoiser_gradients(network, x, *given, create_graph=True)
            return 1 - cosine(temper(found) if form is first_of_adam else found, update)

        rate, smoothness = self.learning_rate, self.smoothness
        return search_images(start, misfit, steps=self.steps, learning_rate=rate, smoothness=smoothness)


def denoiser_gradients(
    network: DDPMNetwork, x: Tensor, y: Tensor, t: Tensor, noise: Tensor, create_graph: bool = False
) -> list[Tensor]:
    """Returns the gradients, by parameter, of the denoising loss of images [n, C, H, W] with classes y [n] at steps t
    [n].
    """
    with sdpa_kernel(SDPBackend.MATH):  # other attention kernels of torch have no second derivative
        found = network.predict_noise(network.diffusion.add_noise(x, noise, t), t, y)
        loss = (found - noise).square().mean()
        return list(
            torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph, materialize_grads=True)
        )


def first_of_sgd(gradient: Gradient) -> list[Tensor]:
    """Returns the gradient itself."""
    return list(gradient)


def first_of_adam(gradient: Gradient) -> list[Tensor]:
    """Returns g/(√g² + ε) with torch's ε: with new moments, little more than signs."""
    return [g / (g.abs() + 1e-8) for g in gradient]


def temper(gradient: Gradient) -> list[Tensor]:
    """Returns a smooth form of Adam's first step, since a sign has no gradient."""
    return [g / (g.abs() + g.abs().mean() + 1e-12) for g in gradient]


def _denoiser(case: Case) -> DDPMNetwork:
    """Returns the generator with the weights of the first round.

    Raises:
        NotPossible: no client uploads a diffusion model of images.
    """
    method = case.method
    if not isinstance(method, FederatedGenerator) or not method.generates:
        raise NotPossible(f"no client of {case.label} uploads a generator of images")
    server = case.server("inversion_diffusion")
    network = build_generator(method.generator, server, case.task, method.initial_generator(server, case.task))
    if not isinstance(network, DDPMNetwork):
        raise NotPossible(f"the generator of {case.label} is no diffusion model")
    return network.eval()
