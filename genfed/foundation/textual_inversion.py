"""Learning of a class's embedding from images."""

import torch
from torch import Tensor

from genfed.foundation.images import resize_to
from genfed.foundation.model import FoundationModel
from genfed.training.pixels import normalize_pixels


def learn_embedding(
    model: FoundationModel,
    images: Tensor,
    start: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rng: torch.Generator,
) -> tuple[Tensor, float]:
    """Learns the embedding under which the model predicts the noise in images best: SGD on the mean of
    (ε_θ(z_t, t, d) − ε)². Yang, Su, Li, Xue, FedDEO, arXiv 2407.19953.

    Args:
        model: The diffusion model.
        images: A task's examples [n, C, H, W].
        start: The initial embedding [tokens, width].
        epochs: The passes over the images; 0: the result is `start` and 0.
        batch_size: The number of images per step.
        learning_rate: The learning rate of SGD.
        rng: The source of all draws.

    Returns:
        The embedding [tokens, width], on the CPU, and the mean loss of the last epoch.
    """
    description = start.to(model.device, copy=True).requires_grad_()
    sgd = torch.optim.SGD([description], lr=learning_rate)
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(images), generator=rng), batch_size):
            with torch.no_grad():
                z = model.encode(
                    resize_to(normalize_pixels(images[rows.to(images.device)]).to(model.device), model.image_shape)
                )
            t = torch.randint(model.steps, (len(z),), generator=rng).to(model.device)
            eps = torch.randn(z.shape, generator=rng).to(model.device)
            noisy = model.add_noise(z, eps, t)
            output = model.predict(noisy, t, description.expand(len(z), *description.shape))
            loss = (model.recover_noise(output, noisy, t) - eps).square().mean()
            sgd.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            total += float(loss.detach()) * len(rows)
    return description.detach().cpu(), total / len(images)
