"""Parts that all commands share: the console, common options, and the output after a run."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from genfed.core.errors import GenfedError, MissingCodeError
from genfed.core.text import BLOCK, escape_controls, one_line

if TYPE_CHECKING:
    from genfed.experiment.run_folder import OnExisting
    from genfed.preprocessing.source_summary import SourceSummary
    from genfed.report.results import Report

app = typer.Typer(
    name="genfed",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Generative federated learning: clients with private data and different model architectures learn from each "
    "other through generative models.\n\n"
    "One TOML file describes a run: data, clients, methods and seeds. Start with `genfed run configs/demo.toml` and "
    "open the report.html that it writes. Then change the file, or one setting with `--set federation.clients=5`. "
    "`genfed list settings` explains every setting, `genfed list metrics` every number of the report.",
)


class PlainConsole(Console):
    """A console that shows text as it is, but for characters that a terminal would act on: these are escaped."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `Console`."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(escape_controls(part.text), part.style)


def open_console(stderr: bool = False, width: int | None = None) -> Console:
    """Opens a console that shows text as it is: types, paths and messages of clients hold [brackets] and :colons:."""
    return PlainConsole(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def open_output() -> Console:
    """Opens the console for results, 120 characters wide where it is no terminal and COLUMNS is not set."""
    console = open_console()
    return console if console.is_terminal or "COLUMNS" in os.environ else open_console(width=120)


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as method.gefl.rounds=10. Repeatable."),
]
RunPath = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/demo.", show_default=False)]
MethodLabel = Annotated[str | None, typer.Option("--method", help="Label of the method.", show_default="the only one")]
TrialSeed = Annotated[int | None, typer.Option("--seed", help="Seed of the trial.", show_default="the first")]
ClientNumber = Annotated[int | None, typer.Option(help="Number of the client.", show_default="0")]


TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run code that the run names as module:Class from the working directory, too. Who made the run may have "
        "written it; without this option only installed packages and PYTHONPATH are searched.",
    ),
]


GENFED = Path(__file__).resolve().parents[2]
"""Folder that holds the package genfed."""


@contextlib.contextmanager
def search_code(trusted: bool) -> Iterator[None]:
    """Has the "module:Class" of a config searched for in the working directory too, for the block, or never there.

    Args:
        trusted: whether the user trusts the code of the working directory: a config that the user runs is the user's,
            and the folder of a run may be of anyone.
    """
    before, here = list(sys.path), Path.cwd().resolve()
    if not trusted:  # `python -m` puts it there; genfed's own folder stays, since worker processes import genfed
        sys.path[:] = [path for path in before if Path(path).resolve() != here or here == GENFED]
    elif str(here) not in sys.path:
        sys.path.append(str(here))  # last, so that nothing there takes the place of an installed package
    try:
        yield
    except MissingCodeError as error:
        if trusted:
            raise
        raise GenfedError(
            f"{error} The working directory is not searched, since anyone may have made the run and put code "
            "there; if you trust that code, add --trust-code"
        ) from None
    finally:
        sys.path[:] = before


def on_existing(resume: bool, fresh: bool) -> "OnExisting":
    """Returns what the flags --resume and --fresh say to do with a run that the folder holds.

    Raises:
        GenfedError: both are given.
    """
    if resume and fresh:
        raise GenfedError("--resume goes on with a run and --fresh deletes it: choose one")
    return "resume" if resume else "replace" if fresh else "refuse"


def explain_stop(console: Console, kept: str = "every finished round") -> typer.Exit:
    """Prints how to continue a run that was stopped, and returns the exit to raise; `kept` names what was saved."""
    words = [a for a in sys.argv[1:] if a not in ("--fresh", "--resume")]
    again = shlex.join(["genfed", *words, "--resume"])
    console.print(f"Stopped; {kept} is saved. Continue with:\n  {again}", soft_wrap=True)
    return typer.Exit(130)


def print_source_summary(summary: "SourceSummary", console: Console) -> None:
    """Prints what was read, and what looks wrong in it."""
    for line in summary.facts:
        console.print(one_line(line, BLOCK), style="dim", soft_wrap=True, markup=False, highlight=False)
    for line in summary.warnings:
        console.print(
            one_line(f"warning: {line}", BLOCK), style="yellow", soft_wrap=True, markup=False, highlight=False
        )


def print_report(report: "Report", folder: Path, console: Console) -> None:
    """Prints the summary, warnings and the path of the page; failures of clients go to `console`."""
    from genfed.report.summary_table import build_summary_table

    output = open_output()
    output.print(build_summary_table(report))
    for line in report.notes:
        output.print(one_line(line, BLOCK), style="yellow", soft_wrap=True)
    for trial in report.trials:
        for failure in trial.failures:
            line = one_line(f"{trial.method}, seed {trial.seed}: {failure}", BLOCK)
            console.print(line, style="yellow", soft_wrap=True)
    output.print(f"report: {folder / 'report.html'}", soft_wrap=True)
