"""FedAvg within an architecture. McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning of
Deep Networks from Decentralized Data, AISTATS 2017, arXiv 1602.05629, Algorithm 1.
"""

from genfed.core.settings import settings
from genfed.methods.bases.averaging import FederatedAveraging


@settings
class FedAvg(FederatedAveraging):
    """Federated averaging of classifiers among the clients that share an architecture.

    1. train, `rounds` rounds. Server → client: the weights of its architecture. Client: trains on its examples for
       `training.epochs`. Client → server: the weights. The server averages them within an architecture, weighted by
       examples.

    >>> [phase.name for phase in FedAvg(rounds=10).phases()]
    ['train']
    """
