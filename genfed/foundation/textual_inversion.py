"""Learns the embedding of a class from images."""

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
    """The embedding [tokens, width], on the CPU, under which the noise of the images [n, C, H, W], as a task's examples
    are, is predicted best: from `start` down the mean of (ε_θ(z_t, t, d) − ε)² by SGD; and that mean over the last
    epoch. After 0 epochs it is `start`, and the mean 0. Yang, Su, Li, Xue, FedDEO, arXiv 2407.19953.
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
            noisy = model.noisy(z, eps, t)
            output = model.predict(noisy, t, description.expand(len(z), *description.shape))
            loss = (model.eps(output, noisy, t) - eps).square().mean()
            sgd.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            total += float(loss.detach()) * len(rows)
    return description.detach().cpu(), total / len(images)
