"""What was trained can be taken away and used: `export`, `load_model` and `predict` give what the evaluation gave."""

import csv
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

import genfed
from genfed.artifacts import trained_model
from genfed.artifacts.export import find_trained
from genfed.cli import main as cli
from genfed.config import registry
from genfed.config.reader import read_config
from genfed.core.task import Data
from genfed.data.digits import Digits
from genfed.experiment.inputs import load_data
from genfed.metrics.classification import balanced_accuracy
from genfed.report.results import from_json
from genfed.training.evaluation import evaluate
from genfed.training.pixels import normalize_pixels
from tests.conftest import start, tiny
from tests.toys import Centred

TOYS = "tests.toys"
WARDS = ("A", "B", "01", "7")
CSV = [f"{i},{WARDS[i % 4]},{'' if i % 7 == 0 else i % 5},{'yes' if i % 4 == 1 else 'no'}" for i in range(240)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    start(tiny("gefl", "fedavg", baselines=["local", "centralised"], seeds=[0, 1]), out)
    return out


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "d.csv").write_text("\n".join(["age,ward,visits,ill", *CSV]))
    data = {"kind": "table", "path": "d.csv", "label": "ill"}
    start(tiny("local") | {"data": data, "data_root": str(folder)}, folder / "run")
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    assert code == 0 or err.count("\n") == 1, err
    return out if code == 0 else err


def held_out(run: Path) -> Data:
    return load_data(read_config(run)).test


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("label", ["gefl", "local", "centralised"])
def test_a_loaded_model_scores_what_the_evaluation_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str
) -> None:
    report = from_json((run / "report.json").read_text())
    for trial in report.of(label):
        for score in trial.clients:
            out = tmp_path / f"{trial.seed}-{score.client}"
            said(capsys, "export", run, "--out", out, "--method", label, "--seed", trial.seed, "--client", score.client)
            network, task = genfed.load_model(out)
            assert not network.training
            counts = evaluate(network, held_out(run), len(task.classes))
            assert float(counts.correct.sum()) / float(counts.total.sum()) == score.accuracy
            recall = tuple(c / t for c, t in zip(counts.correct.tolist(), counts.total.tolist(), strict=True))
            assert recall == score.recall
            about = json.loads((out / "model.json").read_text())
            assert about["accuracy"] == score.accuracy
            assert about["measures"] == (score.measures and asdict(score.measures))
            assert about["measures"]["balanced_accuracy"] == balanced_accuracy(counts)
            assert (about["architecture"], about["client"]) == (score.architecture, score.client)
            assert (about["task"]["shape"], about["task"]["classes"]) == ([1, 8, 8], list("0123456789"))


@pytest.mark.parametrize("name", sorted(registry.list_classes(registry.METHODS)))
def test_every_method_gives_the_classifier_that_was_scored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the data of the run, but for a method that says that it needs them."""
    (trial,) = start(tiny(name), tmp_path / "run").trials
    test = held_out(tmp_path / "run")
    if not read_config(tmp_path / "run").method[name].classifier_reads_data:
        monkeypatch.setattr(trained_model, "load_data", None)
    for score in trial.clients[:2]:
        counts = evaluate(find_trained(tmp_path / "run", None, None, score.client).network, test, 10)
        assert float(counts.correct.sum()) / float(counts.total.sum()) == score.accuracy


def test_the_users_own_draws_go_on_as_they_would(run: Path) -> None:
    before = torch.get_rng_state()
    find_trained(run, "gefl", None, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_exported_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "export", run, "--out", tmp_path / "a", "--method", "fedavg", "--seed", 1)
    assert told.startswith("fedavg, seed 1, client 0 (linear), accuracy ")
    assert "This is client 0 of 4; choose another with --client." in told
    told = said(capsys, "export", run, "--out", tmp_path / "b", "--method", "fedavg", "--client", 3)
    assert told.startswith("fedavg, seed 0, client 3 (mlp-small), accuracy ")
    assert "was taken" not in told
    about = json.loads((tmp_path / "b" / "model.json").read_text())
    assert {k: about[k] for k in ("run", "method", "kind", "seed", "client", "rounds", "scored_on")} == {
        "run": "tiny", "method": "fedavg", "kind": "fedavg", "seed": 0, "client": 3, "rounds": 2, "scored_on": "test",
    }  # fmt: skip
    assert about["genfed"] == genfed.__version__
    assert "pixel · 2/255 − 1" in about["input"]


def test_onnx_agrees_for_any_number_of_examples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    words = ["--method", "gefl", "--client", 1]
    told = said(capsys, "export", run, "--out", tmp_path / "onnx", *words, "--format", "onnx")
    assert len(told.splitlines()) == 1
    said(capsys, "export", run, "--out", tmp_path / "st", *words)
    network, _ = genfed.load_model(tmp_path / "st")
    content = (tmp_path / "onnx" / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(content)
    x = normalize_pixels(held_out(run).x)
    for part in (x, x[:1]):
        scores = torch.from_numpy(session.run(["scores"], {"x": part.numpy()})[0])
        with torch.no_grad():
            assert (scores - network(part)).abs().max() < 1e-4
    assert b"/site-packages/" not in content
    assert sorted(f.name for f in (tmp_path / "onnx").iterdir()) == ["model.json", "model.onnx"]
    line = said(capsys, "predict", tmp_path / "onnx", tmp_path, "--out", tmp_path / "p.csv", code=2)
    assert "has no model.safetensors: export it with --format safetensors" in line


def test_the_missing_extra_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = said(capsys, "export", run, "--out", tmp_path / "x", "--method", "gefl", "--format", "onnx", code=2)
    assert "pip install 'genfed[export]'" in line
    assert not (tmp_path / "x").exists()


def test_a_module_of_the_methods_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is written, but nothing can make it again from a name; ONNX holds all of it."""
    import onnxruntime

    config = tiny("paired", method={"paired": {"kind": f"{TOYS}:Paired"}})
    config["federation"]["architectures"] = [f"{TOYS}:Linear"]
    start(config, tmp_path / "run")
    line = said(capsys, "export", tmp_path / "run", "--out", tmp_path / "st")
    assert "Use --format onnx" in re.sub(r"\s+", " ", line)
    about = json.loads((tmp_path / "st" / "model.json").read_text())
    assert (about["architecture"], about["network"]) == (None, f"{TOYS}:Between")
    assert "one.layer.weight" in safetensors.torch.load_file(tmp_path / "st" / "model.safetensors")
    with pytest.raises(genfed.GenfedError, match=r"built this network \(tests\.toys:Between\).*--format onnx"):
        genfed.load_model(tmp_path / "st")
    said(capsys, "export", tmp_path / "run", "--out", tmp_path / "onnx", "--format", "onnx")
    session = onnxruntime.InferenceSession((tmp_path / "onnx" / "model.onnx").read_bytes())
    test = held_out(tmp_path / "run")
    guesses = torch.from_numpy(session.run(None, {"x": normalize_pixels(test.x).numpy()})[0]).argmax(1)
    assert float((guesses == test.y).sum()) / len(test) == about["accuracy"]


def test_a_network_of_another_architecture_than_the_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name is found by what the method asked for; the user's own classes are named too."""
    config = tiny("bigger", method={"bigger": {"kind": f"{TOYS}:Bigger", "rounds": 0}})
    config["federation"]["architectures"] = [f"{TOYS}:Linear"]
    start(config, tmp_path / "run")
    said(capsys, "export", tmp_path / "run", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["architecture"] == "mlp-small"
    assert genfed.load_model(tmp_path / "out")[0](torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.fixture
def centred(tmp_path: Path) -> Path:
    """A run whose classifiers look at the clients' data."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 255, (200, 8, 8)).astype(np.uint8), y=np.arange(200) % 10)
    config = tiny("centred", method={"centred": {"kind": f"{TOYS}:Centred"}})
    config["federation"]["architectures"] = [f"{TOYS}:Linear"]
    start(config | {"data": {"kind": "npz", "path": str(tmp_path / "d.npz")}}, tmp_path / "run")
    return tmp_path


def test_a_classifier_that_looks_at_data_gets_them(centred: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (score,) = [c for c in from_json((centred / "run" / "report.json").read_text()).trials[0].clients if c.client == 2]
    said(capsys, "export", centred / "run", "--out", centred / "out", "--client", 2)
    counts = evaluate(genfed.load_model(centred / "out", trust_code=True)[0], held_out(centred / "run"), 10)
    assert float(counts.correct.sum()) / float(counts.total.sum()) == score.accuracy


def test_a_method_that_does_not_say_that_it_looks_at_data(
    centred: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Centred, "classifier_reads_data", False)
    line = said(capsys, "export", centred / "run", "--out", centred / "out", code=2)
    assert "set classifier_reads_data = True" in line


def test_data_that_are_needed_and_gone_or_others(centred: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", centred / "run", "--out", centred / "out"]
    with np.load(centred / "d.npz") as found:
        x, y = found["x"], found["y"]
    np.savez(centred / "d.npz", x=255 - x, y=y)
    line = said(capsys, *words, code=2)
    assert "centred: the run's data are needed for its classifier and have changed since the run" in line
    (centred / "d.npz").unlink()
    line = said(capsys, *words, code=2)
    assert "centred: the run's data are needed for its classifier and cannot be read: " in line
    assert "d.npz: no such file" in line


def test_data_are_not_needed_where_nobody_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 255, (200, 8, 8)).astype(np.uint8), y=np.arange(200) % 10)
    start(tiny("fedavg") | {"data": {"kind": "npz", "path": str(tmp_path / "d.npz")}}, tmp_path / "run")
    (tmp_path / "d.npz").unlink()
    said(capsys, "export", tmp_path / "run", "--out", tmp_path / "out")
    assert genfed.load_model(tmp_path / "out")[1].shape == (1, 8, 8)


def test_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped before the first evaluation, only some clients are in the metrics: the others are known by the data."""
    config = tiny("fedavg", evaluation={"every": 0}, federation={"client_fraction": 0.5})

    def stop(progress: Any) -> None:
        if progress.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "run", notify=stop)
    told = said(capsys, "export", tmp_path / "run", "--out", tmp_path / "out", "--client", 3)
    assert told.startswith("fedavg, seed 0, client 3 (mlp-small), not evaluated: ")
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (about["accuracy"], about["rounds"]) == (None, 1)
    shutil.rmtree(tmp_path / "run" / "trials")
    line = said(capsys, "export", tmp_path / "run", "--out", tmp_path / "other", code=2)
    assert "fedavg with seed 0 has no checkpoint yet" in line


def folder_of_pngs(folder: Path, x: Tensor) -> None:
    folder.mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:04d}.png")


def test_predictions_are_what_the_evaluation_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From PNGs, from an .npz, by the run and by what was exported from it."""
    test = held_out(run)
    report = from_json((run / "report.json").read_text())
    score = next(c for c in report.of("gefl")[0].clients if c.client == 2)
    words = ["--method", "gefl", "--client", 2]
    folder_of_pngs(tmp_path / "png", test.x)
    told = said(capsys, "predict", run, tmp_path / "png", "--out", tmp_path / "a.csv", *words)
    assert told == f"{len(test)} examples classified by gefl, seed 0, client 2 (linear): {tmp_path / 'a.csv'}\n"
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows[0]) == ["file", "label", *(f"p_{c}" for c in "0123456789")]
    assert [row["file"] for row in rows] == [f"{i:04d}.png" for i in range(len(test))]
    hits = sum(int(row["label"]) == y for row, y in zip(rows, test.y.tolist(), strict=True))
    assert hits / len(test) == score.accuracy

    said(capsys, "export", run, "--out", tmp_path / "model", *words)
    with torch.no_grad():
        chances = genfed.load_model(tmp_path / "model")[0](normalize_pixels(test.x)).softmax(1)
    got = torch.tensor([[float(row[f"p_{c}"]) for c in "0123456789"] for row in rows])
    assert (got - chances).abs().max() < 1e-5

    np.savez(tmp_path / "x.npz", x=test.x[:, 0].numpy(), y=test.y.numpy())
    told = said(capsys, "predict", tmp_path / "model", tmp_path / "x.npz", "--out", tmp_path / "b" / "b.csv")
    assert told == f"{len(test)} examples classified: {tmp_path / 'b' / 'b.csv'}\n"
    assert [{**row, "row": 0} for row in rows_of(tmp_path / "b" / "b.csv")] == [
        {**{k: v for k, v in row.items() if k != "file"}, "row": 0} for row in rows
    ]
    told = said(capsys, "predict", run, tmp_path / "png" / "0003.png", "--out", tmp_path / "c.csv", "--method", "gefl")
    assert "This is client 0 of 4" in told
    assert [row["file"] for row in rows_of(tmp_path / "c.csv")] == ["0003.png"]


def test_predictions_are_in_the_precision_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(tiny("local", compute={"precision": "bfloat16"}), tmp_path / "run")
    test = held_out(tmp_path / "run")
    np.savez(tmp_path / "x.npz", x=test.x.numpy())
    said(capsys, "export", tmp_path / "run", "--out", tmp_path / "model")
    (score, *_) = from_json((tmp_path / "run" / "report.json").read_text()).trials[0].clients
    for model in ("run", "model"):
        said(capsys, "predict", tmp_path / model, tmp_path / "x.npz", "--out", tmp_path / f"{model}.csv")
        rows = rows_of(tmp_path / f"{model}.csv")
        hits = sum(int(row["label"]) == y for row, y in zip(rows, test.y.tolist(), strict=True))
        assert hits / len(test) == score.accuracy
    with torch.no_grad():
        exact = genfed.load_model(tmp_path / "model")[0](normalize_pixels(test.x)).softmax(1)[:, 0]
    assert max(abs(float(row["p_0"]) - p) for row, p in zip(rows, exact.tolist(), strict=True)) > 1e-4


def test_images_are_resized_as_the_runs_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's digits are 8 × 8; larger ones come down as its data source brings them down."""
    large = Digits(size=24).load().test.x[:5]
    folder_of_pngs(tmp_path / "png", large)
    said(capsys, "export", run, "--out", tmp_path / "model", "--method", "fedavg")
    said(capsys, "predict", tmp_path / "model", tmp_path / "png", "--out", tmp_path / "p.csv")
    with torch.no_grad():
        scores = genfed.load_model(tmp_path / "model")[0](normalize_pixels(Digits(size=8).convert(large)))
    got = [float(row["p_0"]) for row in rows_of(tmp_path / "p.csv")]
    assert got == pytest.approx(scores.softmax(1)[:, 0].tolist(), abs=1e-5)


def test_rows_of_a_table_are_encoded_as_in_training(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the training data, in any order of columns, in one row alone, with a category never seen."""
    run, test = table / "run", held_out(table / "run")
    about = from_json((run / "report.json").read_text()).trials[0].clients[1]
    (table / "d.csv").rename(table / "moved.csv")
    try:
        for model in (run, table / "model"):
            if model != run:
                said(capsys, "export", run, "--out", model, "--client", 1)
            words = ["--client", 1] if model == run else []
            out = table / f"{model.name}.csv"
            said(capsys, "predict", model, table / "moved.csv", "--out", out, *words)
            first = rows_of(out)
            assert [row["row"] for row in first] == [str(i) for i in range(240)]
            assert {row["label"] for row in first} <= {"no", "yes"}
            for i in (0, 1, 7, 2, 3):  # in a row of its own, ward 01 looks like a number, and no visits like no column
                age, ward, visits, _ = CSV[i].split(",")
                (table / "one.csv").write_text(f"ward,visits,age\n{ward},{visits},{age}\n")
                (table / "p.csv").unlink(missing_ok=True)
                said(capsys, "predict", model, table / "one.csv", "--out", table / "p.csv", *words)
                (row,) = rows_of(table / "p.csv")
                assert {name: float(row[name]) for name in ("p_no", "p_yes")} == pytest.approx(
                    {name: float(first[i][name]) for name in ("p_no", "p_yes")}, abs=2e-6
                )
                assert row["label"] == first[i]["label"]
            (table / "one.csv").write_text("ward,visits,age\nZ,1,3\n")
            (table / "p.csv").unlink()
            said(capsys, "predict", model, table / "one.csv", "--out", table / "p.csv", *words)
    finally:
        (table / "moved.csv").rename(table / "d.csv")
    network, _ = genfed.load_model(table / "model")
    counts = evaluate(network, test, 2)
    assert float(counts.correct.sum()) / len(test) == about.accuracy


def test_tables_that_do_not_fit(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.csv"
    for name, content, says in (
        ("a.csv", "age,visits\n1,2\n", "a.csv: column 'ward' is not there"),
        ("b.csv", "age,ward,visits\nold,A,2\n", "b.csv: column 'age' is not of numbers"),
        ("c.csv", "age,ward,visits\ninf,A,2\n", "c.csv: column 'age' holds infinite values"),
        ("d.csv", "", "not a readable table"),
        ("d.npz", "", "unknown file type '.npz'"),
    ):
        (tmp_path / name).write_text(content)
        assert says in said(capsys, "predict", table / "run", tmp_path / name, "--out", out, code=2)
    shutil.copytree(table / "run", tmp_path / "run")
    encoder = tmp_path / "run" / "encoder.json"
    encoder.write_text("{}")
    line = said(capsys, "predict", tmp_path / "run", table / "d.csv", "--out", out, code=2)
    assert "encoder.json is damaged; resuming the run (--resume) writes it anew" in line
    encoder.unlink()
    line = said(capsys, "predict", tmp_path / "run", table / "d.csv", "--out", out, code=2)
    assert "encoder.json is missing; put it back, or resume the run (--resume), which writes it anew" in line
    start_again = tiny("local") | {"data": {"kind": "table", "path": "d.csv", "label": "ill"}, "data_root": str(table)}
    start(start_again, tmp_path / "run", on_existing="resume")
    said(capsys, "predict", tmp_path / "run", table / "d.csv", "--out", out)


def test_features_of_an_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(200) % 2)
    start(tiny("local") | {"data": {"kind": "npz", "path": str(tmp_path / "d.npz")}}, tmp_path / "run")
    said(capsys, "predict", tmp_path / "run", tmp_path / "d.npz", "--out", tmp_path / "p.csv")
    said(capsys, "export", tmp_path / "run", "--out", tmp_path / "model")
    about = json.loads((tmp_path / "model" / "model.json").read_text())["encoder"]["numbers"]
    shift, scale = (np.array([about[str(i)][name] for i in range(3)]) for name in ("shift", "scale"))
    with torch.no_grad():
        scaled = torch.from_numpy(((x - shift) / scale).astype(np.float32))
        chances = genfed.load_model(tmp_path / "model")[0](scaled).softmax(1)[:, 1]
    assert [float(r["p_1"]) for r in rows_of(tmp_path / "p.csv")] == pytest.approx(chances.tolist(), abs=1e-5)
    np.savez(tmp_path / "e.npz", x=x[:, :2])
    for name, says in (
        ("e.npz", "e.npz: x: 2 features; the model takes 3 features"),
        ("x.csv", "x.csv: no such file"),
        (".", "the run's examples are a table; an .npz with an array x is allowed"),
    ):
        assert says in said(capsys, "predict", tmp_path / "run", tmp_path / name, "--out", tmp_path / "q.csv", code=2)


def test_bad_inputs_of_predict(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey, colour = Image.new("L", (8, 8)), Image.new("RGB", (8, 8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    grey.save(tmp_path / "mixed" / "a.png")
    colour.save(tmp_path / "mixed" / "b.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    np.savez(tmp_path / "y.npz", y=np.zeros(3))
    np.savez(tmp_path / "colour.npz", x=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 8, 8), np.uint8))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    for name, says in (
        ("nowhere", "nowhere: no such file or folder"),
        ("empty", "empty: there are no images"),
        ("mixed", "b.png: 3 channels of 8 × 8 pixels; the model takes 1 channel of 8 × 8 pixels"),
        ("torn.png", "torn.png: not a readable image"),
        ("y.npz", "y.npz: array 'x' is not there"),
        ("colour.npz", "x: 3 channels of 8 × 8 pixels; the model takes 1 channel"),
        ("none.npz", "x holds no examples"),
        ("junk.npz", "not a readable .npz file"),
    ):
        words = ["--out", tmp_path / "p.csv", "--method", "gefl"]
        assert says in said(capsys, "predict", run, tmp_path / name, *words, code=2)
        assert not list(tmp_path.glob("*p.csv*")), "nothing half written is left"
    line = said(capsys, "predict", run, tmp_path / "mixed", "--out", tmp_path / "junk.npz", "--method", "gefl", code=2)
    assert "junk.npz exists already" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name one of its methods by --method (there are: gefl, fedavg, local, centralised)"),
        (["--method", "gelf"], "did you mean 'gefl'?"),
        (["--method", "gefl", "--seed", "7"], "has no seed 7 (there are: 0, 1)"),
        (["--method", "gefl", "--client", "4"], "gefl has no client 4 (there are: 0 (linear), 1 (mlp-small), 2 (lin"),
        (["--method", "gefl", "--client", "-1"], "gefl has no client -1"),
        (["--method", "centralised", "--client", "2"], "has no client 2 (there are: 0 (linear), 1 (mlp-small))"),
    ],
)
def test_what_is_not_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert says in said(capsys, "export", run, "--out", tmp_path / "out", *words, code=2)
    assert says in said(capsys, "predict", run, tmp_path / "a.png", "--out", tmp_path / "p.csv", *words, code=2)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_folders_that_are_no_runs_or_no_models(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    assert "is not the folder of a run" in said(capsys, "export", tmp_path, "--out", out, code=2)
    assert "is not the folder of a run" in said(capsys, "predict", tmp_path, tmp_path, "--out", out, code=2)
    said(capsys, "export", run, "--out", out, "--method", "local")
    assert "exists already" in said(capsys, "export", run, "--out", out, "--method", "local", code=2)
    line = said(capsys, "predict", out, tmp_path, "--out", tmp_path / "p.csv", "--client", 1, code=2)
    assert "holds one model: remove --method, --seed and --client" in line
    with pytest.raises(genfed.GenfedError, match=r"nowhere/model\.json: No such file"):
        genfed.load_model(tmp_path / "nowhere")
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(genfed.GenfedError, match=r"model\.safetensors is damaged"):
        genfed.load_model(out)
    about = json.loads((out / "model.json").read_text())
    (out / "model.safetensors").write_bytes(weights)
    for change, says in (
        ({"architecture": "mlp"}, "is damaged, or not of architecture mlp"),
        ({"architecture": "mlpp"}, "no such architecture: 'mlpp'"),
        (
            {"task": about["task"] | {"shape": [1, 40_000, 40_000]}},
            r"not of architecture \S+: .* need 1.6e\+10 weights",
        ),
        ({"seed": "one"}, "is not one that `genfed export` wrote: seed: "),
    ):
        (out / "model.json").write_text(json.dumps(about | change))
        with pytest.raises(genfed.GenfedError, match=says):
            genfed.load_model(out)
    (out / "model.json").write_text("{")
    with pytest.raises(genfed.GenfedError, match="is not one that `genfed export` wrote: Invalid JSON"):
        genfed.load_model(out)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_name_no_class(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    said(capsys, "export", run, "--out", tmp_path / "out", "--method", "local")
    file = tmp_path / "out" / "model.safetensors"
    weights = {key: torch.full_like(held, value) for key, held in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file)
    np.savez(tmp_path / "new.npz", x=np.arange(128, dtype=np.uint8).reshape(2, 8, 8))
    line = said(capsys, "predict", tmp_path / "out", tmp_path / "new.npz", "--out", tmp_path / "p.csv", code=2)
    assert "0: the classifier's scores are not finite numbers" in line
    assert not (tmp_path / "p.csv").exists()


def test_samples_that_are_not_finite_are_not_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(method: object, server: object, state: object, y: torch.Tensor) -> torch.Tensor:
        return torch.full((len(y), 1, 8, 8), torch.nan)

    monkeypatch.setattr("genfed.methods.gefl.GeFL.generate", generate)
    line = said(capsys, "sample", run, "--out", tmp_path / "s.npz", "--method", "gefl", code=2)
    assert "gefl: the generator gives numbers that are not finite" in line
    assert not (tmp_path / "s.npz").exists()


def test_a_model_names_code_that_is_not_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "export", run, "--out", tmp_path / "out", "--method", "local")
    card = tmp_path / "out" / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"architecture": "given_class:Net"}))
    code = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nfrom torch import nn\n"
    (tmp_path / "given_class.py").write_text(f"{code}class Net(nn.Module): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(genfed.GenfedError, match=r"given_class:Net, .*trust_code=True"):
        genfed.load_model(tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(genfed.GenfedError, match="architecture given_class:Net cannot be made"):
        genfed.load_model(tmp_path / "out", trust_code=True)
    assert (tmp_path / "ran").exists()


def test_what_a_client_kept_is_damaged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    for file in (tmp_path / "run" / "trials" / "local" / "seed-0" / "clients" / "1").iterdir():
        file.write_bytes(b"")
    words = ["export", tmp_path / "run", "--method", "local"]
    assert "is damaged" in said(capsys, *words, "--client", 1, "--out", tmp_path / "one", code=2)
    said(capsys, *words, "--client", 2, "--out", tmp_path / "two")


def test_a_method_whose_code_fails_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny("failing", method={"failing": {"kind": f"{TOYS}:FailsToClassify"}}), tmp_path / "run")
    monkeypatch.setenv("GENFED_TEST_FAILS", "1")
    line = said(capsys, "export", tmp_path / "run", "--out", tmp_path / "x", code=2)
    says = "failing cannot make the classifier of client 0 (KeyError: 'where is it?'; toys.py, line "
    assert says in re.sub(r"\s+", " ", line)


@pytest.mark.parametrize("method", ["fedcgs", "gh_ofl"])
def test_onnx_of_a_head_on_features_takes_any_number_of_examples(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such encoders work in chunks, of which the export once fixed the number, and with it that of the examples."""
    import onnxruntime

    own: dict[str, Any] = {"encoder": {"kind": "random_conv", "filters": 4}}
    if method == "gh_ofl":
        own |= {"head": "closed_form", "generator": {"kind": "gaussian"}}
    start(tiny(method, method={method: own}), tmp_path / "run")
    said(capsys, "export", tmp_path / "run", "--out", tmp_path / "onnx", "--format", "onnx")
    session = onnxruntime.InferenceSession((tmp_path / "onnx" / "model.onnx").read_bytes())
    whole = session.run(["scores"], {"x": normalize_pixels(held_out(tmp_path / "run").x)[:5].numpy()})[0]
    one = session.run(["scores"], {"x": normalize_pixels(held_out(tmp_path / "run").x)[:1].numpy()})[0]
    assert whole.shape == (5, 10)
    assert abs(whole[:1] - one).max() < 1e-3
