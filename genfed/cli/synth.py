"""The commands `genfed synth`: fit a generator to tables, draw rows, and measure them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from genfed.cli.common import app, open_console, open_output, print_source_summary
from genfed.core.errors import GenfedError

if TYPE_CHECKING:
    from genfed.artifacts.synthesizer import Synthesizer

synth_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make synthetic tables: silos fit a generator together, and rows are drawn from it.\n\n"
    "Example: `genfed synth fit north.csv south.csv --label ill --out ill.synth`, then "
    "`genfed synth sample ill.synth -n 1000 --where age=30..40 --out rows.csv`.",
)
app.add_typer(synth_app, name="synth", rich_help_panel="Synthetic tables")

Tables = Annotated[
    list[Path], typer.Argument(help="CSV or Parquet files, one for each silo.", show_default=False, metavar="TABLE...")
]
Fitted = Annotated[Path, typer.Argument(help="File that `genfed synth fit` wrote.", show_default=False)]

Rounds = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Rounds of a network: rounds=100, batch_size=256. Repeatable."),
]


@synth_app.command()
def fit(
    tables: Tables,
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    label: Annotated[
        str | None, typer.Option(help="Column of classes; each has a distribution of its own.", show_default="none")
    ] = None,
    generator: Annotated[
        str,
        typer.Option(help="mixture; tan for few rows; any_order, a network; cart, trees that each silo fits alone."),
    ] = "mixture",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the generator: components=300. Repeatable."),
    ] = None,
    training: Rounds = None,
    pooled: Annotated[bool, typer.Option(help="Each silo fits a generator alone, and their rows are pooled.")] = False,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Column that names the rows. Repeatable.", show_default="found")
    ] = None,
    least_rows: Annotated[int, typer.Option(min=1, help="Least rows of a category that a silo names.")] = 5,
    least_silos: Annotated[int, typer.Option(min=1, help="Least silos that have a category which is named.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the start and of all draws.")] = 0,
) -> None:
    """Fit a generator to the rows of all files as if they were one table, and write it to a file that holds no row.

    Each file is a silo. Silos exchange summaries of their columns and counts, as they would on different machines.
    Example: `genfed synth fit north.csv south.csv --label ill --out ill.synth`
    """
    from genfed.artifacts.synthesizer import Synthesizer

    errors = open_console(stderr=True)
    synth = Synthesizer(
        generator,
        label=label,
        settings=_read_settings("--set", set_ or ()),
        training=_read_settings("--training", training or ()),
        pooled=pooled,
        least_rows=least_rows,
        least_silos=least_silos,
        ids=ids,
        random_state=seed,
    )
    _fit_files(synth, tables, errors)
    synth.save(out)
    print_source_summary(synth.summary_, errors)
    open_output().print(
        f"{generator} of {synth.rows_:,} rows from {len(tables)} silos, {len(synth.columns_)} columns: {out}",
        soft_wrap=True,
    )


def _fit_files(synth: "Synthesizer", tables: list[Path], errors: Console) -> None:
    """Fits a synthesizer to files, each a silo, and shows its progress."""
    names = [path.stem if len({p.stem for p in tables}) == len(tables) else str(path) for path in tables]
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("fitting", total=None)
        synth.fit(
            dict(zip(names, tables, strict=True)), notify=lambda done, of: bar.update(task, completed=done, total=of)
        )


@synth_app.command()
def sample(
    fitted: Fitted,
    out: Annotated[Path, typer.Option(help="CSV or Parquet file to write.", show_default=False)],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of rows.")] = 1000,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="What the rows have to fulfil: sex=female, city=Bonn|Ulm, age=30..40, age=..40, or note= for missing. "
            "Repeatable.",
        ),
    ] = None,
    draw: Annotated[int, typer.Option(help="Another number gives other rows.")] = 0,
) -> None:
    """Draw rows, with the columns and types of the first table.

    Example: `genfed synth sample ill.synth -n 1000 --where sex=female --where age=30..40 --out rows.csv`
    """
    from genfed.artifacts.synthesizer import Synthesizer
    from genfed.artifacts.table_files import write_frame

    rows = Synthesizer.load(fitted).sample(n, dict(_read_where(text) for text in where or ()), draw)
    write_frame(rows, out)
    open_output().print(f"{len(rows):,} rows, {len(rows.columns)} columns: {out}", soft_wrap=True)


@synth_app.command()
def report(
    fitted: Fitted,
    tables: Tables,
    test: Annotated[Path, typer.Option(help="File with real rows that were not fitted.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("synth.html"),
    sensitive: Annotated[str | None, typer.Option(help="Column of groups to compare, such as sex.")] = None,
) -> None:
    """Measure drawn rows against the real ones: how useful they are, how alike, and how near to copies.

    TABLE... are the files that the generator was fitted to, one for each silo.
    Example: `genfed synth report ill.synth north.csv south.csv --test later.csv --out ill.html`
    """
    from genfed.artifacts.synthesizer import Synthesizer

    synth = Synthesizer.load(fitted)
    quality = synth.report(out, test, {str(path): path for path in tables}, sensitive)
    output = open_output()
    for line in quality:
        output.print(line, soft_wrap=True)
    output.print(f"report: {out}", soft_wrap=True)


def _read_settings(option: str, texts: list[str] | tuple[()]) -> dict[str, Any]:
    import tomllib

    found: dict[str, Any] = {}
    for text in texts:
        try:
            found |= tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise GenfedError(f"{option} {text}: KEY=VALUE is allowed, such as rounds=100") from None
    return found


def _read_where(text: str) -> tuple[str, Any]:
    """Returns a column and what is asked of it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise GenfedError(f"--where {text}: COLUMN=VALUE is allowed, such as age=30..40 or sex=female")
    if not value:
        return name, None
    if ".." in value:
        least, most = (part.strip() or None for part in value.split("..", 1))
        return name, (least, most)
    return name, value.split("|") if "|" in value else value
