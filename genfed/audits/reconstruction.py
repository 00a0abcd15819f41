"""Shared parts of attacks that rebuild images: the attacked images, the search, and measures of the result.

SSIM: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genfed.audits.audit import Case, NotPossible
from genfed.audits.findings import Picture
from genfed.training.pixels import denormalize_pixels, normalize_pixels

ABOVE, PSNR, SSIM = "PSNR above a guess, dB", "PSNR, dB", "SSIM"
Gradient = Sequence[Tensor]


@dataclass(frozen=True)
class ImageTarget:
    """Images of the first client, and images for comparison, [n, C, H, W] in [−1, 1]."""

    x: Tensor
    y: Tensor
    """Classes, int64 [n]."""
    guess: Tensor
    """Mean of the attacker's own images of the class, a guess without any update."""
    other: Tensor
    """The attacker's own images of the same classes, for the control with nothing to find."""

    def measures(self, rebuilt: Tensor) -> dict[str, Tensor]:
        """Returns measures of each image [n], by name."""
        found = psnr(rebuilt, self.x)
        return {ABOVE: found - psnr(self.guess, self.x), PSNR: found, SSIM: ssim(rebuilt, self.x)}

    def picture(self, rebuilt: Tensor) -> Picture:
        """Returns the picture for the report."""
        return Picture(
            "A client's images, the images rebuilt from its updates, and the guess without an update.",
            ("client's image", "rebuilt", "guess"),
            torch.stack([denormalize_pixels(images) for images in (self.x, rebuilt, self.guess)]),
        )


def select_images(case: Case, examples: int) -> ImageTarget:
    """Returns at most `examples` images of the first client.

    Raises:
        NotPossible: examples are no images, or the client has fewer than two of classes that are held out.
    """
    if case.task.kind != "image":
        raise NotPossible("the examples are no images")
    held_out = torch.randperm(len(case.held_out), generator=case.rng("inversion", "held out"))
    mine = case.holdings[0].rows
    rows = mine[torch.randperm(len(mine), generator=case.rng("inversion", "rows"))]
    rows = rows[torch.isin(case.train.y[rows], case.held_out.y)][:examples]
    if len(rows) < 2:
        raise NotPossible("the first client has fewer than 2 examples of classes that are held out")
    y, own = case.train.y[rows], case.held_out[held_out]
    of_class = [normalize_pixels(own.x[own.y == c]) for c in y.tolist()]
    guess = torch.stack([images.mean(0) for images in of_class])
    other = torch.stack([images[i % len(images)] for i, images in enumerate(of_class)])
    return ImageTarget(normalize_pixels(case.train.x[rows]), y, guess, other)


def search_images(
    start: Tensor, misfit: Callable[[Tensor], Tensor], *, steps: int, learning_rate: float, smoothness: float
) -> Tensor:
    """Searches from images `start` in [−1, 1] for images with a small misfit plus total variation, by Adam on the signs
    of the gradient, as Geiping et al. (arXiv 2003.14053). Returns them on the CPU.
    """
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=learning_rate)
    decay = torch.optim.lr_scheduler.MultiStepLR(adam, [steps * k // 8 for k in (3, 5, 7)], 0.1)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(misfit(x) + smoothness * variation(x), [x])
        x.grad = slope.sign()
        adam.step()
        decay.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
    return x.detach().cpu()


def cosine(a: Gradient, b: Gradient) -> Tensor:
    """Returns the cosine of the angle between two gradients."""
    product = torch.stack([(u * v).sum() for u, v in zip(a, b, strict=True)]).sum()
    norms = [torch.stack([g.square().sum() for g in each]).sum().sqrt() for each in (a, b)]
    return product / (norms[0] * norms[1]).clamp(min=1e-12)


def variation(x: Tensor) -> Tensor:
    """Returns the total variation: the mean absolute difference of neighbouring pixels, down and across."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def match_images(rebuilt: Tensor, real: Tensor) -> Tensor:
    """Returns the index of the rebuilt image for each of `real` [n]: the nearest pair first, then the nearest left."""
    far = torch.cdist(real.flatten(1), rebuilt.flatten(1))
    found = torch.empty(len(real), dtype=torch.int64)
    for _ in range(len(real)):
        of_real, of_rebuilt = divmod(int(far.argmin()), len(rebuilt))
        found[of_real] = of_rebuilt
        far[of_real], far[:, of_rebuilt] = torch.inf, torch.inf
    return found


def psnr(rebuilt: Tensor, real: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio [n] in dB of images in [−1, 1]; at most 60."""
    error = (rebuilt - real).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp(min=1e-12))).clamp(max=60)


def ssim(rebuilt: Tensor, real: Tensor) -> Tensor:
    """Returns the structural similarity [n] of images in [−1, 1], scaled to [0, 1], over windows of at most 7×7."""
    size = min(7, *rebuilt.shape[2:])
    a, b = (rebuilt.double() + 1) / 2, (real.double() + 1) / 2

    def window(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, size, 1)

    mean_a, mean_b = window(a), window(b)
    var_a, var_b = window(a * a) - mean_a**2, window(b * b) - mean_b**2
    both = window(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1)
