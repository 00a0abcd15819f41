"""Every mistake that a person can make: one line that says what to do, exit code 2, nothing lost."""

import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import genfed
from genfed.cli import main as cli
from genfed.config.reader import read_config, to_toml
from genfed.core import record
from genfed.core.errors import GenfedError
from genfed.experiment.progress import Progress
from tests.conftest import left_by, start, tiny

TOYS = "tests.toys"


def refused(config: dict[str, Any], out: Path, **options: Any) -> str:
    """The one line with which a run is refused; the folder is then as it was."""
    before = sorted(out.rglob("*")) if out.exists() else None
    with pytest.raises(GenfedError) as caught:
        start(config, out, **options)
    line = str(caught.value)
    assert line
    assert "\n" not in line
    assert (sorted(out.rglob("*")) if out.exists() else None) == before
    return line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": [1]}, "seed: no such setting: 'seed'; did you mean 'seeds'?"),
        ({"federation": {"client": 3}}, "federation.client: no such setting: 'client'; did you mean 'clients'?"),
        ({"federation": {"clients": "four"}}, "federation.clients = 'four': expected a whole number"),
        ({"federation": {"clients": 0}}, "federation.clients = 0: input should be greater than or equal to 1"),
        ({"federation": {"client_fraction": True}}, "federation.client_fraction = True: expected a number"),
        ({"federation": {"quorum": 1.5}}, "federation.quorum = 1.5: input should be less than or equal to 1"),
        ({"federation": {"architectures": 3}}, "federation.architectures = 3: expected a list or a table"),
        (
            {"federation": {"architectures": {"mlp": "much"}}},
            "federation.architectures.mlp = 'much': expected a number",
        ),
        ({"federation": []}, "federation = []: expected a table of settings"),
        ({"partition": {"kind": "iid", "alpha": 1.0}}, "partition.alpha: no such setting: 'alpha' (there are: none)"),
        ({"methods": ["fedavg", "gefl", "fedavg"]}, "methods: 'fedavg' stands twice"),
        ({"baselines": ["local", "local"]}, "baselines: 'local' stands twice"),
        ({"seeds": []}, "seeds = []: list should have at least 1 item"),
        ({"seeds": 3}, "seeds = 3: "),
        ({"seeds": [1, 2, 1]}, "seeds: 1 stands twice"),
        (
            {"compute": {"threads": 10**12}},
            "compute.threads = 1000000000000: input should be less than or equal to 1024",
        ),
        ({"data": {"size": 10**6}}, "data.size = 1000000: input should be less than or equal to 4096"),
        (
            {"data": {"kind": "table", "path": "t.csv", "label": "y", "delimiter": ", "}},
            "data.delimiter = ', ': string should have at most 1 character",
        ),
        ({"methods": ["m" * 65]}, "is no label: use up to 64 letters"),
        ({"name": ""}, "name = '': it names a folder"),
        ({"name": "../up"}, "name = '../up': it names a folder"),
        ({"name": "a\0b"}, "it names a folder"),
        (
            {"methods": ["mine"], "method": {"mine": {"kind": "gefl"}}, "data": {"size": 4}},
            "generator cvae: images of 4×4; allowed are 8×8",
        ),
        ({"method": {"fedavg": {"kind": "gefl"}}}, "method.fedavg.kind = 'gefl': fedavg is a method itself"),
        ({"federation": {"timeout": 5.0}}, "federation.timeout needs worker processes"),
        (
            {"federation": {"clients": 4, "max_examples": 5}, "methods": ["gefl"]},
            "gefl needs 2 examples at every client",
        ),
        ({"methods": "gefl"}, "methods = 'gefl': expected a list of names, such as methods = [\"gefl\"]"),
        ({"methods": ["fedavgg"]}, "no such method: 'fedavgg'; did you mean 'fedavg'?"),
        ({"methods": ["../up"]}, "methods: '../up' is no label"),
        ({"methods": []}, "methods is empty"),
        ({"method": {"gelf": {}}}, "no such method: 'gelf'; did you mean 'gefl'?"),
        (
            {"method": {"fedavg": {"roundz": 3}}},
            "method.fedavg.roundz: no such setting: 'roundz'; did you mean 'rounds'?",
        ),
        ({"method": {"fedavg": {"training": {"optimizer": "lion"}}}}, "method.fedavg.training.optimizer = 'lion': "),
        ({"method": {"fedavg": 3}}, "method.fedavg = 3: expected a table"),
        ({"defaults": {"mu": 0.1}}, "defaults.mu: no method of the run has such a setting"),
        ({"defaults": {"rounds": -1}}, "defaults.rounds = -1: "),
        ({"defaults": {"training": {"epochs": -1}}}, "defaults.training.epochs = -1: "),
        ({"defaults": {"rounds": 3}, "method": {"fedavg": {"rounds": -1}}}, "method.fedavg.rounds = -1: "),
        ({"data": {"kind": "digit"}}, "no such data: 'digit'; did you mean 'digits'?"),
        ({"data": "digits"}, "data = 'digits': expected a table of settings"),
        ({"compute": "cpu"}, "compute = 'cpu': expected a table of settings"),
        ({"method": {"fedavg": {"kind": 3}}}, "method.fedavg.kind = 3: expected the name of a method"),
        (
            {"methods": ["odd"], "method": {"odd": {"kind": f"{TOYS}:Undecorated"}}},
            "is decorated with @genfed.settings, and this is not",
        ),
        (
            {"methods": ["odd"], "method": {"odd": {"kind": f"{TOYS}:Unfinished"}}},
            "it lacks classifier, init, phases, send_classifier",
        ),
        ({"federation": {"timeout": float("inf")}}, "federation.timeout = inf: input should be a finite number"),
        ({"federation": {"architectures": {"linear": float("inf")}}}, "linear = inf: input should be a finite number"),
        ({"federation": {"architectures": {"linear": 99.0, "mlp": 1.0}}}, "mlp = 1.0 comes to none of 4 clients"),
        ({"federation": {"architectures": [":Net"]}}, ":Net: cannot import '' (ValueError: "),
        ({"federation": {"architectures": [f"{TOYS}:TakesNothing"]}}, "cannot be made of the task alone (TypeError: "),
        ({"federation": {"architectures": [f"{TOYS}:Lost"]}}, "does not fit examples of shape (1, 8, 8) (KeyError: "),
        (
            {"federation": {"architectures": [f"{TOYS}:Two"]}},
            "gives a tuple where scores of shape (2, 10) are expected",
        ),
        ({"data": {"kind": 7}}, "data.kind: says which of digit_domains, "),
        ({"data": {"sise": 8}}, "data.sise: no such setting: 'sise'; did you mean 'size'?"),
        (
            {"partition": {"kind": "dirichlett", "alpha": 1.0}},
            "no such partition: 'dirichlett'; did you mean 'dirichlet'?",
        ),
        ({"compute": {"device": "gpu"}}, "compute.device = 'gpu': "),
        ({"compute": {"device": "cuda:63"}}, "compute.device = 'cuda:63': this machine has "),
        ({"federation": {"architectures": []}}, "federation.architectures is empty"),
        ({"federation": {"architectures": ["cnn44"]}}, "no such architecture: 'cnn44'; did you mean 'cnn4'?"),
        ({"federation": {"architectures": ["cnn8"]}}, "cnn8"),
        ({"federation": {"architectures": ["linear"] * 5}}, "names 5 for federation.clients = 4"),
        (
            {"federation": {"architectures": {"linear": -1.0}}},
            "federation.architectures.linear = -1.0: a weight is above 0",
        ),
        ({"federation": {"architectures": ["no_such_module:Net"]}}, "cannot import no_such_module"),
        ({"federation": {"architectures": [f"{TOYS}:Nothing"]}}, "has no class Nothing that is a Module"),
        ({"federation": {"architectures": [f"{TOYS}:unused"]}}, "has no class unused that is a Module"),
        (
            {"federation": {"architectures": [f"{TOYS}:TooFew"]}},
            "gives scores of shape (2, 9) where scores of shape (2, 10) are expected",
        ),
        ({"federation": {"clients": 200}}, "200"),
        ({"federation": {"max_examples": 99999}}, "99999"),
        (
            {
                "methods": ["picky"],
                "method": {"picky": {"kind": f"{TOYS}:Picky"}},
                "partition": {"kind": "pathological", "labels": 2},
            },
            "picky needs every class at every client, and client 0 has no example of ",
        ),
        ({"data": {"kind": "npz", "path": "nowhere.npz"}}, "nowhere.npz"),
        ({"data": {"kind": "folder", "path": "nowhere"}}, "nowhere"),
        ({"data": {"kind": "table", "path": "nowhere.csv", "label": "y"}}, "nowhere.csv"),
    ],
)
def test_a_bad_setting_is_refused_before_training(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = tiny("fedavg", **changes)
    if isinstance(config["data"], dict) and config["data"]["kind"] != "digits":
        config["data"].pop("size", None)
    line = refused(config, tmp_path / "run")
    assert says in line
    assert not (tmp_path / "run").exists()


def test_a_generator_that_does_not_fit_is_refused_before_any_method_trains(tmp_path: Path) -> None:
    rows = [f"{i % 7},{i % 2}" for i in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(["age,state", *rows]))
    config = tiny("local", "gefl") | {"data": {"kind": "table", "path": str(tmp_path / "t.csv"), "label": "state"}}
    assert "generator cvae: examples of shape (1,), a table" in refused(config, tmp_path / "run")


def test_a_generator_whose_extra_is_missing_is_refused_before_any_method_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = tiny("local", "gefl", method={"gefl": {"generator": {"kind": "ddpm"}}})
    assert "pip install 'genfed[diffusers]'" in refused(config, tmp_path / "run")


def test_unreadable_and_empty_data(tmp_path: Path) -> None:
    (tmp_path / "junk.npz").write_bytes(b"not an archive")
    config = tiny("fedavg") | {"data": {"kind": "npz", "path": str(tmp_path / "junk.npz")}}
    assert "junk.npz" in refused(config, tmp_path / "run")
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 8, 8), np.uint8), y=np.zeros(0, np.int64))
    config = tiny("fedavg") | {"data": {"kind": "npz", "path": str(tmp_path / "none.npz")}}
    assert "none.npz" in refused(config, tmp_path / "run")


def test_one_wrong_part_of_a_list_is_one_complaint(tmp_path: Path) -> None:
    assert refused(tiny("fedavg", seeds=[1, "a"]), tmp_path / "run") == "seeds.1 = 'a': expected a whole number"


def test_a_table_for_a_method_that_is_not_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    method = {"gefl": {"rounds": 3}, "mine": {"kind": "fedprox"}, "local": {"rounds": 3}}
    config = read_config(tiny("fedavg", baselines=["local"], method=method))
    assert [record.getMessage() for record in caplog.records] == [
        "[method.gefl], [method.mine]: not used, since neither methods nor baselines names gefl, mine"
    ]
    caplog.clear()
    read_config(tiny("fedavg", baselines=["local"], method={"local": {"rounds": 3}}))
    assert config.labels == ("fedavg", "local")
    assert not caplog.records


def test_a_config_that_is_no_config(tmp_path: Path) -> None:
    for path, text, says in (
        (tmp_path / "a.toml", None, "a.toml: No such file"),
        (tmp_path / "b.toml", "methods = [", "b.toml: not TOML: "),
        (
            tmp_path / "d.toml",
            f"methods = {'[' * 100_000}",
            "d.toml: not TOML of settings: tables or lists are",
        ),
        (tmp_path / "c.toml", "methods = ['fedavg']", "data: this setting is required"),
    ):
        if text is not None:
            path.write_text(text)
        with pytest.raises(GenfedError, match=re.escape(says)):
            read_config(path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("federation.clients", "expected key=value"),
        ("federation.clients.more=3", "clients is not a table"),
        ("federation.clienst=3", "did you mean 'clients'?"),
    ],
)
def test_bad_overrides(override: str, says: str) -> None:
    with pytest.raises(GenfedError, match=re.escape(says)):
        read_config(tiny("fedavg"), [override])


def test_overrides_and_defaults_reach_the_methods() -> None:
    config = read_config(tiny("gefl", "fedavg"), ["defaults.rounds=7", "method.fedavg.rounds=9", "name=words"])
    assert (config.method["gefl"].rounds, config.method["fedavg"].rounds, config.name) == (7, 9, "words")  # type: ignore[attr-defined]
    assert config.method["gefl"].training.epochs == 1  # type: ignore[attr-defined]


def test_the_resolved_config_reads_as_itself(tmp_path: Path) -> None:
    for method in ("gefl", "fedprox", "centralised"):
        config = read_config(tiny(method))
        (tmp_path / "config.toml").write_text(to_toml(config))
        assert read_config(tmp_path) == config


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    for options in ({}, {"on_existing": "resume"}, {"on_existing": "replace"}):
        assert "holds files that are no run" in refused(tiny("local"), tmp_path, **options)
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


def test_a_folder_that_holds_another_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(tiny("local"), out)
    assert "holds a run" in refused(tiny("local"), out)
    line = refused(tiny("local", federation={"max_examples": 40}), out, on_existing="resume")
    assert "was started with federation.max_examples = 80, not 40" in line
    start(tiny("local", federation={"max_examples": 40}), out, on_existing="replace")
    assert read_config(out).federation.max_examples == 40


def test_a_folder_in_use(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def meanwhile(progress: object) -> None:
        assert "is being written by another process" in refused(tiny("local"), out, on_existing="resume")

    start(tiny("local"), out, notify=meanwhile)


def test_data_that_changed_since(tmp_path: Path) -> None:
    """A resumed trial would mix two data sets: its checkpoint knows."""
    rng = np.random.default_rng(0)

    def write(offset: int) -> None:
        x = rng.integers(0, 200, (200, 8, 8)).astype(np.uint8)
        np.savez(tmp_path / "d.npz", x=x + offset, y=np.arange(200) % 10)

    config = tiny("local") | {"data": {"kind": "npz", "path": str(tmp_path / "d.npz")}}
    write(0)
    start(config, tmp_path / "run")
    write(1)
    with pytest.raises(GenfedError, match="has a checkpoint of other settings or data"):
        start(config, tmp_path / "run", on_existing="resume")


def test_data_that_were_moved_are_the_same(tmp_path: Path) -> None:
    """A stopped run goes on with its clients' and its public examples in other places, and ends with the same bits."""
    rng = np.random.default_rng(0)
    for name in ("d", "p"):
        x = rng.integers(0, 256, (200, 8, 8)).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(200) % 10)
    sources = {"data": {"kind": "npz", "path": "d.npz"}, "public": {"kind": "npz", "path": "p.npz"}}
    config = tiny("feddf", seeds=[0, 1]) | sources | {"data_root": str(tmp_path)}
    start(config, tmp_path / "undisturbed")

    def stop(progress: Progress) -> None:
        if (progress.seed, progress.step) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "run", notify=stop)
    (tmp_path / "moved").mkdir()
    for name in ("d", "p"):
        (tmp_path / f"{name}.npz").rename(tmp_path / "moved" / f"{name}s.npz")
    moved = {key: {"kind": "npz", "path": str(tmp_path / "moved" / f"{key[0]}s.npz")} for key in sources}
    start(config | moved | {"data_root": ""}, tmp_path / "run", on_existing="resume")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "undisturbed")
    swapped = {"data": moved["data"], "public": moved["data"]}
    with pytest.raises(GenfedError, match="has a checkpoint of other settings or data"):
        start(config | swapped, tmp_path / "run", on_existing="resume")


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_corrupt_checkpoint(damage: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(tiny("fedavg"), out)
    whole = left_by(out)
    file = out / "trials" / "fedavg" / "seed-0" / "state.safetensors"
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.write_bytes({"truncate": content[:-9], "flip": flipped, "empty": b"", "foreign": b"{}" * 99}[damage])
    with pytest.raises(GenfedError, match=r"state.safetensors is damaged.*; delete .*seed-0 to do this trial again"):
        start(tiny("fedavg"), out, on_existing="resume")
    # What the message says to do works, and ends with the same bits.
    for left in file.parent.iterdir():
        left.unlink()
    file.parent.rmdir()
    start(tiny("fedavg"), out, on_existing="resume")
    assert left_by(out) == whole


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the second round; when there is room again the run ends with the same bits."""
    start(tiny("fedavg"), tmp_path / "undisturbed")
    out, calls, sync = tmp_path / "run", 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += (out / "trials" / "fedavg" / "seed-0" / "state.safetensors").exists()
        if calls > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(GenfedError, match=r"No space left on device.*--resume"):
            start(tiny("fedavg"), out)
    assert (out / "trials" / "fedavg" / "seed-0" / "state.safetensors").exists()
    start(tiny("fedavg"), out, on_existing="resume")
    assert left_by(out) == left_by(tmp_path / "undisturbed")


def test_a_client_that_cannot_keep_its_records_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on without it would change the outcome; with room again the run ends with the same bits."""
    start(tiny("gefl"), tmp_path / "undisturbed")
    out, calls, write = tmp_path / "run", 0, record.save

    def full(kept: object, path: Path, *, durable: bool = True) -> str:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(kept, path, durable=durable)

    with monkeypatch.context() as patch:
        patch.setattr("genfed.engines.client_storage.save", full)
        with pytest.raises(GenfedError, match=r"client 1 cannot keep its records: .*No space left on device.*--resume"):
            start(tiny("gefl"), out)
    start(tiny("gefl"), out, on_existing="resume")
    assert left_by(out) == left_by(tmp_path / "undisturbed")


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(tomli_w.dumps(tiny("fedavg", federation={"clients": 0})))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(file), "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "genfed: federation.clients = 0: input should be greater than or equal to 1\n"


@pytest.mark.parametrize(
    "words",
    [["run"], ["run", "x.toml", "--sett", "a=1"], ["sample", "runs/none"], ["list", "colours"], ["nonsense"]],
)
def test_a_misspelt_command_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_disk_refuses_is_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config, report = tmp_path / "file", tmp_path / "c.toml", tmp_path / "run" / "report.json"
    file.write_text("")
    config.write_text(tomli_w.dumps(tiny("fedavg")))
    report.parent.mkdir()
    report.write_bytes(b"\xff\xfe")
    for words, says in (
        (["run", str(config), "--out", str(file)], "file"),
        (["run", str(config), "--out", str(file / "below")], "file is a file, and a folder of that name is needed"),
        (["run", str(config), "--out", str(tmp_path / ("a" * 300))], "name too long"),
        (["run", "a" * 400], "name too long"),
        (["run", str(config), "--set", f'data={{kind="npz", path="{"a" * 300}"}}'], "name too long"),
        (["compare", str(report.parent), "--out", str(tmp_path / "page")], "is not a genfed report"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1


def test_the_python_interface_raises_the_same(tmp_path: Path) -> None:
    with pytest.raises(genfed.GenfedError, match="did you mean 'seeds'"):
        genfed.run(tiny("local", sedes=[1]), out=tmp_path / "run")


def test_a_mechanism_that_no_run_applies_is_refused() -> None:
    """Else a run would seem to be private and would not be."""
    table = tiny("fedavg", privacy={"kind": "tests.toys:OwnPrivacy", "epsilon": 1.0, "delta": 1e-3})
    with pytest.raises(GenfedError, match=r"privacy\.kind: OwnPrivacy is a mechanism that runs do not apply"):
        read_config(table)
