"""The 1,797 handwritten digits that come with scikit-learn, without a download."""

import torch
from pydantic import Field

from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource
from genfed.preprocessing.pixel_scale import PixelScale

DIGITS = "scikit-learn's digits"
"""See `Source.origin`."""


@settings
class Digits(ImageSource):
    """scikit-learn's digits: 8 × 8 pixels, grey, ten classes."""

    size: int = Field(default=32, ge=1, le=4096)
    """Height and width in pixels to which the images are resized (bilinear); the original digits have 8."""

    @property
    def origin(self) -> str:
        return DIGITS

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits  # seconds to import, in every worker that reads a config

        pixels, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
        data = Data(self.convert(x), torch.from_numpy(labels).long())
        return self.build_dataset("image", {"train": data}, tuple("0123456789"), {}, PixelScale(ground=self.background))
