"""Simulated uploads: a client's part of a round, repeated on examples that the auditor chooses."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from genfed.audits.audit import Case, NotPossible
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client
from genfed.core.phase import Phase, flatten_phases
from genfed.core.record import pack, unpack
from genfed.core.task import Data
from genfed.training.split_network import join_parts
from genfed.training.weights import build_classifier


class _Empty:
    """The storage of a client that has stored nothing."""

    def get(self, slot: Any) -> None:
        """See `ClientStorage`."""

    def put(self, slot: Any, record: Any) -> None:
        """See `ClientStorage`."""


def find_classifier_phase(case: Case) -> Phase[Any]:
    """Returns the first phase in which clients upload a classifier, whole or in two parts.

    Raises:
        NotPossible: there is none.
    """
    for phase in flatten_phases(case.method.phases()):
        if phase.work is not None and phase.rounds != 0:
            names = {f.name for f in fields(phase.wire_types.uploaded)}
            if "classifier" in names or {"extractor", "header"} <= names:
                return phase
    raise NotPossible(f"no client of {case.label} uploads a classifier")


def stand_in_client(case: Case, info: ClientInfo, data: Data, *purpose: str | int) -> Client:
    """Returns a client with these examples and an empty storage. `purpose` names its draws."""
    server = case.server("upload", info.id)
    return Client(
        info=replace(info, examples=len(data)),
        task=case.task,
        data=data.to(case.device),
        storage=_Empty(),
        rng=case.rng("upload", info.id, *purpose),
        seed=case.seed,
        device=case.device,
        precision=server.precision,
        new_network_of=server.new_network,
    )


def simulate_upload(case: Case, info: ClientInfo, data: Data, purpose: str) -> nn.Module:
    """Returns the classifier that a client with these examples would upload in one more round: in eval mode, on the
    case's device. `purpose` names the draws.

    Raises:
        NotPossible: clients upload no classifier, or one that is not of their architecture.
    """
    phase, server = find_classifier_phase(case), case.server("upload", info.id)
    assert phase.work is not None
    assert phase.send is not None
    client = stand_in_client(case, info, data, purpose)
    # Packed and unpacked as in a run: work may change in place what it is sent.
    sent = unpack(phase.wire_types.sent, pack(phase.send(server, case.state, info)))
    upload = phase.work(client, sent).upload
    weights = upload.classifier if hasattr(upload, "classifier") else join_parts(upload.extractor, upload.header)
    try:
        return build_classifier(server, info.architecture, weights).eval()
    except RuntimeError:  # for example of fedgen, which replaces the header
        raise NotPossible(f"what clients of {case.label} upload is no network of their architecture") from None


def draw_by_shares(data: Data, shares: torch.Tensor, count: int, rng: torch.Generator) -> Data:
    """Returns `count` examples, drawn with replacement, of classes drawn by their shares [classes]. Classes without
    examples in `data` are not drawn.
    """
    there = torch.bincount(data.y, minlength=len(shares)) > 0
    return draw_alike(data, torch.multinomial(shares * there, count, replacement=True, generator=rng), rng)


def draw_alike(data: Data, y: torch.Tensor, rng: torch.Generator) -> Data:
    """Returns one example of each of these classes [n], drawn with replacement.

    Raises:
        NotPossible: a class has no example.
    """
    rows = torch.empty_like(y)
    for c in torch.unique(y).tolist():
        of_class, places = torch.nonzero(data.y == c).flatten(), y == c
        if not len(of_class):
            raise NotPossible(f"the attacker has no held-out example of class {c}: more held-out examples would help")
        rows[places] = of_class[torch.randint(len(of_class), (int(places.sum()),), generator=rng)]
    return data[rows]
