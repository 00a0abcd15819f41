"""Membership inference from a trained generator: how well does it fit this example?

Loss thresholds: Yeom, Giacomelli, Fredrikson, Jha, Privacy Risk in Machine Learning, CSF 2018, arXiv 1709.01604. Of
diffusion models the denoising loss at chosen steps: Matsumoto, Miura, Yanai, Membership Inference Attacks against
Diffusion Models, arXiv 2302.03262; of VAEs the ELBO: Hilprecht, Härterich, Bernau, Monte Carlo and Reconstruction
Membership Inference Attacks against Generative Models, PETS 2019; of GANs the discriminator's score: Hayes, Melis,
Danezis, De Cristofaro, LOGAN, PETS 2019, arXiv 1705.07663.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.candidates import FEWEST, select_candidates
from genfed.audits.findings import Estimate, Findings, Reading
from genfed.audits.membership_metrics import AUC, membership_numbers
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.cvae import CVAENetwork
from genfed.generators.dcgan import DCGANNetwork
from genfed.generators.ddpm import DDPMNetwork
from genfed.generators.generator import Generator, GeneratorNetwork
from genfed.methods.bases.federated_generator import FederatedGenerator, build_generator, maps_task
from genfed.training.fit import fit
from genfed.training.pixels import normalize_pixels

Scores = Callable[[GeneratorNetwork, Tensor, Tensor, torch.Generator], Tensor]
"""(generator, x [n, *shape] scaled, y [n], draws) → scores [n], higher for members."""

New = Callable[[Weights], GeneratorNetwork]


@settings
class MembershipGenerator(Audit):
    """Tells training examples by how well the generator fits them: ELBO, denoising loss, or discriminator score."""

    sees = ("state",)
    attacker = (
        "The server, or any client: both hold the trained generator (of features: and the extractor). They know the "
        "example that they ask about, and its class."
    )

    members: Annotated[int, Field(ge=FEWEST)] = 2000
    """Training examples that are asked about, and as many others, at most."""
    draws: Annotated[int, Field(ge=1)] = 4
    """Of the noise, over which a loss is a mean: for each example, and for each of `times`."""
    times: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.1, 0.25, 0.5)
    """Steps of a diffusion model whose denoising loss is taken, as shares of all its steps; each is an attack."""
    planted: Annotated[int, Field(ge=FEWEST)] = 64
    """Of the planted leak: members on which the generator is trained further, and that alone are asked about."""
    planted_steps: Annotated[int, Field(ge=1)] = 500
    """Of that training."""

    def examine(self, case: Case) -> Findings:
        made, kind, task, features = _subject(case)
        network = kind(case.state.generator)
        attacks = self._attacks(network)
        asked = select_candidates(case, self.members, case.rng("membership_generator", "candidates"))
        members, others = features(case.train[asked.members]), features(case.held_out[asked.others])
        count = min(self.planted, len(members.y))
        leak = kind(case.state.generator)
        self._overfit(leak, members[:count], case.rng("membership_generator", "planted"))
        other = made.new(task, case.rng("membership_generator", "weights")).to(case.device)
        apart = features(case.train[asked.apart[:count]])
        self._overfit(other, apart, case.rng("membership_generator", "not asked"))

        def told(name: str, generator: GeneratorNetwork, asked_about: int) -> dict[str, Estimate]:
            scores = []
            for part, data in (("members", members), ("others", others)):
                rng = case.rng("membership_generator", "noise", name, part)
                scores.append(self._scores(attacks[name], generator, data[:asked_about], rng))
            return membership_numbers(scores[0], scores[1], case.rng("membership_generator", "bootstrap", name))

        every = len(members)
        readings = tuple(
            Reading(a, AUC, 0.5, told(a, network, every), told(a, leak, count), told(a, other, every)) for a in attacks
        )
        notes = (
            f"Planted leak: the generator, trained for {self.planted_steps} steps more on {count} members alone.",
            f"Nothing to find: a new generator, trained for {self.planted_steps} steps on {len(apart)} examples that "
            "nobody is asked about: other members, so that a difference in kind alone would show.",
        )
        sizes = {"members": len(members), "non-members": len(others)}
        return Findings(readings, sizes, notes)

    def _attacks(self, network: GeneratorNetwork) -> Mapping[str, Scores]:
        """Those that this kind of generator is open to.

        Raises:
            NotPossible: it is of no known kind, or the part that scores stays with the clients.
        """
        if isinstance(network, CVAENetwork):
            if network.config.keep_encoder:
                raise NotPossible(
                    "the ELBO needs the encoder, which stays home; generator.keep_encoder = false sends it"
                )
            return {"ELBO": _elbo}
        if isinstance(network, DCGANNetwork):
            if network.config.keep_discriminator:
                raise NotPossible("the discriminator stays at home; generator.keep_discriminator = false sends it")
            return {"discriminator's score": lambda n, x, y, rng: _as(DCGANNetwork, n).discriminate(x, y)}
        if isinstance(network, DDPMNetwork):
            steps = network.config.steps
            chosen = dict.fromkeys(min(round(share * steps), steps - 1) for share in self.times)
            return {f"denoising loss at step {t} of {steps}": _denoising(t) for t in chosen}
        raise NotPossible(f"no attack knows a generator of the kind {type(network).__name__}")

    @torch.no_grad()
    def _scores(self, attack: Scores, network: GeneratorNetwork, data: Data, rng: torch.Generator) -> Tensor:
        """Means over the draws, [n]; in eval mode."""
        network.eval()
        device, found = next(network.parameters()).device, []
        for rows in torch.split(torch.arange(len(data)), 500):
            x, y = normalize_pixels(data.x[rows]).to(device), data.y[rows].to(device)
            draws = [attack(network, x, y, rng).cpu() for _ in range(self.draws)]
            found.append(torch.stack(draws).mean(0))
        scores = torch.cat(found)
        if not bool(scores.isfinite().all()):
            raise NotPossible("the generator has diverged: its losses are not finite")
        return scores

    def _overfit(self, network: GeneratorNetwork, data: Data, rng: torch.Generator) -> None:
        device = next(network.parameters()).device
        fit(network.train().objectives(), data.to(device), epochs=self.planted_steps, batch_size=len(data), rng=rng)


def _subject(case: Case) -> tuple[Generator, New, Task, Callable[[Data], Data]]:
    """A generator's settings, how it is made of weights, the task of what it makes, how examples become the like."""
    method = case.method
    if not isinstance(method, FederatedGenerator):
        raise NotPossible(f"{case.label} trains no generator that all clients share")
    server, generator = case.server("membership_generator"), method.generator
    task: Task = case.task if case.features is None else maps_task(method.features(server))  # type: ignore[attr-defined]

    def kind(weights: Weights) -> GeneratorNetwork:
        return build_generator(generator, server, task, weights)

    def like(data: Data) -> Data:
        if case.features is None:
            return data
        found = case.features(data)
        return Data(found.x.reshape(-1, *task.shape), found.y)

    return generator, kind, task, like


def _as(kind: type[Any], network: GeneratorNetwork) -> Any:
    assert isinstance(network, kind)
    return network


def _elbo(network: GeneratorNetwork, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    score: Tensor = -_as(CVAENetwork, network).loss(x, y, rng)
    return score


def _denoising(step: int) -> Scores:
    def score(network: GeneratorNetwork, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        ddpm = _as(DDPMNetwork, network)
        x = ddpm.scale(x) if ddpm.scale else x
        t, noise = torch.full_like(y, step), torch.randn(x.shape, generator=rng).to(x.device)
        found: Tensor = (
            -(ddpm.predict_noise(ddpm.diffusion.add_noise(x, noise, t), t, y) - noise).square().flatten(1).mean(1)
        )
        return found

    return score
