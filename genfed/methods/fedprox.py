"""FedProx within an architecture. Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, Federated Optimization in Heterogeneous
Networks, MLSys 2020, arXiv 1812.06127, Algorithm 2: FedAvg whose local loss adds (μ/2)·‖w − w_t‖².
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.methods.bases.averaging import FederatedAveraging
from genfed.training.weights import squared_distance


@settings
class FedProx(FederatedAveraging):
    """FedAvg within an architecture, with local training held near the global weights.

    1. train, `rounds` rounds. Server → client: the weights w_t of its architecture. Client: trains on its examples by
       cross-entropy + (μ/2)·‖w − w_t‖². Client → server: the weights. The server averages them within an architecture,
       weighted by examples.

    >>> [phase.name for phase in FedProx(rounds=10, mu=0.1).phases()]
    ['train']
    """

    mu: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the proximal term (μ). 0: FedAvg."""

    def penalty(self, network: nn.Module, sent: Weights) -> Callable[[], Tensor]:
        return lambda: self.mu / 2 * squared_distance(network, sent)  # Eq. 2: a squared norm
