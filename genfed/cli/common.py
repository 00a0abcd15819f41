"""What all commands share: the console, common options, and what is printed after a run."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from genfed.core.errors import GenfedError

if TYPE_CHECKING:
    from genfed.experiment.run_folder import OnExisting
    from genfed.report.results import Report

app = typer.Typer(
    name="genfed",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Generative federated learning: clients that share neither data nor a model architecture learn from each "
    "other through generative models.\n\n"
    "A run is one TOML file: data, clients, methods, seeds. Start with `genfed run configs/demo.toml`, look at the "
    "report.html that it names, then change the file or set a value with `--set federation.clients=5`.",
)


def _console(stderr: bool = False, width: int | None = None) -> Console:
    """It shows text as it is: types, paths and what a client's code says hold [brackets] and :colons:."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def _output() -> Console:
    console = _console()
    return console if console.is_terminal else _console(width=120)  # a file or a pipe has no width of its own


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, e.g. method.gefl.rounds=10; repeatable."),
]
RunPath = Annotated[Path, typer.Argument(help="The folder of a run, such as runs/demo.", show_default=False)]
Method = Annotated[str | None, typer.Option(help="Label of the method.", show_default="the only one")]
Seed = Annotated[int | None, typer.Option(help="Seed of the trial.", show_default="the first")]
ClientNumber = Annotated[int | None, typer.Option(help="Number of the client.", show_default="0")]


def on_existing(resume: bool, fresh: bool) -> "OnExisting":
    """Returns what the flags --resume and --fresh say to do with a run that the folder holds.

    Raises:
        GenfedError: both are given.
    """
    if resume and fresh:
        raise GenfedError("--resume goes on with a run and --fresh deletes it: choose one")
    return "resume" if resume else "replace" if fresh else "refuse"


def _stopped(console: Console, kept: str = "every finished round") -> typer.Exit:
    words = [a for a in sys.argv[1:] if a not in ("--fresh", "--resume")]
    again = shlex.join(["genfed", *words, "--resume"])
    console.print(f"stopped; {kept} is kept. Go on with:\n  {again}", soft_wrap=True)
    return typer.Exit(130)


def _tell(report: "Report", folder: Path, console: Console) -> None:
    """A run's tables and where its page is; what clients failed at on `console`."""
    from genfed.report.summary_table import summary_table
    from genfed.report.tables import other_tables

    output = _output()
    for table in (summary_table(report), *other_tables(report)):
        output.print(table)
    for line in report.notes:
        output.print(line, style="yellow", soft_wrap=True)
    for trial in report.trials:
        for failure in trial.failures:
            console.print(f"{trial.method}, seed {trial.seed}: {failure}", style="yellow")
    output.print(f"report: {folder / 'report.html'}", soft_wrap=True)
