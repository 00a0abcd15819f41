"""One method with one seed: the loop over its phases, with a checkpoint after every round."""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from genfed.config.reader import decisive_settings
from genfed.config.settings import Compute, Config, Federation
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method
from genfed.core.rng import stream
from genfed.core.store import FolderStore, MemoryStore, Store
from genfed.core.task import Task
from genfed.engines.client_runner import NewNetwork
from genfed.experiment import partitioning
from genfed.experiment.run_folder import RunFolder
from genfed.privacy.settings import ClientPrivacy, Privacy
from genfed.robustness.attack import Attack
from genfed.robustness.robust_mean import AggregationRule
from genfed.secure_aggregation.protocol import EXCHANGES
from genfed.secure_aggregation.settings import SecureAggregation


@dataclass(frozen=True)
class Trial:
    """What is run."""

    label: str
    seed: int
    method: Method[Any]
    shards: FederatedData
    folder: Path
    """Holds its checkpoint and what its clients keep."""
    identity: str
    """Names settings and data; a checkpoint with another one is refused."""
    federation: Federation
    compute: Compute
    new_network: NewNetwork
    """Makes the classifiers of clients and server."""
    evaluate_every: int
    public: Tensor | None = None
    """Unlabelled examples that anybody may see; None: the run names none."""
    counts_flops: bool = False
    """Whether clients count their arithmetic in the first round of each phase."""
    aggregation: AggregationRule | None = None
    """What stands in the place of every mean of uploads; None: the means that the method declares."""
    attack: Attack | None = None
    """What some of its clients do instead of their part; None: all are honest."""
    secure: SecureAggregation | None = None
    """How uploads are added up without the server's seeing them; None: it sees them."""
    privacy: Privacy | None = None
    """How each example is protected; None: not."""
    client_privacy: ClientPrivacy | None = None
    """How each client is protected; None: not."""

    def place(self, step: int) -> int:
        """The number of a step among all that clients work in: an exchange of secure aggregation is one of its own."""
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
    about = replace(config, methods=(label,), beside=(), method={label: method}, seeds=(seed,))
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
        # How much a client computes would tell how large its random batches were.
        counts_flops=config.quality.flops and seed == config.seeds[0] and config.privacy is None,
        aggregation=None if method.pooled else config.aggregation,
        attack=None if method.pooled else config.attack,
        secure=None if method.pooled else config.secure,
        privacy=config.privacy,
        client_privacy=None if method.pooled else config.client_privacy,
    )


R = TypeVar("R")
S = TypeVar("S")

log = logging.getLogger(__name__)


def trial_server(trial: Trial, number: int, *path: str | int) -> Server:
    """Where a server function of this trial runs, its draws named by `path`; its store can be read."""
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
    """A server in round `number`, its draws named by `path`; without a store it has one in memory."""
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
