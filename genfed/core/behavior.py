"""A client's behavior where it is not honest."""

from typing import Any, Protocol

import torch

from genfed.core.client import Client
from genfed.core.phase import Phase
from genfed.core.record import Packed
from genfed.core.task import Data


class Behavior(Protocol):
    """What a client does instead of its honest part, within the protocol: only the content of its replies is false."""

    def targets_phase(self, phase: Phase[Any]) -> bool:
        """Returns whether the client deviates in this phase. In the others it is honest."""

    def data(self, client: Client) -> Data:
        """Returns the examples that the client works with instead of its own."""

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        """Returns what the client uploads instead of the result of its work.

        Args:
            sent: the record that it was sent.
            upload: the result of its work.
            rng: the attack's random stream of this phase, round and client.
        """
