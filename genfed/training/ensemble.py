"""An ensemble of trained classifiers as a teacher: its answers, and the statistics that it was trained on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ClassifierEnsemble(nn.Module):
    """Frozen models: x [n, *shape] → the mean of their logits [n, classes], each times its share, and how far x's
    statistics are from those that their BatchNorm layers keep: ‖μ(x) − μ‖ + ‖σ²(x) − σ²‖, summed over layers, the mean
    over models (0 where none has such a layer).
    """

    def __init__(self, models: Sequence[nn.Module], shares: Tensor | None = None) -> None:
        """`shares` [models] is what each counts for; None: 1."""
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

    def each(self, x: Tensor) -> Tensor:
        """The logits of every model, [models, n, classes]."""
        self._gaps = []
        return torch.stack([model(x).float() for model in self.models])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = combine(self.each(x), self.shares)
        return logits, torch.stack([logits.new_zeros(()), *self._gaps]).sum() / len(self.models)


def combine(each: Tensor, shares: Tensor | None) -> Tensor:
    """The mean [n, classes] of the models' logits [models, n, classes], each times its share [models] (None: 1)."""
    return each.mean(0) if shares is None else (each * shares.view(-1, 1, 1)).mean(0)
