"""Augmentations of a classifier's training batches; those of images have their authors' settings for CIFAR10.

MixUp: Zhang, Cisse, Dauphin, Lopez-Paz, arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899. AugMix: Hendrycks et
al., arXiv 1912.02781. AutoAugment: Cubuk et al., arXiv 1805.09501. Images are [n, C, H, W] in [−1, 1], with any number
of channels. Draws are made on the CPU; an operation is applied at once to all images of a batch that it is drawn for.
Those of series are in `series_augmentation.py`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.task import Kind
from genfed.training.fit import Loss
from genfed.training.series_augmentation import SERIES

Augmentation = Literal["none", "mixup", "cutmix", "augmix", "autoaugment", "jitter", "scale", "rotate"]


class MixedBatch(NamedTuple):
    """A batch in which each image, and its target, is mixed with that of a partner."""

    x: Tensor
    """The mixed images [n, C, H, W]."""
    partner: Tensor
    """Row [n] of each image's partner."""
    share: float
    """Share of the image itself, in [0, 1]; 1: no partner."""


def augment(network: nn.Module, augmentation: Augmentation) -> Loss:
    """Returns the loss of a classifier on augmented batches: cross-entropy per example; not for "none"."""
    transform = AUGMENTATIONS[augmentation]

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        # Images stay float32: bfloat16 cannot represent 256 levels.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x, partner, share = transform(x, rng)
        logits: Tensor = network(x)
        own = F.cross_entropy(logits, y, reduction="none")
        if share == 1:
            return own
        return share * own + (1 - share) * F.cross_entropy(logits, y[partner], reduction="none")

    return loss


def mixup(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """Mixes each image with its partner: λ·x + (1 − λ)·partner; λ ~ Beta(1, 1), one for the batch."""
    share = float(torch.rand((), generator=rng))
    partner = torch.randperm(len(x), generator=rng).to(x.device)
    return MixedBatch(share * x + (1 - share) * x[partner], partner, share)


def cutmix(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """Pastes a box of the partner into each image, in half of the batches.

    The box has the area 1 − λ, less what crosses a border; λ ~ Beta(1, 1). The share is that of the unchanged pixels.
    """
    applied, left, row, column = torch.rand(4, generator=rng).tolist()
    partner = torch.randperm(len(x), generator=rng).to(x.device)
    if applied >= 0.5:
        return MixedBatch(x, partner, 1.0)
    height, width = x.shape[2:]
    top, bottom = _clip_span(height, math.sqrt(1 - left), row)
    begin, end = _clip_span(width, math.sqrt(1 - left), column)
    x = x.clone()
    x[:, :, top:bottom, begin:end] = x[partner, :, top:bottom, begin:end]
    return MixedBatch(x, partner, 1 - (bottom - top) * (end - begin) / (height * width))


def _clip_span(side: int, fraction: float, place: float) -> tuple[int, int]:
    center, half = int(place * side), int(fraction * side) // 2
    return max(center - half, 0), min(center + half, side)


def augmix(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """Mixes three chains of one to three operations by Dirichlet(1, 1, 1), and the image with that by Beta(1, 1)."""
    # differs from the paper: the loss uses the mix only, without the Jensen-Shannon loss between views.
    n, chains = len(x), x.repeat(3, 1, 1, 1)
    depth = torch.randint(1, 4, (3 * n,), generator=rng)
    for place in range(3):
        chosen = torch.randint(len(_AUGMIX), (3 * n,), generator=rng).where(place < depth, -1)
        strength = (0.1 + 2.9 * torch.rand(3 * n, generator=rng)) / 10  # a level of up to 3 (the severity) of 10
        chains = _apply_operations(chains, list(_AUGMIX.values()), chosen, strength, rng)
    weights = torch.empty(3, n).exponential_(generator=rng)
    weights = (weights / weights.sum(0))[..., None, None, None].to(x.device)
    share = torch.rand(n, 1, 1, 1, generator=rng).to(x.device)
    mix = (chains.view(3, *x.shape) * weights).sum(0)
    return _mix_nothing((share * x + (1 - share) * mix).clamp(-1, 1))


def autoaugment(x: Tensor, rng: torch.Generator) -> MixedBatch:
    """Applies one of the 25 sub-policies for CIFAR10 to each image: two operations, each with its probability."""
    # differs from the paper: no crops and flips before the policy and no Cutout after it; pixels from outside the image
    # are black, while the published code uses the mean colour.
    names = list(_AUTOAUGMENT)
    policy = torch.randint(len(POLICIES), (len(x),), generator=rng).tolist()
    for place in range(2):
        steps = [POLICIES[i][place] for i in policy]
        applied = torch.rand(len(x), generator=rng) < torch.tensor([chance for _, chance, _ in steps])
        chosen = torch.tensor([names.index(name) for name, _, _ in steps]).where(applied, -1)
        strength = torch.tensor([level / 10 for _, _, level in steps])
        x = _apply_operations(x, list(_AUTOAUGMENT.values()), chosen, strength, rng)
    return _mix_nothing(x)


def _mix_nothing(x: Tensor) -> MixedBatch:
    return MixedBatch(x, torch.arange(len(x), device=x.device), 1.0)


def _apply_alone(change: Callable[[Tensor, torch.Generator], Tensor], x: Tensor, rng: torch.Generator) -> MixedBatch:
    return _mix_nothing(change(x, rng))


AUGMENTATIONS: Mapping[str, Callable[[Tensor, torch.Generator], MixedBatch]] = {
    "mixup": mixup,
    "cutmix": cutmix,
    "augmix": augmix,
    "autoaugment": autoaugment,
    **{name: functools.partial(_apply_alone, change) for name, change in SERIES.items()},
}
KINDS: Mapping[str, tuple[Kind, ...]] = {name: ("series",) if name in SERIES else ("image",) for name in AUGMENTATIONS}
"""Kinds of examples that each augmentation is for."""


# Operations: images [m, C, H, W] and an amount for each [m] → images.
def shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """Shifts row Y to the left by `slope` · Y pixels; the top stays."""
    across = slope * x.shape[2] / x.shape[3]
    return _warp(x, [[1.0, across, across], [0.0, 1.0, 0.0]])


def shear_y(x: Tensor, slope: Tensor) -> Tensor:
    """Shifts column X up by `slope` · X pixels; the left edge stays."""
    return shear_x(x.mT, slope).mT


def translate_x(x: Tensor, fraction: Tensor) -> Tensor:
    """Shifts images to the left by a fraction of the width, in whole pixels."""
    return _warp(x, [[1.0, 0.0, 2 * (fraction * x.shape[3]).round() / x.shape[3]], [0.0, 1.0, 0.0]])


def translate_y(x: Tensor, fraction: Tensor) -> Tensor:
    """Shifts images up by a fraction of the height, in whole pixels."""
    return translate_x(x.mT, fraction).mT


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotates images counterclockwise about the centre."""
    height, width = x.shape[2:]
    cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return _warp(x, [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])


def _warp(x: Tensor, source: list[list[Tensor | float]]) -> Tensor:
    """Takes every pixel from its place by the affine map `source` (2×3, sides from −1 to 1), bilinear; outside is
    black.
    """
    rows = [torch.stack([torch.as_tensor(v, device=x.device).expand(len(x)) for v in row], 1) for row in source]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return (F.grid_sample(x + 1, grid, align_corners=False) - 1).clamp(-1, 1)


def invert(x: Tensor, _: Tensor) -> Tensor:
    """Inverts all levels."""
    return -x


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the levels from `threshold` (of 256) on."""
    return torch.where(_to_levels(x) >= _expand_amount(threshold), -x, x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keeps the upper `bits` (rounded up) of a level's 8 bits."""
    unit = 2 ** (8 - _expand_amount(bits).ceil())
    return (_to_levels(x) / unit).floor() * unit / 127.5 - 1


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretches the levels of every channel to the full range; a channel with a single level stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, 2 * (x - low) / (high - low).clamp(min=1e-6) - 1, x).clamp(-1, 1)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Equalizes every channel's histogram; a channel with fewer than 256 pixels below its highest level stays."""
    levels = _to_levels(x).long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    step = (levels.shape[2] - counts.gather(2, levels.amax(2, keepdim=True))) // 255
    new = ((counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step[..., None] > 0, new.gather(2, levels).view(x.shape) / 127.5 - 1, x)


def adjust_color(x: Tensor, factor: Tensor) -> Tensor:
    """Changes the saturation. 0: grey; 1: unchanged; above 1: more colour."""
    return _blend(_to_gray(x), x, factor)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Changes the contrast. 0: the mean grey; 1: unchanged; above 1: more contrast."""
    return _blend(_to_gray(x).mean((2, 3), keepdim=True), x, factor)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Changes the brightness. 0: black; 1: unchanged; above 1: lighter."""
    return _blend(torch.full_like(x, -1), x, factor)


def adjust_sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Changes the sharpness, not at the border. 0: smoothed; 1: unchanged; above 1: sharper."""
    kernel = torch.ones(3, 3, device=x.device)
    kernel[1, 1] = 5
    smooth = x.clone()
    inner = F.conv2d(x.flatten(0, 1)[:, None], (kernel / 13)[None, None])
    smooth[:, :, 1:-1, 1:-1] = inner.view(*x.shape[:2], x.shape[2] - 2, x.shape[3] - 2)
    return _blend(smooth, x, factor)


def _blend(other: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (other + _expand_amount(factor) * (x - other)).clamp(-1, 1)


def _to_gray(x: Tensor) -> Tensor:
    weights = [0.299, 0.587, 0.114] if x.shape[1] == 3 else [1 / x.shape[1]] * x.shape[1]
    return (x * torch.tensor(weights, device=x.device).view(-1, 1, 1)).sum(1, keepdim=True)


def _to_levels(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5).round()


def _expand_amount(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


class _Operation(NamedTuple):
    apply: Callable[[Tensor, Tensor], Tensor]
    weakest: float = 0.0
    """Amount at strength 0."""
    strongest: float = 0.0
    """Amount at strength 1."""
    signed: bool = False
    """Whether the sign of the amount is random."""


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
    "color": _Operation(adjust_color, 0.1, 1.9),
    "contrast": _Operation(adjust_contrast, 0.1, 1.9),
    "brightness": _Operation(adjust_brightness, 0.1, 1.9),
    "sharpness": _Operation(adjust_sharpness, 0.1, 1.9),
}


def _apply_operations(
    x: Tensor, operations: list[_Operation], chosen: Tensor, strength: Tensor, rng: torch.Generator
) -> Tensor:
    """Applies to each image the operation number `chosen` [n] (−1: none) with `strength` [n] in [0, 1]."""
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
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
"""AutoAugment's Table 7 for CIFAR10: operation, probability, level of 10 (unused where an operation has no amount)."""
