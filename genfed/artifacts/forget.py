"""`genfed forget`: a finished run as it would be if a client had never taken part, written to a new folder."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genfed.artifacts.trained_model import SelectedTrial, read_rows, select_trial
from genfed.config.architectures import Architectures
from genfed.config.reader import to_toml
from genfed.config.settings import Config, Federation
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.files import make_folder, write_file
from genfed.core.phase import Phase, flatten_phases
from genfed.core.record import save
from genfed.data.dataset import Dataset
from genfed.data.encoder import fingerprint_encoder
from genfed.data.sites import Sites
from genfed.engines.client_runner import use_threads
from genfed.engines.messages import RoundId
from genfed.experiment import partitioning
from genfed.experiment import run as runs
from genfed.experiment.checkpoint import STATE, Checkpoint
from genfed.experiment.checks import check_excluded
from genfed.experiment.inputs import data_fingerprint, load_data, load_public
from genfed.experiment.local_clients import new_runner
from genfed.experiment.progress import Progress
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import Trial, new_trial, trial_server
from genfed.report.metrics_log import digest_rows
from genfed.report.results import Report, Row


@dataclass(frozen=True)
class Forgotten:
    """A run without a client."""

    report: Report
    removed: tuple[str, ...]
    """Labels of the methods from which the client was removed exactly, without training again."""
    retrained: tuple[str, ...]
    """Labels of the methods that were trained again without the client."""


def forget(
    run: Path, client: int, out: Path, notify: Callable[[Progress], None] = lambda progress: None, command: str = ""
) -> Forgotten:
    """Writes a run as it would be if a client had not taken part: `federation.excluded` names it. Methods that can
    remove the client from what they have learned do so; the others are trained again. Either way every state is that of
    a run without the client, to the bit. Killed, it goes on when it is called again.

    Args:
        run: the folder of a finished run on this machine. It is not changed.
        client: number of the client.
        out: the folder to write.
        notify: called whenever a client has answered.
        command: the command that was given.

    Raises:
        GenfedError: the run is not finished, is one of sites or has privacy noise, there is no such client, or examples
            are encoded by numbers that the client's are in.
    """
    old = RunFolder(run.absolute())
    old.read_report()  # of a finished run
    config = old.read_config()
    _check(config, client)
    without = replace(config, federation=_exclude(config, client))
    new = RunFolder(out.absolute())
    exact = tuple(label for label in config.labels if _is_exact(old, config, label))
    if not new.config.exists():
        new.check_existing("resume")
        part = new.path.with_name(f".{new.path.name}.part")  # whole or not there, whenever this is killed
        shutil.rmtree(part, ignore_errors=True)
        with use_threads(config.compute.threads):
            _remove(old, RunFolder(part), config, without, exact, client, command)
        shutil.rmtree(new.path, ignore_errors=True)  # an empty one
        part.rename(new.path)
    report = runs.run(without, out=new.path, on_existing="resume", notify=notify, command=command)
    return Forgotten(report, exact, tuple(label for label in config.labels if label not in exact))


def _check(config: Config, client: int) -> None:
    if isinstance(config.data, Sites):
        raise GenfedError("this is a run of sites, whose examples are not here: serve it again without that site")
    if config.privacy is not None:
        raise GenfedError(
            "the run has differential privacy, whose noise hides every client already; a run without the client would "
            "be a second release, with a budget of its own"
        )
    known = [i for i in range(config.federation.clients) if i not in (config.federation.excluded or ())]
    if client not in known:
        raise GenfedError(f"there is no client {client}; there are: {', '.join(map(str, known))}")


def _exclude(config: Config, client: int) -> Federation:
    return replace(config.federation, excluded=tuple(sorted({*(config.federation.excluded or ()), client})))


def _is_exact(old: RunFolder, config: Config, label: str) -> bool:
    """Returns whether a method removes a client exactly in this run: its uploads were reduced as it says, and those of
    all clients are in what it has learned. A client that failed would have been there in a run without the other.
    """
    changed = config.attack is not None or config.aggregation is not None or config.federation.client_fraction < 1
    if changed or not config.method[label].forgets():
        return False
    kept = set(partitioning.list_kept(config.federation))
    return all(_list_uploads(old, config, label, seed) == kept for seed in config.seeds)


def _list_uploads(old: RunFolder, config: Config, label: str, seed: int) -> set[int]:
    """Returns the clients whose uploads of the first phase were used."""
    rows = _first_rows(select_trial(old, config, label, seed, config.labels))
    return {row["client"] for row in rows if row["client"] is not None}


def _first_rows(chosen: SelectedTrial) -> list[Row]:
    """Returns the rows of metrics of a trial's first phase.

    Raises:
        GenfedError: the rows of the trial are not those that its checkpoint counts on.
    """
    first, *_ = flatten_phases(chosen.config.method[chosen.label].phases())
    return [row for row in read_rows(chosen) if row["phase"] == first.name]


def _remove(
    old: RunFolder, new: RunFolder, config: Config, without: Config, exact: tuple[str, ...], client: int, command: str
) -> None:
    """Writes the checkpoints, rows and config of the new run."""
    dataset, rows = load_data(config), list[Row]()
    for seed in config.seeds:
        check_excluded(without, dataset, partitioning.partition_data(without, dataset, seed).train)
    make_folder(new.path)
    new.begin(runs.describe_start(command or None, without, fingerprint_encoder(dataset.encoder)))
    for label in exact:
        for seed in config.seeds:
            chosen = select_trial(old, config, label, seed, config.labels)
            rows += _remove_from(chosen, new, without, dataset, client)
    write_file(new.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    write_file(new.config, to_toml(without), durable=True)


def _remove_from(chosen: SelectedTrial, new: RunFolder, without: Config, dataset: Dataset, client: int) -> list[Row]:
    """Writes the checkpoint of a trial after its first phase, without the client; returns its rows of metrics."""
    before = _new_trial(
        chosen.config, chosen, chosen.run, partitioning.partition_data(chosen.config, dataset, chosen.seed)
    )
    after = _new_trial(without, chosen, new, partitioning.partition_data(without, dataset, chosen.seed))
    if before.identity != chosen.at.trial:
        raise GenfedError(f"{chosen.run}: its data or its settings have changed; forgetting needs the same")
    info = next(info for info in before.shards.clients if info.id == client)
    first, *_ = flatten_phases(before.method.phases())
    state = before.method.forget(
        trial_server(after, 0, first.name, 0, "update"), chosen.at.state, info, lambda: _upload(before, first, info)
    )
    rows = [row for row in _first_rows(chosen) if row["client"] != client]
    make_folder(after.folder)
    at = Checkpoint(
        after.identity, after.shards.task, 1, (1,), 0, -1, state, rows=len(rows), rows_digest=digest_rows(rows)
    )
    save(at, after.folder / STATE)
    return rows


def _new_trial(config: Config, chosen: SelectedTrial, folder: RunFolder, shards: FederatedData) -> Trial:
    public = load_public(config, shards.task)
    return new_trial(
        config,
        chosen.label,
        chosen.seed,
        folder=folder,
        shards=shards,
        new_network=Architectures().new,
        fingerprint=data_fingerprint(shards, public),
        public=public,
    )


def _upload(trial: Trial, phase: Phase[Any], info: ClientInfo) -> Any:
    """Makes a client's upload of the first round again."""
    server = trial_server(trial, 0, phase.name, 0, "send")
    assert phase.send is not None
    assert phase.work is not None
    state = trial.method.init(trial_server(trial, 0, "init"))
    client: Client = new_runner(trial).make_scored_client(RoundId(phase.name, 0, 0), info.id)
    return phase.work(replace(client, storage=_Forgetful()), phase.send(server, state, info)).upload


class _Forgetful:
    """A client's storage of which nothing is used again."""

    def get(self, slot: Any) -> None:
        """See `ClientStorage`."""

    def put(self, slot: Any, record: Any) -> None:
        """See `ClientStorage`."""
