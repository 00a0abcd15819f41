"""An unconditional image generator that is trained by the outputs of classifiers, without examples."""

import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.rng import seeded
from genfed.core.task import Task


class NoiseToImage(nn.Module):
    """The generator of DENSE, after DAFL (arXiv 1904.01186): noise z [n, latent] → images [n, C, H, W] in [−1, 1], by a
    linear layer to maps of a quarter of the size, two doublings with a convolution each, and a last convolution.

    Args:
        task: The task.
        latent: The dimension of the noise.
        width: The channels of the last hidden layer; the layers before have twice as many.
        rng: The source of the initial weights.

    Raises:
        GenfedError: the task's examples are not images, or not of 8×8 to 64×64.
    """

    def __init__(self, task: Task, latent: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        if task.kind != "image" or not all(8 <= side <= 64 for side in task.shape[1:]):
            raise GenfedError(
                f"a generator from noise cannot make {task.noun} of shape {task.shape}: allowed are images "
                "of 8×8 to 64×64"
            )
        channels, self.height, self.width = task.shape
        quarter, wide = (-(-self.height // 4), -(-self.width // 4)), 2 * width
        with seeded(rng):
            self.layers = nn.Sequential(
                nn.Linear(latent, wide * quarter[0] * quarter[1]),
                *(nn.Unflatten(1, (wide, *quarter)), nn.BatchNorm2d(wide), nn.Upsample(scale_factor=2)),
                *(nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2)),
                nn.Upsample(scale_factor=2),
                *(nn.Conv2d(wide, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)),
                *(nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()),
            )

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.layers(z)
        return x[..., : self.height, : self.width].float()
