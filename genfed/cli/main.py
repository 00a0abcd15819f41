"""The command line. Imports torch only inside commands, so that `--help` answers at once."""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from genfed.cli import artifacts as artifacts
from genfed.cli.common import Overrides, _console, _output, _stopped, _tell, app, on_existing
from genfed.cli.deployment import federation_app, site_app
from genfed.core.errors import GenfedError


def _version(wanted: bool) -> None:
    if wanted:
        from genfed._version import __version__

        _output().print(f"genfed {__version__}")
        raise typer.Exit


@app.callback()
def _genfed(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[
        str, typer.Argument(help="A TOML file, or the folder of a run whose settings to use.", show_default=False)
    ],
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="runs/NAME, or the folder given")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder that relative data paths start from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in that folder stopped.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run in that folder first.")] = False,
    engine: Annotated[
        Literal["embedded", "flower"],
        typer.Option(help="What carries records to clients: genfed's own, or Flower's simulation; the same bits."),
    ] = "embedded",
) -> None:
    """Run the methods of a config on the same clients, seed by seed, and write a report.

    The folder then holds config.toml (every setting resolved), metrics.jsonl, report.json, report.html and a checkpoint
    per method and seed. A run that was stopped or killed goes on with --resume and ends with the same bits.
    """
    existing, overrides = on_existing(resume, fresh), list(set_ or [])
    if data_root is not None:
        overrides.append(f"data_root={json.dumps(str(data_root), ensure_ascii=False)}")
    from genfed.config.reader import read_config
    from genfed.experiment import run
    from genfed.experiment.progress import RunProgressBar
    from genfed.experiment.run_folder import default_folder

    settings = read_config(config, overrides)
    folder = out or default_folder(config, settings.name).path
    console = _console(stderr=True)
    try:
        with RunProgressBar(console, trials=len(settings.labels) * len(settings.seeds)) as watch:
            report = run.run(settings, out=folder, on_existing=existing, notify=watch, engine=engine)
    except KeyboardInterrupt:
        raise _stopped(console) from None
    _tell(report, folder, console)


app.add_typer(federation_app, name="federation")

app.add_typer(site_app, name="site")


@app.command(name="list")
def list_(
    what: Annotated[
        Literal[
            "methods",
            "data",
            "partitions",
            "architectures",
            "generators",
            "audits",
            "aggregations",
            "attacks",
            "settings",
        ],
        typer.Argument(help="What to explain.", show_default=False),
    ],
    name: Annotated[str | None, typer.Argument(help="Only this one, with its settings.", show_default=False)] = None,
) -> None:
    """Explain what can be named in a config, with every setting and its default."""
    from genfed.cli.listing import print_listing

    _output().print(print_listing(what, name))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `genfed` command: exit code 0, 2 for bad input (one line on standard error), 130 for Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops it is told how to go on
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a user's "module:Class" stands where they work; only `python -m` sees it by itself
    try:
        app(args=None if arguments is None else list(arguments), prog_name="genfed")
    except (GenfedError, OSError) as error:  # the latter: a folder that cannot be written, a name too long
        line = " ".join(str(error).split())
        _console(stderr=True).print(f"genfed: {line}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
