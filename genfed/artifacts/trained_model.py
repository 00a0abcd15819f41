"""What a run trained: a trial chosen by name, and a client's classifier as it was scored, from the folder alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, first_line
from genfed.core.federated_data import FederatedData
from genfed.core.task import Data, Task
from genfed.engines.client_runner import use_threads
from genfed.experiment import partitioning
from genfed.experiment.checkpoint import Checkpoint, read_checkpoint
from genfed.experiment.inputs import data_fingerprint, load_data, load_public
from genfed.experiment.local_clients import load_classifier
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import Trial, new_trial
from genfed.report.metrics_log import read_metrics as read_metrics
from genfed.report.results import EVALUATE, Row


@dataclass(frozen=True)
class SelectedTrial:
    """One trial of a run, and where it stands."""

    run: RunFolder
    config: Config
    label: str
    seed: int
    at: Checkpoint[Any]


@dataclass(frozen=True)
class TrainedModel:
    """A client's classifier."""

    chosen: SelectedTrial
    info: ClientInfo
    clients: int
    """How many the trial has, by number from 0."""
    network: nn.Module
    """On the CPU, in eval mode; [n, *task.shape] on the scale of `normalize_pixels` → scores [n, classes]."""
    architecture: str | None
    """The name that makes such a network; None: the method made something of its own."""
    accuracy: float | None
    """At the last evaluation; None: it has been trained since, or never scored."""

    def __str__(self) -> str:
        return f"{self.chosen.label}, seed {self.chosen.seed}, client {self.info.id} ({self.info.architecture})"


def select_trial(
    run: RunFolder, config: Config, method: str | None, seed: int | None, among: Sequence[str], what: str = "methods"
) -> SelectedTrial:
    """The trial of that method (None: the only one of the labels `among`) and seed (None: the first); `what` names the
    labels `among` in a message.

    Raises:
        GenfedError: no such trial, several methods and none named, or no checkpoint.
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
    """The classifier of a client as `evaluate` makes it, from the last checkpoint and what the client kept. Data are
    read only where the method looks at them for it.

    Raises:
        GenfedError: no such client, damaged files, or data that are needed and gone.
    """
    config, label, at = chosen.config, chosen.label, chosen.at
    file = chosen.run.metrics
    rows = [
        row
        for row in (read_metrics(file) if file.exists() else [])
        if (row["method"], row["seed"]) == (label, chosen.seed) and row["client"] is not None
    ]
    clients = _clients(chosen, rows)
    shards = _read(chosen).shards if clients is None else _without_data(at.task, clients)
    info = next((info for info in shards.clients if info.id == client), None)
    if info is None:
        there = ", ".join(f"{i.id} ({i.architecture})" for i in shards.clients[:20])
        more = f", … {shards.clients[-1].id}" if len(shards.clients) > 20 else ""
        raise GenfedError(f"{label} has no client {client} (there are: {there}{more})")
    names = {info.architecture: None}
    with use_threads(config.compute.threads):
        try:
            network = _classifier(_trial(chosen, shards, _NotRead()), at, info, names)
        except GenfedError:
            raise
        except Exception:  # it looks at data, or fails by itself, which is seen when it has them
            trial = _read(chosen)
            try:
                network = _classifier(trial, at, info, names)
            except GenfedError:
                raise
            except Exception as error:
                about = f"{type(error).__name__}: {first_line(error)}"
                raise GenfedError(f"{label} cannot make the classifier of client {client} ({about})") from error
        return TrainedModel(
            chosen,
            info,
            len(shards.clients),
            network,
            _architecture(network, list(names), at.task),
            _accuracy(rows, at, client),
        )


class _NotRead(Data):
    """Stands for examples that were not read; whoever looks at them fails."""

    def __init__(self) -> None:
        pass

    def __getitem__(self, rows: object) -> "_NotRead":
        return self

    def to(self, device: torch.device) -> "_NotRead":
        return self


def _without_data(task: Task, clients: tuple[ClientInfo, ...]) -> FederatedData:
    return FederatedData(task, clients, ((0, 0),) * len(clients), _NotRead(), _NotRead())


def _trial(chosen: SelectedTrial, shards: FederatedData, public: Any) -> Trial:
    """On the CPU, wherever it was trained."""
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


def _read(chosen: SelectedTrial) -> Trial:
    """The trial with its data."""
    config, label, seed = chosen.config, chosen.label, chosen.seed
    try:
        dataset = load_data(config)
        public = load_public(config, dataset.task)
        shards = partitioning.partition_data(config, dataset, seed)
    except GenfedError as error:
        why = f"{label}: its classifier is made with the run's data, which cannot be read"
        raise GenfedError(f"{why}: {error}") from None
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
        raise GenfedError(f"{label}: its classifier is made with the run's data, which are others than they were")
    return _trial(chosen, same.shards, public)


def _classifier(trial: Trial, at: Checkpoint[Any], info: ClientInfo, names: dict[str, None]) -> nn.Module:
    """As the last evaluation made it; the architectures that were asked for are added to `names`."""

    def new_network(architecture: str, task: Task, rng: torch.Generator) -> nn.Module:
        names[architecture] = None
        return trial.new_network(architecture, task, rng)

    return load_classifier(replace(trial, new_network=new_network), at, info).eval()


def _clients(chosen: SelectedTrial, rows: Sequence[Row]) -> tuple[ClientInfo, ...] | None:
    """Everybody, as the metrics have them; None where they lack one."""
    names = partitioning.assign_architectures(chosen.config.federation.architectures, chosen.config.federation.clients)
    count = len(set(names)) if chosen.config.method[chosen.label].pooled else len(names)
    found = {row["client"]: ClientInfo(row["client"], row["architecture"], row["examples"]) for row in rows}
    return tuple(found[i] for i in range(count)) if found.keys() == set(range(count)) else None


def _accuracy(rows: Sequence[Row], at: Checkpoint[Any], client: int) -> float | None:
    if at.scored != at.step:
        return None
    own = (r for r in rows if (r["phase"], r["round"], r["client"]) == (EVALUATE, at.evaluations - 1, client))
    row = next(own, None)
    return None if row is None else sum(row["correct"]) / sum(row["total"])


@torch.no_grad()
def _architecture(network: nn.Module, names: Sequence[str], task: Task) -> str | None:
    """The name whose network computes the same with the same weights."""
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
