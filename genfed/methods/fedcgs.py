"""FedCGS. Guan, Zhou, Gu, Capture Global Feature Statistics for One-Shot Federated Learning, AAAI 2025, arXiv
2503.06962: clients upload sums of fixed features once; the server solves for the classifier.
"""

from pydantic import Field, InstanceOf
from torch import nn

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.generators.gaussian import Gaussian, LinearDiscriminant, linear_discriminant
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.methods.bases.feature_statistics import FeatureStatistics


@settings
class FedCGS(FeatureStatistics):
    """A classifier in closed form, from sums of features: the same for any split of the examples over clients.

    1. statistics, once. Server → client: the digest of the encoder. Client: encodes its examples. Client → server: the
       number and the sum of the features of each class, and their second moments. The server adds them up, and solves
       for the linear head of Gaussian classes with one covariance.

    >>> [phase.name for phase in FedCGS().phases()]
    ['statistics']
    """

    generator: InstanceOf[StatisticsGenerator] = Field(default_factory=lambda: Gaussian())
    """The Gaussian of features that is estimated from the sums; its covariance is tied."""

    def __post_init__(self) -> None:
        if not (isinstance(self.generator, Gaussian) and self.generator.covariance == "tied"):
            raise GenfedError('generator: a gaussian with covariance = "tied", whose classifier is linear')

    def make_head(self, server: Server, generator: Weights) -> Weights:
        return linear_discriminant(generator)

    def new_head(self, features: int, classes: int) -> nn.Module:
        return LinearDiscriminant(features, classes)
