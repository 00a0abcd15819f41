"""Principal components of another encoder's features, by public images: never by those of clients.

Whitening by a power, and rows of equal length: Arandjelović, Zisserman ("Three things everyone should know to improve
object retrieval", CVPR 2012) and Jégou, Chum ("Negative evidences and co-occurences in image retrieval", ECCV 2012).
"""

import functools
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.encoders.encoder import Encoder
from genfed.encoders.random_conv import RandomConv
from genfed.training.evaluation import predict
from genfed.training.pixels import normalize_pixels

Public = Literal["digits", "glyphs"]
_STEP = 2.0**-12
"""Rounding of means and components, so that machines that compute them a little otherwise mostly have the same ones."""


@settings
class Whitened(Encoder):
    """The leading principal components of another encoder's features, evened out, in rows of mean square 1. Mean and
    components are those of public images that come with genfed's dependencies. Fewer and more even features need less
    noise under privacy of sums.
    """

    encoder: InstanceOf[Encoder] = Field(default_factory=lambda: RandomConv(filters=96))
    """Encoder whose features are projected."""
    components: Annotated[int, Field(ge=1, le=4096)] = 200
    """Number of components, which are the features."""
    power: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Power of the components' public deviations by which they are divided. 0: they stay; 1: whitening."""
    public: Public = "digits"
    """Public images: the 1,797 handwritten "digits" of scikit-learn, or 2,000 rendered "glyphs" of digits."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        if task.kind != "image":
            raise GenfedError(f"encoder whitened takes images; the examples are a {task.kind}")
        state = bytes(rng.get_state().tolist())
        encoder = self.encoder.new(task, rng)
        mean, components = _fit(self, task, state)
        return WhitenedNetwork(encoder, mean, components)


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
        projected = (self.encoder(x).flatten(1) - self.mean) @ self.components
        # 1e-6: an example at the mean has no direction, and keeps features of about 0.
        rows: Tensor = projected * projected.square().mean(1, keepdim=True).clamp_min(1e-6).rsqrt()
        return rows


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
    images = load_public_images(how.public, task.shape)
    features = predict(how.encoder.new(task, rng), images).flatten(1).double()
    if (most := min(features.shape[1], len(images) - 1)) < how.components:
        raise GenfedError(
            f"components = {how.components}: there are at most {most}, of {features.shape[1]} features of "
            f"{len(images)} public images"
        )
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    values, vectors = values.flip(0)[: how.components], vectors.flip(1)[:, : how.components]
    largest = vectors.abs().argmax(0)
    vectors = vectors * vectors[largest, torch.arange(how.components)].sign()  # both signs are solutions
    floor = 0.01 * values.mean()
    scaled = vectors * (values.clamp_min(0) + floor).pow(-how.power / 2)
    return _round(mean), _round(scaled)


def load_public_images(public: Public, shape: tuple[int, ...]) -> Tensor:
    """Returns public images [n, C, H, W] of this shape, on the scale of `normalize_pixels`."""
    channels, height, width = shape
    if public == "digits":
        from genfed.data.digits import Digits

        # The digits fill their 8×8 pixels; those of other data sets have a margin, as MNIST's of 4 in 28.
        parts = Digits(size=8).load()
        x = normalize_pixels(torch.cat([parts.train.x, parts.validation.x, parts.test.x]))
        rows, columns = height * 5 // 7, width * 5 // 7
        x = F.interpolate(x, (rows, columns), mode="bilinear", antialias=True)
        left, top = (width - columns) // 2, (height - rows) // 2
        x = F.pad(x, (left, width - columns - left, top, height - rows - top), value=-1.0)
    else:
        from genfed.data.glyphs import Glyphs

        parts = Glyphs(size=64, channels=1, examples=2000, colours=("white", "black"), effects=("plain",)).load()
        x = normalize_pixels(torch.cat([parts.train.x, parts.validation.x, parts.test.x]))
        x = x * -x[:, :, :1, :1].sign()  # white on black
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    return x.expand(-1, channels, -1, -1).contiguous()


def _round(x: Tensor) -> Tensor:
    return ((x / _STEP).round() * _STEP).float()
