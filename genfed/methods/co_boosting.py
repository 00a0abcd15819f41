"""Co-Boosting. Dai, Zhang, Li, Liu, Yang, Han, Enhancing One-Shot Federated Learning Through Data and Ensemble
Co-Boosting, ICLR 2024, arXiv 2402.15070: DENSE whose images are made hard for the ensemble, and whose ensemble learns
from them whom to trust.
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
    """Data and ensemble boost one another. The generator goes on from epoch to epoch, as in DENSE here."""

    # differs from the published code: there the generator starts anew in each epoch and its noise is trained with it.
    hardness: Annotated[float, Field(ge=0)] = 1.0
    """Power of 1 − p_y, the ensemble's doubt about the class that an image was to be, by which its cross-entropy is
    weighted; 0: all images count alike."""
    adversarial: Annotated[float, Field(ge=0)] = 1.0
    """Weight of KL(ensemble ‖ student), which images are to make large (β); 0: students are not asked."""
    stability: Annotated[float, Field(ge=0)] = 0.0
    """Weight of DENSE's batch-norm loss, which Co-Boosting does without."""
    perturbation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 8 / 255
    """How far each image is moved before it is learnt from, in a direction of its own in which the ensemble's answer
    changes most (ε): the root mean square over its pixels, as a share of black to white; 0: not at all."""
    share_step: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """By how much a batch changes what a model counts for, 1 at first (n·μ with n models); 0: all count alike."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """At which students learn the ensemble's answers."""

    def objective(self, logits: Tensor, gap: Tensor, answers: Sequence[Tensor], y: Tensor) -> Tensor:
        # differs from the published code: its divergence is at temperature 3. With several students it is their mean.
        apart = torch.stack([disagreement(logits, answer) for answer in answers]).mean(0)
        doubt = 1 - logits.detach().softmax(1).gather(1, y[:, None]).squeeze(1)
        hard = doubt.clamp(min=0) ** self.hardness * F.cross_entropy(logits, y, reduction="none")
        return hard + self.stability * gap - self.adversarial * apart

    def replay_batch(
        self, server: Server, ensemble: ClassifierEnsemble, shares: Tensor, pool: ReplayPool
    ) -> tuple[ReplayBatch, Tensor]:
        """Batch by batch: images become diverse hard samples, and by these the shares move. Students learn the samples
        with the answers of the ensemble as it is after all of them.
        """
        # differs from the published code: there shares move by the images as they are stored, and less every epoch.
        images, each, shares = [], [], shares.to(server.device)
        for x, y in zip(*(torch.split(part, self.batch_size) for part in (pool.images, pool.labels)), strict=True):
            images.append(self.make_harder(ensemble, shares, normalize_pixels(x.to(server.device)), server.rng))
            with torch.no_grad():
                each.append(ensemble.predict_each(images[-1]))
            shares = self.step_shares(shares, each[-1], y.to(server.device))
        logits = torch.cat([combine(answers, shares) for answers in each])
        return ReplayBatch(torch.cat(images).cpu(), logits.cpu()), shares.cpu()

    def make_harder(self, ensemble: ClassifierEnsemble, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Diverse hard samples: x + ε·g/‖g‖ with g = ∇_x uᵀA(x), u uniform in [−1, 1] for each image and class."""
        if self.perturbation == 0:
            return x
        # differs from the paper: ε is per pixel, whatever the size; its code takes ε·sign(g), which is as long.
        x = x.requires_grad_()
        logits = combine(ensemble.predict_each(x), shares)
        u = (torch.rand(logits.shape, generator=rng) * 2 - 1).to(x.device)
        (g,) = torch.autograd.grad((u * logits).sum(), x)
        direction = F.normalize(g.flatten(1)).view_as(g) * math.sqrt(g[0].numel())
        return (x + 2 * self.perturbation * direction).detach()  # from black to white is 2

    def step_shares(self, shares: Tensor, each: Tensor, y: Tensor) -> Tensor:
        """Down the sign of the gradient of CE(A(x), y), within 0 and n (weights w of the paper within 0 and 1); `each`
        are the models' logits [n, b, classes].
        """
        shares = shares.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(combine(each, shares), y), shares)
        return (shares - self.share_step * g.sign()).clamp(0, len(shares)).detach()
