"""The commands as a person uses them, on one finished tiny run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

import genfed
from genfed.artifacts.samples import folder_names, write_samples
from genfed.cli import main as cli
from genfed.cli.listing import describe_network
from genfed.config.architectures import Architectures
from genfed.core.errors import GenfedError
from tests.conftest import left_by, start, tiny, with_page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with with_page():
        start(tiny("gefl", "fedavg", baselines=["local", "centralised"], seeds=[0, 1]), out)
    return out


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return " ".join((out if code == 0 else err).split())


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "report.json", "report.html", "run.log"):
        assert (run / name).exists(), name
    for label in ("gefl", "fedavg", "local", "centralised"):
        for seed in (0, 1):
            assert (run / "trials" / label / f"seed-{seed}" / "state.safetensors").exists()
            assert list((run / "tensorboard" / label / f"seed-{seed}").glob("events*"))
    assert not (run / "data").exists(), "the copy of the data is not left lying about"


def test_rows_of_metrics(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = [(r["method"], r["seed"], r["step"], r["phase"], r["round"], r["client"]) for r in rows]
    assert len(set(keys)) == len(keys)
    clients = [r for r in rows if r["client"] is not None]
    joint = [r for r in clients if (r["method"], r["seed"], r["phase"]) == ("gefl", 0, "joint")]
    assert [(r["round"], r["client"]) for r in joint] == [(i, k) for i in range(2) for k in range(4)]
    assert all(r["up_bytes"] > 0 and r["down_bytes"] > r["up_bytes"] and r["seconds"] >= 0 for r in joint)
    local = [r for r in clients if r["method"] == "local" and r["phase"] == "train"]
    assert all(r["up_bytes"] == r["down_bytes"] == 0 for r in local)


def test_same_clients_for_every_method(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["partition"]["0"] != report["partition"]["1"]
    for seed in (0, 1):
        federated = [
            [(c["architecture"], c["examples"]) for c in t["clients"]]
            for t in report["trials"]
            if t["seed"] == seed and t["method"] != "centralised"
        ]
        assert len(federated) == 3
        assert federated[0] == federated[1] == federated[2]


def test_a_finished_run_resumes_to_its_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left_by(run)
    assert "report: " in said(capsys, "run", str(run), "--out", str(run), "--resume")
    assert left_by(run) == before


def test_the_api_returns_a_typed_report(tmp_path: Path) -> None:
    report = genfed.run(tiny("local"), out=tmp_path / "run", overrides=["name=mine"])
    assert isinstance(report, genfed.Report)
    assert (report.name, report.methods, report.of("local")[0].seed) == ("mine", ("local",), 0)
    assert report.environment.threads == 1


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    """Workers are started as commands of their own, so they do not run the script again."""
    script = tmp_path / "script.py"
    config = tiny("local", compute={"workers": 1})
    script.write_text(f"import genfed\nprint('once')\ngenfed.run({config!r}, out={str(tmp_path / 'run')!r})\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr


def test_sample_writes_labelled_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "sample", str(run), "-n", "23", "--out", str(tmp_path / "png"))
    files = sorted((tmp_path / "png").rglob("*.png"))
    assert len(files) == 23
    assert {f.parent.name for f in files} == set("0123456789")
    with Image.open(files[0]) as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    said(capsys, "sample", str(run), "-n", "23", "--out", str(tmp_path / "s.npz"))
    said(capsys, "sample", str(run), "-n", "23", "--out", str(tmp_path / "other.npz"), "--draw", "1")
    with np.load(tmp_path / "s.npz") as drawn, np.load(tmp_path / "other.npz") as other:
        assert (drawn["x"].shape, drawn["x"].dtype, drawn["y"].tolist()[:11]) == ((23, 8, 8), np.uint8, [*range(10), 0])
        assert (drawn["x"] != other["x"]).any()
        first = drawn["x"][0]
    with Image.open(tmp_path / "png" / "0" / "000000.png") as image:
        assert (np.asarray(image) == first).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "local"], "local has no generator to sample from"),
        (["--method", "gefel"], "did you mean 'gefl'?"),
        (["--seed", "5"], "has no seed 5 (there are: 0, 1)"),
        (["--out", "."], "exists already"),
    ],
)
def test_sample_refuses(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert says in said(capsys, "sample", str(run), "--out", str(tmp_path / "x"), *words, code=2)


def test_samples_are_drawn_piece_by_piece(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece repeats another, pieces go on with the classes, and the same is drawn again."""
    monkeypatch.setattr("genfed.artifacts.samples.AT_ONCE", 15)
    told: list[int] = []
    for name in ("a", "b"):
        write_samples(run, tmp_path / f"{name}.npz", 40, "gefl", notify=told.append)
    assert told == [15, 30, 40, 15, 30, 40]
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert (a["x"] == b["x"]).all()
        assert a["y"].tolist() == [i % 10 for i in range(40)]
        assert len(np.unique(a["x"].reshape(40, -1), axis=0)) == 40
        drawn = a["x"]
    write_samples(run, tmp_path / "png", 40, "gefl")
    for i in range(40):
        with Image.open(tmp_path / "png" / str(i % 10) / f"{i:06d}.png") as image:
            assert (np.asarray(image) == drawn[i]).all()


def test_samples_of_a_run_from_a_machine_with_a_gpu(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    shutil.copytree(run, tmp_path / "run")
    text = (run / "config.toml").read_text()
    assert 'device = "cpu"' in text
    (tmp_path / "run" / "config.toml").write_text(text.replace('device = "cpu"', 'device = "cuda"'))
    for folder in (run, tmp_path / "run"):
        write_samples(folder, tmp_path / f"{folder.parent.name}.npz", 20, "gefl")
    with np.load(tmp_path / f"{run.parent.name}.npz") as here, np.load(tmp_path / f"{tmp_path.name}.npz") as there:
        assert (here["x"] == there["x"]).all()


def test_every_class_has_a_folder_of_its_own() -> None:
    assert folder_names(("cat", "a/b", "..", ".x", "")) == ["cat", "a_b", "class-2", "class-3", "class-4"]
    assert folder_names(("a/b", "a_b", "c")) == ["0-a_b", "1-a_b", "2-c"]
    assert folder_names(("A", "a")) == ["0-A", "1-a"]
    assert folder_names(("a\0b", "a\\c")) == ["a_b", "a_c"]


def test_what_is_no_png_is_refused_before_it_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 255, (200, 2, 8, 8)).astype(np.uint8), y=np.arange(200) % 10)
    data = {"kind": "npz", "path": str(tmp_path / "d.npz"), "layout": "NCHW"}
    start(tiny("gefl") | {"data": data}, tmp_path / "run")
    said(capsys, "sample", str(tmp_path / "run"), "-n", "3", "--out", str(tmp_path / "s.npz"))
    with np.load(tmp_path / "s.npz") as drawn:
        assert (drawn["x"].shape, drawn["x"].dtype) == ((3, 8, 8, 2), np.uint8)
    monkeypatch.setattr("genfed.artifacts.samples.new_server", None)
    line = said(capsys, "sample", str(tmp_path / "run"), "--out", str(tmp_path / "png"), code=2)
    assert "examples of shape (2, 8, 8) are no PNG, which has 1 or 3 channels: use --format npz" in line
    assert not (tmp_path / "png").exists()


def test_compare_writes_table_and_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(tiny("fedprox"), tmp_path / "prox")
    out = tmp_path / "compared"
    table = said(capsys, "compare", str(run), str(tmp_path / "prox"), "--out", str(out))
    assert "fedprox" in table
    assert "fedprox" in (out / "compare.md").read_text()
    assert "<html" in (out / "compare.html").read_text()
    assert "is not the folder of a run" in said(capsys, "compare", str(tmp_path), code=2)


@pytest.mark.parametrize(
    "what",
    [
        "methods",
        "data",
        "partitions",
        "architectures",
        "generators",
        "audits",
        "aggregations",
        "attacks",
        "settings",
        "metrics",
    ],
)
def test_list_explains(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(said(capsys, "list", what)) > 100


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list", "metrix"], "genfed: cannot list: 'metrix'; did you mean 'metrics'? (there are: "),
        (
            ["federation", "chek"],
            "genfed: No such command 'chek'. Did you mean 'check'? See `genfed federation --help`.",
        ),
        (["run"], "genfed: Missing argument 'CONFIG'. See `genfed run --help`."),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, *words, code=2).startswith(says)


def test_list_explains_one(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list", "methods", "gefl")
    for word in ("generator_rounds", "T_KA", "learning_rate", "synthetic_epochs"):
        assert word in text
    assert "did you mean 'gefl'?" in said(capsys, "list", "methods", "gelf", code=2)


def test_list_shows_the_defaults_of_the_method_itself(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list", "methods", "fedgh")
    assert re.findall(r"│ learning_rate │ number │ (\S+) │", text) == ["0.1", "0.01"]


def test_types_are_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list", "settings")
    for words in ("list of whole numbers", "list of text or table of numbers", "'test' or 'validation'"):
        assert words in text
    assert "│ data │ table │ required │" in text
    for what, name in (("methods", "gefl"), ("data", "npz"), ("data", "table"), ("generators", "cvae")):
        text += said(capsys, "list", what, name)
    assert "table of tables of numbers" in " ".join(text.split())
    for hint in ("Optional", "Union", "Literal", "tuple[", "dict[", "Any", " str ", " int ", " float "):
        assert hint not in text


def test_architectures_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list", "architectures")
    for words in (
        "GeFL's CNN; widths 16, 32 │",
        "GeFL's CNN; widths 16, 32; normalized by batch │",
        "Fully connected; hidden none │",
        "ResNet of eight layers; GroupNorm │",
    ):
        assert words in text
    known = Architectures()
    for name in known.names():
        assert describe_network(known.factory(name))


def test_nothing_to_resume_is_said_and_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for said_so in (True, False):
        caplog.clear()
        start(tiny("local"), tmp_path / "run", on_existing="resume")
        line = f"nothing to resume in {tmp_path / 'run'}: starting"
        assert [r.getMessage() for r in caplog.records] == [line] * said_so
    (tmp_path / "c.toml").write_text(tomli_w.dumps(tiny("local")))
    words = ["-m", "genfed", "run", "c.toml", "--resume", "--out", "other"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("nothing to resume in other: starting\n")


def test_the_report_of_a_resumed_run_has_the_first_command(tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tiny("local"), tmp_path / "run", notify=stop, command="the first")
    first = json.loads((tmp_path / "run" / "started.json").read_text())
    environment = start(tiny("local"), tmp_path / "run", on_existing="resume", command="the second").environment
    assert (environment.command, environment.started) == ("the first", first["at"])
    assert start(tiny("local"), tmp_path / "run", on_existing="replace", command="anew").environment.command == "anew"
    (tmp_path / "run" / "started.json").write_text("{")
    with pytest.raises(GenfedError, match=r"started.json is damaged; put it back as it was"):
        start(tiny("local"), tmp_path / "run", on_existing="resume", command="after")


def test_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list", "settings")
    for words in ("[federation]", "[method.LABEL]"):
        assert words in text
    assert "no:X: cannot import no" in said(capsys, "list", "methods", "no:X", code=2)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom genfed.cli import main as cli\n"
        "try:\n    cli.main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def test_every_public_name_is_there() -> None:
    for name in genfed.__all__:
        assert getattr(genfed, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = genfed.nothing


def test_a_run_given_by_its_folder_stays_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in runs/NAME, where another run may be."""
    monkeypatch.chdir(tmp_path)
    other, mine = tmp_path / "runs" / "tiny", tmp_path / "elsewhere"
    start(tiny("local"), other)
    start(tiny("fedavg"), mine)
    before = left_by(other)
    genfed.run(mine, on_existing="resume")
    genfed.run(mine, on_existing="replace")
    assert left_by(other) == before
    with pytest.raises(SystemExit):
        cli.main(["run", str(mine), "--fresh"])
    assert left_by(other) == before


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version") == f"genfed {genfed.__version__}"


def test_a_method_is_explained_with_the_tables_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list", "methods", "fedlmg")
    for word in (
        "foundation",
        "scheduler",
        "guidance",
        "statistics",
        "student_training",
        "client_training",
        "momentum",
    ):
        assert word in text
    assert "the file's name" in said(capsys, "list", "settings")


def test_both_to_go_on_and_to_delete_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", str(run), "--resume", "--fresh")
    assert "--resume goes on with a run and --fresh deletes it: choose one" in said(capsys, *words, code=2)
    assert (run / "report.json").exists()


def test_trials_that_are_done_are_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", str(run), "--resume"])
    err = capsys.readouterr().err
    assert "trial 1/8: gefl · seed 0 · done before" in err
    assert "trial 8/8: centralised · seed 1 · done before" in err


def test_a_path_that_is_not_there_is_said_to_be_looked_for_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text('methods = ["local"]\n[data]\nkind = "folder"\npath = "scans"\nsize = 8\n')
    text = said(capsys, "run", "c.toml", code=2)
    assert f"scans: no such file or folder in {tmp_path}; a relative path starts there, or from --data-root" in text
