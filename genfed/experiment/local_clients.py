"""One trial of a run, as the main process and its workers both see it."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.federated_data import FederatedData
from genfed.core.phase import flatten_phases
from genfed.core.privacy import BudgetKeeper
from genfed.core.record import load, save
from genfed.data.dataset import Dataset
from genfed.engines.client_runner import ClientRunner, ClientRuntime
from genfed.engines.in_process import InProcess
from genfed.engines.messages import RoundId
from genfed.engines.round import Engine
from genfed.engines.worker_pool import WorkerPool
from genfed.experiment import partitioning
from genfed.experiment.checkpoint import Checkpoint
from genfed.experiment.environment import count_workers
from genfed.experiment.evaluation import add_evaluation
from genfed.experiment.trial import Trial, new_trial, trial_server
from genfed.privacy import client_level, example_level
from genfed.privacy.accounting import Mechanism
from genfed.privacy.example_level import TrialBudget
from genfed.report.results import EVALUATE
from genfed.secure_aggregation.protocol import make_secure

if TYPE_CHECKING:
    from genfed.engines.flower.engine import FlowerEngine

log = logging.getLogger(__name__)


class LocalClients:
    """All clients on this machine."""

    def __init__(
        self, config: Config, dataset: Dataset, folder: Path, workers: "WorkerPool | FlowerEngine | None"
    ) -> None:
        self._config, self._dataset, self._folder, self._workers = config, dataset, folder, workers

    def shards(self, seed: int) -> FederatedData:
        shards = partitioning.partition_data(self._config, self._dataset, seed)
        if self._workers:
            save(shards, federated_data_file(self._folder, seed), durable=False)
        return shards

    def engine(self, trial: Trial) -> Engine:
        if self._workers is None:
            return InProcess(new_runner(trial))
        self._workers.open(json.dumps({"run": str(self._folder.resolve()), "label": trial.label, "seed": trial.seed}))
        return self._workers

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        return example_level.read_charges(trial)

    def done(self, seed: int) -> None:
        federated_data_file(self._folder, seed).unlink(missing_ok=True)


@contextlib.contextmanager
def _workers(config: Config, folder: Path) -> Iterator[WorkerPool | None]:
    count = count_workers(config)
    if count == 0:
        yield None
        return
    command = [sys.executable, "-m", "genfed.experiment.worker", str(config.compute.threads), str(os.getpid())]
    # A worker finds what this process can import: the user's own methods and architectures.
    paths = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    with (folder / "workers.log").open("ab") as output:
        environment = os.environ | {"PYTHONPATH": paths}
        workers = WorkerPool(command, count, output, environment, config.federation.timeout)
        try:
            yield workers
        finally:
            workers.close()


def _simulation() -> Callable[[Config], "AbstractContextManager[FlowerEngine]"]:
    """Opens Flower's simulation.

    Raises:
        GenfedError: the extra is not installed, or its version does not work.
    """
    from genfed.engines.flower import simulation

    def opened(config: Config) -> "AbstractContextManager[FlowerEngine]":
        clients, compute = config.federation.clients, config.compute
        return simulation.open_simulation(
            clients, max(1, count_workers(config)), compute.threads, open_runner, config.federation.timeout
        )

    return opened


def new_runner(trial: Trial, guard: BudgetKeeper | None = None) -> ClientRunner:
    """Where the trial's clients work. `guard` keeps their budgets, where there are any; None: as [privacy] has them."""
    held_out = trial.shards.held_out.to(torch.device(trial.compute.device))
    triggered = trial.attack.triggered(held_out, trial.shards.task) if trial.attack else None
    # The score on data like a client's own is weighted by its classes: several of them tell its share of each.
    own = None if trial.privacy or trial.secure else trial.shards.own
    phases = add_evaluation(trial.method, held_out, own, triggered)
    if trial.secure:
        for phase in flatten_phases(trial.method.phases()):
            if phase.aggregate and phase.name in phases:
                del phases[phase.name]  # nobody can ask for the bare upload
                noised = client_level.distribute_noise(phase, trial) if trial.client_privacy else phase
                phases |= {part.name: part for part in make_secure(noised, trial.secure)}
    attack = trial.attack
    behaviors = dict.fromkeys(attack.attackers(trial.shards.clients, trial.seed), attack) if attack else {}
    return ClientRunner(
        phases,
        trial.shards,
        trial.folder / "clients",
        trial.seed,
        ClientRuntime(trial.new_network, trial.compute.device, trial.compute.precision, trial.counts_flops),
        behaviors,
        (guard or TrialBudget(trial)) if trial.privacy else None,
    )


def load_classifier(trial: Trial, at: Checkpoint[Any], info: ClientInfo) -> nn.Module:
    """Returns a client's classifier as the last evaluation made it."""
    number = at.evaluations - 1 if at.scored == at.step else at.evaluations
    server = trial_server(trial, number, EVALUATE, number, "send")
    sent = trial.method.send_classifier(server, at.state, info)
    client = new_runner(trial).make_scored_client(RoundId(EVALUATE, number, trial.place(at.step)), info.id)
    return trial.method.classifier(client, sent)


def open_runner(text: str) -> ClientRunner:
    """A worker's view of a trial, from what the main process tells it."""
    about = json.loads(text)
    folder, seed = Path(about["run"]), about["seed"]
    shards = load(FederatedData, federated_data_file(folder, seed))
    return new_runner(new_trial(read_config(folder), folder, about["label"], seed, shards, "", Architectures().new))


def federated_data_file(folder: Path, seed: int) -> Path:
    """The data of a seed's clients, for workers to map while the run goes on."""
    return folder / "data" / f"seed-{seed}.safetensors"
