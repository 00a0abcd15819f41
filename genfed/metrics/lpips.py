"""LPIPS with AlexNet, version 0.1: how unlike two images look, by the features of a network that a user has.

Zhang, Isola, Efros, Shechtman, Wang, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
arXiv 1801.03924. The distance is the squared Euclidean one of the vectors that are made here.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.metrics.nearest_neighbors import LARGEST, distance_ratios
from genfed.training.weights import read_weights

SIDE = 64
"""Smaller images are enlarged so that their shorter side has so many pixels: AlexNet's maps vanish below."""
_MEAN, _SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
_LAYERS = {  # by their names in the package lpips: in, out, kernel, stride, padding, pooled before
    "net.slice1.0": (3, 64, 11, 4, 2, False),
    "net.slice2.3": (64, 192, 5, 1, 2, True),
    "net.slice3.6": (192, 384, 3, 1, 1, True),
    "net.slice4.8": (384, 256, 3, 1, 1, False),
    "net.slice5.10": (256, 256, 3, 1, 1, False),
}


class Lpips(nn.Module):
    """Images → vectors."""

    def __init__(self, file: str | Path) -> None:
        """`file`: the state dict of `lpips.LPIPS(net="alex")` as .safetensors.

        Raises:
            GenfedError: no such file, a damaged one, or weights of another network.
        """
        super().__init__()
        given = read_weights(file, "metrics.lpips")
        self.weights = [
            (
                _of(given, f"{name}.weight", (out, before, kernel, kernel), file),
                _of(given, f"{name}.bias", (out,), file),
                _of(given, f"lin{place}.model.1.weight", (1, out, 1, 1), file).clamp(min=0),
            )
            for place, (name, (before, out, kernel, *_)) in enumerate(_LAYERS.items())
        ]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images in [−1, 1], [n, 1 or 3, H, W] → [n, d]."""
        x = x.expand(-1, 3, -1, -1)
        if (shorter := min(x.shape[2:])) < SIDE:
            sides = [math.ceil(side * SIDE / shorter) for side in x.shape[2:]]
            x = F.interpolate(x, sides, mode="bilinear", antialias=True)
        mean, sd = (x.new_tensor(values)[:, None, None] for values in (_MEAN, _SD))
        x, parts = ((x + 1) / 2 - mean) / sd, []
        for (weight, bias, share), (_, _, _, stride, padding, pooled) in zip(
            self.weights, _LAYERS.values(), strict=True
        ):
            x = F.conv2d(F.max_pool2d(x, 3, 2) if pooled else x, weight, bias, stride, padding).relu()
            unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
            parts.append((unit * (share / x[0, 0].numel()).sqrt()).flatten(1))
        return torch.cat(parts, 1)

    def memorisation(self, train: Tensor, fresh: Tensor, made: Tensor) -> float:
        """GeFL's mean nearest-neighbour distance ratio with its own distance; of images in [−1, 1]. A ratio counts for
        LARGEST at most.
        """
        vectors = (torch.cat([self(some) for some in torch.split(images, 100)]) for images in (train, fresh, made))
        return float(distance_ratios(*vectors).square().clamp(max=LARGEST).mean())


def _of(given: dict[str, Tensor], name: str, shape: tuple[int, ...], file: str | Path) -> Tensor:
    if name not in given or tuple(given[name].shape) != shape:
        raise GenfedError(
            f"metrics.lpips = {str(file)!r} has no {name} of shape {shape}: it takes the state dict of LPIPS with "
            "AlexNet, as the package lpips names it"
        )
    return given[name].float()
