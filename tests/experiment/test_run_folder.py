"""The folder of a run."""

import importlib
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest

from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.experiment.progress import Progress
from genfed.experiment.run import describe_start
from genfed.experiment.run_folder import RunFolder, RunStart, default_folder, digest_code
from tests.conftest import left_by, start, tiny


def test_only_the_folder_of_a_run_is_refused_by_default(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path / "run"), read_config(tiny("local"))
    with folder.claim(config, "refuse"):
        assert read_config(folder.config) == config
    with pytest.raises(GenfedError, match="holds a run"):
        folder.check_existing("refuse")
    folder.check_existing("resume")
    folder.check_existing("replace")


def test_a_run_is_resumed_as_it_was_and_replaced_as_a_whole(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path / "run"), read_config(tiny("local"))
    with folder.claim(config, "refuse"):
        (folder.path / "notes.txt").write_text("of the first run")
    with folder.claim(config, "resume"):
        assert (folder.path / "notes.txt").exists()
    other = read_config(tiny("local", federation={"max_examples": 40}))
    with (
        pytest.raises(GenfedError, match=r"was started with federation\.max_examples = 80, not 40"),
        folder.claim(other, "resume"),
    ):
        pass
    with folder.claim(other, "replace"):
        assert not (folder.path / "notes.txt").exists()
        assert read_config(folder.config) == other


def test_the_first_start_is_remembered(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.run_id() == "new"
    first, second = (RunStart(command, "2026-01-01T00:00:00+00:00", command) for command in ("first", "second"))
    assert folder.begin(first) == folder.begin(second) == first
    assert folder.run_id() != "new"
    for other in (b"{", b'{"command":' * 100_000, b'{"command": 1}', bytes(9)):
        folder.started.write_bytes(other)
        with pytest.raises(GenfedError, match=r"started.json is damaged; put it back as it was"):
            folder.begin(second)


def test_a_module_that_changed_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, folder = tmp_path / "own_net_of_this_test.py", RunFolder(tmp_path / "run")
    file.write_text("import torch\n\nclass Net(torch.nn.Linear):\n    pass\n")
    folder.path.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(file.stem)
    for named in ([f"{file.stem}:Net"], {f"{file.stem}:Net": 1.0}):
        config = read_config(tiny("local", federation={"architectures": named}))
        assert list(digest_code(config)) == [file.stem]
    began = folder.begin(describe_start("first", config))
    assert folder.begin(describe_start("second", config)) == began
    assert not caplog.messages
    file.write_text(file.read_text() + "# mended\n")
    assert folder.begin(describe_start("third", config)) == began
    assert caplog.messages[0].startswith("the file of module own_net_of_this_test has changed since the run began")


def test_the_log_of_a_run_ends_with_its_block(tmp_path: Path) -> None:
    log = logging.getLogger("genfed.test")
    with RunFolder(tmp_path).log():
        log.warning("inside")
    log.warning("outside")
    text = (tmp_path / "run.log").read_text("utf-8")
    assert "WARNING inside" in text
    assert "outside" not in text


def test_results_go_to_the_given_folder_or_below_runs(tmp_path: Path) -> None:
    assert default_folder(tmp_path, "name") == default_folder(str(tmp_path), "name") == RunFolder(tmp_path)
    assert default_folder(tmp_path / "config.toml", "name") == RunFolder(Path("runs/name"))


@pytest.mark.parametrize("kept", ["as it was", "damaged", "started by an older version"])
def test_other_data_change_nothing_of_a_finished_run(tmp_path: Path, kept: str) -> None:
    """Neither new rows nor the same ones in another unit, whose standardized numbers are equal."""
    file, out = tmp_path / "rows.csv", tmp_path / "run"
    rows = [(i % 7, i * 3 % 11, "yes" if i % 2 else "no") for i in range(120)]

    def write(factor: int, plus: int = 0) -> None:
        lines = [f"{age * factor + (age * plus) % 5},{visits},{ill}" for age, visits, ill in rows]
        file.write_text("\n".join(["age,visits,ill", *lines]) + "\n")

    write(1)
    config = tiny("local") | {"data": {"kind": "table", "path": str(file), "label": "ill"}}
    start(config, out)
    if kept == "damaged":
        (out / "encoder.json").write_text("{")
    elif kept != "as it was":
        began = json.loads((out / "started.json").read_text())
        (out / "started.json").write_text(json.dumps(began | {"encoder": ""}))
    before = (out / "encoder.json").read_bytes()
    for changed in ((1000, 0), (2, 3)):
        write(*changed)
        with pytest.raises(GenfedError, match="the data are encoded otherwise than when the run began, so their colu"):
            start(config, out, on_existing="resume")
        assert (out / "encoder.json").read_bytes() == before
    write(1)
    start(config, out, on_existing="resume")
    assert RunFolder(out).read_encoder() is not None, "one that was damaged is written anew"


def test_a_missing_or_edited_encoder_is_not_read_as_the_usual_one(tmp_path: Path) -> None:
    """Pixels from 0 to 16 are not from 0 to 255."""
    x = np.random.default_rng(0).integers(17, size=(120, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(120) % 2)
    data = {"kind": "npz", "path": str(tmp_path / "d.npz"), "pixels": [0, 16]}
    folder = RunFolder(tmp_path / "run")
    config = tiny("local") | {"data": data, "federation": {"clients": 2, "architectures": ["linear"]}}
    start(config, folder.path)
    right = folder.read_encoder()
    text = folder.encoder.read_text()
    assert "16.0" in text
    folder.encoder.write_text(text.replace("16.0", "255.0"))
    with pytest.raises(GenfedError, match=r"encoder\.json is not that of the run; put it back, or resume the run"):
        folder.read_encoder()
    folder.encoder.unlink()
    with pytest.raises(GenfedError, match=r"encoder\.json is missing; put it back, or resume the run"):
        folder.read_encoder()
    start(config, folder.path, on_existing="resume")
    assert folder.read_encoder() == right


def test_workers_train_by_the_settings_that_the_run_began_with(tmp_path: Path) -> None:
    """Who edits config.toml while a run goes on, for the next run, does not change this one."""
    config = tiny("fedavg", "fedprox", baselines=[], compute={"workers": 2}, evaluation={"every": 0})

    def edit(progress: Progress) -> None:
        file = tmp_path / "edited" / "config.toml"
        file.write_text(re.sub(r"learning_rate = [\d.]+", "learning_rate = 0.0001", file.read_text()))

    start(config, tmp_path / "plain")
    start(config, tmp_path / "edited", notify=edit)
    assert left_by(tmp_path / "plain") == left_by(tmp_path / "edited")
