"""Pixels as bytes, and as the numbers that networks take."""

import torch
from torch import Tensor


def normalize_pixels(x: Tensor) -> Tensor:
    """The one scale of all models, real and generated alike: uint8 [0, 255] → float32 [−1, 1]; floats as they are."""
    return x.float().mul_(2 / 255).sub_(1) if x.dtype == torch.uint8 else x


def denormalize_pixels(x: Tensor) -> Tensor:
    """Back to pixels: float [−1, 1] → uint8 [0, 255], rounded and clamped."""
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
