"""What a person sees while a run goes on."""

import time
from dataclasses import dataclass
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genfed.foundation.pretraining import TrainingProgress


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


class RunProgressBar:
    """Live bars on a terminal; elsewhere a line when a trial begins and at most one every half minute."""

    def __init__(self, console: Console, trials: int) -> None:
        """`trials` is how many there will be: methods × seeds."""
        self._console, self._trials = console, trials
        self._seen: list[tuple[str, int]] = []
        self._said = 0.0
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
        asked = f"client {progress.client}/{progress.clients}" if progress.clients else "server"
        where = (
            f"{progress.label} · seed {progress.seed} · {progress.phase} round {progress.round + 1}/{progress.rounds}"
            f" · {asked}{scored}"
        )
        if progress.left is not None and progress.rounds > 1:
            where += f" · {format_duration(progress.left)} left"
        done = (progress.step + progress.client / max(1, progress.clients)) / max(1, progress.steps)
        trials = f"trial {len(self._seen)}/{self._trials}"
        self._bars.update(self._all, completed=len(self._seen) - 1 + min(1, done), description=trials)
        self._bars.update(self._now, completed=min(1, done), description=where)
        if not self._console.is_terminal and (new or time.monotonic() - self._said > 30):
            self._said = time.monotonic()
            self._console.print(f"{trials}: {where}", highlight=False, soft_wrap=True)

    def __enter__(self) -> "RunProgressBar":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()


class StepProgressBar:
    """The same for a training of one model, told every hundred steps."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, 0.0
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

    def __call__(self, told: TrainingProgress) -> None:
        where = f"{told.stage} · step {told.step}/{told.steps} · loss {told.loss:.4f}"
        self._bars.update(self._now, completed=told.step, total=told.steps, description=where)
        if not self._console.is_terminal and (time.monotonic() - self._said > 30 or told.step == told.steps):
            self._said = time.monotonic()
            self._console.print(where, highlight=False, soft_wrap=True)

    def __enter__(self) -> "StepProgressBar":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()


def format_duration(seconds: float) -> str:
    """About how long: 8 s, 2 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"
