"""The commands of a federation across machines: serve, join, federation, site."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from genfed.cli.common import (
    Overrides,
    app,
    explain_stop,
    on_existing,
    open_console,
    open_output,
    print_report,
    print_source_summary,
)
from genfed.core.errors import GenfedError

if TYPE_CHECKING:
    from genfed.deployment.server import Outcome, ServeRequest


SITES = "Federation of sites"


def _check_keys(keys: Path | None, insecure: bool) -> None:
    if (keys is None) != insecure:
        raise GenfedError(
            "give --keys DIR (written by `genfed federation keys DIR NAME…`), or --insecure for a test on one machine"
        )


ListensAt = Annotated[
    str, typer.Option(help="host:port on which the server listens; 0.0.0.0:9092 listens on every network.")
]
Keys = Annotated[
    Path | None,
    typer.Option(help="Folder with ca.crt, server.crt, server.key and sites' .pub files.", show_default=False),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS, open to everyone. Only for a test on one machine.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for all sites.")]

Running = Annotated[
    bool, typer.Option("--running", help="Use the SuperLink that already runs at --address; see docs/deployment.md.")
]


def _serve(
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


@app.command(rich_help_panel=SITES)
def serve(
    config: Annotated[str, typer.Argument(help="TOML file. Its data settings are ignored: each site has its own.")],
    set_: Overrides = None,
    address: ListensAt = "127.0.0.1:9092",
    keys: Keys = None,
    insecure: Insecure = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder where it stopped.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run in that folder and start again.")] = False,
    wait: Wait = 600.0,
    running: Running = False,
) -> None:
    """Run the methods of a config on real sites, each with its own data on its own machine.

    CONFIG is a TOML file. Example: `genfed serve federation.toml --keys keys --address 0.0.0.0:9092`

    Starts a Flower SuperLink, waits until `federation.clients` sites have joined (`genfed join`), and then does what
    `genfed run` does: the folder of the run holds report.html. Needs the extra "flower". docs/deployment.md explains
    how a federation survives a restart, and how to use Flower's own commands.
    """
    from genfed.config.reader import read_config
    from genfed.deployment.server import ServeRequest, served_config
    from genfed.experiment.run_folder import RunFolder, default_folder

    _check_keys(keys, insecure)
    settings = served_config(read_config(config, set_ or []))
    folder = RunFolder(out) if out else default_folder(config, settings.name)
    existing = on_existing(resume, fresh)
    folder.check_existing(existing)
    console = open_console(stderr=True)
    words = shlex.join(["genfed", *sys.argv[1:]])
    wanted = ServeRequest(
        str(Path(config).resolve()), str(folder.path.resolve()), existing, tuple(set_ or ()), wait=wait, command=words
    )
    try:
        _serve(wanted, address, keys, folder.path.parent / f".{folder.path.name}-link", running, console)
    except KeyboardInterrupt:
        raise explain_stop(console) from None
    print_report(folder.read_report(), folder.path, console)


@app.command(rich_help_panel=SITES)
def join(
    site: Annotated[Path, typer.Argument(help="TOML file of the site: its data, model and machine.")],
    wait: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds without a connection before the site gives up.", show_default="no limit"),
    ] = None,
) -> None:
    """Join a federation with the data of this machine, until Ctrl-C.

    SITE is the TOML file of the site. Example: `genfed join hospital.toml`

    If the server cannot be reached or does not admit the site, a line says why, and the site tries again. It stops if
    the server can never admit it with these settings. Only what the methods send leaves this machine: `genfed site
    audit-log` shows it. The site runs no code of the server. Needs the extra "flower".
    """
    from genfed.deployment import link_check, site_data, site_settings, supernode

    here = site_settings.read_site(site)
    link_check.public_key(here)  # missing keys are refused before the data are read
    supernode.supernode_command(here, 0, here.file)
    console = open_console(stderr=True)
    holding = site_data.load_site_data(here, lambda summary: print_source_summary(summary, console))
    task = holding.task
    console.print(
        f"site {here.config.name}: {here.config.architecture}, {len(holding.train)} training examples and "
        f"{len(holding.held_out)} held-out examples, {len(task.classes)} classes",
        soft_wrap=True,
    )
    supernode.join(here, lambda line: console.print(line, soft_wrap=True), wait)


federation_app = typer.Typer(
    no_args_is_help=True, help="Make keys for a federation, and check that its sites are ready."
)

site_app = typer.Typer(no_args_is_help=True, help="Show what left a site, and what is left of its privacy budget.")


@federation_app.command("keys")
def federation_keys(
    folder: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    sites: Annotated[list[str], typer.Argument(help="Names of the sites.", show_default=False)],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the server, besides localhost. Repeatable.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Number of days for which the certificates are valid.")] = 365,
) -> None:
    """Make keys and certificates for a federation.

    FOLDER is written; SITES are the names of the sites. Example: `genfed federation keys keys north south --host
    fl.example.org`. Writes a certificate authority, the server's certificate, and a key pair for each site.
    """
    from genfed.deployment.certificates import make_keys

    for file in make_keys(folder, sites, host or [], days):
        open_output().print(str(file), soft_wrap=True)


@federation_app.command("renew")
def federation_renew(
    folder: Annotated[Path, typer.Argument(help="Folder with the keys.", show_default=False)],
    host: Annotated[list[str] | None, typer.Option(help="Further name or address of the server. Repeatable.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Number of days for which the certificates are valid.")] = 365,
) -> None:
    """Make new certificates for the server, for the same hosts and the same keys of sites.

    FOLDER was written by `genfed federation keys`. Example: `genfed federation renew keys --host fl.example.org`.
    Every site needs the new ca.crt, because the key of the old authority was not stored.
    """
    from genfed.deployment.certificates import AUTHORITY, renew_certificates

    for file in renew_certificates(folder, host or [], days):
        open_output().print(str(file), soft_wrap=True)
    open_output().print(f"give the new {AUTHORITY} to every site, and start the server again", soft_wrap=True)


@federation_app.command("gateway")
def federation_gateway(
    link: Annotated[str, typer.Option(help="host:port of the SuperLink.", show_default=False)],
    address: ListensAt = "127.0.0.1:9092",
    keys: Keys = None,
    insecure: Insecure = False,
    link_certificate: Annotated[
        Path | None,
        typer.Option(help="Authority that signed the SuperLink's certificate.", show_default="ca.crt of --keys"),
    ] = None,
) -> None:
    """Let sites through to a SuperLink that only this machine reaches, and nobody to the rest of it.

    `genfed serve` starts a gateway itself. This command is for a SuperLink that is a service of its own
    (docs/deployment.md). Example: `genfed federation gateway --address 0.0.0.0:9092 --link 127.0.0.1:9093 --keys keys`
    """
    from genfed.deployment.certificate_check import check_certificates
    from genfed.deployment.certificates import AUTHORITY
    from genfed.deployment.gateway import run_gateway
    from genfed.deployment.processes import Address

    _check_keys(keys, insecure)
    here = Address.of(address)
    authority = None
    if keys is not None:
        if warning := check_certificates(keys, here):
            open_console(stderr=True).print(warning, soft_wrap=True)
        authority = link_certificate or keys / AUTHORITY
    run_gateway(here, Address.of(link), keys, authority)


@federation_app.command("check")
def federation_check(
    config: Annotated[str, typer.Argument(help="TOML file of the run.")],
    set_: Overrides = None,
    address: ListensAt = "127.0.0.1:9092",
    keys: Keys = None,
    insecure: Insecure = False,
    wait: Wait = 60.0,
    running: Running = False,
) -> None:
    """Contact every site, and show its data and whether the run is possible. Nothing is trained.

    CONFIG is the TOML file of the run. Example: `genfed federation check federation.toml --keys keys`
    """
    import tempfile

    from rich.table import Table

    from genfed.config.reader import read_config
    from genfed.deployment.server import COLUMNS, ServeRequest, served_config, site_rows

    _check_keys(keys, insecure)
    served_config(read_config(config, set_ or []))
    with tempfile.TemporaryDirectory() as folder:
        wanted = ServeRequest(str(Path(config).resolve()), overrides=tuple(set_ or ()), check=True, wait=wait)
        outcome = _serve(wanted, address, keys, Path(folder), running, open_console(stderr=True))
    table = Table(*COLUMNS)
    for row in site_rows(outcome):
        table.add_row(*row)
    open_output().print(table)
    if outcome.problems:
        raise GenfedError("; ".join(outcome.problems))


@site_app.command("audit-log")
def site_audit_log(site: Annotated[Path, typer.Argument(help="TOML file of the site.", show_default=False)]) -> None:
    """Show what left this site: one line per message, with time, run, phase, bytes and fields.

    SITE is the TOML file of the site. Example: `genfed site audit-log hospital.toml`
    """
    from genfed.deployment.audit_log import read_audit
    from genfed.deployment.site_settings import read_site

    console = open_output()
    for line in read_audit(read_site(site)):
        where = " ".join(f"{word}" for word in (line.run, line.method, line.phase, line.round) if word)
        seed = f" seed {line.seed}" if line.seed else ""
        what = ", ".join((*line.fields, *line.says))
        console.print(f"{line.at}  {where}{seed}  {line.bytes} bytes: {what}", soft_wrap=True)


@site_app.command("budget")
def site_budget(site: Annotated[Path, typer.Argument(help="TOML file of the site.", show_default=False)]) -> None:
    """Show the privacy budget (ε) that each run spent on this site's examples, and the total budget; with
    [client_privacy] also that of the site as a whole.

    SITE is the TOML file of the site. Example: `genfed site budget hospital.toml`
    """
    from rich.table import Table

    from genfed.deployment.site_settings import read_site
    from genfed.privacy.site_budget import BUDGET, CLIENT_BUDGET, read_budget_table

    here = read_site(site)
    limits = ((here.config.privacy, BUDGET, "steps"), (here.config.client_privacy, CLIENT_BUDGET, "uploads"))
    if not any(limit for limit, _, _ in limits):
        raise GenfedError(
            f"{site} has no [privacy] and no [client_privacy]: set epsilon and delta there, the budget of its runs"
        )
    for limit, file, counted in limits:
        if limit is not None:
            table = Table("run", "method", "seed", counted, "ε", "ε so far")
            for row in read_budget_table(here.folder, limit, file):
                table.add_row(*row)
            open_output().print(table)
            open_output().print(f"budget: ε = {limit.epsilon:g} at δ = {limit.delta:g}")
