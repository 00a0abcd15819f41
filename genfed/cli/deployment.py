"""The commands of a federation across machines: serve, join, federation, site."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from genfed.cli.common import Overrides, _console, _output, _stopped, _tell, app, on_existing
from genfed.core.errors import GenfedError

if TYPE_CHECKING:
    from genfed.deployment.server import Outcome, ServeRequest


def _keys_or_not(keys: Path | None, insecure: bool) -> None:
    if (keys is None) != insecure:
        raise GenfedError(
            "say --keys DIR (made by `genfed federation keys DIR NAME…`), or --insecure for a trial on one machine"
        )


ListensAt = Annotated[
    str, typer.Option(help="host:port at which sites find the server; 0.0.0.0:9092 is every network.")
]
Keys = Annotated[
    Path | None, typer.Option(help="Folder of ca.crt, server.crt, server.key and the sites' .pub.", show_default=False)
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without TLS, open to anybody: a trial on one machine.")]
Wait = Annotated[float, typer.Option(help="Seconds until all sites must be there.")]

Running = Annotated[
    bool, typer.Option("--running", help="A SuperLink runs at --address already (docs/deployment.md): use that.")
]


def _serving(
    wanted: "ServeRequest", address: str, keys: Path | None, folder: Path, running: bool, console: Console
) -> "Outcome":
    from genfed.deployment import processes, superlink

    return superlink.serve(
        wanted,
        processes.Address.of(address),
        keys,
        folder,
        lambda line: console.print(line, soft_wrap=True, highlight=False),
        running,
    )


@app.command()
def serve(
    config: Annotated[str, typer.Argument(help="A TOML file; what it says of data is the sites' to say.")],
    set_: Overrides = None,
    address: ListensAt = "127.0.0.1:9092",
    keys: Keys = None,
    insecure: Insecure = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in that folder stopped.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run in that folder first.")] = False,
    wait: Wait = 600.0,
    running: Running = False,
) -> None:
    """Run the methods of a config on sites that own their data: on machines of their own, over Flower.

    Starts a SuperLink, waits for `federation.clients` sites (`genfed join`), and does what `genfed run` does. Needs the
    extra "flower"; docs/deployment.md says how to have it outlive a restart, and how to use Flower's own commands.
    """
    from genfed.config.reader import read_config
    from genfed.deployment.server import ServeRequest, served_config
    from genfed.experiment.run_folder import RunFolder, default_folder

    _keys_or_not(keys, insecure)
    settings = served_config(read_config(config, set_ or []))
    folder = RunFolder(out) if out else default_folder(config, settings.name)
    existing = on_existing(resume, fresh)
    folder.check_existing(existing)
    console = _console(stderr=True)
    words = shlex.join(["genfed", *sys.argv[1:]])
    wanted = ServeRequest(
        str(Path(config).resolve()), str(folder.path.resolve()), existing, tuple(set_ or ()), wait=wait, command=words
    )
    try:
        _serving(wanted, address, keys, folder.path.parent / f".{folder.path.name}-link", running, console)
    except KeyboardInterrupt:
        raise _stopped(console) from None
    _tell(folder.read_report(), folder.path, console)


@app.command()
def join(
    site: Annotated[Path, typer.Argument(help="The site's TOML file: its data, its model, its machine.")],
    command: Annotated[
        bool, typer.Option("--command", help="Only show the command of Flower's that it comes to.")
    ] = False,
) -> None:
    """Take part in a federation with this machine's data, until Ctrl-C; in no run anything leaves but what the methods
    send (`genfed site audit-log`). Needs the extra "flower".
    """
    from genfed.deployment import processes, site_data, site_settings, supernode

    here = site_settings.read_site(site)
    if command:
        _output().print(processes.shell_line(supernode.supernode_command(here, 9094)), soft_wrap=True)
        return
    supernode.supernode_command(here, 0)  # refuses missing keys before the data are read
    console = _console(stderr=True)
    holding = site_data.load_site_data(here)
    task = holding.task
    console.print(
        f"site {here.config.name}: {here.config.architecture}, {len(holding.train)} training examples and "
        f"{len(holding.held_out)} to score on, {len(task.classes)} classes",
        soft_wrap=True,
    )
    if waiting := supernode.check_link(here):
        console.print(waiting, soft_wrap=True)
    supernode.join(here, lambda line: console.print(line, soft_wrap=True))


federation_app = typer.Typer(no_args_is_help=True, help="Prepare and check a federation of sites.")

site_app = typer.Typer(no_args_is_help=True, help="Look after a site.")


@federation_app.command("keys")
def federation_keys(
    folder: Annotated[Path, typer.Argument(help="Where to write them.", show_default=False)],
    sites: Annotated[list[str], typer.Argument(help="Names of the sites.", show_default=False)],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the server, besides localhost; repeatable.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="That the certificates are valid for.")] = 365,
) -> None:
    """Make keys and certificates for a trial: an authority's and the server's certificate, a key pair for each site."""
    from genfed.deployment.certificates import make_keys

    for file in make_keys(folder, sites, host or [], days):
        _output().print(str(file), soft_wrap=True)


@federation_app.command("check")
def federation_check(
    config: Annotated[str, typer.Argument(help="The TOML file that would be served.")],
    set_: Overrides = None,
    address: ListensAt = "127.0.0.1:9092",
    keys: Keys = None,
    insecure: Insecure = False,
    wait: Wait = 60.0,
    running: Running = False,
) -> None:
    """Reach every site and say what it has and whether the run would be refused; nothing is trained."""
    import tempfile

    from rich.table import Table

    from genfed.config.reader import read_config
    from genfed.deployment.server import COLUMNS, ServeRequest, served_config, site_rows

    _keys_or_not(keys, insecure)
    served_config(read_config(config, set_ or []))
    with tempfile.TemporaryDirectory() as folder:
        wanted = ServeRequest(str(Path(config).resolve()), overrides=tuple(set_ or ()), check=True, wait=wait)
        outcome = _serving(wanted, address, keys, Path(folder), running, _console(stderr=True))
    table = Table(*COLUMNS)
    for row in site_rows(outcome):
        table.add_row(*row)
    _output().print(table)
    if outcome.trouble:
        raise GenfedError("; ".join(outcome.trouble))


@site_app.command("audit-log")
def site_audit_log(site: Annotated[Path, typer.Argument(help="The site's TOML file.", show_default=False)]) -> None:
    """Show what left this site: when, for which run and phase, how many bytes, which fields."""
    from genfed.deployment.audit_log import read_audit
    from genfed.deployment.site_settings import read_site

    console = _output()
    for line in read_audit(read_site(site)):
        where = " ".join(f"{word}" for word in (line.run, line.method, line.phase, line.round) if word)
        seed = f" seed {line.seed}" if line.seed else ""
        what = ", ".join((*line.fields, *line.says))
        console.print(f"{line.at}  {where}{seed}  {line.bytes} bytes: {what}", soft_wrap=True)


@site_app.command("budget")
def site_budget(site: Annotated[Path, typer.Argument(help="The site's TOML file.", show_default=False)]) -> None:
    """Show what each run has cost the privacy of this site's examples, and what is left of its budget."""
    from rich.table import Table

    from genfed.deployment.site_settings import read_site
    from genfed.privacy.site_budget import read_budget_table

    here = read_site(site)
    if here.config.privacy is None:
        raise GenfedError(f"{site} has no [privacy]: give it an epsilon and a delta, and runs are charged to them")
    table = Table("run", "method", "seed", "steps", "ε", "ε with all before")
    for row in read_budget_table(here.folder, here.config.privacy):
        table.add_row(*row)
    _output().print(table)
    _output().print(f"budget: ε = {here.config.privacy.epsilon:g} at δ = {here.config.privacy.delta:g}")
