"""The clients of a run on this machine, as the main process and its workers both see them."""

import contextlib
import functools
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config, to_toml
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import ClientStorage
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.files import open_file
from genfed.core.phase import flatten_phases
from genfed.core.record import load, save
from genfed.data.dataset import Dataset
from genfed.engines.client_runner import ClientRunner, ClientRuntime
from genfed.engines.in_process import InProcess
from genfed.engines.messages import RoundId
from genfed.engines.round import Engine
from genfed.engines.worker_pool import WorkerPool
from genfed.experiment import partitioning
from genfed.experiment.checkpoint import Checkpoint
from genfed.experiment.environment import count_workers, python_command
from genfed.experiment.evaluation import add_evaluation
from genfed.experiment.run_folder import RunFolder, RunStart
from genfed.experiment.trial import Trial, new_trial, trial_server
from genfed.experiment.uploads import with_client_noise
from genfed.privacy.accounting import Mechanism
from genfed.privacy.example_level import SiteAccount, TrialBudget
from genfed.report.results import EVALUATE
from genfed.secure_aggregation.protocol import make_secure

if TYPE_CHECKING:
    from genfed.engines.flower.engine import FlowerEngine

EngineName = Literal["embedded", "flower"]
OpenEngine = Callable[[Config, RunFolder], "AbstractContextManager[WorkerPool | FlowerEngine | None]"]
"""Opens what carries records to worker processes; it gives None where all clients work in this process."""


class LocalClients:
    """All clients, on this machine."""

    def __init__(
        self, config: Config, dataset: Dataset, folder: RunFolder, workers: "WorkerPool | FlowerEngine | None"
    ) -> None:
        self._config, self._dataset, self._folder, self._workers = config, dataset, folder, workers

    def shards(self, seed: int) -> FederatedData:
        """See `FederationClients`."""
        shards = partitioning.partition_data(self._config, self._dataset, seed)
        if self._workers:
            save(shards, self._folder.client_data(seed), durable=False)
        return shards

    def engine(self, trial: Trial) -> Engine:
        """See `FederationClients`."""
        if self._workers is None:
            return InProcess(new_runner(trial))
        run = str(self._folder.path.resolve())  # its config.toml may be edited while the run goes on
        about = {"run": run, "config": to_toml(self._config), "label": trial.label, "seed": trial.seed}
        self._workers.open(json.dumps(about))
        return self._workers

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        """See `FederationClients`."""
        return trial.spent()

    def done(self, seed: int) -> None:
        """See `FederationClients`."""
        self._folder.client_data(seed).unlink(missing_ok=True)


@contextlib.contextmanager
def open_local_clients(
    config: Config, dataset: Dataset, folder: RunFolder, open_engine: OpenEngine, began: RunStart
) -> Iterator[LocalClients]:
    """Yields the clients of a run on this machine; their engine ends with the block."""
    if dataset.encoder is not None:
        folder.keep_encoder(dataset.encoder, began)
    with open_engine(config, folder) as workers:
        yield LocalClients(config, dataset, folder, workers)


def choose_engine(name: EngineName) -> OpenEngine:
    """Returns what opens the engine.

    Raises:
        GenfedError: the extra "flower" is not installed, or its version does not work.
    """
    if name == "embedded":
        return open_worker_pool
    from genfed.engines.flower import simulation

    def open_simulation(config: Config, folder: RunFolder) -> "AbstractContextManager[FlowerEngine]":
        clients, compute = config.federation.clients, config.compute
        workers = max(1, count_workers(compute, clients))
        return simulation.open_simulation(clients, workers, compute.threads, open_runner, config.federation.timeout)

    return open_simulation


@contextlib.contextmanager
def open_worker_pool(config: Config, folder: RunFolder) -> Iterator[WorkerPool | None]:
    """Yields the worker processes of a run, which end with the block. None: the run has none."""
    count = count_workers(config.compute, config.federation.clients)
    if count == 0:
        yield None
        return
    command = python_command("genfed.experiment.worker", str(config.compute.threads), str(os.getpid()))
    # A worker finds what this process can import: the user's own methods and architectures.
    paths = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    with open_file(folder.path / "workers.log", "ab") as output:
        environment = os.environ | {"PYTHONPATH": paths}
        with contextlib.closing(WorkerPool(command, count, output, environment, config.federation.timeout)) as workers:
            yield workers


def new_runner(
    trial: Trial,
    site: SiteAccount | None = None,
    charge_upload: Callable[[str], None] | None = None,
    scores_only_sent: bool = False,
) -> ClientRunner:
    """Returns where the trial's clients work.

    Args:
        trial: the trial.
        site: the account of the site that a client is, which is charged too. None: it has no budget of its own.
        charge_upload: called with the phase before an upload with noise of the client's own; raises to refuse it. None:
            nothing is charged.
        scores_only_sent: `only_sent` of `add_evaluation`.
    """
    held_out = trial.shards.held_out.to(torch.device(trial.compute.device))
    triggered = trial.attack.triggered(held_out, trial.shards.task) if trial.attack else None
    # The accuracy on a personal test set is weighted by the client's classes: several of them reveal its share of each.
    own = None if trial.privacy or trial.sum_privacy or trial.secure else trial.shards.own
    phases = add_evaluation(trial.method, held_out, own, triggered, scores_only_sent)
    if trial.sum_privacy and not trial.secure:
        for phase in flatten_phases(trial.method.phases()):
            if phase.name in phases:
                phases[phase.name] = with_client_noise(phase, trial)
    if trial.secure:
        for phase in flatten_phases(trial.method.phases()):
            if phase.aggregate and phase.name in phases:
                del phases[phase.name]  # no request can get the upload without masks
                charge = None if charge_upload is None else functools.partial(charge_upload, phase.name)
                noisy, count = with_client_noise(phase, trial, charge), trial.federation.clients
                secure = make_secure(noisy, trial.secure, count, trial.signer, trial.description)
                phases |= {part.name: part for part in secure}
    attack = trial.attack
    behaviors = dict.fromkeys(attack.attackers(trial.shards.clients, trial.seed), attack) if attack else {}
    return ClientRunner(
        phases,
        trial.shards,
        trial.folder / "clients",
        trial.seed,
        ClientRuntime(trial.new_network, trial.compute.device, trial.compute.precision, trial.counts_flops),
        behaviors,
        new_budget(trial, site),
        durable=trial.durable,
    )


def new_budget(trial: Trial, site: SiteAccount | None) -> TrialBudget | None:
    """Returns the clients' budgets. None: a trial without example-level privacy. `site`: as in `new_runner`."""
    if trial.privacy is None:
        return None
    examples = {info.id: info.examples for info in trial.shards.clients}
    if (declared := trial.method.private_trainings()) is None:
        raise GenfedError(f"{trial.label} does not declare what its clients train, so it cannot be run under [privacy]")
    return TrialBudget(trial.privacy, trial.settle_plan(), declared, trial.seed, examples, site)


def load_classifier(
    trial: Trial, at: Checkpoint[Any], info: ClientInfo, storage: ClientStorage | None = None
) -> nn.Module:
    """Returns a client's classifier as the last evaluation made it. `storage`: what takes the place of the client's
    records. None: they lie in the trial's folder.
    """
    number = at.evaluations - 1 if at.scored == at.step else at.evaluations
    server = trial_server(trial, number, EVALUATE, number, "send")
    sent = trial.method.send_classifier(server, at.state, info)
    since = at.stored.get(info.id) if storage is None else None
    client = new_runner(trial).make_scored_client(RoundId(EVALUATE, number, trial.place(at.step), since), info.id)
    return trial.method.classifier(client if storage is None else replace(client, storage=storage), sent)


def open_runner(text: str) -> ClientRunner:
    """Returns where a worker process does the work of a trial; `text` is what `LocalClients.engine` says of it."""
    about = json.loads(text)
    folder, seed = RunFolder(Path(about["run"])), about["seed"]
    shards = load(FederatedData, folder.client_data(seed))
    new_network = Architectures().new
    config = read_config(tomllib.loads(about["config"]))
    return new_runner(new_trial(config, about["label"], seed, folder=folder, shards=shards, new_network=new_network))
