"""Co-Boosting. Dai, Zhang, Li, Liu, Yang, Han, Enhancing One-Shot Federated Learning Through Data and Ensemble
Co-Boosting, ICLR 2024, arXiv 2402.15070: DENSE with images that are hard for the ensemble, and with an ensemble that
learns from them how much each model counts.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.client import Server
from genfed.core.settings import settings
from genfed.methods.bases.data_free import DataFreeDistillation, ReplayBatch, ReplayPool, disagreement
from genfed.training.ensemble import ClassifierEnsemble, combine
from genfed.training.pixels import normalize_pixels


@settings
class CoBoosting(DataFreeDistillation):
    """DENSE with harder images and an ensemble that learns how much each model counts.

    1. train, once. Client → server: its model, trained from the initial weights on its examples.
    2. distil, `rounds` rounds, on the server. The generator takes `generator_steps` steps on one batch of noise:
       towards images that the ensemble assigns to their classes with doubt, and on which the students disagree with it.
       For each of the newest `replay_batches` batches, images move to where the ensemble's answer changes most, and the
       shares of the models take a step. The students learn the ensemble's answers for the moved images.

    >>> [phase.name for phase in CoBoosting(rounds=10, temperature=2.0).phases()]
    ['train', 'distil']
    """

    # differs from the published code: its generator is new in each epoch, and its noise is trained too.
    hardness: Annotated[float, Field(ge=0)] = 1.0
    """Power of the weight 1 − p_y of an image's cross-entropy, where p_y is the ensemble's probability of the class for
    which the image is generated. 0: all images count alike."""
    adversarial: Annotated[float, Field(ge=0)] = 1.0
    """Weight of −KL(ensemble ‖ student) in the generator's loss (β). 0: students are not used."""
    stability: Annotated[float, Field(ge=0)] = 0.0
    """Weight of DENSE's BatchNorm loss, which Co-Boosting does not use."""
    perturbation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 8 / 255
    """Distance by which each image is moved before students learn from it (ε), in a direction in which the ensemble's
    answer changes most: root mean square over pixels, as a fraction of black to white. 0: images are not moved."""
    share_step: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Step by which a batch changes the share of a model (n·μ with n models); shares are 1 at first. 0: they stay 1."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature of the distillation: divides logits of ensemble and students."""

    def objective(self, logits: Tensor, gap: Tensor, answers: Sequence[Tensor], y: Tensor) -> Tensor:
        # differs from the published code: its divergence has temperature 3. With several students this is their mean.
        apart = torch.stack([disagreement(logits, answer) for answer in answers]).mean(0)
        doubt = 1 - logits.detach().softmax(1).gather(1, y[:, None]).squeeze(1)
        hard = doubt.clamp(min=0) ** self.hardness * F.cross_entropy(logits, y, reduction="none")
        return hard + self.stability * gap - self.adversarial * apart

    def replay_batch(
        self, server: Server, ensemble: ClassifierEnsemble, shares: Tensor, pool: ReplayPool
    ) -> tuple[ReplayBatch, Tensor]:
        """Turns images into diverse hard samples and updates the shares, batch by batch. Students learn the answers
        of the ensemble for the samples after all updates.
        """
        # differs from the published code: its shares move by the stored images, and in smaller steps every epoch.
        images, each, shares = [], [], shares.to(server.device)
        for x, y in zip(*(torch.split(part, self.batch_size) for part in (pool.images, pool.labels)), strict=True):
            images.append(self.make_harder(ensemble, shares, normalize_pixels(x.to(server.device)), server.rng))
            with torch.no_grad():
                each.append(ensemble.predict_each(images[-1]))
            shares = self.step_shares(shares, each[-1], y.to(server.device))
        logits = torch.cat([combine(answers, shares) for answers in each])
        return ReplayBatch(torch.cat(images).cpu(), logits.cpu()), shares.cpu()

    def make_harder(self, ensemble: ClassifierEnsemble, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Returns x + ε·g/‖g‖ with g = ∇_x uᵀA(x), u uniform in [−1, 1] for each image and class."""
        if self.perturbation == 0:
            return x
        # differs from the paper: ε is per pixel, for any image size; its code takes ε·sign(g), which has this length.
        x = x.requires_grad_()
        logits = combine(ensemble.predict_each(x), shares)
        u = (torch.rand(logits.shape, generator=rng) * 2 - 1).to(x.device)
        (g,) = torch.autograd.grad((u * logits).sum(), x)
        direction = F.normalize(g.flatten(1)).view_as(g) * math.sqrt(g[0].numel())
        return (x + 2 * self.perturbation * direction).detach()  # from black to white is 2

    def step_shares(self, shares: Tensor, each: Tensor, y: Tensor) -> Tensor:
        """Returns the shares after a step against the sign of the gradient of CE(A(x), y), clamped to [0, n] (the
        paper's weights w to [0, 1]). `each`: logits of the models [n, b, classes].
        """
        shares = shares.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(combine(each, shares), y), shares)
        return (shares - self.share_step * g.sign()).clamp(0, len(shares)).detach()
