"""Centralised training: all data in one place. Not a federation, but the accuracy that one could reach if data could be
shared.
"""

from genfed.core.settings import settings
from genfed.methods.bases.local_training import LocalTraining


@settings
class Centralised(LocalTraining):
    """One model per architecture, trained on the examples of all clients: an upper bound, not a federation.

    1. train, `rounds` rounds. One client per architecture holds the examples of all clients and trains its model on
       them for `training.epochs`. Nothing is sent.

    >>> [phase.name for phase in Centralised(rounds=10).phases()]
    ['train']
    """

    pooled = True
