"""Audits of a finished trial: the case that an audit attacks, shadows of the trial, and the results."""

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genfed.audits.audit import Audit, Case, ClientExamples, NotPossible
from genfed.audits.findings import AuditResult, Audits, Exchanged, Picture, ReportImage
from genfed.config.reader import flatten_settings
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData, PersonalTestSet
from genfed.core.method import Method
from genfed.core.phase import flatten_phases
from genfed.core.record import digest, pack
from genfed.core.rng import derive, stream
from genfed.core.task import Data
from genfed.data.features import TableSchema
from genfed.engines.in_process import InProcess
from genfed.experiment.checkpoint import STATE, Checkpoint, counted_rows, read_checkpoint
from genfed.experiment.local_clients import load_classifier, new_runner
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import Trial, trial_server
from genfed.experiment.trial_loop import TrialLoop
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.report.images import encode_png
from genfed.report.metrics_log import read_metrics
from genfed.report.privacy_section import write_audits
from genfed.report.results import EVALUATE, Row
from genfed.robustness.robust_mean import AggregationRule, make_robust
from genfed.training.synthetic_dataset import choose_as_many, keeps_synthetic_dataset

AT_ONCE = 1000
"""Number of examples that are generated at once."""
Notify = Callable[[str], None]
OUTSIDE = (
    "This attacker is the server, which reads an upload before it is clipped and gets noise. ε does not protect "
    "against this attacker. It protects against those who see what the server sends."
)
"""Note on attacks on uploads under client-level privacy."""


def _digest_state(folder: Path) -> str:
    """Returns 32 hexadecimal digits of the checkpoint in a trial's folder."""
    with (folder / STATE).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def audit_trial(
    trial: Trial, audits: Mapping[str, Audit], folder: RunFolder, notify: Notify = lambda line: None
) -> None:
    """Audits a finished trial, and adds each result to the run's audits.json as soon as it is known. An audit is
    skipped if the file already has its result with the same settings, number of rounds and state.

    Args:
        trial: the trial.
        audits: the audits, by label.
        folder: the folder of the run.
        notify: called with a line of text for each audit and each model that it trains.
    """
    before = folder.read_audits()
    rest = [s for s in before.shared if s.method != trial.label]
    found = Audits((*rest, *describe_trial_exchanges(trial, trial.guarantee())), before.results)
    at, state = (read_checkpoint(trial.method, trial.folder), _digest_state(trial.folder)) if audits else (None, "")
    for label, audit in audits.items():
        mine = (label, trial.label, trial.seed)
        old = next((r for r in found.results if (r.audit, r.method, r.seed) == mine), None)
        if old and at and (old.settings, old.step) == (_settings(audit), at.step) and old.state in ("", state):
            continue
        notify(f"{label} on {trial.label}, seed {trial.seed}")
        new = replace(run_audit(trial, label, audit, folder, notify), state=state)
        others = [r for r in found.results if (r.audit, r.method, r.seed) != mine]
        found = replace(found, results=(*others, new))
        write_audits(found, folder.path)
        shutil.rmtree(folder.shadows, ignore_errors=True)


def describe_trial_exchanges(trial: Trial, protection: PrivacyGuarantee | None) -> list[Exchanged]:
    """Returns the records that each phase of a finished trial sent, and their protection.

    Args:
        trial: the trial.
        protection: its privacy guarantee. None: it has none.
    """
    at = read_checkpoint(trial.method, trial.folder)
    names = [phase.name for phase in flatten_phases(trial.method.phases())]
    # A checkpoint does not count phases that have not begun: they had no rounds.
    ran = {name for name, rounds in zip_longest(names, at.rounds if at else (), fillvalue=0) if rounds}
    found = describe_exchanges(
        trial.label, trial.method, _describe_guarantee(protection), trial.aggregation, trial.secure is not None
    )
    return [each for each in found if each.phase in ran or each.phase not in names]


def _describe_guarantee(found: PrivacyGuarantee | None) -> str:
    """Returns a few words on the privacy guarantee, without ε, which is shown for all seeds. Empty: there is none."""
    if found is None or found.epsilon is None or found.reproducible_noise:
        return ""
    if found.clipped:  # sums
        who = "clients add" if found.distributed else "the server, which can read every upload, adds"
        return f"{who} noise to the sums of clipped examples: ε protects every example" + (
            ", also against the server" if found.distributed else " against others"
        )
    if found.distributed:
        return "clients clip and add noise: ε protects every client, also against the server"
    if found.level == "client":
        return "the server, which can read every upload, clips and adds noise: ε protects every client against others"
    return "DP-SGD: ε protects every example"


def _settings(audit: Audit) -> dict[str, Any]:
    """Returns the settings of an audit as JSON values."""
    settings: dict[str, Any] = json.loads(json.dumps(flatten_settings(audit)))
    return settings


def run_audit(
    trial: Trial, label: str, audit: Audit, folder: RunFolder, notify: Notify = lambda line: None
) -> AuditResult:
    """Returns the result of one audit of a finished trial. See `audit_trial` for the arguments.

    Raises:
        GenfedError: the trial has no checkpoint, or a shadow of it could not be trained.
    """
    at = read_checkpoint(trial.method, trial.folder)
    if at is None:
        raise GenfedError(f"{trial.label} with seed {trial.seed} has no checkpoint to audit")
    begun = time.perf_counter()
    about = AuditResult(
        label, trial.label, trial.seed, at.step, audit.sees, audit.attacker, _settings(audit), seconds=0.0
    )
    if trial.privacy is not None and "uploads" in audit.sees:
        return replace(
            about, not_possible="clients trained by DP-SGD; this attack needs uploads of training without it"
        )
    if trial.secure is not None and "uploads" in audit.sees:
        return replace(about, not_possible="uploads were sent under masks: no single upload can be attacked")
    try:
        encoder = folder.read_encoder()
        categories = encoder.places if isinstance(encoder, TableSchema) else {}
        rows = read_metrics(folder.metrics)
        counted = counted_rows(rows, trial.label, trial.seed, at, folder.metrics, trial.folder)
        case = audit_case(trial, at, find_last_rounds(counted), folder.shadows, notify)
        case = replace(case, categories=categories)
        found = audit.examine(case.as_seen(audit.sees))
    except NotPossible as why:
        return replace(about, not_possible=str(why))
    outside = trial.round_noise is not None and "uploads" in audit.sees
    return replace(
        about,
        seconds=time.perf_counter() - begun,
        readings=found.readings,
        sizes=found.sizes,
        notes=(*found.notes, *([OUTSIDE] if outside else [])),
        images=tuple(map(_encode_picture, found.pictures)),
    )


def find_last_rounds(rows: Iterable[Row]) -> dict[int, dict[str, int]]:
    """Returns for each client the last round of each phase in which it took part and was not excluded, given the rows
    of a trial. The evaluation is no such phase.
    """
    found = defaultdict[int, dict[str, int]](dict)
    for row in rows:
        if row["client"] is not None and row["phase"] != EVALUATE:
            found[row["client"]][row["phase"]] = row["round"]
    return dict(found)


def audit_case(
    trial: Trial,
    at: Checkpoint[Any],
    rounds: Mapping[int, Mapping[str, int]],
    folder: Path,
    notify: Notify = lambda line: None,
) -> Case:
    """Returns the case that an audit attacks.

    Args:
        trial: the trial.
        at: its checkpoint.
        rounds: as `find_last_rounds` returns them. The other clients are not attacked.
        folder: where shadows are trained.
        notify: called with a line of text for each shadow.

    Raises:
        NotPossible: no client took part.
    """
    shards = trial.shards
    if not rounds:
        raise NotPossible(f"no client took part in a round of {trial.label}")

    def retrained(number: int, examples: Sequence[Data]) -> Case:
        notify(f"shadow {number + 1}")
        own = zip((info.id for info in shards.clients if info.id in rounds), examples, strict=True)
        shadow = _shadow(trial, number, dict(own), folder)
        return audit_case(shadow, _train(shadow), rounds, folder)

    whole = Case(
        label=trial.label,
        method=trial.method,
        task=shards.task,
        seed=trial.seed,
        device=torch.device(trial.compute.device),
        train=shards.train,
        held_out=shards.held_out,
        holdings=_list_holdings(shards, rounds),
        server=lambda *path: trial_server(trial, 0, "audit", *path),
        state=at.state,
        samples=functools.partial(_sample, trial, at.state),
        classifier=functools.partial(_load_network, trial, at),
        retrained=retrained,
        features=functools.partial(_represent, trial, at.state) if trial.method.of_features else None,
        notify=notify,
    )
    return replace(whole.limit_to([each for each in whole.holdings if each.rounds]), retrained=retrained)


def _represent(trial: Trial, state: Any, data: Data) -> Data:
    """Returns the features of examples by which the method classifies them."""
    return Data(trial.method.represent(trial_server(trial, 0, "audit", "features"), state, data.x), data.y)


def _load_network(trial: Trial, at: Checkpoint[Any], info: ClientInfo) -> nn.Module:
    """Returns the classifier of a client."""
    return load_classifier(trial, at, info).cpu().eval()


def _train(shadow: Trial) -> Checkpoint[Any]:
    """Trains a shadow to its end, from its last checkpoint if it has one, and returns the last."""
    before = read_checkpoint(shadow.method, shadow.folder)
    if before and before.trial != shadow.identity:  # of an interrupted audit with other settings
        shutil.rmtree(shadow.folder)
    TrialLoop(shadow, InProcess(new_runner(shadow)), lambda rows: None, lambda progress: None).finish()
    done = read_checkpoint(shadow.method, shadow.folder)
    assert done is not None
    return done


def _list_holdings(shards: FederatedData, rounds: Mapping[int, Mapping[str, int]]) -> tuple[ClientExamples, ...]:
    """Returns the examples of all clients; `rounds` as in `audit_case`."""
    return tuple(
        ClientExamples(info, torch.arange(*place), _personal_rows(shards.own.get(info.id, ())), rounds.get(info.id, {}))
        for info, place in zip(shards.clients, shards.ranges, strict=True)
    )


def _personal_rows(own: Sequence[PersonalTestSet]) -> Tensor | None:
    """Returns the held-out rows that resemble a client's data. None: all rows do."""
    rows = [each.rows for each in own if each.rows is not None]
    return torch.unique(torch.cat(rows)) if rows else None


def _sample(trial: Trial, state: Any, y: Tensor, purpose: str) -> Data:
    """Returns generated examples of the classes y, or stored ones if the server stores a synthetic set.

    Raises:
        NotPossible: the trial has neither.
    """
    if trial.method.generates or trial.method.of_features:
        server = trial_server(trial, 0, "audit", purpose)
        with torch.inference_mode():
            parts = [trial.method.generate(server, state, some).float().cpu() for some in torch.split(y, AT_ONCE)]
        return Data(torch.cat(parts).clone(), y)
    if not keeps_synthetic_dataset(trial.method):
        raise NotPossible(f"{trial.label} has no generator of examples, and its server stores no synthetic set")
    server = trial_server(trial, 0, "audit", purpose)
    labels = state.synthetic.requested(server).labels
    rows = choose_as_many(labels, y, stream(trial.seed, "audit", purpose, "stored"))
    stored: Data = state.synthetic.read(server, rows).data
    return stored


def _shadow(trial: Trial, number: int, examples: Mapping[int, Data], folder: Path) -> Trial:
    """Returns the trial with other random numbers and, of some clients, other examples.

    Args:
        trial: the trial.
        number: number of the shadow.
        examples: the other examples, by client.
        folder: where its checkpoint is written.
    """
    before = trial.shards
    parts = [
        examples.get(info.id, before.train[slice(*place)])
        for info, place in zip(before.clients, before.ranges, strict=True)
    ]
    stops = torch.tensor([len(data) for data in parts]).cumsum(0).tolist()
    shards = replace(
        before,
        clients=tuple(replace(info, examples=len(data)) for info, data in zip(before.clients, parts, strict=True)),
        ranges=tuple(zip([0, *stops[:-1]], stops, strict=True)),
        train=Data(torch.cat([data.x for data in parts]), torch.cat([data.y for data in parts])),
        own={},
    )
    identity = f"{trial.identity}-shadow-{number}-{digest(pack(shards.train))}"
    return replace(
        trial,
        seed=derive(trial.seed, "audit", "shadow", number),
        selected_by=trial.seed,
        shards=shards,
        folder=folder / f"{trial.label}-{trial.seed}-{number}",
        identity=identity,
        evaluate_every=0,
        counts_flops=False,
    )


def describe_exchanges(
    label: str, method: Method[Any], private: str = "", aggregation: AggregationRule | None = None, secure: bool = False
) -> list[Exchanged]:
    """Returns the fields that each phase of a method sends to clients and to the server, and their protection.

    Args:
        label: label of the method.
        method: the method.
        private: words on the privacy guarantee of all trainings. Empty: there is none.
        aggregation: robust rule that replaces means. None: the means that the method defines.
        secure: whether uploads are summed by secure aggregation.
    """
    found = []
    if method.pooled:
        found.append(Exchanged(label, "before training", "", "all training examples (an upper bound, no federation)"))
    for phase in {phase.name: phase for phase in flatten_phases(method.phases())}.values():
        if phase.work is None:
            found.append(Exchanged(label, phase.name, "", ""))
            continue
        down = ", ".join(field.name for field in dataclasses.fields(phase.wire_types.sent))
        aggregates = make_robust(phase, aggregation).aggregate
        up = ", ".join(f"{name} ({aggregate.describe()})" for name, aggregate in aggregates.items())
        hidden = "under masks: the server learns only the sum, and no loss" if secure and phase.aggregate else ""
        found.append(
            Exchanged(label, phase.name, down, up, "; ".join(filter(None, (private, phase.protection, hidden))))
        )
    return found


def _encode_picture(picture: Picture) -> ReportImage:
    shown = [encode_png(row) for row in picture.images]
    count, _, height, width = picture.images.shape[1:]
    return ReportImage(picture.caption, picture.rows, tuple(shown), count * width * max(1, round(36 / height)))
