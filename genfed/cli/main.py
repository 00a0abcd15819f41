"""The command line. Imports torch only inside commands, so that `--help` is fast."""

import io
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from genfed.cli import artifacts as artifacts
from genfed.cli import synth as synth
from genfed.cli.common import (
    Overrides,
    TrustCode,
    app,
    explain_stop,
    on_existing,
    open_console,
    open_output,
    print_report,
    print_source_summary,
    search_code,
)
from genfed.cli.deployment import SITES, federation_app, site_app
from genfed.core.errors import GenfedError, describe_error, find_own_code
from genfed.core.text import BLOCK, LogFormatter, one_line

DEBUG = ContextVar("DEBUG", default=False)
"""Whether an error is shown with its traceback."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from genfed._version import __version__

        open_output().print(f"genfed {__version__}")
        raise typer.Exit


@app.callback()
def _genfed(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    DEBUG.set(debug)


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="TOML file, or folder of an earlier run.", show_default=False)],
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="runs/NAME, or the given folder")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder in which relative data paths start.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder where it stopped.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run in that folder and start again.")] = False,
    engine: Annotated[
        Literal["embedded", "flower"],
        typer.Option(help="Runs the clients: genfed's own engine or Flower's simulation, with the same results."),
    ] = "embedded",
    trust_code: TrustCode = False,
) -> None:
    """Run the methods of a config on the same clients, for every seed, and write a report.

    CONFIG is a TOML file, or the folder of an earlier run: then its settings are used again. Example:
    `genfed run configs/demo.toml --set "seeds=[1]" --out runs/first`

    What a config names as "module:Class" is run, also from the working directory: trust a config before you run it.

    The folder of the run then holds report.html (open this first), report.json, metrics.jsonl, config.toml with every
    setting, and the trained models. A run that was stopped continues with --resume and ends with the same bits.
    """
    existing, overrides = on_existing(resume, fresh), list(set_ or [])
    if data_root is not None:
        overrides.append(f"data_root={json.dumps(str(data_root), ensure_ascii=False)}")
    # Before anything is imported: a package may look for others that are not installed.
    with search_code(_trusts(config, trust_code, engine)):
        from genfed.config.reader import read_config
        from genfed.experiment import progress, run, run_folder

        settings = read_config(config, overrides)
        folder = out or run_folder.default_folder(config, settings.name).path
        console = open_console(stderr=True)
        try:
            with progress.RunProgressBar(console, trials=len(settings.labels) * len(settings.seeds)) as watch:
                report = run.run(
                    settings,
                    out=folder,
                    on_existing=existing,
                    notify=watch,
                    tell=lambda summary: print_source_summary(summary, console),
                    engine=engine,
                )
        except KeyboardInterrupt:
            raise explain_stop(console) from None
        print_report(report, folder, console)


def _trusts(config: str, trust_code: bool, engine: str) -> bool:
    """Returns whether `genfed run` searches the working directory for code: a config is the user's own, and the folder
    of a run may be anyone's.

    Raises:
        GenfedError: the engine would search it anyway.
    """
    trusted = trust_code or not Path(config).is_dir()
    if engine == "flower" and not trusted:
        raise GenfedError(
            "--engine flower searches the working directory for code, since Ray does, and anyone may have made the run "
            "and put code there; if you trust that code, add --trust-code, else use --engine embedded"
        )
    return trusted


app.add_typer(federation_app, name="federation", rich_help_panel=SITES)

app.add_typer(site_app, name="site", rich_help_panel=SITES)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="Kind of thing to explain.", show_default=False)],
    name: Annotated[str | None, typer.Argument(help="Only this one, with its settings.", show_default=False)] = None,
) -> None:
    """Explain methods, settings, metrics and everything else that a config or a report names.

    WHAT is one of: methods, data, partitions, architectures, generators, encoders, audits, aggregations, attacks,
    privacy, settings, metrics. With a NAME, only that one is explained, with its settings and their defaults.

    Example: `genfed list methods gefl`
    """
    from genfed.cli.listing import build_listing

    open_output().print(build_listing(what, name))


_UsageError: Any = typer.BadParameter.__mro__[1]  # click's; some versions of typer have a click of their own


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the `genfed` command. Exits with 0, with 2 after an error of input or of a user's own code, with 130 after
    Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a run that is stopped says how to continue it
    _prepare_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _check_words(words)
        with search_code(trusted=True):  # a command that uses a run of anyone narrows it
            code = app(words, prog_name="genfed", standalone_mode=False) or 0
        sys.stdout.flush()
    except _UsageError as error:
        _refuse(_describe_usage_error(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `genfed list methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed at the exit
        sys.exit(141)
    except BaseException as error:  # a user's own code may fail in any way, also by SystemExit
        _refuse(_describe_failure(error))
    sys.exit(code)


def _prepare_streams() -> None:
    """Has characters that a terminal cannot show escaped, and warnings that no log takes on one line each."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # LANG=C, or a name that is no text
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LogFormatter())


def _check_words(words: Sequence[str]) -> None:
    """Refuses arguments, and a working directory, whose names no file of a run can hold.

    Raises:
        GenfedError: an argument is not UTF-8 text, or there is no working directory.
    """
    for word in words:
        if "\0" in word or word != word.encode(errors="replace").decode():
            raise GenfedError(f"{one_line(word)}: not UTF-8 text; rename the file or folder")
    try:
        Path.cwd()
    except FileNotFoundError:
        raise GenfedError("the working directory has been deleted: change to another one") from None


def _describe_failure(error: BaseException) -> str:
    """Returns the line that is shown for an error.

    Raises:
        BaseException: the error itself, where it is a fault of genfed, or --debug asks for its traceback.
    """
    own = find_own_code(error)
    if DEBUG.get() or (own is None and not isinstance(error, GenfedError | OSError)):
        raise error
    if own is None or isinstance(error, GenfedError):  # OSError: a folder that cannot be written, a name too long
        return str(error)
    return f"{describe_error(error)} (`genfed --debug` before the command shows the traceback)"


def _describe_usage_error(error: Any) -> str:
    """Returns the message with one suggestion, and the command whose help says more."""
    message = re.sub(r"( Did you mean [^?]*[?])\1+", r"\1", error.format_message())  # click and typer both suggest
    if not message:  # a group of commands without one: its help is printed already
        sys.exit(2)
    return f"{message} See `{error.ctx.command_path} --help`." if error.ctx else message


def _refuse(message: str) -> NoReturn:
    open_console(stderr=True).print(f"genfed: {one_line(' '.join(message.split()), BLOCK)}", soft_wrap=True)
    sys.exit(2)
