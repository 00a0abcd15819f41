"""Checks of what clients upload."""

import torch
from torch import Tensor

from genfed.core.aggregate import LARGEST_UPLOADED, ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.task import Weights
from genfed.training.evaluation import predict
from genfed.training.weights import load_weights


def check_labels(labels: Tensor, server: Server) -> None:
    """Checks uploaded labels.

    Raises:
        GenfedError: they are not int64 [n], or a label is not a class of the task.
    """
    known = len(server.task.classes)
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise GenfedError(f"labels are {labels.dtype} {tuple(labels.shape)}; torch.int64 (n,) are allowed")
    if len(unknown := labels[(labels < 0) | (labels >= known)]):
        raise GenfedError(f"class {int(unknown[0])} is unknown to the server: it has {known}, counted from 0")


def check_form(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Checks the type and shape of a tensor in an upload; for `Phase.check`.

    Args:
        name: The tensor's name, for the error message.
        tensor: The tensor.
        dtype: The required type.
        shape: The required shape.

    Raises:
        GenfedError: the type or shape is another one.
    """
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise GenfedError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; {dtype} {shape} is allowed")


def check_sizes(name: str, tensor: Tensor) -> None:
    """Refuses numbers that no network that has not diverged gives; for `Phase.check`. `name`: as in `check_form`.

    Raises:
        GenfedError: one is not finite, or beyond a million.
    """
    if not bool((tensor.abs() < LARGEST_UPLOADED).all()):
        raise GenfedError(f"{name} holds numbers that are not finite or beyond a million")


def check_counts(server: Server, info: ClientInfo, counts: Tensor) -> None:
    """Checks an upload of the numbers of a client's examples by class; for `Phase.check`.

    Raises:
        GenfedError: the numbers are not int64 [classes], or their sum is not the number of the client's examples.
    """
    classes = len(server.task.classes)
    if counts.dtype != torch.int64 or counts.shape != (classes,):
        raise GenfedError(f"counts are {counts.dtype} {tuple(counts.shape)}; torch.int64 ({classes},) are allowed")
    if bool((counts < 0).any()) or sum(counts.tolist()) != info.examples:
        raise GenfedError(f"counts do not add up to the {info.examples} examples of the client, each 0 or more")


def check_classifier(server: Server, info: ClientInfo, weights: Weights) -> None:
    """Checks that an upload is a working classifier of the client's architecture; for `Phase.check`.

    Raises:
        GenfedError: its parts or shapes differ, or its logits for noise are not finite or above a million.
    """
    draws, shape = server.common("check"), (4, *server.task.shape)
    network = server.new_network(info.architecture, draws)
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if unlike := own.items() ^ {name: tuple(value.shape) for name, value in weights.items()}.items():
        raise GenfedError(f"its classifier is no {info.architecture}: {min(unlike)[0]!r} is different")
    noise = torch.randn(shape, generator=draws)
    if server.task.kind == "image":
        noise = noise.mul_(50).add_(128).clamp_(0, 255).byte()
    scores = predict(load_weights(network, weights), noise.to(server.device))
    if not bool((scores.abs() < LARGEST_UPLOADED).all()):
        raise GenfedError("its classifier has diverged: scores of noise are not finite or beyond a million")
