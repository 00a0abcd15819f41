"""Conversion between pixels as bytes and as the floats that networks use."""

import torch
from torch import Tensor


def normalize_pixels(x: Tensor) -> Tensor:
    """Scales pixels for every network, real and generated images alike: uint8 0…255 → float32 in [−1, 1]; floats stay.

    >>> import torch
    >>> from genfed import normalize_pixels
    >>> normalize_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return x.float().mul_(2 / 255).sub_(1) if x.dtype == torch.uint8 else x


def denormalize_pixels(x: Tensor) -> Tensor:
    """Scales floats in [−1, 1] back to pixels: uint8 0…255, rounded and clipped."""
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
