"""State dicts as records, and classifiers built from them."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.task import Task, Weights


@dataclass(frozen=True)
class Model:
    """The weights of a classifier, sent or stored.

    >>> import torch
    >>> from genfed import Model, weights_of
    >>> list(Model(weights_of(torch.nn.Linear(4, 2))).classifier)
    ['weight', 'bias']
    """

    classifier: Weights
    """Parameters and buffers by name."""


def weights_of(network: nn.Module) -> Weights:
    """Returns the whole state dict (parameters and buffers), detached, on the CPU.

    >>> import torch
    >>> from genfed import weights_of
    >>> {name: tuple(value.shape) for name, value in weights_of(torch.nn.Linear(4, 2)).items()}
    {'weight': (2, 4), 'bias': (2,)}
    """
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, weights: Weights) -> nn.Module:
    """Copies `weights` into the network and returns it.

    >>> import torch
    >>> from genfed import load_weights, weights_of
    >>> teacher, student = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    >>> torch.equal(load_weights(student, weights_of(teacher)).weight, teacher.weight)
    True
    """
    network.load_state_dict(weights)
    return network


def new_classifier(
    where: Client | Server, architecture: str, rng: torch.Generator, task: Task | None = None
) -> nn.Module:
    """Returns a classifier of this architecture with weights drawn from `rng`, on the device of `where`; it takes the
    examples of `task` (None: the run's).
    """
    make = where.new_network if isinstance(where, Server) else where.new_network_of
    return make(architecture, rng) if task is None else make(architecture, rng, task)


def build_classifier(
    where: Client | Server,
    architecture: str,
    weights: Weights,
    rng: torch.Generator | None = None,
    task: Task | None = None,
) -> nn.Module:
    """Returns a classifier of this architecture with these weights, on the device of `where`.

    Args:
        where: The client or server.
        architecture: The architecture.
        weights: The weights.
        rng: Source of its first weights, which are overwritten. None: `where.rng`.
        task: Task whose examples it takes. None: the run's.
    """
    return load_weights(new_classifier(where, architecture, where.rng if rng is None else rng, task), weights)


def read_weights(file: str | Path, setting: str) -> Weights:
    """Returns the tensors of a .safetensors file. `setting` is the setting that names it, for messages.

    Raises:
        GenfedError: the file does not exist, or is damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise GenfedError(f"{setting} = {str(file)!r} cannot be read as .safetensors ({error})") from None


def squared_distance(network: nn.Module, anchor: Weights) -> Tensor:
    """Returns ‖w − anchor‖² over the parameters (buffers do not count), a scalar."""
    device = next(network.parameters()).device
    near = {name: value.to(device) for name, value in anchor.items()}
    parts = [(p - near[name]).square().sum() for name, p in network.named_parameters()]
    return torch.stack(parts).sum()


def initial_weights(client: Client) -> Weights:
    """Returns the initial weights of the client's classifier, the same in every method and at all clients with its
    architecture.

    >>> import torch
    >>> from genfed import Client, ClientInfo, Data, Task, initial_weights
    >>> from genfed.config.architectures import Architectures
    >>> task, data = Task("image", (1, 8, 8), ("cat", "dog")), Data(torch.randn(8, 1, 8, 8), torch.arange(8) % 2)
    >>> def client(number):
    ...     info, rng = ClientInfo(number, "linear", 8), torch.Generator().manual_seed(number)
    ...     new = lambda name, rng: Architectures().new(name, task, rng)
    ...     return Client(info, task, data, None, rng, 0, torch.device("cpu"), "float32", new)
    >>> one, other = initial_weights(client(0)), initial_weights(client(1))
    >>> all(torch.equal(one[name], other[name]) for name in one)
    True
    """
    return weights_of(client.new_network(client.common("classifier", client.info.architecture)))


def initial_classifiers(server: Server) -> dict[str, Weights]:
    """Returns the initial weights of every architecture present, as `initial_weights` gives them."""
    return {a: initial_classifier(server, a) for a in server.architectures}


def initial_classifier(server: Server, architecture: str) -> Weights:
    """Returns the initial weights of one architecture, as `initial_weights` gives them."""
    return weights_of(server.new_network(architecture, server.common("classifier", architecture)))
