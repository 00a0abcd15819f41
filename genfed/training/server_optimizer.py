"""Optimizers of the server, for which the mean change of the clients is a gradient. Reddi, Charles, Zaheer, Garrett,
Rush, Konečný, Kumar, McMahan, Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295, Algorithm 2 (FedAdam).
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.settings import settings
from genfed.core.task import Weights


@dataclass(frozen=True)
class ServerMoments:
    """What a server's optimizer keeps from round to round, by parameter. Empty before the first round."""

    first: Weights = field(default_factory=dict)
    """Mean of past changes (Adam), or their decayed sum (SGD with momentum)."""
    second: Weights = field(default_factory=dict)
    """Mean of their squares; Adam only."""


@settings
class ServerOptimizer:
    """How the server takes the mean change Δ of the clients into the global weights: by default as their mean, w + Δ.

    >>> import torch
    >>> from genfed.training.server_optimizer import ServerMoments, ServerOptimizer
    >>> before, mean = {"weight": torch.tensor([1.0])}, {"weight": torch.tensor([0.5])}
    >>> after, moments = ServerOptimizer(learning_rate=2.0).step(before, mean, ServerMoments(), {"weight"})
    >>> after["weight"]
    tensor([0.])
    """

    kind: Literal["sgd", "adam"] = "sgd"
    """Optimizer: "sgd" (with a rate of 1 and no momentum FedAvg, with momentum FedAvgM, arXiv 1909.06335), or "adam"
    (FedAdam)."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the server (η). None: 1 for SGD, 0.001 for Adam."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the past changes that SGD keeps; Adam ignores it."""
    first_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of its mean of changes that Adam keeps in a round (β₁); SGD ignores it."""
    second_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Share of its mean of squares that Adam keeps in a round (β₂); SGD ignores it."""
    adaptivity: Annotated[float, Field(gt=0)] = 1e-6
    """What Adam adds to the root of the mean of squares (τ), on the scale of a client's change. The larger, the less
    Adam adapts. The paper's 1e-3 is for clients that take many steps."""

    @property
    def is_mean(self) -> bool:
        """Whether the next weights are the clients' mean."""
        return self.kind == "sgd" and (self._rate, self.momentum) == (1.0, 0.0)

    @property
    def _rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.kind == "sgd" else 1e-3

    def step(
        self, before: Weights, mean: Weights, moments: ServerMoments, parameters: Collection[str]
    ) -> tuple[Weights, ServerMoments]:
        """Returns the next global weights, and the moments after this round.

        Args:
            before: global weights that the clients were sent.
            mean: mean of the clients' weights, under the same names.
            moments: moments after the last round.
            parameters: names of the entries that clients train. The others, such as BatchNorm's statistics, become the
                clients' mean.
        """
        if self.is_mean:
            return mean, moments
        after, first, second = dict(mean), dict[str, Tensor](), dict[str, Tensor]()
        for name in sorted(mean.keys() & set(parameters)):
            change = mean[name] - before[name]
            if self.kind == "sgd":
                first[name] = self.momentum * moments.first.get(name, torch.zeros_like(change)) + change
                after[name] = before[name] + self._rate * first[name]
            else:
                start = torch.full_like(change, self.adaptivity**2)  # v₋₁ = τ²; there is no bias correction
                first[name] = torch.lerp(change, moments.first.get(name, torch.zeros_like(change)), self.first_decay)
                second[name] = torch.lerp(change.square(), moments.second.get(name, start), self.second_decay)
                after[name] = before[name] + self._rate * first[name] / (second[name].sqrt() + self.adaptivity)
        return after, ServerMoments(first, second)
