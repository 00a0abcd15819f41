"""Conditions for a client's own images, from the public diffusion model alone: words that fit, or an embedding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genfed.foundation.images import resize_to
from genfed.foundation.model import FoundationModel
from genfed.training.pixels import normalize_pixels


@torch.no_grad()
def classify_by_noise(
    model: FoundationModel,
    images: Tensor,
    texts: Sequence[str],
    *,
    probes: int,
    rng: torch.Generator,
    batch_size: int = 128,
) -> Tensor:
    """For each of the images [n, C, H, W], as a task's examples are, the number of the text under which its noise is
    predicted best, int64 [n] on the CPU: the least squared error over so many pairs (t, ε), the same for all texts. Li,
    Prabhudesai, Duggal, Brown, Pathak, Your Diffusion Model is Secretly a Zero-Shot Classifier, arXiv 2303.16203,
    Algorithm 1.
    """
    if len(texts) == 1:
        return torch.zeros(len(images), dtype=torch.int64)
    conditions, m = model.condition(texts), len(texts)
    best = []
    for x in torch.split(images, max(1, batch_size // m)):
        z = model.encode(resize_to(normalize_pixels(x).to(model.device), model.image_shape))
        asked = conditions.repeat(len(x), *[1] * (conditions.ndim - 1))  # every image with every text
        errors = torch.zeros(len(x), m, device=model.device)
        for _ in range(probes):
            t = torch.randint(model.steps, (len(x),), generator=rng).to(model.device)
            eps = torch.randn(z.shape, generator=rng).to(model.device)
            noisy, every, true = (some.repeat_interleave(m, 0) for some in (model.noisy(z, eps, t), t, eps))
            parts = zip(*(torch.split(some, batch_size) for some in (noisy, every, asked, true)), strict=True)
            found = [(model.eps(model.predict(n, s, a), n, s) - e).square().flatten(1).mean(1) for n, s, a, e in parts]
            errors += torch.cat(found).view(-1, m)
        best.append(errors.argmin(1).cpu())
    return torch.cat(best) if best else torch.empty(0, dtype=torch.int64)
