"""The commands that use a finished run (audit, compare, sample, export, predict), and pretrain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from genfed.cli.common import (
    ClientNumber,
    MethodLabel,
    RunPath,
    TrialSeed,
    TrustCode,
    app,
    explain_stop,
    on_existing,
    open_console,
    open_output,
    print_report,
    search_code,
)

RUNS = "Use a finished run"


@app.command(rich_help_panel=RUNS)
def audit(
    run: RunPath,
    audits: Annotated[
        list[str] | None,
        typer.Option(
            "--audit",
            metavar="NAME",
            help="Attack to run. Repeatable.",
            show_default="those of the config, else all that train no new models",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting, such as audit.membership_samples.samples=500. Repeatable.",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Label of the method.", show_default="all")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the trial.", show_default="the first")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Attack a finished run, to measure what its models and messages reveal about the training data.

    RUN is the folder of a run. Example: `genfed audit runs/demo --audit membership_classifier`. `genfed list audits`
    explains the attacks.

    Each attack is also run on a planted leak, which it must find, and where there is nothing to find. The results are
    printed, and written to audits.json and to the section "Privacy" of report.html.
    """
    console, output = open_console(stderr=True), open_output()
    with search_code(trust_code):  # before anything is imported: a package may look for others that are not installed
        from genfed.artifacts.audit import audit_run
        from genfed.report.privacy_section import build_privacy_tables

        done = audit_run(run, audits or (), set_ or (), method, seed, lambda line: console.print(line, style="dim"))
        for table in build_privacy_tables(done):
            output.print(table)
    output.print(f"report: {run / 'report.html'}", soft_wrap=True)


@app.command(rich_help_panel=RUNS)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for compare.html and compare.md.")] = Path("runs/compare"),
) -> None:
    """Compare finished runs in one table.

    RUNS are folders of runs. Example: `genfed compare runs/demo runs/other`. The table is printed, and written to
    compare.md and compare.html.
    """
    console = open_output()
    with search_code(trusted=False):
        from genfed.core.files import make_folder, write_file
        from genfed.experiment.run_folder import RunFolder
        from genfed.report.formatting import format_markdown
        from genfed.report.page import build_compare_page
        from genfed.report.summary_table import build_compare_table, describe_differences, join_summaries

        reports = [(str(folder), RunFolder(folder).read_report()) for folder in runs]
        make_folder(out)
        differences = describe_differences([report for _, report in reports])
        write_file(out / "compare.html", build_compare_page(reports))
        write_file(out / "compare.md", format_markdown(join_summaries(reports), differences))
        console.print(build_compare_table(reports))
    console.print(f"page: {out / 'compare.html'}", soft_wrap=True)


@app.command(rich_help_panel=RUNS)
def forget(
    run: RunPath,
    client: Annotated[int, typer.Option(min=0, help="Number of the client that withdraws.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the run without the client.", show_default=False)],
    trust_code: TrustCode = False,
) -> None:
    """Remove a client from a finished run: write the run as it would be if the client had never taken part.

    RUN is the folder of a run. Example: `genfed forget runs/demo --client 3 --out runs/demo-without-3`

    Methods whose clients upload once (fedcgs, fedcvae_ens) lose the client's part exactly, without training. The others
    are trained again without it. The old run stays: delete it, and what was exported from it.
    """
    console = open_console(stderr=True)
    with search_code(trust_code):  # before the config is read: it may name code
        from genfed.artifacts.forget import forget as remove
        from genfed.experiment.progress import RunProgressBar
        from genfed.experiment.run_folder import RunFolder

        config = RunFolder(run).read_config()
        with RunProgressBar(console, trials=len(config.labels) * len(config.seeds)) as watch:
            done = remove(run, client, out, watch)
    print_report(done.report, out, console)
    console.print(describe_forgotten(client, done.removed, done.retrained), soft_wrap=True)
    console.print(f"{run} still holds what client {client} gave: delete it", soft_wrap=True)


def describe_forgotten(client: int, removed: Sequence[str], retrained: Sequence[str]) -> str:
    """Returns a line that says how each method lost a client."""
    parts = [f"client {client} was removed exactly from {', '.join(removed)}"] if removed else []
    parts += [f"without it, trained again: {', '.join(retrained)}"] if retrained else []
    return "; ".join(parts)


@app.command(rich_help_panel=RUNS)
def sample(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Folder (png) or file (npz, csv, parquet) to write.", show_default=False)],
    n: Annotated[
        int, typer.Option("-n", min=1, help="Number of examples; all classes in turn, rows in the clients' mix.")
    ] = 100,
    method: MethodLabel = None,
    seed: TrialSeed = None,
    draw: Annotated[int, typer.Option(help="Another number gives other images.")] = 0,
    form: Annotated[
        Literal["png", "npz", "csv", "parquet"] | None,
        typer.Option("--format", help="File format.", show_default="from --out"),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Write labeled synthetic examples from the generator of a run, or from the images that its server stores.

    RUN is the folder of a run. Example: `genfed sample runs/demo -n 100 --out samples`. The folder samples then holds a
    folder of PNGs for each class. Rows of a table go to one file: `--out rows.csv`.

    The same run, -n and --draw give the same images.
    """
    from rich.progress import Progress

    errors = open_console(stderr=True)
    bars = Progress(console=errors, transient=True, disable=not errors.is_terminal)
    with search_code(trust_code), bars as bar:
        from genfed.artifacts.samples import write_samples

        task = bar.add_task("generating", total=n)
        count = write_samples(run, out, n, method, seed, draw, form, lambda done: bar.update(task, completed=done))
    open_output().print(f"{count} examples: {out}", soft_wrap=True)


@app.command(rich_help_panel=RUNS)
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Folder for model.json and the model.", show_default=False)],
    method: MethodLabel = None,
    seed: TrialSeed = None,
    client: ClientNumber = None,
    form: Annotated[
        Literal["safetensors", "onnx"],
        typer.Option("--format", help="safetensors for genfed.load_model; onnx for other software."),
    ] = "safetensors",
    trust_code: TrustCode = False,
) -> None:
    """Write a client's trained classifier to a folder.

    RUN is the folder of a run. Example: `genfed export runs/demo --method gefl --client 3 --out model`. The folder then
    holds model.json and the weights; `genfed predict model …` and `genfed.load_model` read it.
    """
    with search_code(trust_code):
        from genfed.artifacts.export import export as write

        model = write(run, out, method, seed, 0 if client is None else client, form)
    console = open_output()
    score = f"accuracy {100 * model.score.accuracy:.1f} %" if model.score else "not evaluated"
    console.print(f"{model}, {score}: {out}", soft_wrap=True)
    _print_default_client(console, client, model.clients)
    if model.architecture is None and form == "safetensors":
        console.print("The method defines this network itself: genfed.load_model cannot read it. Use --format onnx.")


@app.command(rich_help_panel=RUNS)
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of an exported model.", show_default=False)],
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder of images, one image, an .npz with an array x, or a table (CSV, Parquet).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV file to write.", show_default=False)],
    method: MethodLabel = None,
    seed: TrialSeed = None,
    client: ClientNumber = None,
    trust_code: TrustCode = False,
) -> None:
    """Classify new examples with a client's trained classifier.

    RUN is the folder of a run or of an exported model. INPUT is a folder of images, one image, an .npz with an array x,
    or a table (CSV, Parquet). Example: `genfed predict runs/demo scans/ --method gefl --out classes.csv`

    The CSV file has one row per example, with its class and the probability of every class.
    """
    errors = open_console(stderr=True)

    def warn(line: str) -> None:
        errors.print(f"warning: {line}", soft_wrap=True, markup=False, highlight=False)

    with search_code(trust_code):
        from genfed.artifacts.predict import load_predictor, write_predictions

        model = load_predictor(run, method, seed, client)
        count = write_predictions(model, inputs, out, warn)
    console = open_output()
    by = f" by {model.trained}" if model.trained else ""
    console.print(f"{count} examples classified{by}: {out}", soft_wrap=True)
    if model.trained:
        _print_default_client(console, client, model.trained.clients)


def _print_default_client(console: Console, client: int | None, clients: int) -> None:
    if client is None and clients > 1:
        console.print(f"This is client 0 of {clients}; choose another with --client.", soft_wrap=True)


@app.command(rich_help_panel="Make a foundation model")
def pretrain(
    config: Annotated[
        Path, typer.Argument(help="TOML file, such as configs/pretrain/glyphs.toml.", show_default=False)
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as training.steps=100. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model.", show_default="runs/NAME")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in that folder where it stopped.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the training in that folder and start again.")] = False,
) -> None:
    """Train a small Stable Diffusion model on public images with prompts.

    CONFIG is a TOML file. Example: `genfed pretrain configs/pretrain/glyphs.toml`. The folder of the model can be
    opened by diffusers, and named as `foundation.model` in the config of a run; see docs/foundation.md.

    A training that was stopped continues with --resume and ends with the same bits.
    """
    from genfed.artifacts.pretrain import read_pretraining, run_pretraining
    from genfed.experiment.progress import StepProgressBar

    existing = on_existing(resume, fresh)
    console = open_console(stderr=True)
    settings = read_pretraining(config, set_ or [])
    folder = out or Path("runs") / settings.name
    try:
        with StepProgressBar(console) as watch:
            about = run_pretraining(settings, folder, on_existing=existing, notify=watch)
    except KeyboardInterrupt:
        raise explain_stop(console, "every checkpoint") from None
    loss = f", loss {about.losses[-1]:.4f}" if about.losses else ""
    open_output().print(f"{about.images} images, {about.seconds:.0f} seconds{loss}; model: {folder}", soft_wrap=True)
