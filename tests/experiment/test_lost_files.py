"""What a checkpoint counts on must be there: files that are missing, old or edited stop a run with one line."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genfed.artifacts.export import export, find_trained
from genfed.core.errors import GenfedError
from genfed.core.files import sync_file_system
from genfed.core.record import Packed, compute_checksum, load, save, to_bytes
from genfed.engines.client_storage import BEFORE, INDEX, LEDGER, ClientIndex, StoredFile
from genfed.experiment import trial_loop
from genfed.experiment.checkpoint import STATE
from genfed.experiment.run_folder import RunFolder
from genfed.privacy.client_level import RELEASES
from genfed.privacy.plan import PLAN
from tests.conftest import left_by, start, tiny

FEW = {"clients": 2, "architectures": ["linear"], "max_examples": 40}
DP_SGD = {"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp", "reproducible_noise": True}
DP_FEDAVG = DP_SGD | {"kind": "dp_fedavg", "delta": 1e-2}


class StoppedError(Exception):
    pass


def stop_in(round_: int) -> Callable[[Any], None]:
    """Stops a run once the first client of a round has been asked."""

    def notify(progress: Any) -> None:
        if (progress.round, progress.client) == (round_, 1) and progress.phase == "train":
            raise StoppedError

    return notify


def config(method: str = "local", **changes: Any) -> dict[str, Any]:
    return tiny(method, **({"federation": FEW, "defaults": {"rounds": 4}} | changes))


def interrupted(out: Path, table: dict[str, Any]) -> Path:
    """The folder of the one trial of a run that was stopped in its third round."""
    with pytest.raises(StoppedError):
        start(table, out, notify=stop_in(2))
    return RunFolder(out).trial(table["methods"][0], 0)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def refused(table: dict[str, Any], out: Path, match: str) -> None:
    with pytest.raises(GenfedError, match=match) as error:
        start(table, out, on_existing="resume")
    assert "\n" not in str(error.value)
    assert not (out / "report.json").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start(config(), out)
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped in its third round."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    interrupted(out, config())
    return out


def newest(client: Path) -> Path:
    """The file that the checkpoint of `stopped` counts on: of the second round, the third has to be repeated."""
    return client / "model.1.safetensors"


def of_both(lose: Callable[[Path], None]) -> Callable[[Path], None]:
    """Loses the index and the one before it."""

    def lose_both(client: Path) -> None:
        for name in (INDEX, BEFORE):
            lose(client / name)

    return lose_both


LOSSES: dict[str, Callable[[Path], object]] = {
    "a file": lambda client: newest(client).unlink(),
    "a damaged file": lambda client: flip(newest(client)),
    "an older file": lambda client: shutil.copy(client.parent / "0-before", newest(client)),
    "the index": of_both(Path.unlink),
    "a damaged index": of_both(flip),
    "an older index": lambda client: save(ClientIndex(0, {}, {}), client / INDEX),
    "all files": lambda client: shutil.rmtree(client),
    "the folder of clients": lambda client: shutil.rmtree(client.parent),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_resume_without_what_a_client_stored_is_refused(
    stopped: Path, whole: Path, tmp_path: Path, loss: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    clients = RunFolder(out).trial("local", 0) / "clients"
    shutil.copy(clients / "1" / newest(clients).name, clients / "0-before")
    LOSSES[loss](clients / "0")
    refused(config(), out, r"put .*clients/0 back as it was, or delete .*seed-0 to do this trial again")
    (clients / "0-before").unlink(missing_ok=True)
    shutil.copytree(RunFolder(stopped).trial("local", 0) / "clients", clients, dirs_exist_ok=True)
    start(config(), out, on_existing="resume")
    assert left_by(out) == left_by(whole)


TORN: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", TORN)
@pytest.mark.parametrize("which", ["index", "record", "both"])
def test_a_power_cut_can_damage_only_the_round_that_is_repeated(
    stopped: Path, whole: Path, tmp_path: Path, how: str, which: str
) -> None:
    """What was stored after the last checkpoint was never forced to the disk."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    client = RunFolder(out).trial("local", 0) / "clients" / "0"
    assert load(ClientIndex, client / INDEX).last == 2
    names = {"index": [INDEX], "record": ["model.2.safetensors"], "both": [INDEX, "model.2.safetensors"]}[which]
    for name in names:
        TORN[how](client / name)
    start(config(), out, on_existing="resume")
    assert left_by(out) == left_by(whole)


@pytest.mark.parametrize("how", TORN)
def test_a_power_cut_in_the_first_round_loses_nothing(whole: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        start(config(), out, notify=stop_in(0))
    TORN[how](RunFolder(out).trial("local", 0) / "clients" / "0" / INDEX)
    start(config(), out, on_existing="resume")
    assert left_by(out) == left_by(whole)


@pytest.mark.parametrize(
    ("table", "durable"),
    [
        (config(), False),
        (config("fedproto"), False),
        (config("fedavg", privacy=DP_SGD), True),
        (tiny("fedavg", federation=FEW | {"clients": 4}, secure_aggregation={}), True),
    ],
)
def test_the_disk_has_what_a_checkpoint_counts_on(
    table: dict[str, Any], durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, wait = os.fsync, sync_file_system

    def watched(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if "clients" in path.parent.parts and path.is_file():
            events.append("client")
        elif path.name.startswith(f".{STATE}"):
            events.append("checkpoint")
        fsync(handle)

    def waited(path: Path) -> None:
        events.append("all")
        wait(path)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(trial_loop, "sync_file_system", waited)
    table |= {"defaults": {"rounds": 2}, "compute": {"workers": 0}, "evaluation": {"every": 0}}
    start(table, tmp_path / "run")
    if durable:
        assert events.count("client") >= 2 * 2 * 2
        assert "all" not in events
    else:
        kept = [event for event in events if event != "client"]
        assert "client" not in events
        assert kept == ["checkpoint", "all", "checkpoint", "all", "checkpoint", "checkpoint"]


def test_the_trial_can_be_done_again(stopped: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    shutil.rmtree(RunFolder(out).trial("local", 0))
    start(config(), out, on_existing="resume")
    assert left_by(out) == left_by(whole)


@pytest.mark.parametrize("loss", ["a file", "a damaged file", "the index", "all files"])
def test_an_export_without_what_a_client_stored_is_refused(whole: Path, tmp_path: Path, loss: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    client = RunFolder(out).trial("local", 0) / "clients" / "0"
    assert find_trained(out, None, None, 0).score is not None
    for file in client.glob("model.[012].*"):
        file.unlink()
    (client / "model.3.safetensors").rename(newest(client))  # the last file has the name that `LOSSES` know
    index = load(ClientIndex, client / INDEX)
    last = StoredFile(1, index.slots["model"][-1].checksum)
    save(ClientIndex(3, {"model": (last,)}, index.first), client / INDEX)
    assert find_trained(out, None, None, 0).score is not None
    LOSSES[loss](client)
    with pytest.raises(GenfedError, match=r"put .*clients/0 back as it was"):
        export(out, tmp_path / "model", client=0)
    assert not (tmp_path / "model").exists()
    assert find_trained(out, None, None, 1).score is not None


PRIVATE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "ledger": ("dp_sgd", lambda trial: (trial / "clients/1" / LEDGER).unlink(), "has 0 of 2 charges"),
    "damaged ledger": ("dp_sgd", lambda trial: flip(trial / "clients/1" / LEDGER), "ledger.* is damaged"),
    "older ledger": ("dp_sgd", lambda trial: shutil.copy(trial / "older", trial / "clients/1" / LEDGER), "has 1 of 2"),
    "clients": ("dp_sgd", lambda trial: shutil.rmtree(trial / "clients"), "index.* is missing"),
    "reply": ("dp_sgd", lambda trial: (trial / "clients/1/reply.1").unlink(), "reply.1: no such file"),
    "noise": ("dp_sgd", lambda trial: (trial / PLAN).unlink(), "privacy.safetensors is missing"),
    "client noise": ("dp_fedavg", lambda trial: (trial / PLAN).unlink(), "privacy.safetensors is missing"),
    "releases": ("dp_fedavg", lambda trial: (trial / RELEASES).unlink(), "lacks the release of round 1"),
    "damaged releases": ("dp_fedavg", lambda trial: flip(trial / RELEASES), "releases.safetensors is damaged"),
}


@pytest.fixture(scope="module")
def private_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Runs under each kind of privacy, stopped in the third round."""
    runs = {}
    for how in (DP_SGD, DP_FEDAVG):
        out, table = tmp_path_factory.mktemp(str(how["kind"])) / "run", config("fedavg", privacy=how)
        with pytest.raises(StoppedError):
            start(table, out, notify=stop_in(1))
        trial = RunFolder(out).trial("fedavg", 0)
        if (trial / "clients/1" / LEDGER).exists():
            shutil.copy(trial / "clients/1" / LEDGER, trial / "older")
        with pytest.raises(StoppedError):
            start(table, out, on_existing="resume", notify=stop_in(2))
        runs[str(how["kind"])] = out, table
    return runs


@pytest.mark.parametrize("loss", PRIVATE)
def test_no_charge_is_forgotten(
    private_runs: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, loss: str
) -> None:
    kind, lose, match = PRIVATE[loss]
    before, table = private_runs[kind]
    out = tmp_path / "run"
    shutil.copytree(before, out)
    lose(RunFolder(out).trial("fedavg", 0))
    refused(table, out, match)


def test_a_loss_after_the_last_round_is_no_smaller_epsilon(tmp_path: Path) -> None:
    """The guarantee is computed from files, which a finished run that is resumed reads again."""
    table = config("fedavg", privacy=DP_SGD, defaults={"rounds": 1})
    start(table, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    (RunFolder(tmp_path / "run").trial("fedavg", 0) / "clients/1" / LEDGER).unlink()
    refused(table, tmp_path / "run", "has 0 of 1 charges")


def edit(rows: list[str]) -> list[str]:
    row = json.loads(rows[2])
    return [*rows[:2], json.dumps(row | {"round": row["round"] + 1}), *rows[3:]]


EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "edited": edit,
    "doubled": lambda rows: [rows[0], *rows],
    "deleted": lambda rows: rows[1:],
    "swapped": lambda rows: [rows[1], rows[0], *rows[2:]],
    "replaced": lambda rows: ['{"a": 1}', *rows[1:]],
    "all deleted": lambda rows: [],
}


@pytest.mark.parametrize("how", EDITS)
def test_rows_of_metrics_must_be_those_that_were_written(stopped: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    file = out / "metrics.jsonl"
    file.write_text("".join(row + "\n" for row in EDITS[how](file.read_text().splitlines())))
    match = "metrics.jsonl: the rows of local, seed 0 are not those that its checkpoint counts on; put the file back"
    refused(config(), out, match)
    with pytest.raises(GenfedError, match="the rows of local, seed 0 are not those"):
        find_trained(out, None, None, 0)


def test_a_missing_file_of_metrics_is_refused(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    refused(config(), tmp_path / "run", "the rows of local, seed 0 are not those")


def test_rows_after_the_checkpoint_and_times_do_not_count(stopped: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"seconds": 7.0} for row in rows] + [row | {"step": 2} for row in rows[:3]]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start(config(), out, on_existing="resume")
    assert left_by(out) == left_by(whole)


def test_an_edited_measure_of_a_generator_is_measured_anew(tmp_path: Path) -> None:
    table = tiny("gefl", federation=FEW, defaults={"rounds": 1}, metrics={"samples": 20, "epochs": 1})
    start(table, tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    before = file.read_text().splitlines()
    (place,) = [i for i, line in enumerate(before) if json.loads(line)["phase"] == "quality"]
    edited = json.loads(before[place]) | {"generator_accuracy": 1.0}
    file.write_text("".join(line + "\n" for line in [*before[:place], json.dumps(edited), *before[place + 1 :]]))
    start(table, tmp_path / "run", on_existing="resume")

    def without_times(lines: list[str]) -> list[Any]:
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    assert without_times(file.read_text().splitlines()) == without_times(before)


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_run_that_has_lost_its_name_is_refused(stopped: Path, tmp_path: Path, how: str) -> None:
    """Sites know it by its name: under another one they would begin anew."""
    shutil.copytree(stopped, tmp_path / "run")
    file = tmp_path / "run" / "started.json"
    file.unlink() if how == "missing" else file.write_text("{")
    refused(config(), tmp_path / "run", f"started.json is {how}; put it back as it was, or start anew with --fresh")


def test_a_checkpoint_that_names_nothing_is_refused(stopped: Path, tmp_path: Path) -> None:
    import safetensors.torch

    shutil.copytree(stopped, tmp_path / "run")
    file = RunFolder(tmp_path / "run").trial("local", 0) / STATE
    with safetensors.safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = json.loads(opened.metadata()["record"])
    del about["stored"]
    text = json.dumps(about)
    file.write_bytes(to_bytes(Packed(tensors, text), crc32=compute_checksum(Packed(tensors, text))))
    refused(config(), tmp_path / "run", "is of an older genfed, .*; delete .* to do this trial again from its start")


# Kills between two files.


class KilledError(KeyboardInterrupt):
    pass


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Stops the process, as it were, before it renames its n-th file."""
    replace, left = Path.replace, [0]

    def counted(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise KilledError
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)

    def kill_at(n: int) -> None:
        left[0] = n

    yield kill_at
    left[0] = 0


def test_a_private_client_is_charged_exactly_once_whenever_it_is_killed(
    tmp_path: Path, killed_at: Callable[[int], None]
) -> None:
    table = tiny("fedavg", federation=FEW, privacy=DP_SGD, defaults={"rounds": 2}, evaluation={"every": 0})
    start(table, tmp_path / "whole")
    kills = 0
    for n in range(4, 60, 4):
        out = tmp_path / f"killed-{n}"
        killed_at(n)
        try:
            start(table, out)
            killed_at(0)
            break
        except KilledError:
            kills += 1
        start(table, out, on_existing="resume")
        assert left_by(out) == left_by(tmp_path / "whole"), f"killed before file {n}"  # the ledgers are among them
    assert kills >= 4


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        start(config(), tmp_path / "run", notify=stop_in(1))
    left = RunFolder(tmp_path / "run").trial("local", 0) / f".{STATE}.123.part"
    left.write_bytes(b"half")
    start(config(), tmp_path / "run", on_existing="resume")
    assert not left.exists()
