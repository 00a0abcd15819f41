"""LPIPS with AlexNet, version 0.1: the perceptual distance of two images, by the features of a network whose weights
the user provides.

Zhang, Isola, Efros, Shechtman, Wang, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
arXiv 1801.03924. The distance is the squared Euclidean distance of the vectors that are computed here.
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
"""Minimum number of pixels of the shorter side. Smaller images are enlarged, since AlexNet's maps would vanish."""
_MEAN, _SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
_LAYERS = {  # by name in the package lpips: in, out, kernel, stride, padding, whether pooling comes before
    "net.slice1.0": (3, 64, 11, 4, 2, False),
    "net.slice2.3": (64, 192, 5, 1, 2, True),
    "net.slice3.6": (192, 384, 3, 1, 1, True),
    "net.slice4.8": (384, 256, 3, 1, 1, False),
    "net.slice5.10": (256, 256, 3, 1, 1, False),
}


class Lpips(nn.Module):
    """A network that maps images to vectors whose squared distance is LPIPS."""

    def __init__(self, file: str | Path) -> None:
        """Reads the weights from `file`, the state dict of `lpips.LPIPS(net="alex")` as .safetensors.

        Raises:
            GenfedError: the file is missing or damaged, or has the weights of another network.
        """
        super().__init__()
        given = read_weights(file, "metrics.lpips")
        self.weights = [
            (
                _get_weight(given, f"{name}.weight", (out, before, kernel, kernel), file),
                _get_weight(given, f"{name}.bias", (out,), file),
                _get_weight(given, f"lin{place}.model.1.weight", (1, out, 1, 1), file).clamp(min=0),
            )
            for place, (name, (before, out, kernel, *_)) in enumerate(_LAYERS.items())
        ]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Returns the vectors of images in [−1, 1]: [n, 1 or 3, H, W] → [n, d]."""
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

    def memorization(self, train: Tensor, fresh: Tensor, generated: Tensor) -> float:
        """Returns GeFL's mean nearest-neighbor distance ratio with LPIPS as the distance, as in the paper. Images are
        in [−1, 1]. A ratio is at most LARGEST. For the arguments see `generator_metrics.memorization`.
        """
        sets = (train, fresh, generated)
        vectors = (torch.cat([self(some) for some in torch.split(images, 100)]) for images in sets)
        return float(distance_ratios(*vectors).square().clamp(max=LARGEST).mean())


def _get_weight(given: dict[str, Tensor], name: str, shape: tuple[int, ...], file: str | Path) -> Tensor:
    if name not in given or tuple(given[name].shape) != shape:
        raise GenfedError(
            f"metrics.lpips = {str(file)!r} has no {name} of shape {shape}: the file must be the state dict of LPIPS "
            "with AlexNet, with the names of the package lpips"
        )
    return given[name].float()
