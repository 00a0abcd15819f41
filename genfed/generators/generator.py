"""Generators: settings that make a network, and a network that can be trained and sampled."""

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
LARGEST = 2**28
"""Maximum number of parameters of a generator (268 million, 1 GiB)."""


class GeneratorNetwork(nn.Module, ABC):
    """A conditional generator of one task's examples. Subclasses implement `objectives` and `sample`.

    >>> import torch
    >>> from genfed import GeneratorNetwork
    >>> class Noise(GeneratorNetwork):
    ...     def objectives(self):
    ...         return []  # nothing to train
    ...     def sample(self, y, rng):
    ...         return self.sample_from_noise(lambda z, y: z.view(-1, 1, 2, 2).tanh(), 4, y, rng)
    >>> Noise().sample(torch.tensor([0, 1, 1]), torch.Generator()).shape
    torch.Size([3, 1, 2, 2])
    """

    @abstractmethod
    def objectives(self) -> Sequence[Objective]:
        """Returns the losses that train the network, each with a new optimizer; `training.fit` steps them in turn."""

    @abstractmethod
    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        """Generates one example per label: y [n] → x [n, *shape] on the scale of `normalize_pixels`, on y's device, in
        eval mode and without gradients. The draws come from `rng` (CPU).
        """

    def sample_from_noise(
        self, make: Callable[[Tensor, Tensor], Tensor], size: int, y: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Implements `sample` for a network that turns noise into examples, chunk by chunk.

        Args:
            make: A function of noise [m, size] and labels [m] that returns examples [m, *shape].
            size: The dimension of the noise.
            y: The labels [n].
            rng: The source of the noise.
        """
        z = torch.randn(len(y), size, generator=rng).to(y.device)
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                parts = [make(*chunk) for chunk in zip(torch.split(z, CHUNK), torch.split(y, CHUNK), strict=True)]
        finally:
            self.train(training)
        return torch.cat(parts)  # outside inference mode: a classifier may be trained on the result

    def learning_rate_factor(self, progress: float) -> float:
        """Returns the factor for the learning rates of a generator round; the default is 1. `progress` in [0, 1) is the
        share of generator rounds that are done.
        """
        return 1.0

    def is_uploaded(self, name: str) -> bool:
        """Returns whether a client uploads the state-dict entry `name`; the default is True for all."""
        return True


class Generator(ABC):
    """Settings of one kind of generator (one file each).

    >>> import torch
    >>> from genfed import Task
    >>> from genfed.generators.cvae import CVAE
    >>> network = CVAE(width=4).new(Task("image", (1, 8, 8), ("cat", "dog")), torch.Generator())
    >>> network.sample(torch.tensor([0, 1]), torch.Generator()).shape
    torch.Size([2, 1, 8, 8])
    """

    @abstractmethod
    def new(self, task: Task, rng: torch.Generator) -> GeneratorNetwork:
        """Returns a network with weights initialized from `rng`.

        Raises:
            GenfedError: the generator does not support the kind or the size of the task's examples.
        """


def check_size(generator: Generator, task: Task) -> None:
    """Refuses a generator with too many parameters, buffers included, before memory is allocated for them.

    Raises:
        GenfedError: it has more than `LARGEST`.
    """
    try:
        with torch.device("meta"):
            network = generator.new(task, torch.Generator())
            count = sum(value.numel() for value in (*network.parameters(), *network.buffers()))
    except GenfedError:
        raise
    except Exception:  # a user's own code may not work without numbers; it is built as it is then
        return
    if count > LARGEST:
        raise GenfedError(f"the generator would have {count:.3g} parameters; at most {LARGEST:.3g} are allowed")


def uploaded_weights(network: GeneratorNetwork) -> Weights:
    """Returns the part of the network's state dict that a client uploads, on the CPU."""
    return {k: v for k, v in weights_of(network).items() if network.is_uploaded(k)}


def kept_weights(network: GeneratorNetwork) -> Weights:
    """Returns the part of the network's state dict that stays with the client, on the CPU."""
    return {k: v for k, v in weights_of(network).items() if not network.is_uploaded(k)}


def check_maps(name: str, task: Task, least: int) -> None:
    """Checks that a generator of maps supports the task.

    Args:
        name: The generator's name, for the error message.
        task: The task.
        least: The least height and width.

    Raises:
        GenfedError: the examples are no maps, or these are not of least×least to 64×64.
    """
    if task.kind not in ("image", "features") or len(task.shape) != 3:
        what = "no maps" if task.kind == "features" else task.noun
        raise GenfedError(f"generator {name}: examples of shape {task.shape}, {what}; allowed are images")
    _, height, width = task.shape
    if not (least <= height <= 64 and least <= width <= 64):
        raise GenfedError(f"generator {name}: {task.noun} of {height}×{width}; allowed are {least}×{least} to 64×64")
