"""One method with one seed: the parts of a trial, and its server."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from genfed.config.reader import decisive_settings
from genfed.config.settings import Compute, Config, Federation
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method
from genfed.core.phase import Phase
from genfed.core.rng import stream
from genfed.core.schedule import Schedule
from genfed.core.store import FolderStore, MemoryStore, Store
from genfed.core.task import Task
from genfed.engines.client_runner import NewNetwork
from genfed.experiment import partitioning
from genfed.experiment.checkpoint import STATE, read_checkpoint
from genfed.experiment.run_folder import RunFolder
from genfed.privacy.accounting import Mechanism
from genfed.privacy.client_level import ClientLevelPrivacy
from genfed.privacy.dp_sum import describe_sums
from genfed.privacy.example_level import example_level_guarantee, read_charges
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.plan import PLAN, PrivacyPlan, estimate_cost, settle_plan
from genfed.privacy.settings import DPSGD, DPFedAvg, DPSum, RoundNoise
from genfed.robustness.attack import Attack
from genfed.robustness.robust_mean import AggregationRule
from genfed.secure_aggregation.crypto import Signer
from genfed.secure_aggregation.protocol import name_exchanges
from genfed.secure_aggregation.settings import SecureAggregation


@dataclass(frozen=True)
class Trial:
    """One method with one seed."""

    label: str
    seed: int
    method: Method[Any]
    shards: FederatedData
    folder: Path
    """Folder of the checkpoint and of clients' storage."""
    identity: str
    """Hash of settings and data. A checkpoint with another one is refused."""
    federation: Federation
    compute: Compute
    new_network: NewNetwork
    """Function that returns a new classifier, for clients and server."""
    evaluate_every: int
    """Number of rounds between two evaluations. 0: only after the last round."""
    public: Tensor | None = None
    """Unlabeled public examples, [n, *task.shape]. None: the run has none."""
    counts_flops: bool = False
    """Whether clients count their floating-point operations, in the first round of each phase."""
    aggregation: AggregationRule | None = None
    """Robust rule that replaces every mean of uploads. None: the means that the method defines."""
    attack: Attack | None = None
    """Simulated attack by some of the clients. None: all clients are honest."""
    secure: SecureAggregation | None = None
    """Secure aggregation of the uploads. None: the server sees every upload."""
    signer: Signer | None = None
    """Key with which the site that has the trial's client signs under secure aggregation. None: clients sign with new
    keys."""
    privacy: DPSGD | None = None
    """Differential privacy that protects every example. None: no such protection."""
    client_privacy: DPFedAvg | None = None
    """Differential privacy that protects every client. None: no such protection."""
    description: str = ""
    """Fingerprint of the description by which the site that has the trial's client acts. Under secure aggregation sites
    that got another one are in no sum with it. Empty: no server described the trial."""
    sum_privacy: DPSum | None = None
    """Differential privacy that protects every example in sums of uploads. None: no such protection."""
    at_site: bool = False
    """Whether this is a site's part of the trial. The server is then another machine, with another disk."""
    selected_by: int | None = None
    """As in `Schedule`: a shadow asks the clients that its trial asked."""

    @property
    def durable(self) -> bool:
        """Whether what clients store is on the disk before a reply leaves: at a site, with a privacy budget and under
        masks. Else the trial waits for the disk before each checkpoint.
        """
        return self.at_site or self.privacy is not None or self.secure is not None

    @property
    def schedule(self) -> Schedule:
        """The participating clients of every round."""
        fraction = self.federation.client_fraction
        return Schedule(self.method, self.shards.clients, fraction, self.seed, self.selected_by)

    @property
    def round_noise(self) -> RoundNoise | None:
        """The mechanism that adds noise to what the clients of a round upload together. None: there is none."""
        return self.client_privacy or self.sum_privacy

    def settle_plan(self) -> PrivacyPlan:
        """Returns the noise of a trial with differential privacy. The first call plans and stores it.

        Raises:
            GenfedError: the noise cannot be planned, or no noise is enough.
        """
        how = self.privacy or self.round_noise
        assert how is not None
        with self._named():
            if not (self.folder / PLAN).exists() and (self.folder / STATE).exists():
                raise GenfedError(
                    f"{self.folder / PLAN} is missing, and rounds were done with the noise that it names; "
                    "put it back as it was, or start anew with --fresh"
                )
            return settle_plan(self.folder, how, self.schedule)

    def estimate_cost(self, client: int) -> list[Mechanism]:
        """Returns what example-level privacy will charge a client; empty where there is none. Nothing is written.

        Raises:
            GenfedError: as `settle_plan`.
        """
        if self.privacy is None:
            return []
        with self._named():
            return estimate_cost(self.privacy, self.schedule, client)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Puts the label before errors in the block."""
        try:
            yield
        except GenfedError as error:
            raise GenfedError(f"{self.label}: {error}") from None

    def client_level(self) -> ClientLevelPrivacy | None:
        """Returns the noise of the rounds and the ledger of releases. None: rounds have no noise."""
        if self.round_noise is None:
            return None
        at = read_checkpoint(self.method, self.folder)
        known = -1 if at is None else at.released
        return ClientLevelPrivacy(self.round_noise, self.settle_plan(), self.schedule, self.folder, known)

    def spent(self, clients: Sequence[int] | None = None) -> dict[int, list[Mechanism]]:
        """Returns the mechanisms that clients were charged for, by the files in the trial's folder. `clients`: their
        ids. None: all.

        Raises:
            StorageError: charges on which the checkpoint counts are lost.
        """
        at, ids = read_checkpoint(self.method, self.folder), [info.id for info in self.shards.clients]
        return read_charges(self.folder, ids if clients is None else clients, at.stored if at else {})

    def stores(self, phase: Phase[Any]) -> bool:
        """Returns whether clients store something in every round of a phase."""
        private = self.privacy is not None or (self.secure is not None and bool(phase.aggregate))
        return not phase.scores and (private or bool(phase.slots))

    def guarantee(self, spent: Mapping[int, Sequence[Mechanism]] | None = None) -> PrivacyGuarantee | None:
        """Returns the privacy guarantee that follows from clients' charges. None: the trial has no privacy.

        Args:
            spent: the mechanisms that each client was charged for. None: as the trial's folder has them.
        """
        if (clients := self.client_level()) is not None:
            found = clients.guarantee(distributed=self.secure is not None)
            return describe_sums(found) if self.sum_privacy else found
        if self.privacy is None:
            return None
        spent = self.spent() if spent is None else spent
        return example_level_guarantee(self.privacy, self.settle_plan(), spent, pooled=self.method.pooled)

    def place(self, step: int) -> int:
        """Returns the number of a round among the steps that clients count. Each exchange of secure aggregation is one
        step.
        """
        return step * len(name_exchanges(self.secure)) if self.secure else step


def new_trial(
    config: Config,
    label: str,
    seed: int,
    *,
    folder: RunFolder,
    shards: FederatedData,
    new_network: NewNetwork,
    fingerprint: str = "",
    public: Tensor | None = None,
) -> Trial:
    """Returns one method with one seed of a run.

    Args:
        config: the settings of the run.
        label: the label of the method.
        seed: the seed.
        folder: the folder of the run.
        shards: the clients of the seed.
        new_network: returns a new classifier, for clients and server.
        fingerprint: identifies the data (`data_fingerprint`), so that a checkpoint with other data is refused. Empty:
            no checkpoint is read or written.
        public: unlabeled public examples. None: the run has none.
    """
    method = config.method[label]
    about = replace(config, methods=(label,), baselines=(), method={label: method}, seeds=(seed,))
    text = json.dumps(decisive_settings(about), sort_keys=True)
    return Trial(
        label=label,
        seed=seed,
        method=method,
        shards=partitioning.pool_clients(shards) if method.pooled else shards,
        folder=folder.trial(label, seed),
        identity=hashlib.blake2b(f"{fingerprint} {text}".encode(), digest_size=16).hexdigest(),
        federation=config.federation,
        compute=config.compute,
        new_network=new_network,
        evaluate_every=config.evaluation.every,
        public=public,
        # The amount of a client's computation would reveal the sizes of its random batches.
        counts_flops=config.metrics.flops and seed == config.seeds[0] and config.example_privacy is None,
        aggregation=None if method.pooled else config.aggregation,
        attack=None if method.pooled else config.attack,
        secure=None if method.pooled else config.secure_aggregation,
        privacy=config.example_privacy,
        client_privacy=None if method.pooled else config.client_privacy,
        sum_privacy=None if method.pooled else config.sum_privacy,
    )


R = TypeVar("R")
S = TypeVar("S")

log = logging.getLogger(__name__)


def trial_server(trial: Trial, number: int, *path: str | int) -> Server:
    """Returns the server of a round, with a read-only store.

    Args:
        trial: the trial.
        number: the round.
        *path: names its random numbers.
    """
    shards, store = trial.shards, FolderStore(trial.folder)
    return new_server(
        shards.task,
        shards.clients,
        trial.compute,
        trial.new_network,
        trial.seed,
        number,
        *path,
        public=trial.public,
        store=store,
    )


def new_server(
    task: Task,
    clients: tuple[ClientInfo, ...],
    compute: Compute,
    new_network: NewNetwork,
    seed: int,
    number: int,
    *path: str | int,
    public: Tensor | None = None,
    store: Store | None = None,
) -> Server:
    """Returns a server.

    Args:
        task: the task.
        clients: the clients.
        compute: settings of device and precision.
        new_network: returns a new classifier.
        seed: the seed of the trial.
        number: the round.
        *path: names its random numbers.
        public: unlabeled public examples. None: the run has none.
        store: its store. None: one in memory.
    """
    device = torch.device(compute.device)
    return Server(
        task=task,
        clients=clients,
        round=number,
        rng=stream(seed, *path, "server"),
        seed=seed,
        device=device,
        precision=compute.precision,
        new_network=lambda architecture, rng, task=task: new_network(architecture, task, rng).to(device),
        public=public,
        store=store or MemoryStore(),
    )
