"""Networks of any architecture whose representations are of one size, and what methods share that exchange those.

Architectures end in vectors of different widths. Here the last layer of each gives way to one of `dimension` numbers
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
    """[n, *shape] → logits [n, classes], as header(extractor(x)); the extractor gives representations [n, dimension],
    none below 0.
    """

    def __init__(self, extractor: nn.Module, header: nn.Linear) -> None:
        super().__init__()
        self.extractor, self.header = extractor, header

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


@dataclass(frozen=True)
class ClassStatistics:
    """What a client's representations come to per class; a class that it lacks has 0 in both."""

    sums: Tensor
    """[classes, dimension]"""
    counts: Tensor
    """Examples, int64 [classes]."""

    def means(self) -> Tensor:
        """The mean representation of each class [classes, dimension]; 0 where there is none."""
        return self.sums / self.counts.clamp(min=1)[:, None]


@settings
class RepresentationMethod(Method[S]):
    """What methods share whose clients agree on the size of a representation, and on nothing else of their networks."""

    needs_architectures = True  # the server looks for the last layer of each

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of local training and exchange (T)."""
    training: Training = Field(default_factory=Training)
    """Local training in a round."""
    dimension: Annotated[int, Field(ge=1)] = 64
    """Numbers in a representation: the width of the layer that takes the place of each network's last one."""

    def network(self, where: Client | Server, architecture: str) -> RepresentationNetwork:
        """The architecture with its initial weights, the same on the server and on every client; on `where`'s device.

        Raises:
            GenfedError: it does not end in an nn.Linear.
        """
        rng = where.common("classifier", architecture)
        network = new_classifier(where, architecture, rng)
        last = _last(network, torch.zeros(1, *where.task.shape, device=where.device))
        if last is None:
            raise GenfedError(
                f"architecture {architecture} does not end in an nn.Linear that gives its scores and is used once: "
                "a method by representations puts a layer of `dimension` numbers in its place"
            )
        # differs from the papers: they take the layer before the last as it is, of one width in all their networks.
        with seeded(rng):
            layer = nn.Sequential(nn.Linear(last.in_features, self.dimension), nn.ReLU())
        for name, module in list(network.named_modules(remove_duplicate=False)):
            if module is last and name:
                network.set_submodule(name, layer)
        extractor = layer if last is network else network
        with seeded(where.common("header")):
            header = nn.Linear(self.dimension, len(where.task.classes))
        return RepresentationNetwork(extractor, header).to(where.device)

    def networks(self, server: Server) -> dict[str, RepresentationNetwork]:
        """The initial network of every architecture present.

        Raises:
            GenfedError: one does not end in an nn.Linear.
        """
        return {architecture: self.network(server, architecture) for architecture in server.architectures}

    def train_representation(self, network: RepresentationNetwork, client: Client, loss: Loss) -> float:
        """Trains in place by `loss` on the client's examples; returns its mean in the last epoch."""
        return fit(
            [Objective(loss, self.training.new_optimizer(network.train()))],
            client.data,
            epochs=self.training.epochs,
            batch_size=self.training.batch_size,
            rng=client.rng,
            precision=client.precision,
        )


def sum_by_class(network: RepresentationNetwork, client: Client) -> ClassStatistics:
    """The representations of all the client's examples, in eval mode, added up by class; on the CPU."""
    y, classes = client.data.y.cpu(), len(client.task.classes)
    z = predict(network.extractor, client.data.x, client.precision).cpu()
    sums = F.one_hot(y, classes).double().T @ z.double()
    return ClassStatistics(sums.float(), torch.bincount(y, minlength=classes))


def _last(network: nn.Module, x: Tensor) -> nn.Linear | None:
    """The nn.Linear whose output for x, as it is, is the network's; None where there is no such layer, or where it is
    used for more than that.
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
