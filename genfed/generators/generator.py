"""What a generator is: settings that make a network, and a network that can be trained and sampled."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task, Weights
from genfed.training.fit import Objective
from genfed.training.weights import weights_of

CHUNK = 256
"""Examples sampled at once."""


class GeneratorNetwork(nn.Module, ABC):
    """A conditional generator of one task's examples."""

    @abstractmethod
    def objectives(self) -> Sequence[Objective]:
        """Who trains it, each with a new optimiser; stepped in turn by `training.fit`."""

    @abstractmethod
    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        """One example per label: y [n] → x [n, *shape] on the scale of `normalize_pixels`, in eval mode and without
        gradients. The draws come from `rng` (CPU), the result lies on y's device.
        """

    def from_noise(
        self, make: Callable[[Tensor, Tensor], Tensor], size: int, y: Tensor, rng: torch.Generator
    ) -> Tensor:
        """`sample` by way of noise [n, size]: `make` turns it and labels [n] into examples, chunk by chunk."""
        z = torch.randn(len(y), size, generator=rng).to(y.device)
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                parts = [make(*chunk) for chunk in zip(torch.split(z, CHUNK), torch.split(y, CHUNK), strict=True)]
        finally:
            self.train(training)
        return torch.cat(parts)  # out of inference mode: a classifier may be trained on it

    def pace(self, progress: float) -> float:
        """What a generator round multiplies its players' learning rates by; `progress` is the share of all such rounds
        that is done, in [0, 1). By default 1: they do not change.
        """
        return 1.0

    def is_uploaded(self, name: str) -> bool:
        """Whether the state-dict entry `name` leaves the client; by default all do."""
        return True


class Generator(ABC):
    """The settings of a kind of generator (one file each)."""

    @abstractmethod
    def new(self, task: Task, rng: torch.Generator) -> GeneratorNetwork:
        """A network with weights initialised from `rng`.

        Raises:
            GenfedError: the task's examples are of a kind or size that it cannot make.
        """


def uploaded_weights(network: GeneratorNetwork) -> Weights:
    """The part of its state dict that is uploaded, on the CPU."""
    return {k: v for k, v in weights_of(network).items() if network.is_uploaded(k)}


def kept_weights(network: GeneratorNetwork) -> Weights:
    """The part of its state dict that the client keeps, on the CPU."""
    return {k: v for k, v in weights_of(network).items() if not network.is_uploaded(k)}


def check_maps(name: str, task: Task, least: int) -> None:
    """Refuses what a generator of maps cannot make.

    Raises:
        GenfedError: the task is a table, or its maps are not of least×least to 64×64.
    """
    if task.kind == "table" or len(task.shape) != 3:
        what = "a table" if task.kind == "table" else "no maps"
        raise GenfedError(f"generator {name}: examples of shape {task.shape}, {what}; allowed are images")
    what, (_, height, width) = ("images" if task.kind == "image" else "features"), task.shape
    if not (least <= height <= 64 and least <= width <= 64):
        raise GenfedError(f"generator {name}: {what} of {height}×{width}; allowed are {least}×{least} to 64×64")
