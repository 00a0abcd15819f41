"""What attacks share that rebuild images: whom they seek, the search, and how near it came.

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
    """Images of the first client, and what stands beside them, [n, C, H, W] in [−1, 1]."""

    x: Tensor
    y: Tensor
    """int64 [n]."""
    guess: Tensor
    """The mean of the attacker's own images of the class, which takes no update."""
    other: Tensor
    """Images of the same classes of the attacker's own, for the control with nothing to find."""

    def measures(self, rebuilt: Tensor) -> dict[str, Tensor]:
        """By name, of each image [n]."""
        found = psnr(rebuilt, self.x)
        return {ABOVE: found - psnr(self.guess, self.x), PSNR: found, SSIM: ssim(rebuilt, self.x)}

    def picture(self, rebuilt: Tensor) -> Picture:
        """What the report shows."""
        return Picture(
            "A client's images, what was rebuilt of them from its updates, and the guess that takes no update.",
            ("client's image", "rebuilt", "guess"),
            torch.stack([denormalize_pixels(images) for images in (self.x, rebuilt, self.guess)]),
        )


def select_images(case: Case, examples: int) -> ImageTarget:
    """So many images at most.

    Raises:
        NotPossible: the first client has fewer than two of classes that are held out, or they are no images.
    """
    if case.task.kind != "image":
        raise NotPossible("the examples are no images")
    held = torch.randperm(len(case.held_out), generator=case.rng("inversion", "held out"))
    mine = case.holdings[0].rows
    rows = mine[torch.randperm(len(mine), generator=case.rng("inversion", "rows"))]
    rows = rows[torch.isin(case.train.y[rows], case.held_out.y)][:examples]
    if len(rows) < 2:
        raise NotPossible("the first client has fewer than 2 examples of classes that are held out")
    y, own = case.train.y[rows], case.held_out[held]
    of_class = [normalize_pixels(own.x[own.y == c]) for c in y.tolist()]
    guess = torch.stack([images.mean(0) for images in of_class])
    other = torch.stack([images[i % len(images)] for i, images in enumerate(of_class)])
    return ImageTarget(normalize_pixels(case.train.x[rows]), y, guess, other)


def search_images(
    start: Tensor, misfit: Callable[[Tensor], Tensor], *, steps: int, learning_rate: float, smoothness: float
) -> Tensor:
    """From images `start` in [−1, 1] to such whose misfit plus total variation is small: by Adam on the signs of the
    gradient, as Geiping et al. (arXiv 2003.14053) do; on the CPU.
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
    """The cosine of the angle between two gradients."""
    product = torch.stack([(u * v).sum() for u, v in zip(a, b, strict=True)]).sum()
    norms = [torch.stack([g.square().sum() for g in each]).sum().sqrt() for each in (a, b)]
    return product / (norms[0] * norms[1]).clamp(min=1e-12)


def variation(x: Tensor) -> Tensor:
    """Total variation: the mean absolute difference of neighbouring pixels, down and across."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def match_images(made: Tensor, real: Tensor) -> Tensor:
    """Which of `made` stands for each of `real` [n]: the nearest pair first, then the nearest of those left."""
    far = torch.cdist(real.flatten(1), made.flatten(1))
    found = torch.empty(len(real), dtype=torch.int64)
    for _ in range(len(real)):
        of_real, of_made = divmod(int(far.argmin()), len(made))
        found[of_real] = of_made
        far[of_real], far[:, of_made] = torch.inf, torch.inf
    return found


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [−1, 1], [n]; 60 at most."""
    error = (made - real).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp(min=1e-12))).clamp(max=60)


def ssim(made: Tensor, real: Tensor) -> Tensor:
    """Structural similarity [n] of images in [−1, 1], taken to [0, 1], over windows of 7×7 (or as large as those)."""
    size = min(7, *made.shape[2:])
    a, b = (made.double() + 1) / 2, (real.double() + 1) / 2

    def window(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, size, 1)

    mean_a, mean_b = window(a), window(b)
    var_a, var_b = window(a * a) - mean_a**2, window(b * b) - mean_b**2
    both = window(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1)
