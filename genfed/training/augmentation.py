"""Augmentations of a batch while a classifier learns from it, with the settings that their authors have for CIFAR10.

MixUp: Zhang, Cisse, Dauphin, Lopez-Paz, arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899. AugMix: Hendrycks et
al., arXiv 1912.02781. AutoAugment: Cubuk et al., arXiv 1805.09501. Images are [n, C, H, W] in [−1, 1], of any number of
channels. Draws are made on the CPU, and an operation takes all the images of a batch that it falls to at once.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.training.fit import Loss

Augmentation = Literal["none", "mixup", "cutmix", "augmix", "autoaugment"]


class MixedBatch(NamedTuple):
    """A batch in which every image is its own by `share`, and by the rest that of its partner, as its target is."""

    x: Tensor
    partner: Tensor
    """[n], rows of the batch."""
    share: float
    """In [0, 1]; 1 is no partner."""


def augment(network: nn.Module, augmentation: Augmentation) -> Loss:
    """Cross-entropy with the targets of an augmented batch, one per example; of any but "none"."""
    augment = AUGMENTATIONS[augmentation]

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        # Images stay float32: bfloat16 does not tell 256 levels apart.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x, partner, share = augment(x, rng)
        logits: Tensor = network(x)
        own = F.cross_entropy(logits, y, reduction="none")
        if share == 1:
            return own
        return share * own + (1 - share) * F.cross_entropy(logits, y[partner], reduction="none")

    return loss


def mixup(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """λ·x + (1 − λ)·partner; λ ~ Beta(1, 1), one for the batch."""
    share = float(torch.rand((), generator=rng))
    partner = torch.randperm(len(x), generator=rng).to(x.device)
    return MixedBatch(share * x + (1 - share) * x[partner], partner, share)


def cutmix(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """In half of the batches a box of the partner is pasted, of an area of 1 − λ where it is not cut off at a border,
    λ ~ Beta(1, 1); the share is that of the pixels that stay.
    """
    applied, left, row, column = torch.rand(4, generator=rng).tolist()
    partner = torch.randperm(len(x), generator=rng).to(x.device)
    if applied >= 0.5:
        return MixedBatch(x, partner, 1.0)
    height, width = x.shape[2:]
    top, bottom = _span(height, math.sqrt(1 - left), row)
    begin, end = _span(width, math.sqrt(1 - left), column)
    x = x.clone()
    x[:, :, top:bottom, begin:end] = x[partner, :, top:bottom, begin:end]
    return MixedBatch(x, partner, 1 - (bottom - top) * (end - begin) / (height * width))


def _span(side: int, fraction: float, place: float) -> tuple[int, int]:
    centre, half = int(place * side), int(fraction * side) // 2
    return max(centre - half, 0), min(centre + half, side)


def augmix(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """Three chains of one to three operations, mixed by Dirichlet(1, 1, 1), and that with the image by Beta(1, 1)."""
    # differs from the paper: targets learn from the mix alone, without the Jensen-Shannon loss between views.
    n, chains = len(x), x.repeat(3, 1, 1, 1)
    depth = torch.randint(1, 4, (3 * n,), generator=rng)
    for place in range(3):
        chosen = torch.randint(len(_AUGMIX), (3 * n,), generator=rng).where(place < depth, -1)
        strength = (0.1 + 2.9 * torch.rand(3 * n, generator=rng)) / 10  # a level of up to 3 (the severity) of 10
        chains = _operated(chains, list(_AUGMIX.values()), chosen, strength, rng)
    weights = torch.empty(3, n).exponential_(generator=rng)
    weights = (weights / weights.sum(0))[..., None, None, None].to(x.device)
    kept = torch.rand(n, 1, 1, 1, generator=rng).to(x.device)
    mix = (chains.view(3, *x.shape) * weights).sum(0)
    return _alone((kept * x + (1 - kept) * mix).clamp(-1, 1))


def autoaugment(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """One of the 25 sub-policies for CIFAR10, drawn for every image: two operations, each applied by its chance."""
    # differs from the paper: neither the crops and flips before the policy nor Cutout after it; black is what comes in
    # from beyond a border, where the published code has the mean colour.
    names = list(_AUTOAUGMENT)
    policy = torch.randint(len(POLICIES), (len(x),), generator=rng).tolist()
    for place in range(2):
        steps = [POLICIES[i][place] for i in policy]
        falls = torch.rand(len(x), generator=rng) < torch.tensor([chance for _, chance, _ in steps])
        chosen = torch.tensor([names.index(name) for name, _, _ in steps]).where(falls, -1)
        strength = torch.tensor([level / 10 for _, _, level in steps])
        x = _operated(x, list(_AUTOAUGMENT.values()), chosen, strength, rng)
    return _alone(x)


def _alone(x: Tensor) -> MixedBatch:
    return MixedBatch(x, torch.arange(len(x), device=x.device), 1.0)


AUGMENTATIONS: Mapping[str, Callable[[Tensor, torch.Generator], MixedBatch]] = {
    "mixup": mixup,
    "cutmix": cutmix,
    "augmix": augmix,
    "autoaugment": autoaugment,
}


# Operations: images [m, C, H, W] and an amount for each [m] → images.
def shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """Row Y comes from `slope` · Y pixels further right; the top stays."""
    across = slope * x.shape[2] / x.shape[3]
    return _moved(x, [[1.0, across, across], [0.0, 1.0, 0.0]])


def shear_y(x: Tensor, slope: Tensor) -> Tensor:
    """Column X comes from `slope` · X pixels further down; the left stays."""
    return shear_x(x.mT, slope).mT


def translate_x(x: Tensor, fraction: Tensor) -> Tensor:
    """Comes from that fraction of the width further right, in whole pixels."""
    return _moved(x, [[1.0, 0.0, 2 * (fraction * x.shape[3]).round() / x.shape[3]], [0.0, 1.0, 0.0]])


def translate_y(x: Tensor, fraction: Tensor) -> Tensor:
    """Comes from that fraction of the height further down, in whole pixels."""
    return translate_x(x.mT, fraction).mT


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Anticlockwise about the centre."""
    height, width = x.shape[2:]
    cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return _moved(x, [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])


def _moved(x: Tensor, source: list[list[Tensor | float]]) -> Tensor:
    """Every pixel from where `source` (2×3, the sides running from −1 to 1) says, bilinear; black from outside."""
    rows = [torch.stack([torch.as_tensor(v, device=x.device).expand(len(x)) for v in row], 1) for row in source]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return (F.grid_sample(x + 1, grid, align_corners=False) - 1).clamp(-1, 1)


def invert(x: Tensor, _: Tensor) -> Tensor:
    """Dark for light."""
    return -x


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the levels from `threshold` on, of 256."""
    return torch.where(_levels(x) >= _each(threshold), -x, x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keeps the upper bits of a level's 8: `bits`, rounded up."""
    unit = 2 ** (8 - _each(bits).ceil())
    return (_levels(x) / unit).floor() * unit / 127.5 - 1


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretches every channel from the darkest to the lightest level; one of a single level stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, 2 * (x - low) / (high - low).clamp(min=1e-6) - 1, x).clamp(-1, 1)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Spreads every channel's levels so that each is as frequent; one of fewer than 256 pixels below its top stays."""
    levels = _levels(x).long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    step = (levels.shape[2] - counts.gather(2, levels.amax(2, keepdim=True))) // 255
    new = ((counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step[..., None] > 0, new.gather(2, levels).view(x.shape) / 127.5 - 1, x)


def color(x: Tensor, factor: Tensor) -> Tensor:
    """From grey (0) past the image (1) to more colour."""
    return _blend(_grey(x), x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """From its mean grey (0) past the image (1) to more contrast."""
    return _blend(_grey(x).mean((2, 3), keepdim=True), x, factor)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """From black (0) past the image (1) to lighter."""
    return _blend(torch.full_like(x, -1), x, factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """From smoothed (0) past the image (1) to sharper; the border stays as it is."""
    kernel = torch.ones(3, 3, device=x.device)
    kernel[1, 1] = 5
    smooth = x.clone()
    inner = F.conv2d(x.flatten(0, 1)[:, None], (kernel / 13)[None, None])
    smooth[:, :, 1:-1, 1:-1] = inner.view(*x.shape[:2], x.shape[2] - 2, x.shape[3] - 2)
    return _blend(smooth, x, factor)


def _blend(other: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (other + _each(factor) * (x - other)).clamp(-1, 1)


def _grey(x: Tensor) -> Tensor:
    weights = [0.299, 0.587, 0.114] if x.shape[1] == 3 else [1 / x.shape[1]] * x.shape[1]
    return (x * torch.tensor(weights, device=x.device).view(-1, 1, 1)).sum(1, keepdim=True)


def _levels(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5).round()


def _each(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


class _Operation(NamedTuple):
    apply: Callable[[Tensor, Tensor], Tensor]
    weakest: float = 0.0
    strongest: float = 0.0
    """Amounts at the strengths 0 and 1."""
    signed: bool = False
    """True: in either direction."""


_AUGMIX = {
    "autocontrast": _Operation(autocontrast),
    "equalize": _Operation(equalize),
    "posterize": _Operation(posterize, 4, 0),
    "rotate": _Operation(rotate, 0, 30, True),
    "solarize": _Operation(solarize, 256, 0),
    "shear_x": _Operation(shear_x, 0, 0.3, True),
    "shear_y": _Operation(shear_y, 0, 0.3, True),
    "translate_x": _Operation(translate_x, 0, 1 / 3, True),
    "translate_y": _Operation(translate_y, 0, 1 / 3, True),
}
_AUTOAUGMENT = _AUGMIX | {
    "translate_x": _Operation(translate_x, 0, 10 / 32, True),
    "translate_y": _Operation(translate_y, 0, 10 / 32, True),
    "invert": _Operation(invert),
    "colour": _Operation(color, 0.1, 1.9),
    "contrast": _Operation(contrast, 0.1, 1.9),
    "brightness": _Operation(brightness, 0.1, 1.9),
    "sharpness": _Operation(sharpness, 0.1, 1.9),
}


def _operated(
    x: Tensor, operations: list[_Operation], chosen: Tensor, strength: Tensor, rng: torch.Generator
) -> Tensor:
    """Applies to every image [n] the operation of the number `chosen` [n] (−1: none) at `strength` [n] in [0, 1]."""
    sign = 2.0 * torch.randint(2, (len(x),), generator=rng) - 1
    x = x.clone()
    for number, (apply, weakest, strongest, signed) in enumerate(operations):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            amount = weakest + (strongest - weakest) * strength[rows]
            amount, rows = (amount * sign[rows] if signed else amount).to(x.device), rows.to(x.device)
            x[rows] = apply(x[rows], amount)
    return x


POLICIES: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("colour", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
"""AutoAugment's Table 7 for CIFAR10: operation, chance, level of 10 (read by none that has no amount)."""
