"""An ensemble of trained classifiers as a teacher: its predictions and its BatchNorm statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ClassifierEnsemble(nn.Module):
    """Frozen classifiers: x [n, *shape] → the mean logits [n, classes], and the distance of x's statistics.

    Each model's logits are multiplied by its share. The distance is that from the statistics in the BatchNorm layers:
    ‖μ(x) − μ‖ + ‖σ²(x) − σ²‖, summed over layers, the mean over models; 0 without such layers.
    """

    def __init__(self, models: Sequence[nn.Module], shares: Tensor | None = None) -> None:
        """Freezes the models; `shares` [models] are the factors of their logits (None: 1)."""
        super().__init__()
        self.models = nn.ModuleList(models).eval().requires_grad_(False)
        self.shares = shares
        self._gaps: list[Tensor] = []
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.register_forward_pre_hook(self._compare)

    def _compare(self, norm: Any, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float().transpose(0, 1).flatten(1)
        self._gaps += [(x.mean(1) - norm.running_mean).norm(), (x.var(1, correction=0) - norm.running_var).norm()]

    def predict_each(self, x: Tensor) -> Tensor:
        """Returns the logits of every model, [models, n, classes]."""
        self._gaps = []
        return torch.stack([model(x).float() for model in self.models])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = combine(self.predict_each(x), self.shares)
        return logits, torch.stack([logits.new_zeros(()), *self._gaps]).sum() / len(self.models)


def combine(logits: Tensor, shares: Tensor | None) -> Tensor:
    """Returns the mean [n, classes] of logits [models, n, classes], each model's times its share [models] (None: 1)."""
    return logits.mean(0) if shares is None else (logits * shares.view(-1, 1, 1)).mean(0)
