"""scikit-learn's digits restyled into looks: a federation with domain shift, and a public part apart from it."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource
from genfed.data.split import split_stratified
from genfed.data.styles import Style, describe_character, paint

LOOKS = {
    "ink": Style("black", "white"),
    "chalk": Style("white", "green", "noisy"),
    "neon": Style("pink", "black", "blurred"),
    "blueprint": Style("white", "blue", "outlined"),
    "poster": Style("red", "yellow", "striped"),
    "ice": Style("blue", "cyan"),
}
"""Each is a domain."""


@settings
class DigitDomains(ImageSource):
    """scikit-learn's 1,797 digits in colour, each digit in one look.

    Columns: domain (the look; `[partition] kind = "by_column", column = "domain"` makes a client of each), prompt,
    word, colour, background and effect.
    """

    part: Literal["clients", "public"] = "clients"
    """"clients": all digits but the public ones, cut into train, validation and test; "public": the public ones, which
    no client and no test has, cut alike."""
    public: float = Field(default=0.25, gt=0, lt=1)
    """Share of the digits that is public, the same ones for any split_seed."""
    looks: tuple[str, ...] = ("ink", "chalk", "neon", "blueprint")
    """The domains, each with the same share of the digits: ink, chalk, neon, blueprint, poster or ice."""
    size: int = Field(default=16, ge=8, le=512)
    """Images are size × size pixels; the digits' own size is 8."""
    channels: Literal[1, 3] | None = Field(default=3)
    """1: grey; 3: RGB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.looks:
            raise GenfedError(f"looks is empty: name at least one of {', '.join(LOOKS)}")
        if bad := [name for name in self.looks if name not in LOOKS]:
            raise GenfedError(f"looks: {bad[0]!r} is not there; there are: {', '.join(LOOKS)}")

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits  # seconds to import, in every worker that reads a config

        pixels, labels = load_digits(return_X_y=True)
        names, y = tuple("0123456789"), torch.from_numpy(labels).long()
        # The same digits for any split_seed, and those of a smaller share among those of a larger: a model made from
        # public ones has seen none of the others.
        rows = split_stratified(y, [self.public], 0, names)[self.part == "public"]
        ink = torch.from_numpy(pixels)[rows].float().div_(16).view(-1, 1, 8, 8)
        shapes = F.interpolate(ink, (self.size, self.size), mode="bilinear")[:, 0]
        y, rng = y[rows], stream(self.split_seed, "looks", self.part)
        domains = [""] * len(y)
        for label in range(len(names)):  # as many of each class in each look, but for one
            own = (y == label).nonzero()[:, 0]
            for place, row in enumerate(own[torch.randperm(len(own), generator=rng)].tolist()):
                domains[row] = self.looks[(place + label) % len(self.looks)]
        styles = [LOOKS[domain] for domain in domains]
        words = [describe_character(names[label]) for label in y.tolist()]
        columns = {
            "domain": domains,
            "prompt": [style.prompt(what) for style, what in zip(styles, words, strict=True)],
            "word": words,
            "colour": [style.colour for style in styles],
            "background": [style.background for style in styles],
            "effect": [style.effect for style in styles],
        }
        x = self.converted(paint(shapes, styles, rng))
        return self.dataset("image", {"train": Data(x, y)}, names, columns)
