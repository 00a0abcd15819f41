"""The state of optimizers as a record."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptimizerState:
    """What an optimiser remembers between rounds: by parameter number, then by name."""

    values: dict[int, dict[str, Tensor]]


def optimizer_state(optimiser: torch.optim.Optimizer) -> OptimizerState:
    """The optimiser's memory as a record, on the CPU."""
    state = optimiser.state_dict()["state"]
    return OptimizerState({i: {k: v.cpu() for k, v in s.items() if isinstance(v, Tensor)} for i, s in state.items()})


def load_optimizer_state(optimiser: torch.optim.Optimizer, moments: OptimizerState | None) -> None:
    """Gives a copy of the memory back; None leaves the optimiser new."""
    if moments is not None:
        groups = optimiser.state_dict()["param_groups"]
        # An optimiser works in place, and what is loaded may be a server's state.
        optimiser.load_state_dict({"state": copy.deepcopy(moments.values), "param_groups": groups})
