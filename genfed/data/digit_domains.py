"""scikit-learn's digits drawn in several domains: a federation with domain shift, and a separate public part."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.dataset import Dataset
from genfed.data.digits import DIGITS
from genfed.data.images import ImageSource
from genfed.data.split import split_stratified
from genfed.data.styles import Style, describe_character, paint
from genfed.preprocessing.pixel_scale import PixelScale

DOMAINS = {
    "ink": Style("black", "white"),
    "chalk": Style("white", "green", "noisy"),
    "neon": Style("pink", "black", "blurred"),
    "blueprint": Style("white", "blue", "outlined"),
    "poster": Style("red", "yellow", "striped"),
    "ice": Style("blue", "cyan"),
}
"""Style of each domain, by name."""


@settings
class DigitDomains(ImageSource):
    """scikit-learn's 1,797 digits in colour, each in one domain.

    Columns: domain (the look; `[partition] kind = "by_column", column = "domain"` gives each client one domain),
    prompt, word, colour, background and effect.
    """

    part: Literal["clients", "public"] = "clients"
    """"clients": all digits except the public ones, split into train, validation and test; "public": the public ones,
    split in the same way, which no client and no test has."""
    public: float = Field(default=0.25, gt=0, lt=1)
    """Share of the digits that is public; the same digits for any split_seed."""
    domains: tuple[str, ...] = ("ink", "chalk", "neon", "blueprint")
    """Names of the domains, each with the same share of the digits: ink, chalk, neon, blueprint, poster or ice."""
    size: int = Field(default=16, ge=8, le=512)
    """Height and width of the images in pixels; the original digits have 8."""
    channels: Literal[1, 3] | None = Field(default=3)
    """Number of channels. 1: grey; 3: RGB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.domains:
            raise GenfedError(f"domains is empty: name at least one of {', '.join(DOMAINS)}")
        if unknown := [name for name in self.domains if name not in DOMAINS]:
            raise GenfedError(f"domains: {unknown[0]!r} is not there; there are: {', '.join(DOMAINS)}")

    @property
    def origin(self) -> str:
        return DIGITS

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits  # seconds to import, in every worker that reads a config

        pixels, labels = load_digits(return_X_y=True)
        names, y = tuple("0123456789"), torch.from_numpy(labels).long()
        # The public digits are the same for any split_seed, and a smaller share is a subset of a larger one: a model
        # trained on the public digits has seen none of the others.
        rows = split_stratified(y, [self.public], 0, names)[self.part == "public"]
        ink = torch.from_numpy(pixels)[rows].float().div_(16).view(-1, 1, 8, 8)
        shapes = F.interpolate(ink, (self.size, self.size), mode="bilinear")[:, 0]
        y, rng = y[rows], stream(self.split_seed, "looks", self.part)
        domains = [""] * len(y)
        for label in range(len(names)):  # the numbers of a class in two domains differ by at most one
            of_class = (y == label).nonzero()[:, 0]
            for place, row in enumerate(of_class[torch.randperm(len(of_class), generator=rng)].tolist()):
                domains[row] = self.domains[(place + label) % len(self.domains)]
        styles = [DOMAINS[domain] for domain in domains]
        words = [describe_character(names[label]) for label in y.tolist()]
        columns = {
            "domain": domains,
            "prompt": [style.write_prompt(what) for style, what in zip(styles, words, strict=True)],
            "word": words,
            "colour": [style.color for style in styles],
            "background": [style.background for style in styles],
            "effect": [style.effect for style in styles],
        }
        x = self.convert(paint(shapes, styles, rng))
        return self.build_dataset("image", {"train": Data(x, y)}, names, columns, PixelScale(ground=self.background))
