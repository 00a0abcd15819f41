"""The statements that clients sign."""

import hashlib
import json
from collections.abc import Iterable, Mapping

from genfed.secure_aggregation.messages import MaskKeys

_PURPOSE = "genfed secure aggregation"


def state_keys(phase: str, group: str, client: int, keys: MaskKeys) -> bytes:
    """Returns the statement that public keys are those of a client, and what it says of itself with them."""
    return json.dumps([_PURPOSE, "keys", phase, group, client, *_list_fields(keys)]).encode()


def state_survivors(
    phase: str, group: str, keys: Mapping[int, MaskKeys], senders: Iterable[int], survivors: Iterable[int]
) -> bytes:
    """Returns the statement of what one round of a group is. The keys are new in each round, so that no two rounds have
    one statement.

    Args:
        phase: the phase.
        group: the group.
        keys: the public keys of all of the group, by client.
        senders: the clients whose shares were passed on.
        survivors: those of them whose upload is in the sum.
    """
    roster = [[client, *_list_fields(key)] for client, key in sorted(keys.items())]
    whole = [_PURPOSE, "survivors", phase, group, roster, sorted(senders), sorted(survivors)]
    return json.dumps(["", hashlib.sha256(json.dumps(whole).encode()).hexdigest()]).encode()


def _list_fields(keys: MaskKeys) -> list[str]:
    return [keys.sealing, keys.masking, keys.signing, keys.trial, keys.architecture, keys.before]


def fingerprint(statement: bytes) -> str:
    """Returns a short text that stands for a statement, or for the description of a trial."""
    return hashlib.sha256(statement).hexdigest()
