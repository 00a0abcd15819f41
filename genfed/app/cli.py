"""The command line. Imports torch only inside commands, so that `--help` answers at once."""

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

from genfed.core.errors import GenfedError

if TYPE_CHECKING:
    from genfed.app.serving import Outcome, Wanted
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
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, such as runs/demo.", show_default=False)]
Method = Annotated[str | None, typer.Option(help="Label of the method.", show_default="the only one")]
Seed = Annotated[int | None, typer.Option(help="Seed of the trial.", show_default="the first")]
ClientNumber = Annotated[int | None, typer.Option(help="Number of the client.", show_default="0")]


def _version(wanted: bool) -> None:
    if wanted:
        from genfed import __version__

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
    overrides = list(set_ or [])
    if data_root is not None:
        overrides.append(f"data_root={json.dumps(str(data_root), ensure_ascii=False)}")
    from genfed.app import run as runs
    from genfed.app.config import read
    from genfed.app.progress import Watch

    settings = read(config, overrides)
    folder = out or runs.default_folder(config, settings)
    console = _console(stderr=True)
    try:
        with Watch(console, trials=len(settings.labels) * len(settings.seeds)) as watch:
            report = runs.run(settings, out=folder, resume=resume, fresh=fresh, notify=watch, engine=engine)
    except KeyboardInterrupt:
        raise _stopped(console) from None
    _tell(report, folder, console)


@app.command()
def audit(
    run: RunFolder,
    audits: Annotated[
        list[str] | None,
        typer.Option(
            "--audit",
            metavar="NAME",
            help="Which attack; repeatable.",
            show_default="those of the config, else all that train nothing anew",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="E.g. audit.membership_samples.samples=500; repeatable."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Label of the method.", show_default="all")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the trial.", show_default="the first")] = None,
) -> None:
    """Attack what a finished run made, as somebody would who wants to know whose data were in it.

    Every attack is also made on a planted leak, which it must find, and where there is nothing to find. What came of it
    stands in audits.json and under "Privacy" in report.html, with what was found by earlier audits of the run.
    """
    from genfed.app.audit import audit_run
    from genfed.report.privacy import privacy_tables

    console = _console(stderr=True)
    done = audit_run(run, audits or (), set_ or (), method, seed, lambda line: console.print(line, style="dim"))
    output = _output()
    for table in privacy_tables(done):
        output.print(table)
    output.print(f"report: {run / 'report.html'}", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for compare.html and compare.md.")] = Path("runs/compare"),
) -> None:
    """Set runs side by side: one table here, in compare.md and in compare.html."""
    from genfed.report.page import compare_page
    from genfed.report.results import from_json
    from genfed.report.table import compare_table, to_markdown

    reports = []
    for folder in runs:
        file = folder / "report.json"
        if not file.exists():
            state = "has not finished" if (folder / "config.toml").exists() else "is not the folder of a run"
            raise GenfedError(f"{folder} {state}: it has no report.json")
        reports.append((str(folder), from_json(file.read_text("utf-8", "replace"), str(file))))
    table = compare_table(reports)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.html").write_text(compare_page(reports), "utf-8")
    (out / "compare.md").write_text(to_markdown(table), "utf-8")
    console = _output()
    console.print(table)
    console.print(f"page: {out / 'compare.html'}", soft_wrap=True)


@app.command()
def sample(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder (png) or file (npz) to write.", show_default=False)],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images, the classes in turn.")] = 100,
    method: Method = None,
    seed: Seed = None,
    draw: Annotated[int, typer.Option(help="Another number draws other images.")] = 0,
    form: Annotated[
        Literal["png", "npz"] | None, typer.Option("--format", help="png or npz.", show_default="by the name of --out")
    ] = None,
) -> None:
    """Write labelled synthetic images, made by the generator that a run trained or kept by its server.

    The same run, number and draw give the same images; another number may give others.
    """
    from rich.progress import Progress

    from genfed.app.samples import write_samples

    errors = _console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("drawing", total=n)
        count = write_samples(run, out, n, method, seed, draw, form, lambda done: bar.update(task, completed=done))
    _output().print(f"{count} images: {out}", soft_wrap=True)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder for model.json and the model.", show_default=False)],
    method: Method = None,
    seed: Seed = None,
    client: ClientNumber = None,
    form: Annotated[
        Literal["safetensors", "onnx"],
        typer.Option("--format", help="safetensors: for genfed.load_model; onnx: for everything else."),
    ] = "safetensors",
) -> None:
    """Write a client's trained classifier into a folder of its own."""
    from genfed.app.export import export as write

    model = write(run, out, method, seed, 0 if client is None else client, form)
    console = _output()
    score = "not scored" if model.accuracy is None else f"accuracy {100 * model.accuracy:.1f} %"
    console.print(f"{model}, {score}: {out}", soft_wrap=True)
    _say_default(console, client, model.clients)
    if model.architecture is None and form == "safetensors":
        console.print("the method made this network of its own: genfed.load_model cannot, --format onnx can be used")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a run or of an exported model.", show_default=False)],
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder of images, one image, an .npz with an array x, or a table (CSV, Parquet).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV file to write.", show_default=False)],
    method: Method = None,
    seed: Seed = None,
    client: ClientNumber = None,
) -> None:
    """Classify new examples, read as the run's own were: class and probabilities of each, in a CSV file."""
    from genfed.app.predict import predictor, write_predictions

    model = predictor(run, method, seed, client)
    count = write_predictions(model, inputs, out)
    console = _output()
    by = f" by {model.trained}" if model.trained else ""
    console.print(f"{count} examples classified{by}: {out}", soft_wrap=True)
    if model.trained:
        _say_default(console, client, model.trained.clients)


def _say_default(console: Console, client: int | None, clients: int) -> None:
    if client is None and clients > 1:
        console.print(f"client 0 of {clients} was taken, since no --client names another", soft_wrap=True)


@app.command()
def pretrain(
    config: Annotated[
        Path, typer.Argument(help="A TOML file, such as configs/pretrain/glyphs.toml.", show_default=False)
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, e.g. training.steps=100; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for the model.", show_default="runs/NAME")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the training in that directory stopped.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew in that directory.")] = False,
) -> None:
    """Train a small Stable Diffusion on public images with prompts, into a directory that diffusers opens.

    It is what the server's methods use as `foundation.model`; see docs/foundation.md. A training that was stopped or
    killed goes on with --resume and ends with the same bits.
    """
    from genfed.app.pretrain import read_pretraining, run_pretraining
    from genfed.app.progress import Steps

    settings = read_pretraining(config, set_ or [])
    folder = out or Path("runs") / settings.name
    console = _console(stderr=True)
    try:
        with Steps(console) as watch:
            about = run_pretraining(settings, folder, resume=resume, fresh=fresh, notify=watch)
    except KeyboardInterrupt:
        raise _stopped(console, "every checkpoint") from None
    loss = f", loss {about.losses[-1]:.4f}" if about.losses else ""
    _output().print(f"{about.images} images, {about.seconds:.0f} seconds{loss}; the model: {folder}", soft_wrap=True)


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
    wanted: "Wanted", address: str, keys: Path | None, folder: Path, running: bool, console: Console
) -> "Outcome":
    from genfed.app import link

    return link.serve(
        wanted,
        link.Address.of(address),
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
    from genfed.app import run as runs
    from genfed.app.config import read
    from genfed.app.serving import Wanted, served
    from genfed.report.results import from_json

    _keys_or_not(keys, insecure)
    settings = served(read(config, set_ or []))
    folder = out or runs.default_folder(config, settings)
    runs.check_choice(folder, folder.exists() and any(folder.iterdir()), resume=resume, fresh=fresh)
    console = _console(stderr=True)
    words = shlex.join(["genfed", *sys.argv[1:]])
    wanted = Wanted(
        str(Path(config).resolve()), str(folder.resolve()), resume, fresh, tuple(set_ or ()), wait=wait, command=words
    )
    try:
        _serving(wanted, address, keys, folder.parent / f".{folder.name}-link", running, console)
    except KeyboardInterrupt:
        raise _stopped(console) from None
    report = from_json((folder / "report.json").read_text("utf-8"), str(folder))
    _tell(report, folder, console)


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
    from genfed.app import link, site_file

    here = site_file.read_site(site)
    if command:
        _output().print(link.shown(link.supernode_command(here, 9094)), soft_wrap=True)
        return
    link.supernode_command(here, 0)  # refuses missing keys before the data are read
    console = _console(stderr=True)
    holding = site_file.take_stock(here)
    task = holding.task
    console.print(
        f"site {here.config.name}: {here.config.architecture}, {len(holding.train)} training examples and "
        f"{len(holding.held_out)} to score on, {len(task.classes)} classes",
        soft_wrap=True,
    )
    if waiting := link.check_link(here):
        console.print(waiting, soft_wrap=True)
    link.join(here, lambda line: console.print(line, soft_wrap=True))


federation_app = typer.Typer(no_args_is_help=True, help="Prepare and check a federation of sites.")
app.add_typer(federation_app, name="federation")
site_app = typer.Typer(no_args_is_help=True, help="Look after a site.")
app.add_typer(site_app, name="site")


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
    from genfed.app.keys import make_keys

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

    from genfed.app.config import read
    from genfed.app.serving import COLUMNS, Wanted, served, table_of

    _keys_or_not(keys, insecure)
    served(read(config, set_ or []))
    with tempfile.TemporaryDirectory() as folder:
        wanted = Wanted(str(Path(config).resolve()), overrides=tuple(set_ or ()), check=True, wait=wait)
        outcome = _serving(wanted, address, keys, Path(folder), running, _console(stderr=True))
    table = Table(*COLUMNS)
    for row in table_of(outcome):
        table.add_row(*row)
    _output().print(table)
    if outcome.trouble:
        raise GenfedError("; ".join(outcome.trouble))


@site_app.command("audit-log")
def site_audit_log(site: Annotated[Path, typer.Argument(help="The site's TOML file.", show_default=False)]) -> None:
    """Show what left this site: when, for which run and phase, how many bytes, which fields."""
    from genfed.app.audit_log import read_audit
    from genfed.app.site_file import read_site

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

    from genfed.app.own_budget import table_of
    from genfed.app.site_file import read_site

    here = read_site(site)
    if here.config.privacy is None:
        raise GenfedError(f"{site} has no [privacy]: give it an epsilon and a delta, and runs are charged to them")
    table = Table("run", "method", "seed", "steps", "ε", "ε with all before")
    for row in table_of(here.folder, here.config.privacy):
        table.add_row(*row)
    _output().print(table)
    _output().print(f"budget: ε = {here.config.privacy.epsilon:g} at δ = {here.config.privacy.delta:g}")


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
    from genfed.app.listing import listing

    _output().print(listing(what, name))


def _stopped(console: Console, kept: str = "every finished round") -> typer.Exit:
    words = [a for a in sys.argv[1:] if a not in ("--fresh", "--resume")]
    again = shlex.join(["genfed", *words, "--resume"])
    console.print(f"stopped; {kept} is kept. Go on with:\n  {again}", soft_wrap=True)
    return typer.Exit(130)


def _tell(report: "Report", folder: Path, console: Console) -> None:
    """A run's tables and where its page is; what clients failed at on `console`."""
    from genfed.report.measures import more_tables
    from genfed.report.table import summary_table

    output = _output()
    for table in (summary_table(report), *more_tables(report)):
        output.print(table)
    for line in report.notes:
        output.print(line, style="yellow", soft_wrap=True)
    for trial in report.trials:
        for failure in trial.failures:
            console.print(f"{trial.method}, seed {trial.seed}: {failure}", style="yellow")
    output.print(f"report: {folder / 'report.html'}", soft_wrap=True)


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
