"""The progress of a run or a pretraining, as a terminal shows it."""

import time
from dataclasses import dataclass
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genfed.foundation.pretraining import TrainingProgress


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    label: str
    seed: int
    phase: str
    round: int
    """Round of this phase, from 0."""
    rounds: int
    """Number of rounds of this phase."""
    step: int
    """Number of finished rounds over all phases."""
    steps: int
    """Number of rounds over all phases, as far as it is known."""
    client: int
    """Number of clients that have answered in this round."""
    clients: int
    """Number of selected clients. 0: only the server works."""
    accuracy: float | None
    """Mean accuracy of the clients at the last evaluation in this process. None: there was none."""
    left: float | None = None
    """Estimated seconds until the phase ends. None: no round of it has ended in this process."""
    warning: str | None = None
    """What the user should know now, such as a generator that ignores labels. None: nothing."""


class RunProgressBar:
    """Progress bars on a terminal; elsewhere a line when a trial begins, and at most one every half minute."""

    def __init__(self, console: Console, trials: int) -> None:
        """`trials` is the number of trials: methods × seeds."""
        self._console, self._trials = console, trials
        self._seen: list[tuple[str, int]] = []
        self._printed = 0.0
        self._bars = rich_progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all: TaskID = self._bars.add_task("all", total=trials)
        self._now: TaskID = self._bars.add_task("starting", total=1)

    def __call__(self, progress: Progress) -> None:
        key = progress.label, progress.seed
        if new := key not in self._seen:
            self._seen.append(key)
        scored = "" if progress.accuracy is None else f" · accuracy {100 * progress.accuracy:.1f} %"
        who = f"client {progress.client}/{progress.clients}" if progress.clients else "server"
        where = (
            f"{progress.label} · seed {progress.seed} · {progress.phase} round {progress.round + 1}/{progress.rounds}"
            f" · {who}{scored}"
        )
        if progress.left is not None and progress.rounds > 1:
            where += f" · {format_duration(progress.left)} left"
        done = (progress.step + progress.client / max(1, progress.clients)) / max(1, progress.steps)
        trials = f"trial {len(self._seen)}/{self._trials}"
        self._bars.update(self._all, completed=len(self._seen) - 1 + min(1, done), description=trials)
        self._bars.update(self._now, completed=min(1, done), description=where)
        if progress.warning is not None:
            self._bars.console.print(f"warning: {progress.warning}", style="yellow", markup=False, highlight=False)
        if not self._console.is_terminal and (new or time.monotonic() - self._printed > 30):
            self._printed = time.monotonic()
            self._console.print(f"{trials}: {where}", highlight=False, soft_wrap=True)

    def __enter__(self) -> "RunProgressBar":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()


class StepProgressBar:
    """A progress bar of the training of one model; elsewhere than on a terminal at most a line every half minute."""

    def __init__(self, console: Console) -> None:
        self._console, self._printed = console, 0.0
        self._bars = rich_progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            speed_estimate_period=600,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._now: TaskID = self._bars.add_task("starting", total=None)

    def __call__(self, progress: TrainingProgress) -> None:
        where = f"{progress.stage} · step {progress.step}/{progress.steps} · loss {progress.loss:.4f}"
        self._bars.update(self._now, completed=progress.step, total=progress.steps, description=where)
        if not self._console.is_terminal and (time.monotonic() - self._printed > 30 or progress.step == progress.steps):
            self._printed = time.monotonic()
            self._console.print(where, highlight=False, soft_wrap=True)

    def __enter__(self) -> "StepProgressBar":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()


def format_duration(seconds: float) -> str:
    """Returns a duration in words: 8 s, 2 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"
