"""Encoders: settings that make a fixed map from examples to features, the same at every client."""

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.record import digest, pack
from genfed.core.task import Data, Task
from genfed.data.dataset import Source
from genfed.training.evaluation import predict
from genfed.training.stored_features import StoredFeatures, recall_features
from genfed.training.weights import Model, weights_of

WIDEST = 2**16
"""Maximum number of features of an example."""


class Encoder(ABC):
    """Settings of one kind of encoder (one file each). An encoder learns nothing from clients, so it tells nothing of
    them, and the features of an example depend on no other example.

    >>> import torch
    >>> from genfed import Task
    >>> from genfed.encoders.random_conv import RandomConv
    >>> network = RandomConv(filters=4).new(Task("image", (1, 28, 28), ("cat", "dog")), torch.Generator())
    >>> network(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 36])
    """

    @abstractmethod
    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        """Returns the map from examples [n, *task.shape], on the scale of `normalize_pixels`, to features [n, d] of
        mean square about 1. What it draws comes from `rng`: clients with the same seed have the same map.

        Raises:
            GenfedError: the encoder does not support the kind or the size of the task's examples.
        """

    def public_sources(self) -> tuple[Source, ...]:
        """Returns the sources of public examples that the encoder is computed from, none by default. A run whose own
        examples are among them is refused.
        """
        return ()


ENCODED = Slot("encoded", StoredFeatures)
"""Slot that a phase declares if it calls `encode_examples`."""


@dataclass(frozen=True)
class BuiltEncoder:
    """An encoder of one task and seed."""

    network: nn.Module
    task: Task
    """The task of classifying the features."""

    @functools.cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that are the same for encoders with equal weights only."""
        return digest(pack(Model(weights_of(self.network))))

    def encode(self, x: Tensor) -> Tensor:
        """Returns the features of examples x (as in `Data.x`), float32 [n, d], on the device of x.

        Raises:
            GenfedError: a feature is not finite.
        """
        features = predict(self.network, x).reshape(len(x), *self.task.shape)
        if not bool(features.isfinite().all()):
            raise GenfedError("the encoder gives features that are not finite")
        return features


def build_encoder(encoder: Encoder, where: Client | Server, agreed: str | None = None) -> BuiltEncoder:
    """Returns the encoder of the run's task, on the device of `where`: the same on the server and on all clients.

    Args:
        encoder: The encoder.
        where: The client or server that needs it.
        agreed: Digest of the encoder that a state was made with. None: any will do; no features are computed.

    Raises:
        GenfedError: the encoder does not support the task, gives no features or more than 65,536, or is another one
            than the agreed one.
    """
    network = encoder.new(where.task, where.common("encoder")).to(where.device).eval()
    with torch.no_grad():
        features = network(torch.zeros(2, *where.task.shape, device=where.device))
    width = math.prod(features.shape[1:])
    if not 0 < width <= WIDEST:
        raise GenfedError(f"the encoder gives {width} features of an example; 1 to {WIDEST} are allowed")
    built = BuiltEncoder(network, Task("features", (width,), where.task.classes))
    if agreed is not None and built.digest != agreed:
        whose = "its" if isinstance(where, Client) else "the"
        raise GenfedError(
            f"{whose} encoder ({built.digest[:8]}) is not that of the run ({agreed[:8]}): it needs the same files and "
            "the same version of genfed, wherever it is used"
        )
    return built


def encode_examples(client: Client, encoder: Encoder, agreed: str) -> Data:
    """Returns the features of a client's examples, computed once and then stored.

    Args:
        client: The client.
        encoder: The encoder.
        agreed: Digest of the server's encoder.

    Raises:
        GenfedError: the client's encoder is another one than the server's.
    """
    return recall_features(
        client, ENCODED, agreed, lambda: build_encoder(encoder, client, agreed).encode(client.data.x)
    )
