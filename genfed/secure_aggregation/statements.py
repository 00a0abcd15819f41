"""The statements that clients sign."""

import hashlib
import json
from collections.abc import Iterable, Mapping

from genfed.secure_aggregation.messages import MaskKeys

_PURPOSE = "genfed secure aggregation"


def state_keys(phase: str, group: str, client: int, sealing: str, masking: str, trial: str) -> bytes:
    """Returns the statement that two public keys are those of a client, for a trial as it was described to it.

    Args:
        phase: the phase.
        group: the group.
        client: the client's id.
        sealing: the key with which messages to it are sealed.
        masking: the key with which others agree on masks with it.
        trial: fingerprint of the description of the trial by which the client acts.
    """
    return json.dumps([_PURPOSE, "keys", phase, group, client, sealing, masking, trial]).encode()


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
    roster = [[client, key.sealing, key.masking, key.signing, key.trial] for client, key in sorted(keys.items())]
    whole = [_PURPOSE, "survivors", phase, group, roster, sorted(senders), sorted(survivors)]
    return json.dumps(["", hashlib.sha256(json.dumps(whole).encode()).hexdigest()]).encode()


def fingerprint(statement: bytes) -> str:
    """Returns a short text that stands for a statement, or for the description of a trial."""
    return hashlib.sha256(statement).hexdigest()
