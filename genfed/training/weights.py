"""State dicts as records."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.task import Weights


@dataclass(frozen=True)
class Model:
    """A classifier on its way, or kept."""

    classifier: Weights


def weights_of(network: nn.Module) -> Weights:
    """The whole state dict (parameters and buffers), detached, on the CPU."""
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, weights: Weights) -> nn.Module:
    """Copies `weights` into the network and returns it."""
    network.load_state_dict(weights)
    return network


def read_weights(file: str | Path, setting: str) -> Weights:
    """The tensors of a .safetensors file that `setting` names.

    Raises:
        GenfedError: no such file, or a damaged one.
    """
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise GenfedError(f"{setting} = {str(file)!r} cannot be read as .safetensors ({error})") from None


def squared_distance(network: nn.Module, anchor: Weights) -> Tensor:
    """‖w − anchor‖² over the parameters (buffers do not count), a scalar."""
    device = next(network.parameters()).device
    near = {name: value.to(device) for name, value in anchor.items()}
    parts = [(p - near[name]).square().sum() for name, p in network.named_parameters()]
    return torch.stack(parts).sum()


def initial_weights(client: Client) -> Weights:
    """The initial weights of the client's classifier: the same for every method and all clients of its architecture."""
    return weights_of(client.new_network(client.common("classifier", client.info.architecture)))


def initial_classifiers(server: Server) -> dict[str, Weights]:
    """The initial weights of every architecture present, as `initial_weights` has them."""
    return {a: weights_of(server.new_network(a, server.common("classifier", a))) for a in server.architectures}
