"""State dicts as records."""

import torch
from torch import Tensor, nn

from genfed.core.method import Weights


def weights_of(network: nn.Module) -> Weights:
    """The whole state dict (parameters and buffers), detached, on the CPU."""
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, weights: Weights) -> nn.Module:
    """Copies `weights` into the network and returns it."""
    network.load_state_dict(weights)
    return network


def squared_distance(network: nn.Module, anchor: Weights) -> Tensor:
    """‖w − anchor‖² over the parameters (buffers do not count), a scalar."""
    device = next(network.parameters()).device
    near = {name: value.to(device) for name, value in anchor.items()}
    parts = [(p - near[name]).square().sum() for name, p in network.named_parameters()]
    return torch.stack(parts).sum()
