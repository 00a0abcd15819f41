"""Conversion of images to another size and number of channels, with gradients."""

import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def resize_to(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Converts images [n, C, H, W] to the channels and size of `shape` (C, H, W), bilinear and with gradients; images
    of this shape stay unchanged.
    """
    channels, *size = shape
    if images.shape[1] > channels:
        images = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif images.shape[1] < channels:
        images = images.expand(-1, channels, -1, -1)
    if list(images.shape[2:]) != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images
