"""One trial of a run, as the main process and its workers both see it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genfed.app import central, federation, registry
from genfed.app.config import Config, decisive, read
from genfed.app.protection import Budgets
from genfed.app.trial import Checkpoint, Trial, server_of, with_evaluation
from genfed.core.aggregate import ClientInfo
from genfed.core.method import leaves
from genfed.core.privacy import Guard
from genfed.core.record import load
from genfed.engines.site import NewNetwork, Shards, Site, Step
from genfed.report.results import EVALUATE
from genfed.secure.protocol import secure


def new_trial(config: Config, folder: Path, label: str, seed: int, shards: Shards, fingerprint: str) -> Trial:
    """One method with one seed of a run in `folder`; `fingerprint` names the data."""
    method = config.method[label]
    about = replace(config, methods=(label,), beside=(), method={label: method}, seeds=(seed,))
    text = json.dumps(decisive(about), sort_keys=True)
    return Trial(
        label=label,
        seed=seed,
        method=method,
        shards=federation.pooled(shards) if method.pooled else shards,
        folder=trial_folder(folder, label, seed),
        identity=hashlib.blake2b(f"{fingerprint} {text}".encode(), digest_size=16).hexdigest(),
        federation=config.federation,
        compute=config.compute,
        evaluate_every=config.evaluation.every,
        # How much a client computes would tell how large its random batches were.
        counts_flops=config.quality.flops and seed == config.seeds[0] and config.privacy is None,
        aggregation=None if method.pooled else config.aggregation,
        attack=None if method.pooled else config.attack,
        secure=None if method.pooled else config.secure,
        privacy=config.privacy,
        client_privacy=None if method.pooled else config.client_privacy,
    )


def trial_folder(folder: Path, label: str, seed: int) -> Path:
    """Where a trial's checkpoint is, and what its clients keep."""
    return folder / "trials" / label / f"seed-{seed}"


def new_site(trial: Trial, new_network: NewNetwork = registry.new_network, guard: Guard | None = None) -> Site:
    """Where the trial's clients work. `guard` keeps their budgets, where there are any; None: as [privacy] has them."""
    held_out = trial.shards.held_out.to(torch.device(trial.compute.device))
    triggered = trial.attack.triggered(held_out, trial.shards.task) if trial.attack else None
    # The score on data like a client's own is weighted by its classes: several of them tell its share of each.
    own = None if trial.privacy or trial.secure else trial.shards.own
    phases = with_evaluation(trial.method, held_out, own, triggered)
    if trial.secure:
        for phase in leaves(trial.method.phases()):
            if phase.aggregate and phase.name in phases:
                del phases[phase.name]  # nobody can ask for the bare upload
                noised = central.distributed(phase, trial) if trial.client_privacy else phase
                phases |= {part.name: part for part in secure(noised, trial.secure)}
    return Site(
        phases,
        trial.shards,
        trial.folder / "clients",
        trial.seed,
        new_network,
        trial.compute.device,
        trial.compute.precision,
        trial.counts_flops,
        trial.attack,
        (guard or Budgets(trial)) if trial.privacy else None,
    )


def classifier(
    trial: Trial, at: Checkpoint[Any], info: ClientInfo, new_network: NewNetwork = registry.new_network
) -> nn.Module:
    """A client's, as the last evaluation made it; `new_network` makes the architectures that it asks for."""
    number = at.evaluations - 1 if at.scored == at.step else at.evaluations
    server = server_of(trial, number, EVALUATE, number, "send")
    sent = trial.method.send_classifier(server, at.state, info)
    client = new_site(trial, new_network).evaluated(Step(EVALUATE, number, trial.place(at.step)), info.id)
    return trial.method.classifier(client, sent)


def site_of(text: str) -> Site:
    """A worker's view of a trial, from what the main process tells it."""
    about = json.loads(text)
    folder, seed = Path(about["run"]), about["seed"]
    shards = load(Shards, shards_file(folder, seed))
    return new_site(new_trial(read(folder), folder, about["label"], seed, shards, ""))


def shards_file(folder: Path, seed: int) -> Path:
    """The data of a seed's clients, for workers to map while the run goes on."""
    return folder / "data" / f"seed-{seed}.safetensors"
