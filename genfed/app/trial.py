"""One method with one seed: the loop over its phases, with a checkpoint after every round."""

import functools
import logging
import time
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from genfed.app import registry
from genfed.app.central import Central, distributed
from genfed.app.config import ClientPrivacy, Compute, Federation, Privacy
from genfed.app.secured import SecureAsk
from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.attack import Attack
from genfed.core.errors import GenfedError, RecordError
from genfed.core.method import Client, Kept, Method, Phase, Reduced, Reply, Server, Slot, Task, leaves, taking_part
from genfed.core.record import digest, load, pack, save, unpack
from genfed.core.rng import stream
from genfed.core.robust import Rule, robust
from genfed.core.store import FolderStore, MemoryStore, Store
from genfed.engines.ask import Ask, Engine
from genfed.engines.site import Own, Shards, Step
from genfed.learn.evaluate import Counts, check_form, hits, tally, weighted
from genfed.report.results import EVALUATE, QUALITY, TRIGGERED, Row
from genfed.secure.protocol import EXCHANGES, Secure

R = TypeVar("R")
S = TypeVar("S")
REMEMBERED = 64
"""Classifiers whose scores are remembered, so that no two clients score the same one."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint(Generic[S]):
    """Where a trial stands after a round."""

    trial: str
    """What it is a checkpoint of; another trial's is refused."""
    task: Task
    step: int
    """Rounds done, over all phases."""
    rounds: tuple[int, ...]
    """Of each phase entered so far, in the order in which they run."""
    evaluations: int
    """How many were made."""
    scored: int
    """Rounds that had been done at the last evaluation; −1 before the first."""
    state: S


@dataclass(frozen=True)
class Progress:
    """What is going on, for whoever watches."""

    label: str
    seed: int
    phase: str
    round: int
    """Of this phase, from 0."""
    rounds: int
    step: int
    """Rounds done over all phases."""
    steps: int
    """Rounds in all, as far as is known."""
    client: int
    """Clients done in this round."""
    clients: int
    """Those asked; 0: the server is alone."""
    accuracy: float | None
    """Mean over clients at the last evaluation made in this process; None before the first."""
    left: float | None = None
    """Seconds that the phase still takes, going by its rounds in this process; None before the first of them."""


@dataclass(frozen=True)
class Trial:
    """What is run."""

    label: str
    seed: int
    method: Method[Any]
    shards: Shards
    folder: Path
    """Holds its checkpoint and what its clients keep."""
    identity: str
    """Names settings and data; a checkpoint with another one is refused."""
    federation: Federation
    compute: Compute
    evaluate_every: int
    public: Tensor | None = None
    """Unlabelled examples that anybody may see; None: the run names none."""
    counts_flops: bool = False
    """Whether clients count their arithmetic in the first round of each phase."""
    aggregation: Rule | None = None
    """What stands in the place of every mean of uploads; None: the means that the method declares."""
    attack: Attack | None = None
    """What some of its clients do instead of their part; None: all are honest."""
    secure: Secure | None = None
    """How uploads are added up without the server's seeing them; None: it sees them."""
    privacy: Privacy | None = None
    """How each example is protected; None: not."""
    client_privacy: ClientPrivacy | None = None
    """How each client is protected; None: not."""

    def place(self, step: int) -> int:
        """The number of a step among all that clients work in: an exchange of secure aggregation is one of its own."""
        return step * len(EXCHANGES) if self.secure else step


@dataclass(frozen=True)
class Scores(Counts):
    """What a client tells of its classifier."""

    own_accuracy: dict[int, float]
    """By client for whom it is scored: the accuracy on data like that one's; left out where there are none."""


def check_scores(server: Server, info: ClientInfo, scores: Scores) -> None:
    """Refuses scores that no classifier has; for `Phase.check`.

    Raises:
        GenfedError: counts of another type or shape, more right than there are, none at all, or an accuracy beyond 1.
    """
    classes = len(server.task.classes)
    check_form("correct", scores.correct, torch.int64, (classes,))
    check_form("total", scores.total, torch.int64, (classes,))
    if not bool(((scores.correct >= 0) & (scores.correct <= scores.total)).all()):
        raise GenfedError("correct is below 0 or above total in a class")
    if not bool(scores.total.any()):
        raise GenfedError("total is 0 in every class: it was scored on no examples")
    if bad := [value for value in scores.own_accuracy.values() if not 0 <= value <= 1]:
        raise GenfedError(f"own_accuracy is {bad[0]:g}; 0 to 1 is allowed")


class Watched:
    """A client's private records, and whether any was asked for."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.read = False

    def get(self, slot: Slot[R]) -> R | None:
        """See `Kept`."""
        self.read = True
        return self._kept.get(slot)

    def put(self, slot: Slot[R], record: R) -> None:
        """See `Kept`."""
        self._kept.put(slot, record)


def with_evaluation(
    method: Method[Any],
    held_out: Any,
    own: Mapping[int, Sequence[Own]] | None = None,
    triggered: tuple[Any, int] | None = None,
) -> dict[str, Phase[Any]]:
    """A method's phases by name, and the phase that scores its classifiers. A client tells, of each class, how many
    examples `held_out` has and how many of them it gets right, and one number for the data like its own. That number is
    weighted by its training examples of each class, which several of them give away, as `total` does those held out
    where these are its own: so it is not told where the server is not to know. Where clients work, `held_out` lies on
    their device; `own` is that of `Shards`, None: nobody is scored so. `triggered`: examples of which the metric
    TRIGGERED tells the share that is taken for the given class.

    Raises:
        GenfedError: two different phases of one name, or one of a name that the run itself uses.
    """
    phases: dict[str, Phase[Any]] = {}
    for phase in leaves(method.phases()):
        same = replace(phase, rounds=1)  # a phase may come again with another number of rounds
        if phase.name in (EVALUATE, QUALITY):
            raise GenfedError(f"{type(method).__name__} has a phase named {phase.name!r}, which is the run's own")
        if phases.setdefault(phase.name, same) != same:
            raise GenfedError(f"{type(method).__name__} has two phases named {phase.name!r}")

    scored: dict[tuple[str, str], tuple[Tensor, dict[str, float]]] = {}

    def judged(network: nn.Module, client: Client) -> tuple[Tensor, dict[str, float]]:
        """Which of the common part it gets right, and the metrics."""
        hit = hits(network, held_out, client.precision)
        if triggered is None:
            return hit, {}
        data, target = triggered
        fooled = hits(network, replace(data, y=torch.full_like(data.y, target)), client.precision)
        return hit, {TRIGGERED: fooled.double().mean().item()}

    def scored_once(client: Client, sent: Any) -> tuple[Tensor, dict[str, float]]:
        """Clients of one architecture who were sent the same have the same classifier, unless they kept something of
        it: one of a thousand clients is asked for all of them.
        """
        known = (client.info.architecture, digest(pack(sent)))
        if known not in scored:
            kept = Watched(client.kept)
            result = judged(method.classifier(replace(client, kept=kept), sent), client)
            if kept.read:
                return result
            if len(scored) >= REMEMBERED:
                scored.clear()
            scored[known] = result
        return scored[known]

    def evaluate(client: Client, sent: Any) -> Reply[Scores]:
        (hit, metrics), y = scored_once(client, sent), held_out.y.cpu()
        classes, mine, accuracy = len(client.task.classes), client.data.y.cpu(), {}
        whole = tally(hit, y, classes)
        for each in (own or {}).get(client.info.id, ()):
            counts = whole if each.rows is None else tally(hit[each.rows], y[each.rows], classes)
            held = torch.bincount(mine[slice(*each.range)], minlength=classes)
            if (score := weighted(counts, held)) is not None:
                accuracy[each.client] = score
        return Reply(Scores(whole.correct, whole.total, accuracy), metrics=metrics)

    evaluate.__annotations__["sent"] = typing.get_type_hints(method.classifier)["sent"]
    phases["evaluate"] = Phase(
        "evaluate",
        lambda server, state, reduced: state,
        method.send_classifier,
        evaluate,
        aggregate={"correct": Collect(), "total": Collect(), "own_accuracy": Collect()},
        check=check_scores,
    )
    return phases


class Run:
    """The loop of one trial."""

    def __init__(
        self,
        trial: Trial,
        engine: Engine,
        record: Callable[[Sequence[Row]], None],
        notify: Callable[[Progress], None],
    ) -> None:
        """`record` takes the rows of a round and puts them on disk before its checkpoint is; `notify` is called
        whenever a client has answered.
        """
        self._trial, self._engine, self._record, self._notify = trial, engine, record, notify
        self._plan = tuple(robust(phase, trial.aggregation) for phase in leaves(trial.method.phases()))
        self._phases = with_evaluation(trial.method, trial.shards.held_out)
        self._central = Central(trial) if trial.client_privacy else None
        self._accuracy: float | None = None
        self._took: dict[str, list[float]] = {}
        self.step = 0
        """Rounds done, once it is finished."""

    def finish(self) -> Any:
        """Does what is left to do, from the last checkpoint on, and returns the final state."""
        at = read_checkpoint(self._trial.method, self._trial.folder) or self._begin()
        if at.trial != self._trial.identity:
            raise GenfedError(f"{self._trial.folder} is of other settings or data; choose another --out, or --fresh")
        FolderStore(self._trial.folder).retain(at.state)  # shards of a round that was interrupted go
        step, rounds_of = 0, Counter[str]()
        for place, phase in enumerate(self._plan):
            if place == len(at.rounds):
                entered = phase.rounds(at.state) if callable(phase.rounds) else phase.rounds
                at = replace(at, rounds=(*at.rounds, entered))
            for _ in range(at.rounds[place]):
                if step >= at.step:
                    begun = time.perf_counter()
                    at = self._round(at, phase, rounds_of[phase.name])
                    self._took.setdefault(phase.name, []).append(time.perf_counter() - begun)
                rounds_of[phase.name] += 1
                step += 1
        if at.scored < at.step:
            at, rows = self._evaluated(at)
            self._keep(at, rows)
        elif not self._took:
            self.step = at.step
            self.tell_after("done before")
        self.step = at.step
        return at.state

    def tell_after(self, what: str) -> None:
        """Says that something is done now that the rounds are."""
        trial, step = self._trial, self.step
        self._notify(Progress(trial.label, trial.seed, what, 0, 1, step, step, 0, 1, self._accuracy))

    def _begin(self) -> Checkpoint[Any]:
        store = FolderStore(self._trial.folder, "init")
        state = self._trial.method.init(replace(server_of(self._trial, 0, "init"), store=store))
        at = Checkpoint(self._trial.identity, self._trial.shards.task, 0, (), 0, -1, state)
        self._trial.folder.mkdir(parents=True, exist_ok=True)
        self._keep(at, [])
        return at

    def _round(self, at: Checkpoint[Any], phase: Phase[Any], number: int) -> Checkpoint[Any]:
        state, rows = self._ask(phase, Step(phase.name, number, at.step), at)
        at = replace(at, step=at.step + 1, state=state)
        every = self._trial.evaluate_every
        if every and phase.changes_classifier and (number + 1) % every == 0:
            at, more = self._evaluated(at)
            rows += more
        self._keep(at, rows)
        return at

    def _evaluated(self, at: Checkpoint[Any]) -> tuple[Checkpoint[Any], list[dict[str, Any]]]:
        _, rows = self._ask(self._phases["evaluate"], Step("evaluate", at.evaluations, at.step), at)
        scores = [sum(row["correct"]) / sum(row["total"]) for row in rows if row["client"] is not None]
        self._accuracy = sum(scores) / len(scores)
        return replace(at, evaluations=at.evaluations + 1, scored=at.step), rows

    def _keep(self, at: Checkpoint[Any], rows: Sequence[Row]) -> None:
        self._record(rows)
        save(at, self._trial.folder / "state.safetensors")
        FolderStore(self._trial.folder).retain(at.state)

    def _ask(self, phase: Phase[Any], step: Step, at: Checkpoint[Any]) -> tuple[Any, list[dict[str, Any]]]:
        trial = self._trial
        head: dict[str, Any] = {"method": trial.label, "seed": trial.seed}
        head |= {"step": step.number, "phase": step.phase, "round": step.round}
        server = replace(
            server_of(trial, step.round, step.phase, step.round, "update"),
            store=FolderStore(trial.folder, step.phase, step.round),
        )
        if phase.work is None:
            self._tell(at, phase, step, 0, 0)
            started = time.perf_counter()
            state = phase.update(server, at.state, Reduced({}, ()))
            return state, [head | {"client": None, "seconds": time.perf_counter() - started, "failed": {}}]
        # Everybody is scored, whoever took part; and a ceiling is no federation that could be sampled.
        sample = 1.0 if step.phase == "evaluate" or trial.method.pooled else trial.federation.sample
        uploads = phase.aggregate and step.phase != EVALUATE
        drawn = self._central.drawn(step) if self._central and uploads else None
        if drawn is None:
            asked = taking_part(trial.shards.clients, sample, trial.seed, step.phase, step.round)
        else:
            asked = drawn
        sender = server_of(self._trial, step.round, step.phase, step.round, "send")
        placed = replace(step, number=trial.place(step.number))
        quorum = trial.federation.quorum
        fold = None
        charge = None
        if self._central and uploads and trial.secure:
            self._central.admit(step, asked)  # before clients train for nothing
            phase = distributed(phase, trial)
            charge = functools.partial(self._central.charge_sum, step, asked)
        elif self._central and uploads:

            def sent_to(info: ClientInfo) -> Any:
                assert phase.send is not None
                return unpack(phase.kinds[0], pack(phase.send(sender, at.state, info)))

            fold = self._central.fold(phase, step, asked, sent_to)
        ask = (
            SecureAsk(self._engine, phase, placed, sender, at.state, asked, quorum, trial.secure, charge)
            if trial.secure and uploads
            else Ask(self._engine, phase, placed, sender, at.state, asked, quorum if drawn is None else None, fold)
        )
        rows: list[dict[str, Any]] = []
        self._tell(at, phase, step, 0, len(asked))
        for done in ask:
            about = {"client": done.info.id, "architecture": done.info.architecture, "examples": done.info.examples}
            costs = {"up_bytes": done.up_bytes, "down_bytes": done.down_bytes, "seconds": round(done.seconds, 6)}
            metrics = done.metrics
            if step.phase == EVALUATE:  # its rows have columns that a metric of another name could pass for
                metrics = {name: value for name, value in metrics.items() if name == TRIGGERED and trial.attack}
            rows.append(metrics | head | about | costs)  # a metric cannot pass for one of these
            self._tell(at, phase, step, len(rows), len(asked))
        rows.sort(key=lambda row: int(row["client"]))
        for client, reason in sorted(ask.failures.items()):
            log.warning("%s, seed %d: client %d left out of %s: %s", trial.label, trial.seed, client, step, reason)
        reduced = ask.reduced
        if step.phase == "evaluate":
            for row in rows:
                row |= {name: reduced[name][row["client"]].tolist() for name in ("correct", "total")}
                own = reduced["own_accuracy"][row["client"]]
                row["own"] = fmean(own.values()) if own else None
                if trial.method.pooled:
                    row["own_of"] = own  # by client of the federation
        failed = {str(client): reason for client, reason in sorted(ask.failures.items())}
        whole: dict[str, Any] = {"client": None, "seconds": round(ask.seconds, 6), "failed": failed}
        if lost := self._engine.lost():
            whole["lost"] = lost
        rows.append(head | whole)
        return phase.update(server, at.state, reduced), rows

    def _tell(self, at: Checkpoint[Any], phase: Phase[Any], step: Step, client: int, clients: int) -> None:
        plan = self._plan
        known = [*at.rounds, *(p.rounds for p in plan[len(at.rounds) :] if isinstance(p.rounds, int))]
        rounds = sum(r for r, p in zip(known, plan, strict=False) if p.name == phase.name) or 1
        took, rest = self._took.get(step.phase), rounds - step.round - client / max(1, clients)
        self._notify(
            Progress(
                self._trial.label,
                self._trial.seed,
                step.phase,
                step.round,
                rounds,
                at.step,
                sum(known),
                client,
                clients,
                self._accuracy,
                rest * sum(took) / len(took) if took else None,
            )
        )


def server_of(trial: Trial, number: int, *path: str | int) -> Server:
    """Where a server function of this trial runs, its draws named by `path`; its store can be read."""
    shards, store = trial.shards, FolderStore(trial.folder)
    return new_server(
        shards.task, shards.clients, trial.compute, trial.seed, number, *path, public=trial.public, store=store
    )


def new_server(
    task: Task,
    clients: tuple[ClientInfo, ...],
    compute: Compute,
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
        new_network=lambda architecture, rng: registry.new_network(architecture, task, rng).to(device),
        public=public,
        store=store or MemoryStore(),
    )


def read_checkpoint(method: Method[Any], folder: Path) -> Checkpoint[Any] | None:
    """The last checkpoint of the trial in `folder`; None where there is none.

    Raises:
        GenfedError: it is damaged.
    """
    file = folder / "state.safetensors"
    if not file.exists():
        return None
    try:
        at: Checkpoint[Any] = load(Checkpoint[method.state], file)  # type: ignore[name-defined]
    except RecordError as error:
        raise GenfedError(f"{error}; delete {folder} to do this trial again from its start") from None
    return at


def counts_for(row: Row, at: Checkpoint[Any] | None) -> bool:
    """Whether a row of metrics.jsonl belongs to what the checkpoint holds."""
    if at is None:
        return False
    return bool(row["step"] <= at.scored if row["phase"] in (EVALUATE, QUALITY) else row["step"] < at.step)
