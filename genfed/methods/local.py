"""Local-only training: the accuracy that each client reaches alone, which every federated method must exceed."""

from genfed.core.settings import settings
from genfed.methods.bases.local_training import LocalTraining


@settings
class Local(LocalTraining):
    """Every client trains alone, from the same initial weights as in the other methods.

    1. train, `rounds` rounds. Client: trains its own model on its examples for `training.epochs`. Nothing is sent.

    >>> [phase.name for phase in Local(rounds=10).phases()]
    ['train']
    """
