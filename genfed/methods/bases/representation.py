"""Base of methods that exchange representations of one size among networks of any architecture.

Architectures end in vectors of different widths. Here the last layer of each is replaced by one of `dimension` numbers
with a ReLU, and a header of one shape for all follows it.
"""

from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.training.classifier import Training
from genfed.training.evaluation import predict
from genfed.training.fit import Loss, Objective, fit
from genfed.training.weights import new_classifier

S = TypeVar("S")


class RepresentationNetwork(nn.Module):
    """x [n, *shape] → logits [n, classes], as header(extractor(x)). The extractor's representations [n, dimension] are
    at least 0.
    """

    def __init__(self, extractor: nn.Module, header: nn.Linear) -> None:
        super().__init__()
        self.extractor, self.header = extractor, header

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


@dataclass(frozen=True)
class ClassStatistics:
    """The representations of a client, summed by class. A class without examples has 0 in both."""

    sums: Tensor
    """Sums of representations [classes, dimension]."""
    counts: Tensor
    """Numbers of examples, int64 [classes]."""

    def means(self) -> Tensor:
        """Returns the mean representation of each class [classes, dimension]; 0 for a class without examples."""
        return self.sums / self.counts.clamp(min=1)[:, None]


@settings
class RepresentationMethod(Method[S]):
    """Base of methods whose networks agree on the size of a representation alone."""

    needs_architectures = True  # the server finds the last layer of each

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of local training and exchange (T)."""
    training: Training = Field(default_factory=Training)
    """Local training on a client in a round."""
    dimension: Annotated[int, Field(ge=1)] = 64
    """Numbers in a representation: the width of the layer that replaces the last one of each network."""

    def network(self, where: Client | Server, architecture: str) -> RepresentationNetwork:
        """Returns the network of an architecture with its initial weights, the same on the server and on every client;
        on the device of `where`.

        Raises:
            GenfedError: the architecture does not end in an nn.Linear.
        """
        rng = where.common("classifier", architecture)
        network = new_classifier(where, architecture, rng)
        last = _find_last(network, torch.zeros(1, *where.task.shape, device=where.device))
        if last is None:
            raise GenfedError(
                f"architecture {architecture} does not end in an nn.Linear that gives its scores and is used once: "
                "this method replaces that layer by one of `dimension` numbers"
            )
        # differs from the papers: their networks all have a last but one layer of the same width.
        with seeded(rng):
            linear = nn.Linear(last.in_features, self.dimension)
            # He et al., arXiv 1502.01852. With torch's own weights, which are smaller by a factor of √6, signals shrink
            # in this additional layer, and deep networks hardly begin to learn.
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layer = nn.Sequential(linear, nn.ReLU())
        for name, module in list(network.named_modules(remove_duplicate=False)):
            if module is last and name:
                network.set_submodule(name, layer)
        extractor = layer if last is network else network
        with seeded(where.common("header")):
            header = nn.Linear(self.dimension, len(where.task.classes))
        return RepresentationNetwork(extractor, header).to(where.device)

    def networks(self, server: Server) -> dict[str, RepresentationNetwork]:
        """Returns the initial network of every architecture present.

        Raises:
            GenfedError: an architecture does not end in an nn.Linear.
        """
        return {architecture: self.network(server, architecture) for architecture in server.architectures}

    def train_representation(self, network: RepresentationNetwork, client: Client, loss: Loss) -> float:
        """Trains in place by `loss` on the client's examples. Returns the mean loss of the last epoch."""
        return fit(
            [Objective(loss, self.training.new_optimizer(network.train()))],
            client.data,
            epochs=self.training.epochs,
            batch_size=self.training.batch_size,
            rng=client.rng,
            precision=client.precision,
        )


def sum_by_class(network: RepresentationNetwork, client: Client) -> ClassStatistics:
    """Returns the representations of all the client's examples, in eval mode, summed by class; on the CPU."""
    y, classes = client.data.y.cpu(), len(client.task.classes)
    z = predict(network.extractor, client.data.x, client.precision).cpu()
    sums = F.one_hot(y, classes).double().T @ z.double()
    return ClassStatistics(sums.float(), torch.bincount(y, minlength=classes))


def _find_last(network: nn.Module, x: Tensor) -> nn.Linear | None:
    """Returns the nn.Linear whose output for x is the output of the network. None: there is no such layer, or it is
    used more than once.
    """
    seen: list[tuple[nn.Module, object]] = []
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda module, given, out: seen.append((module, out))) for layer in layers]
    with torch.no_grad():
        scores = network.eval()(x)
    network.train()
    for hook in hooks:
        hook.remove()
    return next(
        (layer for layer in layers if [out is scores for module, out in seen if module is layer] == [True]),
        None,
    )
