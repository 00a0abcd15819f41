"""Words for a client's own images, from the public diffusion model alone. Li, Prabhudesai, Duggal, Brown, Pathak, Your
Diffusion Model is Secretly a Zero-Shot Classifier, arXiv 2303.16203.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from genfed.foundation.model import FoundationModel


@torch.no_grad()
def likeliest(
    model: FoundationModel,
    images: Tensor,
    texts: Sequence[str],
    *,
    probes: int,
    rng: torch.Generator,
    batch_size: int = 64,
) -> Tensor:
    """For each of the images [n, C, H, W] in [−1, 1] the number of the text under which its noise is predicted best,
    int64 [n] on the CPU: the least squared error over so many pairs (t, ε), the same for all texts (Algorithm 1).
    """
    conditions = model.condition(texts)
    best = []
    for x in torch.split(images.to(model.device), batch_size):
        z = model.encode(x)
        errors = torch.zeros(len(x), len(texts), device=model.device)
        for _ in range(probes):
            t = torch.randint(model.steps, (len(x),), generator=rng).to(model.device)
            eps = torch.randn(z.shape, generator=rng).to(model.device)
            noisy = model.noisy(z, eps, t)
            for k, condition in enumerate(conditions):
                output = model.predict(noisy, t, condition.expand(len(x), *condition.shape))
                errors[:, k] += (model.eps(output, noisy, t) - eps).square().flatten(1).mean(1)
        best.append(errors.argmin(1).cpu())
    return torch.cat(best) if best else torch.empty(0, dtype=torch.int64)
