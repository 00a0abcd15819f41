"""The loop over the rounds of one trial, with a checkpoint after each."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.files import make_folder, sync_file_system
from genfed.core.phase import Phase, Reduced, flatten_phases
from genfed.core.record import save
from genfed.core.store import FolderStore
from genfed.engines.messages import RoundId
from genfed.engines.round import Engine, OpenRound, RoundRequest
from genfed.experiment.checkpoint import STATE, Checkpoint, read_checkpoint
from genfed.experiment.evaluation import add_evaluation
from genfed.experiment.progress import Progress
from genfed.experiment.trial import Trial, trial_server
from genfed.experiment.uploads import uploads_by_phase, with_client_noise
from genfed.metrics.classification import balanced_accuracy, macro_f1
from genfed.privacy.client_level import read_releases
from genfed.report.metrics_log import digest_rows
from genfed.report.results import EVALUATE, TRIGGERED, Row
from genfed.robustness.robust_mean import make_robust
from genfed.training.evaluation import ClassCounts

log = logging.getLogger(__name__)


class TrialLoop:
    """The loop of one trial."""

    def __init__(
        self,
        trial: Trial,
        engine: Engine,
        record: Callable[[Sequence[Row]], None],
        notify: Callable[[Progress], None],
        inspect: Callable[[Any], str | None] | None = None,
    ) -> None:
        """Prepares the loop; nothing is run yet.

        Args:
            trial: the trial.
            engine: carries messages to clients.
            record: called with the rows of each round; must write them to disk before it returns. The checkpoint of the
                round follows.
            notify: called whenever a client has answered.
            inspect: called with the state before the first phase that trains classifiers after one that does not: with
                a generator that was trained, and that classifiers will learn from. Returns a warning, or None. None:
                nothing is called.
        """
        self._trial, self._engine, self._record, self._notify = trial, engine, record, notify
        self._inspect = inspect
        self._plan = tuple(
            with_client_noise(make_robust(phase, trial.aggregation), trial)
            for phase in flatten_phases(trial.method.phases())
        )
        shards = trial.shards
        self._scoring = add_evaluation(trial.method, shards.held_out, elsewhere=shards.held_out_counts)[EVALUATE]
        self._uploads = uploads_by_phase(trial, (*self._plan, self._scoring))
        self._accuracy: float | None = None
        self._took: dict[str, list[float]] = {}
        self._at: Checkpoint[Any] | None = None
        self.step = 0
        """Number of rounds done, after `finish`."""

    def finish(self) -> Any:
        """Runs all rounds that follow the last checkpoint, and returns the final state.

        Raises:
            GenfedError: the checkpoint is of other settings or data.
        """
        at = read_checkpoint(self._trial.method, self._trial.folder) or self._begin()
        if at.trial != self._trial.identity:
            raise GenfedError(
                f"{self._trial.folder} has a checkpoint of other settings or data; choose another --out, or --fresh"
            )
        FolderStore(self._trial.folder).retain(at.state)  # deletes the files of an interrupted round
        step, rounds_of = 0, Counter[str]()
        for place, phase in enumerate(self._plan):
            if place == len(at.rounds):
                entered = phase.rounds(at.state) if callable(phase.rounds) else phase.rounds
                at = replace(at, rounds=(*at.rounds, entered))
            if step == at.step and place == self._find_first_learner():
                self._warn(phase, at)
            for _ in range(at.rounds[place]):
                if step >= at.step:
                    begun = time.perf_counter()
                    at = self._do_round(at, phase, rounds_of[phase.name])
                    self._took.setdefault(phase.name, []).append(time.perf_counter() - begun)
                rounds_of[phase.name] += 1
                step += 1
        if at.scored < at.step:
            at = self._save(*self._evaluate(at))
        elif not self._took:
            self.step = at.step
            self.report_progress("done before")
        self.step, self._at = at.step, at
        return at.state

    def _find_first_learner(self) -> int | None:
        """Returns the place of the first phase that trains classifiers after one that does not; None: there is none."""
        trains = [phase.changes_classifier for phase in self._plan]
        return next((i for i, now in enumerate(trains) if now and not all(trains[:i])), None)

    def _warn(self, phase: Phase[Any], at: Checkpoint[Any]) -> None:
        """Logs and reports what `inspect` says of a state, before `phase`."""
        if self._inspect is None or (warning := self._inspect(at.state)) is None:
            return
        label, seed = self._trial.label, self._trial.seed
        log.warning("%s, seed %d: %s", label, seed, warning)
        about = f"{label}, seed {seed}: {warning}"
        self._notify(Progress(label, seed, phase.name, 0, 1, at.step, sum(at.rounds), 0, 1, None, warning=about))

    def add_quality(self, row: Row) -> None:
        """Writes the row of generator quality, after `finish`."""
        assert self._at is not None
        self._record([row])
        self._at = replace(self._at, quality_digest=digest_rows([row]))
        save(self._at, self._trial.folder / STATE)

    def report_progress(self, what: str) -> None:
        """Reports `what` as the current step, after all rounds are done."""
        trial, step = self._trial, self.step
        self._notify(Progress(trial.label, trial.seed, what, 0, 1, step, step, 0, 1, self._accuracy))

    def _begin(self) -> Checkpoint[Any]:
        store = FolderStore(self._trial.folder, "init")
        state = self._trial.method.init(replace(trial_server(self._trial, 0, "init"), store=store))
        at = Checkpoint(self._trial.identity, self._trial.shards.task, 0, (), 0, -1, state)
        make_folder(self._trial.folder)
        return self._save(at, [])

    def _do_round(self, at: Checkpoint[Any], phase: Phase[Any], number: int) -> Checkpoint[Any]:
        state, rows = self._run_round(phase, RoundId(phase.name, number, at.step), at)
        answered = {row["client"]: self._trial.place(at.step) for row in rows if row["client"] is not None}
        stored = at.stored | (answered if self._trial.stores(phase) else {})
        at = replace(at, step=at.step + 1, state=state, stored=stored)
        every = self._trial.evaluate_every
        if every and phase.changes_classifier and (number + 1) % every == 0:
            at, more = self._evaluate(at)
            rows += more
        if self._trial.stores(phase) and not self._trial.durable:
            sync_file_system(self._trial.folder)
        return self._save(at, rows)

    def _evaluate(self, at: Checkpoint[Any]) -> tuple[Checkpoint[Any], list[dict[str, Any]]]:
        _, rows = self._run_round(self._scoring, RoundId(EVALUATE, at.evaluations, at.step), at)
        scores = [sum(row["correct"]) / sum(row["total"]) for row in rows if row["client"] is not None]
        self._accuracy = sum(scores) / len(scores)
        return replace(at, evaluations=at.evaluations + 1, scored=at.step), rows

    def _save(self, at: Checkpoint[Any], rows: Sequence[Row]) -> Checkpoint[Any]:
        """Writes rows, and the checkpoint after them; returns the checkpoint as it was written."""
        trial = self._trial
        self._record(rows)
        released = read_releases(trial.folder).last if trial.round_noise is not None else -1
        counted, digest = at.rows + len(rows), digest_rows(rows, at.rows_digest)
        at = replace(at, released=released, rows=counted, rows_digest=digest)
        save(at, trial.folder / STATE)
        FolderStore(trial.folder).retain(at.state)
        return at

    def _run_round(self, phase: Phase[Any], round_id: RoundId, at: Checkpoint[Any]) -> tuple[Any, list[dict[str, Any]]]:
        """Returns the state after a round, and the rows of the log: one for each client and one for the round."""
        trial, path = self._trial, (round_id.phase, round_id.round)
        server = replace(trial_server(trial, path[1], *path, "update"), store=FolderStore(trial.folder, *path))
        if phase.work is None:
            return self._run_on_server(phase, round_id, at, server)
        uploads = self._uploads[phase.name]
        sender, first_step = trial_server(trial, path[1], *path, "send"), trial.place(round_id.number)
        clients = uploads.participants(round_id)
        round_ = uploads.open(
            RoundRequest(self._engine, phase, round_id, first_step, sender, at.state, clients, at.stored)
        )
        rows = self._client_rows(phase, round_id, at, round_, len(clients))
        reduced = round_.reduced
        scored = self._add_scores(rows, reduced) if phase.scores else {}
        failed = {str(client): reason for client, reason in sorted(round_.failures.items())}
        whole = self._head(round_id) | {"client": None, "seconds": round(round_.seconds, 6), "failed": failed} | scored
        if lost := self._engine.lost():
            whole["lost"] = lost
        return phase.update(server, at.state, reduced), [*rows, whole]

    def _run_on_server(
        self, phase: Phase[Any], round_id: RoundId, at: Checkpoint[Any], server: Server
    ) -> tuple[Any, list[dict[str, Any]]]:
        self._report_client(at, phase, round_id, 0, 0)
        started = time.perf_counter()
        state = phase.update(server, at.state, Reduced({}, ()))
        whole: dict[str, Any] = {"client": None, "seconds": time.perf_counter() - started, "failed": {}}
        return state, [self._head(round_id) | whole]

    def _client_rows(
        self, phase: Phase[Any], round_id: RoundId, at: Checkpoint[Any], round_: OpenRound, clients: int
    ) -> list[dict[str, Any]]:
        """Runs a round with this number of clients. Returns a row for each client that answered, by id."""
        trial, rows = self._trial, list[dict[str, Any]]()
        self._report_client(at, phase, round_id, 0, clients)
        for done in round_:
            about = {"client": done.info.id, "architecture": done.info.architecture, "examples": done.info.examples}
            costs = {"up_bytes": done.up_bytes, "down_bytes": done.down_bytes, "seconds": round(done.seconds, 6)}
            metrics = done.metrics
            if phase.scores:  # rows of scores have more columns, which no metric of a client may set
                metrics = {name: value for name, value in metrics.items() if name == TRIGGERED and trial.attack}
            rows.append(metrics | self._head(round_id) | about | costs)  # a client's metric cannot replace these
            self._report_client(at, phase, round_id, len(rows), clients)
        for client, reason in sorted(round_.failures.items()):
            log.warning(
                "%s, seed %d: client %d excluded from %s: %s", trial.label, trial.seed, client, round_id, reason
            )
        return sorted((row for row in rows if row["client"] not in round_.failures), key=lambda row: int(row["client"]))

    def _add_scores(self, rows: Sequence[dict[str, Any]], reduced: Reduced) -> dict[str, Any]:
        """Adds the clients' scores to their rows. Returns the columns of the round: the confusion matrix over all
        clients, without zeros. {}: the task has too many classes for one.
        """
        for row in rows:
            client = row["client"]
            counts = ClassCounts(reduced["correct"][client], reduced["total"][client])
            row |= {"correct": counts.correct.tolist(), "total": counts.total.tolist()}
            row |= {
                "balanced_accuracy": balanced_accuracy(counts),
                "f1": macro_f1(counts, reduced["predicted"][client]),
            }
            row |= {name: reduced[name][client] for name in ("auroc", "ece")}
            own = reduced["own_accuracy"][client]
            row["own"] = fmean(own.values()) if own else None
            if self._trial.method.pooled:
                row["own_of"] = own  # by client of the federation
        matrix = reduced["confusion"].tolist()
        by_true = {true: {said: n for said, n in enumerate(counts) if n} for true, counts in enumerate(matrix)}
        return {"confusion": by_true} if matrix else {}

    def _head(self, round_id: RoundId) -> dict[str, Any]:
        head = {"method": self._trial.label, "seed": self._trial.seed}
        return head | {"step": round_id.number, "phase": round_id.phase, "round": round_id.round}

    def _report_client(self, at: Checkpoint[Any], phase: Phase[Any], step: RoundId, client: int, clients: int) -> None:
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
