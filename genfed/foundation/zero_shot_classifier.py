"""Zero-shot classification of images by a diffusion model."""

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
    """Returns the index of the text under which the model predicts the noise in each image best, int64 [n] on the CPU:
    the least squared error over pairs (t, ε), the same pairs for all texts. Li, Prabhudesai, Duggal, Brown, Pathak,
    Your Diffusion Model is Secretly a Zero-Shot Classifier, arXiv 2303.16203, Algorithm 1.

    Args:
        model: The diffusion model.
        images: A task's examples [n, C, H, W].
        texts: The texts.
        probes: The number of pairs (t, ε).
        rng: The source of the pairs.
        batch_size: The number of pairs of image and text per network call.
    """
    if len(texts) == 1:
        return torch.zeros(len(images), dtype=torch.int64)
    conditions, m = model.encode_condition(texts), len(texts)
    best = []
    for x in torch.split(images, max(1, batch_size // m)):
        z = model.encode(resize_to(normalize_pixels(x).to(model.device), model.image_shape))
        repeated = conditions.repeat(len(x), *[1] * (conditions.ndim - 1))  # every image with every text
        errors = torch.zeros(len(x), m, device=model.device)
        for _ in range(probes):
            t = torch.randint(model.steps, (len(x),), generator=rng).to(model.device)
            eps = torch.randn(z.shape, generator=rng).to(model.device)
            columns = [v.repeat_interleave(m, 0) for v in (model.add_noise(z, eps, t), t, eps)]
            parts = zip(*(torch.split(column, batch_size) for column in (*columns, repeated)), strict=True)
            means = []
            for noisy, steps, noise, rows in parts:
                predicted = model.recover_noise(model.predict(noisy, steps, rows), noisy, steps)
                means.append((predicted - noise).square().flatten(1).mean(1))
            errors += torch.cat(means).view(-1, m)
        best.append(errors.argmin(1).cpu())
    return torch.cat(best) if best else torch.empty(0, dtype=torch.int64)
