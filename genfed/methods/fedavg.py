"""FedAvg within an architecture. McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning of
Deep Networks from Decentralized Data, AISTATS 2017, arXiv 1602.05629, Algorithm 1.
"""

from genfed.core.settings import settings
from genfed.methods.bases.averaging import FederatedAveraging


@settings
class FedAvg(FederatedAveraging):
    """Federated averaging of classifiers among the clients that share an architecture."""
