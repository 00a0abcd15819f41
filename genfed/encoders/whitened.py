"""Another encoder's features, whitened by public images, and never by those of clients.

Whitening before features are compared: Jégou, Chum ("Negative evidences and co-occurences in image retrieval", ECCV
2012); by the covariance within classes: Hatch, Kajarekar, Stolcke ("Within-class covariance normalization for SVM-based
speaker recognition", Interspeech 2006).
"""

import functools
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.dataset import Source
from genfed.data.digits import Digits
from genfed.data.glyphs import Glyphs
from genfed.encoders.encoder import Encoder
from genfed.encoders.random_conv import RandomConv
from genfed.training.evaluation import predict
from genfed.training.pixels import normalize_pixels

Public = Literal["digits", "glyphs", "letters"]
_FEATURE_STEP = 2.0**-16
"""Rounding of the features that are whitened; those of an encoder have a mean square of about 1."""
_STEP = 2.0**-12
"""Rounding of means and components, so that machines that compute them a little otherwise mostly have the same ones."""


@settings
class Whitened(Encoder):
    """Another encoder's features, whitened and projected by public images, in rows of mean square 1. The public images
    come with genfed's dependencies; a run whose own examples are among them is refused. Fewer and more even features
    need less noise under privacy of sums.
    """

    encoder: InstanceOf[Encoder] = Field(default_factory=lambda: RandomConv(filters=96))
    """Encoder whose features are whitened."""
    components: Annotated[int, Field(ge=1, le=4096)] = 240
    """Number of features: the leading principal components of whitened public features."""
    public: Public = "digits"
    """Public images: the 1,797 handwritten "digits" of scikit-learn; or 2,600 rendered "glyphs" of digits, or as many
    "letters"."""
    covariance: Literal["total", "within"] = "within"
    """Covariance that is whitened: that of all public images, "total"; or that "within" their classes, which uses their
    labels."""
    power: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Power to which the covariance is whitened. 0: not at all; 1: in full. For "total" 0.5 is mostly better."""
    shrinkage: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Multiple of the mean variance that is added to every variance before."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        if task.kind != "image":
            raise GenfedError(f"encoder whitened takes images; the examples are {task.noun}")
        state = bytes(rng.get_state().tolist())
        encoder = self.encoder.new(task, rng)
        mean, components = _fit(self, task, state)
        return WhitenedNetwork(encoder, mean, components)

    def public_sources(self) -> tuple[Source, ...]:
        return (_public_source(self.public), *self.encoder.public_sources())


class WhitenedNetwork(nn.Module):
    """The encoder's network: another one, and a projection of its features."""

    mean: Tensor
    components: Tensor

    def __init__(self, encoder: nn.Module, mean: Tensor, components: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features [n, d] of examples [n, …]."""
        # Multiples of a step times multiples of a step, in double precision: sums without an error are the same in any
        # order, which a product of matrices chooses by the number of rows.
        features = (self.encoder(x).flatten(1).double() / _FEATURE_STEP).round() * _FEATURE_STEP
        projected = (features - self.mean.double()) @ self.components.double()
        # 1e-6: an example at the mean has no direction, and keeps features of about 0.
        rows: Tensor = projected * projected.square().mean(1, keepdim=True).clamp_min(1e-6).rsqrt()
        return rows.float()


@functools.lru_cache(maxsize=4)
def _fit(how: Whitened, task: Task, state: bytes) -> tuple[Tensor, Tensor]:
    """Returns the mean [f] of public features and the evened components [f, d], computed once in a process.

    Args:
        how: the settings.
        task: the task of the examples.
        state: state of the generator from which the other encoder draws.

    Raises:
        GenfedError: the other encoder gives fewer features than there are components, or there are fewer public images.
    """
    rng = torch.Generator()
    rng.set_state(torch.tensor(list(state), dtype=torch.uint8))
    public = load_public_images(how.public, task.shape)
    features = predict(how.encoder.new(task, rng), public.x).flatten(1).double()
    if (most := min(features.shape[1], len(public) - 1)) < how.components:
        raise GenfedError(
            f"components = {how.components}: there are at most {most}, of {features.shape[1]} features of "
            f"{len(public)} public images"
        )
    mean = features.mean(0)
    total = torch.cov(features.T)
    whitened = total
    if how.covariance == "within":
        classes = F.one_hot(public.y).double()
        means = (classes.T @ features) / classes.sum(0)[:, None]
        whitened = torch.cov((features - means[public.y]).T)
    values, vectors = torch.linalg.eigh(whitened)
    even = (vectors * (values + how.shrinkage * values.mean()).pow(-how.power / 2)) @ vectors.T
    leading = torch.linalg.eigh(even @ total @ even)[1].flip(1)[:, : how.components]
    largest = leading.abs().argmax(0)
    leading = leading * leading[largest, torch.arange(how.components)].sign()  # both signs are solutions
    return _round(mean), _round(even @ leading)


def load_public_images(public: Public, shape: tuple[int, ...]) -> Data:
    """Returns public images [n, C, H, W] of this shape, on the scale of `normalize_pixels`, and their classes."""
    channels, height, width = shape
    data = _load_digits(height, width) if public == "digits" else _load_glyphs(public, height, width)
    return replace(data, x=data.x.expand(-1, channels, -1, -1).contiguous())


def _public_source(public: Public) -> Source:
    if public == "digits":
        return Digits(size=8)
    grey = ("white", "black")
    characters: Literal["digits", "letters"] = "letters" if public == "letters" else "digits"
    return Glyphs(size=64, channels=1, examples=2600, colours=grey, effects=("plain",), characters=characters)


def _load_whole(public: Public) -> Data:
    """Returns all examples of a public source, and their classes."""
    parts = _public_source(public).load()
    data = [parts.train, parts.validation, parts.test]
    return Data(torch.cat([part.x for part in data]), torch.cat([part.y for part in data]))


def _load_digits(height: int, width: int) -> Data:
    data = _load_whole("digits")
    # The digits fill their 8×8 pixels; those of other data sets have a margin, as MNIST's of 4 in 28.
    rows, columns = height * 5 // 7, width * 5 // 7
    x = F.interpolate(normalize_pixels(data.x), (rows, columns), mode="bilinear", antialias=True)
    left, top = (width - columns) // 2, (height - rows) // 2
    return Data(F.pad(x, (left, width - columns - left, top, height - rows - top), value=-1.0), data.y)


def _load_glyphs(public: Public, height: int, width: int) -> Data:
    data = _load_whole(public)
    x = normalize_pixels(data.x)
    x = x * -x[:, :, :1, :1].sign()  # white on black
    return Data(F.interpolate(x, (height, width), mode="bilinear", antialias=True), data.y)


def _round(x: Tensor) -> Tensor:
    return ((x / _STEP).round() * _STEP).float()
