"""One method with one seed: what a trial is made of, and the server that it works on."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
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
from genfed.core.rng import stream
from genfed.core.schedule import Schedule
from genfed.core.store import FolderStore, MemoryStore, Store
from genfed.core.task import Task
from genfed.engines.client_runner import NewNetwork
from genfed.experiment import partitioning
from genfed.experiment.run_folder import RunFolder
from genfed.privacy.accounting import Mechanism
from genfed.privacy.client_level import ClientLevelPrivacy
from genfed.privacy.example_level import example_level_guarantee, read_charges
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.plan import PrivacyPlan, settle_plan
from genfed.privacy.settings import DPSGD, DPFedAvg
from genfed.robustness.attack import Attack
from genfed.robustness.robust_mean import AggregationRule
from genfed.secure_aggregation.protocol import EXCHANGES
from genfed.secure_aggregation.settings import SecureAggregation


@dataclass(frozen=True)
class Trial:
    """One method with one seed."""

    label: str
    seed: int
    method: Method[Any]
    shards: FederatedData
    folder: Path
    """Folder of its checkpoint, and of what its clients store."""
    identity: str
    """Hash of settings and data; a checkpoint with another one is refused."""
    federation: Federation
    compute: Compute
    new_network: NewNetwork
    """Makes the classifiers of clients and server."""
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
    privacy: DPSGD | None = None
    """Differential privacy that protects every example. None: no such protection."""
    client_privacy: DPFedAvg | None = None
    """Differential privacy that protects every client. None: no such protection."""

    @property
    def schedule(self) -> Schedule:
        """The clients of each of its rounds."""
        return Schedule(self.method, self.shards.clients, self.federation.client_fraction, self.seed)

    def settle_plan(self) -> PrivacyPlan:
        """Returns the noise of a private trial, which is written down when this is first called.

        Raises:
            GenfedError: it cannot be planned, or no noise suffices.
        """
        how = self.privacy or self.client_privacy
        assert how is not None
        try:
            return settle_plan(self.folder, how, self.schedule)
        except GenfedError as error:
            raise GenfedError(f"{self.label}: {error}") from None

    def client_level(self) -> ClientLevelPrivacy | None:
        """Returns the noise of its rounds and the ledger of what was released. None: clients are not protected."""
        if self.client_privacy is None:
            return None
        return ClientLevelPrivacy(self.client_privacy, self.settle_plan(), self.schedule, self.folder)

    def spent(self) -> dict[int, list[Mechanism]]:
        """Returns what its folder says that each client was charged."""
        return read_charges(self.folder, [info.id for info in self.shards.clients])

    def guarantee(self, spent: Mapping[int, Sequence[Mechanism]] | None = None) -> PrivacyGuarantee | None:
        """Returns what protects it, by what clients were charged. None: it is not private.

        Args:
            spent: what each client was charged. None: what its folder says.
        """
        if (clients := self.client_level()) is not None:
            return clients.guarantee(distributed=self.secure is not None)
        if self.privacy is None:
            return None
        spent = self.spent() if spent is None else spent
        return example_level_guarantee(self.privacy, self.settle_plan(), spent, pooled=self.method.pooled)

    def place(self, step: int) -> int:
        """Returns the number of a step among all in which clients work; each exchange of secure aggregation is one."""
        return step * len(EXCHANGES) if self.secure else step


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
        new_network: makes the classifiers of clients and server.
        fingerprint: names the data (`data_fingerprint`), so that a checkpoint with other data is refused. Empty: where
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
        # How much a client computes would reveal how large its random batches were.
        counts_flops=config.metrics.flops and seed == config.seeds[0] and config.example_privacy is None,
        aggregation=None if method.pooled else config.aggregation,
        attack=None if method.pooled else config.attack,
        secure=None if method.pooled else config.secure_aggregation,
        privacy=config.example_privacy,
        client_privacy=None if method.pooled else config.client_privacy,
    )


R = TypeVar("R")
S = TypeVar("S")

log = logging.getLogger(__name__)


def trial_server(trial: Trial, number: int, *path: str | int) -> Server:
    """Returns the server of a round, whose random numbers are named by `path`; its store can only be read."""
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
        clients: its clients.
        compute: names its device and precision.
        new_network: makes classifiers.
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
        new_network=lambda architecture, rng: new_network(architecture, task, rng).to(device),
        public=public,
        store=store or MemoryStore(),
    )
