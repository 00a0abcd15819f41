"""The 1,797 handwritten digits that come with scikit-learn: nothing to download."""

import torch
from pydantic import Field

from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource


@settings
class Digits(ImageSource):
    """scikit-learn's digits: 8 × 8 pixels, grey, ten classes."""

    size: int = Field(default=32, ge=1, le=4096)
    """Images are resized to size × size pixels, bilinear; their own size is 8."""

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits  # seconds to import, in every worker that reads a config

        pixels, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
        data = Data(self.converted(x), torch.from_numpy(labels).long())
        return self.dataset("image", {"train": data}, tuple("0123456789"), {})
