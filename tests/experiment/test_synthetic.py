"""A run whose server keeps a synthetic set: killed anywhere it ends with the same bits, and what it keeps is shown."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from genfed.artifacts.samples import write_samples
from genfed.cli import main as cli
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.core.store import FolderStore
from genfed.experiment import sample_grids
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.progress import Progress, format_duration
from genfed.experiment.trial import new_server
from genfed.report.cost_tables import build_cost_table
from genfed.training.synthetic_dataset import SyntheticBatch
from tests.conftest import STORING, left_by, start, tiny, with_page

TRIAL = Path("trials") / STORING / "seed-0"


def config(**settings: Any) -> dict[str, Any]:
    """80 images in chunks of 24: 20 for each of 4 clients, 8 of each class."""
    made = tiny(STORING, evaluation={"every": 0})
    made["method"][STORING] = made["method"][STORING] | settings
    return made


def stored(out: Path) -> SyntheticBatch:
    at: Any = read_checkpoint(read_config(out).method[STORING], out / TRIAL)
    server = new_server(
        at.task, (), read_config(out).compute, Architectures().new, 0, 0, store=FolderStore(out / TRIAL)
    )
    made: SyntheticBatch = at.state.synthetic.read(server)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    with with_page():
        start(config(), out)
    return out


def test_a_set_is_kept_in_shards_and_the_state_holds_their_names(whole: Path) -> None:
    assert sorted(file.name for file in (whole / TRIAL / "store").iterdir()) == [
        f"draw.{i}.0.safetensors" for i in range(4)
    ]
    made = stored(whole)
    assert len(made) == len(set(made.seeds.tolist())) == len(set(map(bytes, made.images.numpy()))) == 80
    assert made.request.clients.tolist() == [i // 20 for i in range(80)]
    assert made.request.labels.tolist() == [i // 2 % 10 for i in range(80)]


def test_another_chunk_makes_the_same_images(whole: Path, tmp_path: Path) -> None:
    start(config(chunk=7), tmp_path / "run")
    one, other = stored(whole), stored(tmp_path / "run")
    assert len(list((tmp_path / "run" / TRIAL / "store").iterdir())) == 12
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.seeds, other.seeds)


def test_kill_9_in_the_middle_of_a_chunk_and_resume(whole: Path, tmp_path: Path) -> None:
    """Twice in the middle of a chunk, once between a shard and its checkpoint: no image is lost or comes twice."""
    file, out, moment = tmp_path / "tiny.toml", tmp_path / "run", tmp_path / "moment"
    file.write_text(tomli_w.dumps(config()))
    words = ["run", str(file), "--out", str(out), "--resume"]
    plain = "import sys; from genfed.cli.main import main; main(sys.argv[1:])"
    after = f"from tests.toys import kill_after_shard; kill_after_shard(2); {plain}"
    for at, program, shards in (("0", plain, 0), ("1", plain, 1), ("", after, 3)):
        moment.write_text(at)
        environment = os.environ | {"GENFED_TEST_MOMENT": str(moment)}
        done = subprocess.run([sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        assert len(list((out / TRIAL).glob("store/*.safetensors"))) == shards
    (out / TRIAL / "store" / ".draw.3.0.safetensors.1.part").write_bytes(b"torn")
    start(config(), out, on_existing="resume")
    assert left_by(out) == left_by(whole)
    assert not list((out / TRIAL / "store").glob(".*"))


def test_shards_of_an_interrupted_round_are_dropped(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    store = tmp_path / "run" / TRIAL / "store"
    shutil.copy(store / "draw.0.0.safetensors", store / "draw.9.0.safetensors")
    start(config(), tmp_path / "run", on_existing="resume")
    assert left_by(tmp_path / "run") == left_by(whole)
    start(config(), tmp_path / "run", on_existing="replace")
    assert left_by(tmp_path / "run") == left_by(whole)


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_shard_is_one_line_and_nothing_else_is_lost(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", tmp_path / "tiny.toml"
    file.write_text(tomli_w.dumps(config()))

    def stop(progress: Progress) -> None:
        if progress.phase == "aggregate":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(config(), out, notify=stop)
    shard = out / TRIAL / "store" / "draw.1.0.safetensors"
    content = shard.read_bytes()
    shard.unlink() if how == "gone" else shard.write_bytes(content[:-9])
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(file), "--out", str(out), "--resume"])
    assert ended.value.code == 2
    says = " ".join(capsys.readouterr().err.split())
    assert str(shard) in says
    assert f"delete {out / TRIAL} to do this trial again from its start" in says
    shard.write_bytes(content)
    start(config(), out, on_existing="resume")


def test_a_chunk_that_is_not_finite_stops_the_run_and_loses_nothing(whole: Path, tmp_path: Path) -> None:
    says = r"phase 'draw' generated images that are not finite: image 48, class 4, client 2 is the first"
    with pytest.raises(GenfedError, match=says):
        start(config(spoils=2), tmp_path / "run")
    assert torch.equal(stored(tmp_path / "run").images, stored(whole).images[:48])


def test_time_left_is_told_of_every_phase_after_its_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    clock = iter(range(10_000))
    monkeypatch.setattr("genfed.experiment.trial_loop.time.perf_counter", lambda: 10.0 * next(clock))
    start(config(), tmp_path / "run", notify=told.append)
    drawn = [progress for progress in told if progress.phase == "draw"]
    assert [progress.round for progress in drawn] == [0, 1, 2, 3]
    assert [progress.rounds for progress in drawn] == [4] * 4
    # A round of the server reads the clock twice between its begin and its end: 30 s here.
    assert [progress.left for progress in drawn] == [None, 90.0, 60.0, 30.0]
    assert [format_duration(seconds) for seconds in (3, 99, 100, 5999, 7200)] == [
        "3 s",
        "99 s",
        "2 min",
        "1.7 h",
        "2.0 h",
    ]


def test_sample_writes_what_is_kept(whole: Path, tmp_path: Path) -> None:
    made = stored(whole)
    assert write_samples(whole, tmp_path / "png", 40) == 40
    files = sorted((tmp_path / "png").glob("*/*.png"))
    assert len(files) == 40
    cells = set()
    for file in files:
        row, _, client = file.stem.split("-")
        cells.add((file.parent.name, client))
        with Image.open(file) as image:
            assert (np.asarray(image) == made.images[int(row), 0].numpy()).all()
        assert (int(file.parent.name), int(client)) == (int(made.request.labels[int(row)]), int(row) // 20)
    assert len(cells) == 40, "every class of every client has its turn before any comes again"
    with Image.open(tmp_path / "png" / "grid.png") as image:
        assert image.size == (4 * (5 * 9 + 4), 10 * 9)
        picture = np.asarray(image)
    assert (picture[27 : 27 + 8, 49 : 49 + 8] == made.images[26, 0].numpy()).all(), "class 3 of client 1, the first"
    assert (picture[27 : 27 + 8, 49 + 18 : 49 + 45] == 255).all(), "there are two"


def test_sample_as_arrays_and_another_draw(whole: Path, tmp_path: Path) -> None:
    made = stored(whole)
    assert write_samples(whole, tmp_path / "all.npz", 1000) == 80
    with np.load(tmp_path / "all.npz") as all_:
        assert (all_["x"] == made.images[:, 0].numpy()).all()
        for name, column in (("client", made.request.clients), ("condition", made.request.conditions)):
            assert (all_[name] == column.numpy()).all()
        assert (all_["seed"] == made.seeds.numpy()).all()
        assert all_["classes"].tolist() == [str(i) for i in range(10)]
    for draw in (0, 1):
        write_samples(whole, tmp_path / f"{draw}.npz", 10, draw=draw)
    with np.load(tmp_path / "0.npz") as one, np.load(tmp_path / "1.npz") as other:
        assert one["seed"].tolist() != other["seed"].tolist()


def test_an_empty_set_has_nothing_to_sample(tmp_path: Path) -> None:
    start(config(each=0), tmp_path / "run")
    with pytest.raises(GenfedError, match="the server of storing has generated no image yet"):
        write_samples(tmp_path / "run", tmp_path / "png", 5)


def test_a_kept_set_is_judged(tmp_path: Path) -> None:
    changed = config(each=5) | {
        "metrics": {"samples": 100, "epochs": 2},
        "federation": {"clients": 2, "max_examples": 400},
    }
    report = start(changed, tmp_path / "run")
    (trial,) = report.trials
    assert trial.quality is not None
    assert trial.quality.stored
    # 100 labels as frequent as the clients', of which the set has 10 each at most.
    assert 80 < trial.quality.samples < 100
    assert None not in (trial.quality.certainty, trial.quality.client_match, trial.quality.clients_apart)
    assert dict(zip(build_cost_table(report).head, build_cost_table(report).rows[0], strict=True))["sampling"] == "–"
    before = left_by(tmp_path / "run")
    again = start(changed, tmp_path / "run", on_existing="resume")
    assert again.trials[0].quality == trial.quality, "it is not evaluated again"
    assert left_by(tmp_path / "run") == before
    empty = start(changed | {"method": config(each=0)["method"]}, tmp_path / "empty")
    assert empty.trials[0].quality is None
    assert "fewer than 2 images of the clients' classes" in empty.trials[0].failures[0]


def test_the_page_shows_the_set_by_class_and_client(whole: Path) -> None:
    html = (whole / "report.html").read_text()
    assert "storing: 80 images" in html
    for label in range(10):
        for client in range(4):
            assert html.count(f'alt="Images of class {label} for client {client}"') == 1
    assert '<th scope="col">client 3</th>' in html


def test_pictures_of_large_images_are_small() -> None:
    images = torch.randint(256, (2, 3, 200, 100), dtype=torch.uint8)
    assert sample_grids._shrink(images).shape == (2, 3, 64, 32)
    assert sample_grids._shrink(torch.full((1, 3, 128, 128), 7, dtype=torch.uint8)).eq(7).all()
