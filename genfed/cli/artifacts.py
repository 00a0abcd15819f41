"""The commands that use a finished run: audit, compare, sample, export, predict, pretrain."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from genfed.cli.common import ClientNumber, Method, RunPath, Seed, _console, _output, _stopped, app, on_existing


@app.command()
def audit(
    run: RunPath,
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
    from genfed.artifacts.audit import audit_run
    from genfed.report.privacy_section import privacy_tables

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
    from genfed.experiment.run_folder import RunFolder
    from genfed.report.page import compare_page
    from genfed.report.summary_table import compare_table, to_markdown

    reports = [(str(folder), RunFolder(folder).read_report()) for folder in runs]
    table = compare_table(reports)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.html").write_text(compare_page(reports), "utf-8")
    (out / "compare.md").write_text(to_markdown(table), "utf-8")
    console = _output()
    console.print(table)
    console.print(f"page: {out / 'compare.html'}", soft_wrap=True)


@app.command()
def sample(
    run: RunPath,
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

    from genfed.artifacts.samples import write_samples

    errors = _console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("drawing", total=n)
        count = write_samples(run, out, n, method, seed, draw, form, lambda done: bar.update(task, completed=done))
    _output().print(f"{count} images: {out}", soft_wrap=True)


@app.command()
def export(
    run: RunPath,
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
    from genfed.artifacts.export import export as write

    model = write(run, out, method, seed, 0 if client is None else client, form)
    console = _output()
    score = "not scored" if model.accuracy is None else f"accuracy {100 * model.accuracy:.1f} %"
    console.print(f"{model}, {score}: {out}", soft_wrap=True)
    _say_default(console, client, model.clients)
    if model.architecture is None and form == "safetensors":
        console.print("the method built this network itself: genfed.load_model cannot, --format onnx can be used")


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
    from genfed.artifacts.predict import load_predictor, write_predictions

    model = load_predictor(run, method, seed, client)
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
    from genfed.artifacts.pretrain import read_pretraining, run_pretraining
    from genfed.experiment.progress import StepProgressBar

    existing = on_existing(resume, fresh)
    settings = read_pretraining(config, set_ or [])
    folder = out or Path("runs") / settings.name
    console = _console(stderr=True)
    try:
        with StepProgressBar(console) as watch:
            about = run_pretraining(settings, folder, on_existing=existing, notify=watch)
    except KeyboardInterrupt:
        raise _stopped(console, "every checkpoint") from None
    loss = f", loss {about.losses[-1]:.4f}" if about.losses else ""
    _output().print(f"{about.images} images, {about.seconds:.0f} seconds{loss}; the model: {folder}", soft_wrap=True)
