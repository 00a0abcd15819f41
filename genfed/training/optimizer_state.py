"""The state of optimizers as a record."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptimizerState:
    """The state of an optimizer between rounds."""

    values: dict[int, dict[str, Tensor]]
    """Tensors by parameter number, then by name."""


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Returns the optimizer's state as a record, on the CPU."""
    state = optimizer.state_dict()["state"]
    return OptimizerState({i: {k: v.cpu() for k, v in s.items() if isinstance(v, Tensor)} for i, s in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: OptimizerState | None) -> None:
    """Loads a copy of the state into the optimizer; None: the optimizer stays new."""
    if state is not None:
        groups = optimizer.state_dict()["param_groups"]
        # An optimizer changes its state in place, and the loaded one may belong to a server's state.
        optimizer.load_state_dict({"state": copy.deepcopy(state.values), "param_groups": groups})
