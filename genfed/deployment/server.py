"""The server's side of a federation of sites: the run itself, inside Flower's ServerApp, which
`genfed.deployment.superlink` starts.
"""

import contextlib
import io
import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console

from genfed._version import __version__
from genfed.config.reader import method_table, read_config, settings_table
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, describe_error, first_line
from genfed.core.federated_data import FederatedData
from genfed.core.files import write_file
from genfed.core.task import Data, Task
from genfed.data.encoder import fingerprint_encoder
from genfed.data.features import TableSchema
from genfed.data.sites import Sites
from genfed.deployment import agreement
from genfed.deployment.opaque_network import ask_architectures
from genfed.deployment.roster import SiteDescription, SiteRoster, name_site
from genfed.deployment.schema_query import SharedSchema, share_schema
from genfed.engines.flower.engine import FlowerEngine, MessageLink
from genfed.engines.flower.messages import MessageHeader
from genfed.engines.round import Engine
from genfed.experiment import checks, compatibility
from genfed.experiment.inputs import RunInputs, load_public
from genfed.experiment.progress import RunProgressBar
from genfed.experiment.run import run_on
from genfed.experiment.run_folder import OnExisting, RunFolder, RunStart, default_folder
from genfed.experiment.trial import Trial
from genfed.privacy.accounting import LEAST_RATE, Mechanism
from genfed.privacy.plan import check_reported, limit_cost
from genfed.privacy.settings import LEAST_NOISE, MOST_NOISE

log = logging.getLogger(__name__)
SITES = "sites.json"
"""File name of the names of a run's sites, in the order of their numbers, in its folder."""
SAID = "genfed: "
"""Start of each line that is meant for the user who started the server."""
QUERY_SECONDS = 180.0
"""Seconds that a site has to answer a query."""
PAUSE = 0.5
"""Seconds between two looks for answers; each is a transaction of the SuperLink's database, where it has one."""
_Noise = Literal[0] | Annotated[float, Field(ge=LEAST_NOISE, le=MOST_NOISE)]
_Mechanism = tuple[_Noise, Annotated[float, Field(ge=LEAST_RATE, le=1)], Annotated[int, Field(ge=0, le=10**9)]]
MECHANISMS = TypeAdapter(Annotated[list[_Mechanism], Field(max_length=32)])
"""What a site may report as the cost of a trial."""
BACK_SECONDS = 120.0
"""Seconds that a round waits for a site that is not connected: as long as Flower refuses one that was killed."""


@dataclass(frozen=True)
class ServeRequest:
    """What the server is started for."""

    config: str
    """Path of the run's TOML file."""
    out: str = ""
    """Folder for the results. Empty: runs/NAME."""
    on_existing: OnExisting = "refuse"
    overrides: tuple[str, ...] = ()
    """Settings on top of the file, as "key=value"."""
    check: bool = False
    """Whether to check the sites only, without a run."""
    wait: float = 600.0
    """Seconds within which all sites must be connected."""
    outcome: str = ""
    """File for the `Outcome`. Empty: it is not written."""
    command: str = ""
    """Command that the report names. Empty: that of this process."""


@dataclass(frozen=True)
class Outcome:
    """What the server ended with."""

    error: str = ""
    folder: str = ""
    sites: tuple[SiteDescription, ...] = ()
    problems: tuple[str, ...] = ()
    """Reasons for which a run would be refused, or would need more memory than is free; only of a check."""


def main(grid: Any, settings: Mapping[str, Any]) -> None:
    """Serves a run: the main function of Flower's ServerApp, given its grid and the fields of a `ServeRequest`."""
    given = {name: value for name, value in settings.items() if value not in ("", [])}
    if isinstance(given.get("overrides"), str):
        given["overrides"] = json.loads(given["overrides"])
    try:
        wanted = TypeAdapter(ServeRequest).validate_python(given)
    except ValidationError as error:
        raise GenfedError(f"run settings: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None
    try:
        outcome = _serve(grid, wanted)
    except GenfedError as error:
        outcome = Outcome(error=str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # ours, or a method's: the user gets a line, and Flower's log the rest
        traceback.print_exc()
        outcome = Outcome(error=f"{describe_error(error)}; flwr-run.log says more")
    if wanted.outcome:
        write_file(Path(wanted.outcome), TypeAdapter(Outcome).dump_json(outcome))
    if outcome.error:
        say(outcome.error)


def say(line: str) -> None:
    """Shows a line to the user who started the server."""
    print(SAID + line, flush=True)  # noqa: T201


class _Said(io.TextIOBase):
    """A file whose lines are shown to the user who started the server."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                say(line)
        return len(text)


def _serve(grid: Any, wanted: ServeRequest) -> Outcome:
    """Waits for the sites, checks the run against them, and does it unless only a check is wanted."""
    config = served_config(read_config(wanted.config, wanted.overrides))
    folder = RunFolder(Path(wanted.out)) if wanted.out else default_folder(wanted.config, config.name)
    roster = SiteRoster(MessageLink(grid, QUERY_SECONDS, pause=PAUSE))
    say(f"waiting for {config.federation.clients} sites")
    began_with = _read_names(folder) if wanted.on_existing == "resume" else []
    sites = roster.call(config.federation.clients, wanted.wait, strict=not wanted.check, only=began_with)
    before = _read_schema(folder) if wanted.on_existing == "resume" else None
    shared = share_schema(roster, sites, before) if len(sites) == config.federation.clients else SharedSchema(sites)
    sites = shared.sites
    for line in (*shared.summary.facts, *shared.summary.warnings):
        say(line)
    problems = agreement.find_disagreements(config, sites)
    if wanted.check and (refusals := [*roster.refused.values(), *problems]):
        return Outcome(sites=sites, problems=tuple(refusals))
    about = ", ".join(f"{site.name} ({site.architecture}, {site.examples} examples)" for site in sites)
    say(f"sites that have joined: {about}" if sites else "no site has joined yet")
    if len(sites) < config.federation.clients:
        few = f"{len(sites)} of {config.federation.clients} sites have joined after {wanted.wait:g} s"
        if missing := sorted(set(began_with) - {site.name for site in sites}):
            few += f"; the run began with {', '.join(missing)}, too"
        raise GenfedError("; ".join([few, *roster.refused.values()]))
    if problems:
        raise GenfedError("; ".join(problems))
    inputs = _checked_inputs(config, roster, sites, shared.schema)
    run_id = folder.run_id() if wanted.on_existing == "resume" else "new"
    _ask_consent(roster, inputs, sites, run_id)
    tight = agreement.warn_of_memory(inputs, sites)
    if wanted.check:
        return Outcome(sites=sites, problems=tuple(tight))
    for line in tight:
        say(line)
    names = [site.name for site in sites]
    clients = _SiteClients(inputs, folder, grid, roster, sites)
    console = Console(file=_Said(), markup=False, emoji=False, highlight=False, soft_wrap=True)  # type: ignore[arg-type]
    with RunProgressBar(console, trials=len(config.labels) * len(config.seeds)) as bar:
        run_on(
            inputs,
            folder,
            lambda began: _keep_agreed(folder, clients, names, shared.schema, began),
            wanted.on_existing,
            bar,
            wanted.command or None,
        )
    return Outcome(folder=str(folder.path), sites=sites)


def served_config(config: Config) -> Config:
    """Returns a config as the server uses it: each site decides about its own data, and generators are not evaluated,
    since that needs real examples.

    Raises:
        GenfedError: a method pools all data, or a setting cannot hold for real sites.
    """
    if config.attack:
        raise GenfedError(
            "[attack] simulates malicious clients, which real sites are not: remove it, or run without serve"
        )
    if config.audits:
        raise GenfedError("audits need clients' examples, which sites keep: remove them, or run without serve")
    if config.federation.excluded:
        raise GenfedError(
            f"federation.excluded = {config.federation.excluded} leaves out no site: one that is to be left out does "
            "not join; set federation.clients to the number of the others"
        )
    if pooled := [label for label, method in config.method.items() if method.pooled]:
        raise GenfedError(f'{pooled[0]} pools all data, which sites keep: remove it, e.g. baselines = ["local"]')
    return replace(
        config,
        data=Sites(),
        metrics=replace(config.metrics, samples=0),
        compute=replace(config.compute, workers=0),
        federation=replace(config.federation, max_examples=None),
    )


def _checked_inputs(
    config: Config, roster: SiteRoster, sites: Sequence[SiteDescription], schema: TableSchema | None
) -> RunInputs:
    """Returns what the run works on.

    Raises:
        GenfedError: something in the config would fail in training, or does not go with the sites.
    """
    task, clients = agreement.agreed_task(sites), agreement.number_sites(sites)
    if schema is not None:
        task = replace(task, columns=schema.columns())
    public = load_public(config, task, sites[0].encoder)
    compatibility.check_compatibility(config, _without_examples(task, clients), config.seeds[-1])
    for seed in config.seeds:
        compatibility.check_client_privacy(config, clients, seed)
        compatibility.check_sum_privacy(config, clients, seed)
    checks.check_device(config.compute.device)
    for label, method in config.method.items():
        checks.check_augmentation(label, method, task)
    architectures = {seed: ask_architectures(roster, sites, task, seed) for seed in config.seeds}
    compatibility.check_example_privacy(config, task, clients, architectures[config.seeds[-1]].new)
    compatibility.check_private_encoders(config, task, clients, architectures[config.seeds[-1]].new)
    return RunInputs(config, task, clients, architectures, public, encoder=fingerprint_encoder(schema))


def _ask_consent(roster: SiteRoster, inputs: RunInputs, sites: Sequence[SiteDescription], run_id: str) -> None:
    """Asks each site whether it takes part, if the run protects anything or the site demands protection.

    Raises:
        GenfedError: a site refuses.
    """
    config = inputs.config
    trials = [_describe_trial(inputs, label, seed, run_id) for label in config.method for seed in config.seeds]
    for number, site in enumerate(sites):
        if config.example_privacy or config.sum_privacy or config.secure_aggregation or site.demands:
            roster.ask(site.name, {"ask": "prepare", "open": trials, "client": number})


def _describe_trial(inputs: RunInputs, label: str, seed: int, run_id: str) -> str:
    """Returns what a site is sent about a trial, as JSON."""
    config = inputs.config
    # Without [secure_aggregation] the server alone adds the noise.
    client_privacy = config.client_privacy if config.secure_aggregation else None
    about = {
        "run": run_id,
        "label": label,
        "seed": seed,
        "method": method_table(config.method[label]),
        "classes": inputs.task.classes,
        "federation": {"clients": config.federation.clients, "client_fraction": config.federation.client_fraction},
        "precision": config.compute.precision,
        "flops": config.metrics.flops and seed == config.seeds[0],
        "secure_aggregation": settings_table(config.secure_aggregation) if config.secure_aggregation else None,
        "privacy": settings_table(config.example_privacy) if config.example_privacy else None,
        "client_privacy": settings_table(client_privacy) if client_privacy else None,
        "sum_privacy": settings_table(config.sum_privacy) if config.sum_privacy else None,
    }
    return json.dumps(about)


def _without_examples(task: Task, clients: tuple[ClientInfo, ...]) -> FederatedData:
    """Returns clients whose examples lie elsewhere."""
    nothing = Data(torch.zeros(0, *task.shape), torch.zeros(0, dtype=torch.int64))
    return FederatedData(task, clients, ((0, 0),) * len(clients), nothing, nothing)


def _read_names(folder: RunFolder) -> list[str]:
    """Returns the names of the sites that a run began with, in the order of their numbers. Empty: it has not begun.

    Raises:
        GenfedError: the file is damaged.
    """
    file = folder.path / SITES
    if not file.exists():
        return []
    try:
        return TypeAdapter(list[str]).validate_json(file.read_bytes())
    except (ValidationError, OSError):
        raise GenfedError(f"{file} is damaged: it has the names of the run's sites, in their order") from None


def _read_schema(folder: RunFolder) -> TableSchema | None:
    """Returns the schema on which the sites of a run agreed. None: they did not, or it is not known, so that they agree
    again: the run goes on with the same one alone.
    """
    try:
        found = folder.read_encoder()
    except GenfedError:
        return None
    return found if isinstance(found, TableSchema) else None


@contextlib.contextmanager
def _keep_agreed(
    folder: RunFolder, clients: "_SiteClients", names: Sequence[str], schema: TableSchema | None, began: RunStart
) -> Iterator["_SiteClients"]:
    """Yields the clients; the run's folder has the names of their sites, so that a resumed run takes no others, and the
    schema on which they agreed.
    """
    write_file(folder.path / SITES, json.dumps(names) + "\n", durable=True)
    if schema is not None:
        folder.keep_encoder(schema, began)
    yield clients


class _SiteClients:
    """Clients at sites; a `FederationClients`, and the `NodeDirectory` of its engines."""

    def __init__(
        self, inputs: RunInputs, folder: RunFolder, grid: Any, roster: SiteRoster, sites: Sequence[SiteDescription]
    ) -> None:
        """`sites` are in the order of the clients."""
        self._inputs, self._folder, self._roster = inputs, folder, roster
        self._names = [site.name for site in sites]
        self._held_out = {number: site.held_out for number, site in enumerate(sites)}
        self._link = MessageLink(grid, inputs.config.federation.timeout, pause=PAUSE)

    def shards(self, seed: int) -> FederatedData:
        """See `FederationClients`."""
        return replace(_without_examples(self._inputs.task, self._inputs.clients), held_out_counts=self._held_out)

    def engine(self, trial: Trial) -> Engine:
        """See `FederationClients`."""
        opening = {"genfed": __version__} | self._opening(trial)
        return FlowerEngine(
            self._link, lambda client: self._roster.node_of(self._names[client]), opening, BACK_SECONDS, self
        )

    def name(self, client: int) -> str:
        """See `NodeDirectory`."""
        return self._names[client]

    def why_absent(self, client: int) -> str:
        """See `NodeDirectory`."""
        return self._roster.why_absent(self._names[client])

    def describe(self, client: int, reason: str) -> str:
        """See `NodeDirectory`."""
        return name_site(self._names[client], reason)

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        """See `FederationClients`. A site that does not report its cost, or reports one that cannot be, is charged all
        that was planned; if that is not known, its ε is ∞.
        """
        spent: dict[int, Sequence[Mechanism]] = {}
        if trial.privacy is None:
            return spent
        planned = trial.settle_plan()
        for info, name in zip(self._inputs.clients, self._names, strict=True):
            try:
                said = self._roster.ask(name, self._opening(trial) | {"ask": "spent", "client": info.id})[0]
                spent[info.id] = MECHANISMS.validate_python(said.get("mechanisms"))
                check_reported(spent[info.id], planned, trial.privacy, trial.schedule, info.id)
            except (GenfedError, ValidationError) as error:
                log.warning("%s: %s; its ε is what is planned", name, first_line(error))
                spent[info.id] = limit_cost(trial.privacy, trial.schedule, info.id)
        return spent

    def done(self, seed: int) -> None:
        """See `FederationClients`."""

    def _opening(self, trial: Trial) -> MessageHeader:
        about = _describe_trial(self._inputs, trial.label, trial.seed, self._folder.run_id())
        return {"ask": "work", "open": about}


COLUMNS = ("site", "architecture", "examples", "classes", "kind", "machine", "memory free", "clock")
"""Columns of `site_rows`: examples for training + for evaluation; clock: difference from the server's clock."""


def site_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """Returns a row of text for each site."""
    return [
        (
            site.name,
            site.architecture,
            f"{site.examples} + {site.held_out}",
            f"{len(site.classes)}",
            f"{site.kind} {'×'.join(map(str, site.shape))}",
            f"{site.device}, torch {site.torch}",
            f"{site.memory / 2**30:.1f} GiB" if site.memory else "?",
            f"{site.clock - site.heard:+.0f} s",
        )
        for site in outcome.sites
    ]


def to_settings(wanted: ServeRequest) -> dict[str, Any]:
    """Returns the request as run settings that Flower can carry."""
    return asdict(wanted) | {"overrides": json.dumps(wanted.overrides)}
