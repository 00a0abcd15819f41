"""Objectives of local training, with another optimizer or with a proximal term."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from genfed.training.fit import Objective


def use_sgd(objectives: Sequence[Objective], learning_rate: float) -> list[Objective]:
    """Returns the objectives with plain SGD in place of their optimizers."""
    return [
        replace(each, optimizer=torch.optim.SGD(_parameters(each), lr=learning_rate, fused=True)) for each in objectives
    ]


def hold_near(objectives: Sequence[Objective], mu: float) -> list[Objective]:
    """Returns the objectives with (μ/2)·‖w − w_t‖² added to each loss, over the parameters of each objective; w_t are
    their values now. Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, Federated Optimization in Heterogeneous Networks,
    arXiv 1812.06127, Eq. 2.
    """
    return [replace(each, penalty=_add_distance(_parameters(each), mu, each.penalty)) for each in objectives]


def _add_distance(
    parameters: Sequence[nn.Parameter], mu: float, penalty: Callable[[], Tensor] | None
) -> Callable[[], Tensor]:
    anchors = [p.detach().clone() for p in parameters]

    def distance() -> Tensor:
        squares = [(p - anchor).square().sum() for p, anchor in zip(parameters, anchors, strict=True)]
        near = mu / 2 * torch.stack(squares).sum()
        return near if penalty is None else near + penalty()

    return distance


def _parameters(objective: Objective) -> list[nn.Parameter]:
    """Returns the parameters that an objective's optimizer changes."""
    return [p for group in objective.optimizer.param_groups for p in group["params"]]
