"""`genfed audit`: attacks on the trials of a finished run, and its report with their results."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from genfed.audits.findings import Audits
from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config, read_table
from genfed.config.settings import Config
from genfed.core.errors import GenfedError
from genfed.core.files import write_file
from genfed.data.dataset import Dataset
from genfed.engines.client_runner import use_threads
from genfed.experiment import checks, partitioning
from genfed.experiment.auditing import Notify, audit_trial
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.inputs import data_fingerprint, load_data, load_public
from genfed.experiment.outcomes import TrialOutcomes
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import Trial, new_trial
from genfed.report.page import build_page


def audit_run(
    run: Path,
    audits: Sequence[str] = (),
    overrides: Iterable[str] = (),
    method: str | None = None,
    seed: int | None = None,
    notify: Notify = lambda line: None,
) -> Audits:
    """Audits trials of a finished run, writes audits.json and report.html anew, and returns all results so far.

    Args:
        run: the folder of a run.
        audits: names of audits, or labels of the run's tables [audit.LABEL]. Empty: those of the config, else all that
            train no further models.
        overrides: "audit.NAME.setting=value".
        method: label of a method. None: every method of the run.
        seed: seed of the trials. None: the first.
        notify: called with a line of text on each audit and each model that it trains.

    Raises:
        GenfedError: the run has not finished, there is no such audit, method or seed, or the data have changed.
    """
    folder = RunFolder(run.absolute())
    report = folder.read_report()
    config = _config(folder, audits, overrides)
    labels = config.labels if method is None else (method,)
    if method is not None and method not in config.labels:
        raise GenfedError(registry.explain_unknown(method, config.labels, f"{run} has no method"))
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise GenfedError(f"{run} has no seed {seed} (there are: {', '.join(map(str, config.seeds))})")
    dataset = load_data(config)
    chosen = {label: config.audit[label] for label in config.audits}
    with folder.lock(), use_threads(config.compute.threads):
        for label in labels:
            audit_trial(_trial(config, folder, dataset, label, seed), chosen, folder, notify)
        outcomes = TrialOutcomes()
        for label in config.labels:
            trial = _trial(config, folder, dataset, label, config.seeds[0])
            outcomes.add_guarantee(trial, trial.guarantee())
            if at := read_checkpoint(trial.method, trial.folder):
                outcomes.show_trial(trial, at.state)
        found = folder.read_audits()
        shown = replace(found, shared=tuple(outcomes.exchanges))
        write_file(folder.page, build_page(report, outcomes.pictures, shown))
    return found


def _config(run: RunFolder, audits: Sequence[str], overrides: Iterable[str]) -> Config:
    """Returns the config of the run, with these audits."""
    changes = list(overrides)
    if other := [change for change in changes if not change.strip().startswith("audit.")]:
        raise GenfedError(f"--set {other[0]!r}: only audit.NAME.setting can be set for a finished run")
    table = read_table(run.path, changes)
    names = tuple(audits) or tuple(table.get("audits", ()))
    if not names:
        known = registry.list_classes(registry.AUDITS)
        names = tuple(sorted(name for name, cls in known.items() if not cls.retrains))
    return read_config(table | {"audits": names})


def _trial(config: Config, folder: RunFolder, dataset: Dataset, label: str, seed: int) -> Trial:
    public = load_public(config, dataset.task)
    shards = partitioning.partition_data(config, dataset, seed)
    trial = new_trial(
        config,
        label,
        seed,
        folder=folder,
        shards=shards,
        new_network=Architectures().new,
        fingerprint=data_fingerprint(shards, public),
        public=public,
    )
    at = read_checkpoint(trial.method, trial.folder)
    if at is None:
        raise GenfedError(f"{folder}: {label} with seed {seed} has no checkpoint to audit")
    if at.trial != trial.identity:
        raise GenfedError(f"{folder}: its data or its settings have changed; an audit needs the same")
    if checks.has_device(config.compute.device):
        return trial
    return replace(trial, compute=replace(config.compute, device="cpu"))  # it was trained on another machine
