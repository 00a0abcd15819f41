"""Images as the foundation model takes them."""

import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def resize_to(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images [n, C, H, W] with the channels and size of `shape`, bilinear, with gradients; as they are where they have
    them already.
    """
    channels, *size = shape
    if images.shape[1] > channels:
        images = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif images.shape[1] < channels:
        images = images.expand(-1, channels, -1, -1)
    if list(images.shape[2:]) != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images
