"""The server's side of a federation of sites: who is there, whether they agree, and the run itself.

It runs where Flower runs a ServerApp; `genfed.app.link` starts that.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console
from torch import Tensor, nn

from genfed import __version__
from genfed.app import central, federation, integrity, protection, registry
from genfed.app.accounting import Mechanism
from genfed.app.config import Config, method_table, read, settings_table
from genfed.app.progress import Watch
from genfed.app.run import Clients, default_folder, load_public, run_on
from genfed.app.trial import Trial, new_server
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.method import Data, Method, Server, Task, leaves
from genfed.core.record import Packed, digest, pack, unpack
from genfed.data.sites import Sites
from genfed.engines.ask import Engine, Failure
from genfed.engines.flower import EMPTY, LOST, Flower, Head, Letter, Post
from genfed.engines.site import Shards
from genfed.learn.weights import Model

log = logging.getLogger(__name__)
SAID = "genfed: "
"""Before each line that is meant for whoever started the server."""
HELLO_SECONDS = 180.0
"""That a site has for a query."""
ROUND_SECONDS = 15.0
"""That a node has to say who it is while a round waits for it."""
BACK_OFF = 60.0
"""Seconds after which a node that did not say who it is, or does not take part, is asked once more."""
PROCESS = 500 * 2**20
"""Bytes of a site's process before it does anything: torch and Flower, as measured."""
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
class Wanted:
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


Many = Annotated[int, Field(ge=0, lt=2**60)]


@dataclass(frozen=True)
class Hello:
    """What a site says of itself."""

    name: str
    architecture: str
    kind: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    examples: Many
    held_out: Many
    torch: str
    device: str
    memory: Many
    """Bytes free; 0: not known."""
    clock: float
    """Seconds since 1970."""
    demands: bool
    """Whether its file says what a run must protect; it is asked about that before training."""
    node: int
    heard: float
    """The server's own clock when it came."""

    def info(self, number: int) -> ClientInfo:
        """The site as a client."""
        return ClientInfo(number, self.architecture, self.examples)


@dataclass(frozen=True)
class Outcome:
    """What the server came to."""

    error: str = ""
    folder: str = ""
    sites: tuple[Hello, ...] = ()
    trouble: tuple[str, ...] = field(default_factory=tuple)
    """Of a check: lines that say why a run would be refused."""


def main(grid: Any, settings: Mapping[str, Any]) -> None:
    """What a ServerApp does with its grid and run settings: those of `Wanted`."""
    given = {name: value for name, value in settings.items() if value not in ("", [])}
    if isinstance(given.get("overrides"), str):
        given["overrides"] = json.loads(given["overrides"])
    try:
        wanted = TypeAdapter(Wanted).validate_python(given)
    except ValidationError as error:
        raise GenfedError(f"run settings: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None
    try:
        outcome = _served(Post(grid, HELLO_SECONDS, pause=PAUSE), grid, wanted)
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


def _served(post: Post, grid: Any, wanted: Wanted) -> Outcome:
    config = served(read(wanted.config, wanted.overrides))
    folder = Path(wanted.out) if wanted.out else default_folder(wanted.config, config)
    roll = Roll(post)
    count = config.federation.clients
    say(f"waiting for {count} sites")
    hellos = roll.call(count, wanted.wait, patient=not wanted.check)
    if wanted.check and (trouble := [*roll.refused.values(), *_trouble(config, hellos)]):
        return Outcome(sites=hellos, trouble=tuple(trouble))
    say("here are " + ", ".join(f"{h.name} ({h.architecture}, {h.examples} examples)" for h in hellos))
    if len(hellos) < count:
        raise GenfedError(f"{len(hellos)} of {count} sites are there after {wanted.wait:g} s")
    if trouble := _trouble(config, hellos):
        raise GenfedError("; ".join(trouble))
    task, infos = task_of(hellos), infos_of(hellos)
    public = load_public(config, task)
    integrity.check(config, _nowhere(task, infos), config.seeds[-1])
    for seed in config.seeds:
        central.check(config, infos, seed)
    federation.check_device(config.compute.device)
    for label, method in config.method.items():
        federation.check_augmentation(label, method, task)
    strangers = {seed: _strangers(roll, hellos, task, seed) for seed in config.seeds}
    _lend(strangers[config.seeds[-1]])
    protection.check(config, task, infos)
    _prepare(roll, config, task, hellos, _run_of(folder) if wanted.resume else "new")
    tight = tight_memory(config, task, infos, public, hellos)
    if wanted.check:
        return Outcome(sites=hellos, trouble=tuple(tight))
    for line in tight:
        say(line)

    @contextlib.contextmanager
    def there() -> Iterator[Clients]:
        yield _There(config, grid, roll, folder, task, infos, hellos, strangers)

    console = Console(file=_Said(), markup=False, emoji=False, highlight=False, soft_wrap=True)  # type: ignore[arg-type]
    with Watch(console, trials=len(config.labels) * len(config.seeds)) as watch:
        run_on(config, task, infos, public, folder, there, wanted.resume, wanted.fresh, watch, wanted.command or None)
    return Outcome(folder=str(folder), sites=hellos)


def served(config: Config) -> Config:
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


# Who is there.


class Roll:
    """The sites that are connected, by name."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._known: dict[int, Hello] = {}
        self.refused: dict[int, str] = {}
        """By node, what one says that does not take part."""
        self._again: dict[int, float] = {}
        """By node of those, when it is asked once more."""
        self._looked = 0.0

    def call(self, count: int, seconds: float, patient: bool = True) -> tuple[Hello, ...]:
        """The sites that are there, by name, once there are `count`, or after `seconds`.

        Raises:
            GenfedError: a site refuses, two have one name, or there are more than `count`.
        """
        until = time.monotonic() + seconds
        while True:
            self.look()
            here = self.here()
            names = Counter(hello.name for hello in here)
            if twice := [name for name, times in names.items() if times > 1]:
                raise GenfedError(f"two sites are named {twice[0]}; each needs a name of its own in its SITE.toml")
            if len(here) > count:
                raise GenfedError(
                    f"{len(here)} sites are there ({', '.join(sorted(names))}) for federation.clients = {count}"
                )
            if self.refused and patient:
                raise GenfedError(next(iter(self.refused.values())))
            if len(here) == count or time.monotonic() > until:
                return tuple(sorted(here, key=lambda hello: hello.name))
            time.sleep(0.5)

    def look(self, seconds: float | None = None) -> None:
        """Asks nodes that are new who they are; each has `seconds` to answer, None: those of a query."""
        nodes = self._connected()
        new = [n for n in nodes if n not in self._known and self._again.get(n, 0.0) <= time.monotonic()]
        letters = [(node, Letter(node, {"genfed": __version__, "ask": "hello"})) for node in new]
        registered = self._post.registered() if new else {}
        for node, answer in self._post.send("query", letters, timeout=seconds):
            if isinstance(answer, Failure):
                if answer.reason not in LOST.values():  # such a one is asked again with the next look
                    self._refuse(node, answer.reason)
                continue
            try:
                said = {**answer[0], "node": node, "heard": time.time()}
                hello = TypeAdapter(Hello).validate_python(said)
            except ValidationError as error:
                first = error.errors()[0]
                self._refuse(node, f"a site said what cannot be: {'.'.join(map(str, first['loc']))}: {first['msg']}")
                continue
            if (name := registered.get(node, hello.name)) != hello.name:
                self._refuse(node, f"the site with the key of {name} says that it is {hello.name}: it has another's")
                continue
            self._known[node] = hello
            self.refused.pop(node, None)

    def _connected(self) -> list[int]:
        """The nodes that there are; others are forgotten."""
        self._looked = time.monotonic()
        nodes = sorted(self._post.nodes())
        self._known = {node: hello for node, hello in self._known.items() if node in nodes}
        return nodes

    def _refuse(self, node: int, reason: str) -> None:
        self.refused[node], self._again[node] = reason, time.monotonic() + BACK_OFF

    def here(self) -> list[Hello]:
        """Those that are known."""
        return list(self._known.values())

    def node_of(self, name: str) -> int | None:
        """Where the site is; it may have come back as another node. Who else there is does not matter: nodes are asked
        who they are only where the site is missing, and a round does not wait long for those that do not say.
        """
        if time.monotonic() - self._looked > 1:
            self._connected()
            if self._place(name) is None:
                self.look(ROUND_SECONDS)
        return self._place(name)

    def _place(self, name: str) -> int | None:
        return next((node for node, hello in self._known.items() if hello.name == name), None)

    def ask(self, name: str, head: dict[str, Any]) -> tuple[dict[str, Any], Packed]:
        """One site's answer to a query.

        Raises:
            GenfedError: it gives none.
        """
        node = self.node_of(name)
        if node is None:
            raise GenfedError(f"site {name} is not connected")
        ((_, answer),) = self._post.send("query", [(name, Letter(node, {"genfed": __version__} | head, EMPTY))])
        if isinstance(answer, Failure):
            raise GenfedError(f"site {name}: {answer.reason}")
        return answer


# Whether they agree.


def _trouble(config: Config, hellos: Sequence[Hello]) -> list[str]:
    """Why a run would be refused."""
    if not hellos:
        return ["no site is there"]
    lines = [*differing_labels(hellos)]
    if len(hellos) < config.federation.clients:
        lines.insert(0, f"{len(hellos)} of {config.federation.clients} sites are there")
    shapes: dict[str, list[str]] = {}
    for hello in hellos:
        shapes.setdefault(f"{hello.kind} examples of shape {hello.shape}", []).append(hello.name)
    if len(shapes) > 1:
        lines.append(
            "examples differ: " + ", ".join(f"{', '.join(names)} has {what}" for what, names in shapes.items())
        )
    few = min(hellos, key=lambda hello: hello.examples)
    for label, method in config.method.items():
        if few.examples < method.minimum_examples:
            lines.append(
                f"{label} needs {method.minimum_examples} examples at every client, and {few.name} has {few.examples}"
            )
        if method.needs_architectures and (own := [hello for hello in hellos if hello.info(0).personal]):
            lines.append(
                f"{label} has others than its site run each architecture, and {own[0].architecture} is known to site "
                f"{own[0].name} alone: use one of the zoo, or gefl, gefl_f or fgl"
            )
        if method.needs_public and config.public is None:
            lines.append(f"{label} needs public examples: name a data source in the table [public]")
    return lines


def tight_memory(
    config: Config, task: Task, infos: tuple[ClientInfo, ...], public: Tensor | None, hellos: Sequence[Hello]
) -> list[str]:
    """A line for each site and method with a phase that needs more memory than is free: at least a process, what is
    sent, as much again for its gradients and twice for an optimiser's moments, and the examples.
    """
    example = torch.Size(task.shape).numel() * 4
    lines = []
    for label, method in config.method.items():
        server = new_server(task, infos, config.compute, config.seeds[-1], 0, "init", public=public)
        state = _begun(label, method, server, hellos)
        for info, hello in zip(infos, hellos, strict=True):
            sizes = {}
            for phase in leaves(method.phases()):
                if phase.work is not None and phase.send is not None:
                    with contextlib.suppress(Exception):  # it sends what an earlier phase has yet to make
                        sizes[phase.name] = pack(phase.send(server, state, info)).nbytes
            largest = max(sizes, key=lambda name: sizes[name], default="")
            need = PROCESS + 4 * sizes.get(largest, 0) + example * (hello.examples + hello.held_out)
            if 0 < hello.memory < need:
                lines.append(
                    f"{hello.name} has {hello.memory / 2**30:.1f} GiB of memory free, and phase {largest} of {label} "
                    f"needs {need / 2**30:.1f} GiB or more"
                )
    return lines


def _begun(label: str, method: Method[Any], server: Server, hellos: Sequence[Hello]) -> Any:
    """The state before the first round.

    Raises:
        GenfedError: the method refuses, in a line that names it, and the site whose own architecture is the reason.
    """
    try:
        return method.init(server)
    except GenfedError as error:
        own = [h for h in hellos if h.info(0).personal and h.architecture in str(error)]
        raise GenfedError(f"{label}: {error}" + (f" (site {own[0].name})" if own else "")) from None


def differing_labels(hellos: Sequence[Hello]) -> list[str]:
    """A line for all the ways in which label sets differ; empty: they do not."""
    sets = Counter(hello.classes for hello in hellos)
    if len(sets) == 1:
        return []
    if len({frozenset(classes) for classes in sets}) == 1:
        return ["the sites name the same classes in different orders: give all the same list `classes` in SITE.toml"]
    everywhere = set.intersection(*(set(hello.classes) for hello in hellos))
    anywhere = set.union(*(set(hello.classes) for hello in hellos))
    if not everywhere:
        return ["label sets do not overlap: " + "; ".join(f"{h.name} has {_listed(h.classes)}" for h in hellos)]
    parts = []
    for hello in hellos:
        others = Counter(name for other in hellos if other is not hello for name in other.classes)
        lacks = sorted(anywhere - set(hello.classes))
        alone = sorted(name for name in hello.classes if not others[name])
        if lacks and alone and len(lacks) >= len(alone):
            near = ", ".join(f"{name!r}" for name in alone)
            parts.append(f"{hello.name} alone has {near} (renamed?) and lacks {_listed(lacks)}")
        elif lacks:
            parts.append(f"{hello.name} lacks {_listed(lacks)}")
        elif alone:
            parts.append(f"{hello.name} alone has {_listed(alone)}")
    return [
        "label sets differ: "
        + "; ".join(parts)
        + "; a site without examples of a class names all of them in `classes` of its SITE.toml"
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def task_of(hellos: Sequence[Hello]) -> Task:
    """What is learned, once all agree."""
    first = hellos[0]
    return TypeAdapter(Task).validate_python({"kind": first.kind, "shape": first.shape, "classes": first.classes})


def infos_of(hellos: Sequence[Hello]) -> tuple[ClientInfo, ...]:
    """The sites as clients, numbered in the order of their names."""
    return tuple(hello.info(i) for i, hello in enumerate(hellos))


# Architectures that only a site knows.


class Stranger(nn.Module):
    """A network of which the server knows the weights and not what it computes. If all lie under `extractor` and
    `header`, it has these two parts, so that its extractor can be averaged.
    """

    def __init__(self, architecture: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._name, self._weights = architecture, dict(weights)
        if {key.partition(".")[0] for key in weights} == {"extractor", "header"}:
            for part in ("extractor", "header"):
                under = {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{part}.")}
                self._modules[part] = Stranger(architecture, under)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Its weights."""
        return dict(self._weights)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Nobody has a use for it that does not end in its forward."""
        raise self._refusal()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise self._refusal() from None

    def forward(self, *args: Any) -> Any:
        raise self._refusal()

    def _refusal(self) -> GenfedError:
        return GenfedError(f"it must run {self._name}, which its site alone knows: use one of the zoo, or gefl")


def _strangers(roll: Roll, hellos: Sequence[Hello], task: Task, seed: int) -> dict[str, dict[str, Tensor]]:
    """Initial weights of architectures that this server cannot know, asked from their sites.

    Raises:
        GenfedError: an architecture that is not in the zoo, or one name for two.
    """
    found: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for hello in hellos:
        name = hello.architecture
        if not hello.info(0).personal:
            registry.new_network(name, task, torch.Generator())  # refuses what the zoo does not have
            continue
        weights = unpack(Model, roll.ask(hello.name, {"ask": "initial", "seed": seed})[1]).classifier
        if name in found and digest(pack(Model(found[name][1]))) != digest(pack(Model(weights))):
            raise GenfedError(
                f"sites {found[name][0]} and {hello.name} both name {name}, and theirs differ: rename one"
            )
        found[name] = hello.name, weights
    return {name: weights for name, (_, weights) in found.items()}


def _lend(strangers: Mapping[str, dict[str, Tensor]]) -> None:
    for name, weights in strangers.items():
        registry.lend(name, functools.partial(_stranger, name, weights))


def _stranger(name: str, weights: dict[str, Tensor], task: Task) -> nn.Module:
    return Stranger(name, weights)


# Where the clients are.


def _nowhere(task: Task, infos: tuple[ClientInfo, ...]) -> Shards:
    """Clients without examples here."""
    nothing = Data(torch.zeros(0, *task.shape), torch.zeros(0, dtype=torch.int64))
    return Shards(task, infos, ((0, 0),) * len(infos), nothing, nothing)


class _There:
    """Clients at their sites."""

    def __init__(
        self,
        config: Config,
        grid: Any,
        roll: Roll,
        folder: Path,
        task: Task,
        infos: tuple[ClientInfo, ...],
        hellos: Sequence[Hello],
        strangers: Mapping[int, Mapping[str, dict[str, Tensor]]],
    ) -> None:
        self._strangers = strangers
        self._config, self._roll, self._folder = config, roll, folder
        self._task, self._infos, self._names = task, infos, [hello.name for hello in hellos]
        self._post = Post(grid, config.federation.timeout, pause=PAUSE)

    def shards(self, seed: int) -> Shards:
        _lend(self._strangers[seed])
        return _nowhere(self._task, self._infos)

    def engine(self, trial: Trial) -> Engine:
        return _Named(self._post, self._roll, self._names, self._opening(trial))

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        """See `Clients`. A site that does not say is taken to have spent all that is planned."""
        spent: dict[int, Sequence[Mechanism]] = {}
        for info, name in zip(self._infos, self._names, strict=True) if trial.privacy else ():
            try:
                said = self._roll.ask(name, self._opening(trial) | {"ask": "spent", "client": info.id})[0]
                spent[info.id] = MECHANISMS.validate_python(said.get("mechanisms"))
            except (GenfedError, ValidationError) as error:
                log.warning("%s: %s; its ε is what is planned", name, str(error).splitlines()[0])
                spent[info.id] = protection.planned_cost(trial, info.id)
        return spent

    def _opening(self, trial: Trial) -> Head:
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


def _prepare(roll: Roll, config: Config, task: Task, hellos: Sequence[Hello], run: str) -> None:
    """Has each site say whether it takes part, where the run protects anything or a site demands it; `run` names it.

    Raises:
        GenfedError: one does not.
    """
    trials = [_about(config, task, label, seed, run) for label in config.method for seed in config.seeds]
    for number, hello in enumerate(hellos):
        if config.privacy or config.secure or hello.demands:
            roll.ask(hello.name, {"ask": "prepare", "open": trials, "client": number})


class _Named(Flower):
    """Flower, each client at the site of its name."""

    def __init__(self, post: Post, roll: Roll, names: Sequence[str], opening: Head) -> None:
        super().__init__(
            post, lambda client: roll.node_of(names[client]), {"genfed": __version__} | opening, BACK_SECONDS
        )


COLUMNS = ("site", "architecture", "examples", "classes", "kind", "machine", "memory free", "clock")
"""Of `table_of`: examples are to train and to score on, the clock is against the server's."""


def table_of(outcome: Outcome) -> list[tuple[str, ...]]:
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


def to_settings(wanted: Wanted) -> dict[str, Any]:
    """Run settings as Flower carries them."""
    return asdict(wanted) | {"overrides": json.dumps(wanted.overrides)}
