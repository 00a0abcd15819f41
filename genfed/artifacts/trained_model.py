"""A trial of a run selected by name, and a client's trained classifier, both read from the run's folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import nn

from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, describe_error
from genfed.core.federated_data import FederatedData
from genfed.core.task import Data, Task
from genfed.data.sites import Sites
from genfed.engines.client_runner import use_threads
from genfed.experiment import partitioning
from genfed.experiment.checkpoint import Checkpoint, counted_rows, read_checkpoint
from genfed.experiment.evaluation import NoStorage
from genfed.experiment.inputs import data_fingerprint, load_data, load_public
from genfed.experiment.local_clients import load_classifier
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import Trial, new_trial
from genfed.report.metrics_log import read_metrics as read_metrics
from genfed.report.results import EVALUATE, ClientScore, Row
from genfed.report.summarize import read_score


@dataclass(frozen=True)
class SelectedTrial:
    """One trial of a run, and its last checkpoint."""

    run: RunFolder
    config: Config
    label: str
    seed: int
    at: Checkpoint[Any]


@dataclass(frozen=True)
class TrainedModel:
    """A client's trained classifier."""

    chosen: SelectedTrial
    info: ClientInfo
    clients: int
    """Number of clients in the trial; they are numbered from 0."""
    network: nn.Module
    """On the CPU, in eval mode; [n, *task.shape] on the scale of `normalize_pixels` → scores [n, classes]."""
    architecture: str | None
    """Name of an architecture that builds such a network. None: no name does, the network is the method's own."""
    score: ClientScore | None
    """What it scored at the last evaluation. None: the classifier has been trained since, or never evaluated."""

    def __str__(self) -> str:
        return f"{self.chosen.label}, seed {self.chosen.seed}, client {self.info.id} ({self.info.architecture})"


def select_trial(
    run: RunFolder, config: Config, method: str | None, seed: int | None, among: Sequence[str], what: str = "methods"
) -> SelectedTrial:
    """Returns one trial of a run.

    Args:
        run: folder of the run.
        config: its config.
        method: label of a method. None: the only one in `among`.
        seed: None: the first.
        among: labels to choose from where `method` is None.
        what: what these labels are, for a message.

    Raises:
        GenfedError: there is no such trial, several methods and none was named, or no checkpoint.
    """
    if method is None and len(among) != 1:
        raise GenfedError(f"{run}: name one of its {what} by --method (there are: {', '.join(among)})")
    label = among[0] if method is None else method
    if label not in config.method:
        raise GenfedError(registry.explain_unknown(label, config.labels, f"{run} has no method"))
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise GenfedError(f"{run} has no seed {seed} (there are: {', '.join(map(str, config.seeds))})")
    at = read_checkpoint(config.method[label], run.trial(label, seed))
    if at is None:
        raise GenfedError(f"{run}: {label} with seed {seed} has no checkpoint yet")
    return SelectedTrial(run, config, label, seed, at)


def load_trained(chosen: SelectedTrial, client: int) -> TrainedModel:
    """Returns the classifier of a client as the evaluation builds it, from the last checkpoint and what the client
    stored. Data are read only where the method says so (`Method.classifier_reads_data`) or where the metrics do not
    list all clients yet.

    Raises:
        GenfedError: there is no such client, files are damaged, data that are needed cannot be read, or the client's
            site keeps what the classifier is made of.
    """
    config, label, at = chosen.config, chosen.label, chosen.at
    rows = [row for row in read_rows(chosen) if row["client"] is not None]
    clients = None if config.method[label].classifier_reads_data else _list_clients(chosen, rows)
    trial = _trial_with_data(chosen) if clients is None else _trial_without_data(chosen, clients)
    info, storage = _find_client(trial, client), _storage_at_site(chosen, client)
    names = {info.architecture: None}

    def new_network(architecture: str, task: Task, rng: torch.Generator) -> nn.Module:
        names[architecture] = None
        return trial.new_network(architecture, task, rng)

    with use_threads(config.compute.threads):
        try:
            network = load_classifier(replace(trial, new_network=new_network), at, info, storage).eval()
        except (GenfedError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a method's own code may fail in any way
            about = describe_error(error)
            raise GenfedError(f"{label} cannot make the classifier of client {client} ({about})") from error
        return TrainedModel(
            chosen,
            info,
            len(trial.shards.clients),
            network,
            _find_architecture(network, list(names), at.task),
            _last_score(rows, at, client),
        )


def _storage_at_site(chosen: SelectedTrial, client: int) -> NoStorage | None:
    """Returns what refuses to be read in the place of a client's records that its site keeps. None: they are here."""
    if not isinstance(chosen.config.data, Sites):
        return None
    return NoStorage(f"{chosen.label}: the site of client {client} keeps its classifier, and the server has no part")


def read_rows(chosen: SelectedTrial) -> list[Row]:
    """Returns the rows of the metrics of a trial.

    Raises:
        GenfedError: they are not those that the checkpoint counts on.
    """
    file, folder = chosen.run.metrics, chosen.run.trial(chosen.label, chosen.seed)
    rows = read_metrics(file) if file.exists() else []
    return list(counted_rows(rows, chosen.label, chosen.seed, chosen.at, file, folder))


def _find_client(trial: Trial, client: int) -> ClientInfo:
    """Returns the client with this number.

    Raises:
        GenfedError: there is none.
    """
    clients = trial.shards.clients
    if (info := next((info for info in clients if info.id == client), None)) is not None:
        return info
    there = ", ".join(f"{i.id} ({i.architecture})" for i in clients[:20])
    more = f", … {clients[-1].id}" if len(clients) > 20 else ""
    raise GenfedError(f"{trial.label} has no client {client} (there are: {there}{more})")


class _UnreadData(Data):
    """Stands for examples that were not read. Any use of them is refused."""

    def __init__(self) -> None:
        pass

    def __getitem__(self, rows: object) -> "_UnreadData":
        return self

    def to(self, device: torch.device) -> "_UnreadData":
        return self

    def __getattr__(self, name: str) -> NoReturn:
        raise GenfedError(
            "the method uses data to build a classifier, but does not say so: set classifier_reads_data = True in its "
            "class"
        )


def _trial_without_data(chosen: SelectedTrial, clients: tuple[ClientInfo, ...]) -> Trial:
    unread = _UnreadData()
    return _trial(chosen, FederatedData(chosen.at.task, clients, ((0, 0),) * len(clients), unread, unread), unread)


def _trial(chosen: SelectedTrial, shards: FederatedData, public: Any) -> Trial:
    """Returns the trial on the CPU, on whichever device it was trained."""
    config, label, seed = chosen.config, chosen.label, chosen.seed
    return Trial(
        label=label,
        seed=seed,
        method=config.method[label],
        shards=shards,
        folder=chosen.run.trial(label, seed),
        identity=chosen.at.trial,
        federation=config.federation,
        compute=replace(config.compute, device="cpu"),
        new_network=Architectures().new,
        evaluate_every=config.evaluation.every,
        public=None if config.public is None else public,
    )


def _trial_with_data(chosen: SelectedTrial) -> Trial:
    """Returns the trial with the run's data.

    Raises:
        GenfedError: they cannot be read, or have changed since the run.
    """
    config, label, seed = chosen.config, chosen.label, chosen.seed
    try:
        dataset = load_data(config)
        public = load_public(config, dataset.task)
        shards = partitioning.partition_data(config, dataset, seed)
    except GenfedError as error:
        why = "the run's data are needed for its classifier and cannot be read"
        raise GenfedError(f"{label}: {why}: {error}") from None
    same = new_trial(
        config,
        label,
        seed,
        folder=chosen.run,
        shards=shards,
        new_network=Architectures().new,
        fingerprint=data_fingerprint(shards, public),
    )
    if same.identity != chosen.at.trial:
        raise GenfedError(f"{label}: the run's data are needed for its classifier and have changed since the run")
    return _trial(chosen, same.shards, public)


def _list_clients(chosen: SelectedTrial, rows: Sequence[Row]) -> tuple[ClientInfo, ...] | None:
    """Returns all clients as the metrics list them. None: the metrics lack a client."""
    names = partitioning.assign_architectures(chosen.config.federation.architectures, chosen.config.federation.clients)
    count = len(set(names)) if chosen.config.method[chosen.label].pooled else len(names)
    found = {row["client"]: ClientInfo(row["client"], row["architecture"], row["examples"]) for row in rows}
    return tuple(found[i] for i in range(count)) if found.keys() == set(range(count)) else None


def _last_score(rows: Sequence[Row], at: Checkpoint[Any], client: int) -> ClientScore | None:
    """Returns what the client scored at the last evaluation. None: it has been trained since, or never evaluated."""
    if at.scored != at.step:
        return None
    own = (r for r in rows if (r["phase"], r["round"], r["client"]) == (EVALUATE, at.evaluations - 1, client))
    row = next(own, None)
    return None if row is None else read_score(row)


@torch.no_grad()
def _find_architecture(network: nn.Module, names: Sequence[str], task: Task) -> str | None:
    """Returns the first of the architectures that computes the same as the network with the same weights. None: none
    of them does.
    """
    rng, weights = torch.Generator().manual_seed(0), network.state_dict()
    x = torch.rand(3, *task.shape, generator=rng) * 2 - 1
    for name in names:
        other = Architectures().new(name, task, rng).eval()
        shapes = {key: value.shape for key, value in other.state_dict().items()}
        if type(other) is type(network) and shapes == {key: value.shape for key, value in weights.items()}:
            other.load_state_dict(weights)
            if torch.equal(other(x), network(x)):
                return name
    return None
