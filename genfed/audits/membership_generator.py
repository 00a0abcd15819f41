"""Membership inference from a trained generator, by how well it fits an example.

Loss thresholds: Yeom, Giacomelli, Fredrikson, Jha, Privacy Risk in Machine Learning, CSF 2018, arXiv 1709.01604. For
diffusion models, the denoising loss at chosen steps: Matsumoto, Miura, Yanai, Membership Inference Attacks against
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
from genfed.methods.bases.federated_generator import FederatedGenerator
from genfed.methods.bases.generator_building import build_generator, maps_task
from genfed.training.fit import fit
from genfed.training.pixels import normalize_pixels

Scores = Callable[[GeneratorNetwork, Tensor, Tensor, torch.Generator], Tensor]
"""(generator, x [n, *shape] scaled, y [n], draws) → scores [n], higher for members."""

New = Callable[[Weights], GeneratorNetwork]


@settings
class MembershipGenerator(Audit):
    """Recognizes training examples by how well the generator fits them: ELBO, denoising loss, discriminator score."""

    sees = ("state",)
    attacker = (
        "The server, or any client: both hold the trained generator (for features: and the extractor). They know the "
        "attacked example and its class."
    )

    members: Annotated[int, Field(ge=FEWEST)] = 2000
    """Maximum number of attacked training examples, and of others."""
    draws: Annotated[int, Field(ge=1)] = 4
    """Draws of the noise over which a loss is averaged, for each example and each of `times`."""
    times: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.1, 0.25, 0.5)
    """Steps of a diffusion model at which its denoising loss is taken, as shares of all steps; each is an attack."""
    planted: Annotated[int, Field(ge=FEWEST)] = 64
    """Members on which the planted leak, the generator, is trained further; only these are attacked there."""
    planted_steps: Annotated[int, Field(ge=1)] = 500
    """Steps of that training."""

    def examine(self, case: Case) -> Findings:
        settings, build, task, features = _generator_parts(case)
        network = build(case.state.generator)
        attacks = self._attacks(network)
        attacked = select_candidates(case, self.members, case.rng("membership_generator", "candidates"))
        members, others = features(case.train[attacked.members]), features(case.held_out[attacked.others])
        count = min(self.planted, len(members.y))
        leak = build(case.state.generator)
        self._overfit(leak, members[:count], case.rng("membership_generator", "planted"))
        other = settings.new(task, case.rng("membership_generator", "weights")).to(case.device)
        apart = features(case.train[attacked.apart[:count]])
        self._overfit(other, apart, case.rng("membership_generator", "not asked"))

        def attack(name: str, generator: GeneratorNetwork, number: int) -> dict[str, Estimate]:
            scores = []
            for part, data in (("members", members), ("others", others)):
                rng = case.rng("membership_generator", "noise", name, part)
                scores.append(self._scores(attacks[name], generator, data[:number], rng))
            return membership_numbers(scores[0], scores[1], case.rng("membership_generator", "bootstrap", name))

        every = len(members)
        readings = tuple(
            Reading(a, AUC, 0.5, attack(a, network, every), attack(a, leak, count), attack(a, other, every))
            for a in attacks
        )
        notes = (
            f"Planted leak: the generator, trained for {self.planted_steps} steps more on {count} members alone.",
            f"Nothing to find: a new generator, trained for {self.planted_steps} steps on {len(apart)} examples that "
            "are not attacked: other members, so that a difference in kind alone would show.",
        )
        sizes = {"members": len(members), "non-members": len(others)}
        return Findings(readings, sizes, notes)

    def _attacks(self, network: GeneratorNetwork) -> Mapping[str, Scores]:
        """Returns the attacks on this kind of generator.

        Raises:
            NotPossible: the kind is unknown, or the part that gives scores is not uploaded.
        """
        if isinstance(network, CVAENetwork):
            if network.config.keep_encoder:
                raise NotPossible(
                    "the ELBO needs the encoder, which is not uploaded; generator.keep_encoder = false uploads it"
                )
            return {"ELBO": _elbo}
        if isinstance(network, DCGANNetwork):
            if network.config.keep_discriminator:
                raise NotPossible("the discriminator is not uploaded; generator.keep_discriminator = false uploads it")
            return {"discriminator's score": lambda n, x, y, rng: _as(DCGANNetwork, n).discriminate(x, y)}
        if isinstance(network, DDPMNetwork):
            steps = network.config.steps
            chosen = dict.fromkeys(min(round(share * steps), steps - 1) for share in self.times)
            return {f"denoising loss at step {t} of {steps}": _denoising(t) for t in chosen}
        raise NotPossible(f"no attack knows a generator of the kind {type(network).__name__}")

    @torch.no_grad()
    def _scores(self, attack: Scores, network: GeneratorNetwork, data: Data, rng: torch.Generator) -> Tensor:
        """Returns scores averaged over the draws [n]; the generator works in eval mode."""
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


def _generator_parts(case: Case) -> tuple[Generator, New, Task, Callable[[Data], Data]]:
    """Returns a generator's settings, a function from weights to the generator, the task of its examples, and a
    function from real examples to comparable ones.

    Raises:
        NotPossible: clients share no generator.
    """
    method = case.method
    if not isinstance(method, FederatedGenerator):
        raise NotPossible(f"{case.label} trains no generator that all clients share")
    server, generator = case.server("membership_generator"), method.generator
    task: Task = case.task if case.features is None else maps_task(method.features(server))  # type: ignore[attr-defined]

    def build(weights: Weights) -> GeneratorNetwork:
        return build_generator(generator, server, task, weights)

    def convert(data: Data) -> Data:
        if case.features is None:
            return data
        found = case.features(data)
        return Data(found.x.reshape(-1, *task.shape), found.y)

    return generator, build, task, convert


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
