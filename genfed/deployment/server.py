"""The server's side of a federation of sites: the run itself.

It runs where Flower runs a ServerApp; `genfed.deployment.superlink` starts that.
"""

import contextlib
import hashlib
import io
import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console

from genfed._version import __version__
from genfed.config.reader import method_table, read_config, settings_table
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.task import Data, Task
from genfed.data.sites import Sites
from genfed.deployment import agreement
from genfed.deployment.opaque_network import ask_architectures
from genfed.deployment.roster import SiteDescription, SiteRoster
from genfed.engines.flower.engine import FlowerEngine, MessageLink
from genfed.engines.flower.messages import MessageHeader
from genfed.engines.round import Engine
from genfed.experiment import checks, compatibility
from genfed.experiment.inputs import RunInputs, load_public
from genfed.experiment.progress import RunProgressBar
from genfed.experiment.run import FederationClients, run_on
from genfed.experiment.run_folder import default_folder
from genfed.experiment.trial import Trial
from genfed.privacy import client_level, example_level
from genfed.privacy import compatibility as privacy_compatibility
from genfed.privacy.accounting import Mechanism

log = logging.getLogger(__name__)
SAID = "genfed: "
"""Before each line that is meant for whoever started the server."""
HELLO_SECONDS = 180.0
"""That a site has for a query."""
PAUSE = 0.5
"""Seconds between two looks for answers: each is a transaction of the link's data base, where it has one."""
_Noise = Literal[0] | Annotated[float, Field(ge=1e-3, le=1e6)]
MECHANISMS = TypeAdapter(
    list[tuple[_Noise, Annotated[float, Field(ge=1e-9, le=1)], Annotated[int, Field(ge=0, le=10**9)]]]
)
"""What a site may say that a trial cost."""
BACK_SECONDS = 120.0
"""That a site which is not connected is waited for within a round: as long as Flower refuses one that was killed."""


@dataclass(frozen=True)
class ServeRequest:
    """What the server is started for."""

    config: str
    """Path of the run's TOML file."""
    out: str = ""
    resume: bool = False
    fresh: bool = False
    overrides: tuple[str, ...] = ()
    check: bool = False
    """Only ask who is there."""
    wait: float = 600.0
    """Seconds until all sites must be there."""
    outcome: str = ""
    """File for what it came to; empty: none."""
    command: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the server came to."""

    error: str = ""
    folder: str = ""
    sites: tuple[SiteDescription, ...] = ()
    trouble: tuple[str, ...] = field(default_factory=tuple)
    """Of a check: lines that say why a run would be refused."""


def main(grid: Any, settings: Mapping[str, Any]) -> None:
    """What a ServerApp does with its grid and run settings: those of `Wanted`."""
    given = {name: value for name, value in settings.items() if value not in ("", [])}
    if isinstance(given.get("overrides"), str):
        given["overrides"] = json.loads(given["overrides"])
    try:
        wanted = TypeAdapter(ServeRequest).validate_python(given)
    except ValidationError as error:
        raise GenfedError(f"run settings: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None
    try:
        outcome = _serve_run(MessageLink(grid, HELLO_SECONDS, pause=PAUSE), grid, wanted)
    except GenfedError as error:
        outcome = Outcome(error=str(error))
    except Exception as error:  # ours, or a method's: whoever waits is told, and Flower's log has the rest
        traceback.print_exc()
        outcome = Outcome(error=f"{type(error).__name__}: {error}".splitlines()[0] + "; flwr-run.log says more")
    if wanted.outcome:
        part = Path(f"{wanted.outcome}.part")
        part.write_bytes(TypeAdapter(Outcome).dump_json(outcome))
        part.replace(wanted.outcome)
    if outcome.error:
        say(outcome.error)


def say(line: str) -> None:
    """Tells whoever started the server."""
    print(SAID + line, flush=True)  # noqa: T201


class _Said(io.TextIOBase):
    """A file whose every line is said."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                say(line)
        return len(text)


def _serve_run(post: MessageLink, grid: Any, wanted: ServeRequest) -> Outcome:
    config = serve_run(read_config(wanted.config, wanted.overrides))
    folder = Path(wanted.out) if wanted.out else default_folder(wanted.config, config)
    roll = SiteRoster(post)
    count = config.federation.clients
    say(f"waiting for {count} sites")
    hellos = roll.call(count, wanted.wait, patient=not wanted.check)
    if wanted.check and (trouble := [*roll.refused.values(), *agreement.find_disagreements(config, hellos)]):
        return Outcome(sites=hellos, trouble=tuple(trouble))
    say("here are " + ", ".join(f"{h.name} ({h.architecture}, {h.examples} examples)" for h in hellos))
    if len(hellos) < count:
        raise GenfedError(f"{len(hellos)} of {count} sites are there after {wanted.wait:g} s")
    if trouble := agreement.find_disagreements(config, hellos):
        raise GenfedError("; ".join(trouble))
    task, infos = agreement.agreed_task(hellos), agreement.number_sites(hellos)
    public = load_public(config, task)
    compatibility.check_compatibility(config, _nowhere(task, infos), config.seeds[-1])
    for seed in config.seeds:
        client_level.check(config, infos, seed)
    checks.check_device(config.compute.device)
    for label, method in config.method.items():
        checks.check_augmentation(label, method, task)
    architectures = {seed: ask_architectures(roll, hellos, task, seed) for seed in config.seeds}
    inputs = RunInputs(config, task, infos, architectures, public)
    privacy_compatibility.check(config, task, infos, architectures[config.seeds[-1]].new)
    _prepare(roll, config, task, hellos, _run_of(folder) if wanted.resume else "new")
    tight = agreement.warn_of_memory(inputs, hellos)
    if wanted.check:
        return Outcome(sites=hellos, trouble=tuple(tight))
    for line in tight:
        say(line)

    @contextlib.contextmanager
    def there() -> Iterator[FederationClients]:
        yield _There(config, grid, roll, folder, task, infos, hellos)

    console = Console(file=_Said(), markup=False, emoji=False, highlight=False, soft_wrap=True)  # type: ignore[arg-type]
    with RunProgressBar(console, trials=len(config.labels) * len(config.seeds)) as watch:
        run_on(inputs, folder, there, wanted.resume, wanted.fresh, watch, wanted.command or None)
    return Outcome(folder=str(folder), sites=hellos)


def serve_run(config: Config) -> Config:
    """A config as the server has it: what clients have is theirs to say, and generators are not judged, since that
    needs real examples.

    Raises:
        GenfedError: a method pools all data, or a setting that sites of their own do not heed.
    """
    if config.attack:
        raise GenfedError(
            "[attack] simulates bad clients, which real sites are not: leave it out, or run without serve"
        )
    if config.audits:
        raise GenfedError("audits need clients' examples, which sites keep: leave them out, or run without serve")
    if pooled := [label for label, method in config.method.items() if method.pooled]:
        raise GenfedError(f'{pooled[0]} pools all data, which sites keep: leave it out, e.g. beside = ["local"]')
    return replace(
        config,
        data=Sites(),
        quality=replace(config.quality, samples=0),
        compute=replace(config.compute, workers=0),
        federation=replace(config.federation, examples=None),
    )


# Where the clients are.
def _nowhere(task: Task, infos: tuple[ClientInfo, ...]) -> FederatedData:
    """Clients without examples here."""
    nothing = Data(torch.zeros(0, *task.shape), torch.zeros(0, dtype=torch.int64))
    return FederatedData(task, infos, ((0, 0),) * len(infos), nothing, nothing)


class _There:
    """Clients at their sites."""

    def __init__(
        self,
        config: Config,
        grid: Any,
        roll: SiteRoster,
        folder: Path,
        task: Task,
        infos: tuple[ClientInfo, ...],
        hellos: Sequence[SiteDescription],
    ) -> None:
        self._config, self._roll, self._folder = config, roll, folder
        self._task, self._infos, self._names = task, infos, [hello.name for hello in hellos]
        self._post = MessageLink(grid, config.federation.timeout, pause=PAUSE)

    def shards(self, seed: int) -> FederatedData:
        return _nowhere(self._task, self._infos)

    def engine(self, trial: Trial) -> Engine:
        return _Named(self._post, self._roll, self._names, self._opening(trial))

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        """See `FederationClients`. A site that does not say is taken to have spent all that is planned."""
        spent: dict[int, Sequence[Mechanism]] = {}
        for info, name in zip(self._infos, self._names, strict=True) if trial.privacy else ():
            try:
                said = self._roll.ask(name, self._opening(trial) | {"ask": "spent", "client": info.id})[0]
                spent[info.id] = MECHANISMS.validate_python(said.get("mechanisms"))
            except (GenfedError, ValidationError) as error:
                log.warning("%s: %s; its ε is what is planned", name, str(error).splitlines()[0])
                spent[info.id] = example_level.estimate_cost(trial, info.id)
        return spent

    def _opening(self, trial: Trial) -> MessageHeader:
        about = _about(self._config, self._task, trial.label, trial.seed, _run_of(self._folder))
        return {"ask": "work", "open": about}

    def done(self, seed: int) -> None:
        pass


def _run_of(folder: Path) -> str:
    """Names a run: another one of the same config is another run, and what clients keep of it stands apart."""
    started = folder / "started.json"
    return hashlib.blake2b(started.read_bytes(), digest_size=8).hexdigest() if started.exists() else "new"


def _about(config: Config, task: Task, label: str, seed: int, run: str) -> str:
    """What a site is told of a trial."""
    compute, federation_ = config.compute, config.federation
    about = {
        "run": run,
        "label": label,
        "seed": seed,
        "method": method_table(config.method[label]),
        "classes": task.classes,
        "federation": {"clients": federation_.clients, "sample": federation_.sample},
        "precision": compute.precision,
        "flops": config.quality.flops and seed == config.seeds[0],
        "secure": settings_table(config.secure) if config.secure else None,
        "privacy": settings_table(config.privacy) if config.privacy else None,
        # Without [secure] the noise is the server's own business.
        "noised": settings_table(config.client_privacy) if config.client_privacy and config.secure else None,
    }
    return json.dumps(about)


def _prepare(roll: SiteRoster, config: Config, task: Task, hellos: Sequence[SiteDescription], run: str) -> None:
    """Has each site say whether it takes part, where the run protects anything or a site demands it; `run` names it.

    Raises:
        GenfedError: one does not.
    """
    trials = [_about(config, task, label, seed, run) for label in config.method for seed in config.seeds]
    for number, hello in enumerate(hellos):
        if config.privacy or config.secure or hello.demands:
            roll.ask(hello.name, {"ask": "prepare", "open": trials, "client": number})


class _Named(FlowerEngine):
    """Flower, each client at the site of its name."""

    def __init__(self, post: MessageLink, roll: SiteRoster, names: Sequence[str], opening: MessageHeader) -> None:
        super().__init__(
            post, lambda client: roll.node_of(names[client]), {"genfed": __version__} | opening, BACK_SECONDS
        )


COLUMNS = ("site", "architecture", "examples", "classes", "kind", "machine", "memory free", "clock")
"""Of `table_of`: examples are to train and to score on, the clock is against the server's."""


def request_to_settings(outcome: Outcome) -> list[tuple[str, ...]]:
    """What a check says of each site: rows of text."""
    return [
        (
            h.name,
            h.architecture,
            f"{h.examples} + {h.held_out}",
            f"{len(h.classes)}",
            f"{h.kind} {'×'.join(map(str, h.shape))}",
            f"{h.device}, torch {h.torch}",
            f"{h.memory / 2**30:.1f} GiB" if h.memory else "?",
            f"{h.clock - h.heard:+.0f} s",
        )
        for h in outcome.sites
    ]


def to_settings(wanted: ServeRequest) -> dict[str, Any]:
    """Run settings as Flower carries them."""
    return asdict(wanted) | {"overrides": json.dumps(wanted.overrides)}
