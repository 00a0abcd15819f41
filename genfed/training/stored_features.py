"""Features of a client's examples, computed once for each map from examples to features and then stored."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from genfed.core import record
from genfed.core.client import Client, Slot
from genfed.core.task import Data


@dataclass(frozen=True)
class StoredFeatures:
    """The features of a client's examples, and the map that gave them."""

    examples: Data
    """Features float32 [n, *feature shape], and labels."""
    digest: str
    """Digests of the map and of the examples."""


def recall_features(client: Client, slot: Slot[StoredFeatures], digest: str, compute: Callable[[], Tensor]) -> Data:
    """Returns the features of the client's examples by one map. Stored ones by another map are not used: a server may
    have given up the round for which it sent that. Nor are those of other examples or labels: a client that attacks has
    them in some phases alone.

    Args:
        client: the client.
        slot: where it stores features.
        digest: digest of the map that is asked for.
        compute: computes the features of all its examples by this map.
    """
    stored, of = client.storage.get(slot), f"{digest} {record.digest(record.pack(client.data))}"
    if stored is None or stored.digest != of:
        stored = StoredFeatures(Data(compute().cpu(), client.data.y.cpu()), of)
        client.storage.put(slot, stored)
    return stored.examples.to(client.device)
