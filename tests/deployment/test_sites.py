"""A federation of sites without Flower's processes: letters go from the server's main straight to sites' handlers."""

import itertools
import json
import os
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

import genfed
from genfed.artifacts import export
from genfed.cli import main as cli
from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config, read_method
from genfed.core.errors import GenfedError
from genfed.core.phase import flatten_phases
from genfed.core.record import digest, load, pack, unpack
from genfed.core.store import FolderStore
from genfed.core.task import Data, Task
from genfed.data.encoder import digest_encoder
from genfed.engines.client_storage import LEDGER
from genfed.experiment import partitioning
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.evaluation import ClassifierScores
from genfed.experiment.inputs import RunInputs, load_data
from genfed.experiment.trial import new_server
from genfed.preprocessing.pixel_scale import PixelScale
from genfed.privacy.example_level import read_ledger
from genfed.privacy.site_budget import BUDGET, COUNTS, read_site_ledger
from genfed.report.results import from_json
from genfed.training.weights import Model, weights_of
from tests import toys
from tests.conftest import start, tiny, tiny_foundation

flower = pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from flwr.app import Message, RecordDict  # noqa: E402

from genfed.deployment import (  # noqa: E402
    agreement,
    audit_log,
    notices,
    processes,
    site_data,
    site_settings,
)
from genfed.deployment import server as deployment_server  # noqa: E402
from genfed.deployment import site as deployment_site  # noqa: E402
from genfed.deployment.roster import (  # noqa: E402
    SiteDescription,
    SiteRoster,
)
from genfed.engines.flower.client import answer_message  # noqa: E402
from genfed.engines.flower.engine import MessageLink  # noqa: E402
from genfed.engines.flower.messages import EMPTY, decode_message, encode_message  # noqa: E402

pytestmark = pytest.mark.flower
NAMES = ("a", "b", "c", "d")


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages say who sent them."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Grid:
    """Nodes that answer as soon as they are asked."""

    def __init__(self, files: Iterable[Path], answer: Any = None) -> None:
        self.nodes: dict[int, Path] = dict(enumerate(files, 100))
        self._answer = answer or (lambda handle, message, context: answer_message(handle, message, context))
        self._replies: dict[str, Any] = {}
        self.sent: list[Any] = []
        self._number = itertools.count()
        self.registered: dict[int, str] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=node, name=self.registered.get(node, "")) for node in self.nodes]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        names = []
        for message in messages:
            name = f"m{next(self._number)}"
            message.metadata.__dict__["_message_id"] = name
            self.sent.append(message)
            context = SimpleNamespace(node_config={"site": str(self.nodes[message.metadata.dst_node_id])})
            self._replies[name] = self._answer(deployment_site.handle, message, context)
            names.append(name)
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        return [self._replies.pop(name) for name in names if self._replies.get(name)]


def sites(config: dict[str, Any], folder: Path, **changes: Any) -> list[Path]:
    """A site for each client of the config: an npz with its part, and its file; `changes` by name. They allow the
    foundation models of its methods.
    """
    settings = read_config(config)
    models = {method.foundation.model for method in settings.method.values() if hasattr(method, "foundation")}
    shards = partitioning.partition_data(settings, load_data(settings), 0)
    classes, files = np.array(shards.task.classes), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, info, rows in zip(NAMES, shards.clients, shards.ranges, strict=False):
        mine, test = shards.train[slice(*rows)], shards.held_out
        arrays = {"x_train": mine.x, "x_test": test.x}
        labels = {"y_train": classes[mine.y], "y_test": classes[test.y]}
        given: dict[str, Any] = {k: v.numpy() for k, v in arrays.items()} | labels
        np.savez(folder / f"{name}.npz", **given)
        about = {
            "name": name,
            "architecture": info.architecture,
            "classes": list(shards.task.classes),
            "data": {"kind": "npz", "path": f"{name}.npz", "validation": 0.0, "pixels": [0, 255]},
            "link": {"insecure": True},
            "allow": sorted(models),
        }
        file = folder / f"{name}.toml"
        file.write_text(tomli_w.dumps(about | changes.get(name, {})))
        files.append(file)
    return files


def some(*methods: str, **changes: Any) -> dict[str, Any]:
    """A config of three clients with enough examples that each has every class."""
    architectures = ["linear", "mlp-small", "linear"]
    few = {"clients": 3, "max_examples": 240, "architectures": architectures, "quorum": 1.0}
    few |= changes.pop("federation", {})
    return tiny(*methods, federation=few, **changes)


def serve(config: dict[str, Any], grid: Grid, out: Path, **options: Any) -> deployment_server.Outcome:
    file, outcome = out.with_suffix(".toml"), out.with_suffix(".json")
    file.write_text(tomli_w.dumps(config))
    wanted = {"config": str(file), "out": str(out), "outcome": str(outcome), "wait": 1.0} | options
    deployment_server.main(grid, wanted)
    from pydantic import TypeAdapter

    return TypeAdapter(deployment_server.Outcome).validate_json(outcome.read_bytes())


def state_of(out: Path, method: str) -> str:
    at: Any = read_checkpoint(read_config(out).method[method], out / "trials" / method / "seed-0")
    return digest(pack(at.state))


def rows_of(out: Path) -> list[Any]:
    """But for costs, and the score on data like their own that sites do not tell, nor send the bytes of."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    without = {"evaluate": ("seconds", "lost", "own", "up_bytes")}
    return [{k: v for k, v in row.items() if k not in without.get(row["phase"], ("seconds", "lost"))} for row in rows]


@pytest.mark.usefixtures("page")
def test_sites_come_to_the_bits_of_the_embedded_engine(tmp_path: Path) -> None:
    config = some("gefl", "local")
    start(config, tmp_path / "embedded")
    grid = Grid(reversed(sites(config, tmp_path / "sites")))  # whoever connects first is not the first client
    outcome = serve(config, grid, tmp_path / "sited")
    assert not outcome.error
    for method in config["methods"]:
        assert state_of(tmp_path / "sited", method) == state_of(tmp_path / "embedded", method)
    assert rows_of(tmp_path / "sited") == rows_of(tmp_path / "embedded")
    report = from_json((tmp_path / "sited" / "report.json").read_text())
    assert [trial.accuracy for trial in report.trials] == [
        trial.accuracy for trial in from_json((tmp_path / "embedded" / "report.json").read_text()).trials
    ]
    wire = "".join(m.content.config_records["message"]["head"] for m in grid.sent)
    assert str(tmp_path) not in wire
    assert not list((tmp_path / "sited").rglob("clients")), "what clients keep stays with them"


def test_what_left_a_site_is_in_its_log(tmp_path: Path) -> None:
    config = some("fedavg")
    files = sites(config, tmp_path / "sites")
    serve(config, Grid(files), tmp_path / "run")
    left = audit_log.read_audit(site_settings.read_site(files[0]))
    assert [line.phase for line in left] == ["hello", "train", "evaluate", "train", "evaluate"]
    assert left[1].fields == ("classifier",)
    assert left[2].fields == ("auroc", "confusion", "correct", "ece", "own_accuracy", "predicted", "total")
    assert left[1].method == "fedavg"
    rows = [row for row in rows_of(tmp_path / "run") if row["phase"] == "train" and row["client"] == 0]
    assert left[1].bytes >= rows[0]["up_bytes"]
    assert not any("path" in name or "file" in name for line in left for name in line.says)


def test_what_a_site_says_when_it_is_scored(tmp_path: Path) -> None:
    """How many held-out examples of each class were given each class, and two rounded scores; nothing of the others."""
    said: list[tuple[Any, ClassifierScores]] = []

    def answer(handle: Any, message: Any, context: Any) -> Any:
        reply = answer_message(handle, message, context)
        if decode_message(message.content)[0].get("step", {}).get("phase") == "evaluate":
            head, body = decode_message(reply.content)
            said.append((head, unpack(ClassifierScores, body)))
        return reply

    config = some("fedavg", evaluation={"every": 0})
    files = sites(config, tmp_path / "sites")
    assert not serve(config, Grid(files, answer), tmp_path / "run").error
    assert len(said) == 3
    for head, scores in said:
        assert head.keys() == {"weight", "metrics", "seconds"}
        assert (head["weight"], head["metrics"]) == (1.0, {})
        assert vars(scores).keys() == {"correct", "total", "own_accuracy", "predicted", "confusion", "auroc", "ece"}
        assert scores.own_accuracy == {}, "several would tell its share of each class in training"
    held_out = np.load(files[0].with_suffix(".npz"))["y_test"]
    assert said[0][1].total.tolist() == [(held_out == name).sum() for name in "0123456789"]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row.get("own") is None for row in rows)
    (trial,) = from_json((tmp_path / "run" / "report.json").read_text()).trials
    assert [each.measures and each.measures.auroc for each in trial.clients] == [scores.auroc for _, scores in said]
    assert torch.equal(torch.tensor(trial.confusion), torch.stack([scores.confusion for _, scores in said]).sum(0))


def test_a_server_that_stopped_goes_on_with_the_same_sites(tmp_path: Path) -> None:
    config = some("gefl")
    files = sites(config, tmp_path / "sites")
    serve(config, Grid(files), tmp_path / "whole")

    class StoppedError(KeyboardInterrupt):
        pass

    calls = 0

    def stops(handle: Any, message: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:  # in the second round of the generator
            raise StoppedError
        return answer_message(handle, message, context)

    with pytest.raises(StoppedError):
        serve(config, Grid(files, stops), tmp_path / "stopped")
    assert not serve(config, Grid(files), tmp_path / "stopped", on_existing="resume").error
    assert state_of(tmp_path / "stopped", "gefl") == state_of(tmp_path / "whole", "gefl")
    export.export(tmp_path / "whole", tmp_path / "model")
    assert (
        "unless the sites set data.pixels, which this run does not" in (tmp_path / "model" / "model.json").read_text()
    )
    serve(some("local"), Grid(files), tmp_path / "own")
    with pytest.raises(GenfedError, match="local: the site of client 0 keeps its classifier"):
        export.export(tmp_path / "own", tmp_path / "none")


def test_a_run_goes_on_with_the_sites_that_it_began_with(tmp_path: Path) -> None:
    """Site d, which came meanwhile, is like b: as many examples, and the same architecture."""

    class StoppedError(KeyboardInterrupt):
        pass

    def stops(handle: Any, message: Any, context: Any) -> Any:
        if decode_message(message.content)[0].get("step", {}).get("number") == 1:
            raise StoppedError
        return answer_message(handle, message, context)

    config = some("fedavg", federation=ALIKE)
    files = sites(config, tmp_path / "sites")
    late = tmp_path / "sites" / "aa.toml"
    late.write_text(files[1].read_text().replace('name = "b"', 'name = "aa"'))
    serve(config, Grid(files), tmp_path / "whole")
    with pytest.raises(StoppedError):
        serve(config, Grid(files, stops), tmp_path / "run")
    few = serve(config, Grid([files[0], late, files[2]]), tmp_path / "run", on_existing="resume")
    assert few.error == "2 of 3 sites have joined after 1 s; the run began with b, too"
    assert not serve(config, Grid([late, *files]), tmp_path / "run", on_existing="resume").error
    assert state_of(tmp_path / "run", "fedavg") == state_of(tmp_path / "whole", "fedavg")
    assert not list((tmp_path / "sites" / "aa").glob("runs")), "it was not asked to work"
    (tmp_path / "run" / "sites.json").write_text("[")
    assert "sites.json is damaged" in serve(config, Grid(files), tmp_path / "run", on_existing="resume").error


# An architecture that only site b knows.

OWN = "tests.toys:Linear"
TAKE_IT = ("fedavg", "fedprox", "local", "fml", "fedkd", "gefl", "fedcgs", "fedpft", "gh_ofl")
LEARN_IT = ("fgl", "oscar", "feddeo", "prompts_only")
SHARE_ITS_EXTRACTOR = ("gefl_f", "lg_fedavg")
REFUSE_IT = sorted(
    {*registry.list_classes(registry.METHODS)} - {*TAKE_IT, *LEARN_IT, *SHARE_ITS_EXTRACTOR, "centralised"}
)


def owned(*methods: str, own: str = OWN, **changes: Any) -> dict[str, Any]:
    """A config whose second client has an architecture of its own."""
    return some(*methods, **changes) | {
        "federation": some(*methods)["federation"] | {"architectures": ["cnn1", own, "cnn2"]},
        "data": {"kind": "digits", "size": 16},
    }


@pytest.mark.parametrize("methods", [TAKE_IT, LEARN_IT, SHARE_ITS_EXTRACTOR])
def test_an_architecture_that_only_its_site_knows_takes_part(tmp_path: Path, methods: tuple[str, ...]) -> None:
    own = "tests.toys:Headed" if methods == SHARE_ITS_EXTRACTOR else OWN
    config = owned(*methods, own=own, evaluation={"every": 0})
    start(config, tmp_path / "embedded")
    grid = Grid(sites(config, tmp_path / "sites"))
    assert not serve(config, grid, tmp_path / "sited").error
    for method in methods:
        assert state_of(tmp_path / "sited", method) == state_of(tmp_path / "embedded", method)
    assert rows_of(tmp_path / "sited") == rows_of(tmp_path / "embedded")
    trials = from_json((tmp_path / "sited" / "report.json").read_text()).trials
    assert not any(trial.failures for trial in trials)


def test_a_site_learns_from_the_images_what_a_student_would(tmp_path: Path) -> None:
    """It is sent the set once, and tells nothing of its model, which the server never has."""
    config = owned("fgl")
    config["method"]["fgl"] |= {"student_rounds": 3, "synthetic_epochs": 1}
    files = sites(config, tmp_path / "sites")
    assert not serve(config, Grid(files), tmp_path / "run").error
    at: Any = read_checkpoint(
        read_config(tmp_path / "run").method["fgl"], tmp_path / "run" / "trials" / "fgl" / "seed-0"
    )
    assert at.state.personal == (OWN,)
    assert sorted(at.state.students) == ["cnn1", "cnn2"]
    rows = [row for row in rows_of(tmp_path / "run") if row["client"] is not None]
    images = len(at.state.synthetic)
    assert images == 30, "an image of each class for each of three clients"
    got = {row["client"]: row["down_bytes"] for row in rows if row["phase"] == "learn_own"}
    assert got[1] - got[0] == images * (16 * 16 + 8)
    assert got[0] == got[2] < 100, "an empty record"
    tuned = [row for row in rows if row["phase"] == "tune" and row["client"] == 1]
    assert len(tuned) == 2
    assert all(row["up_bytes"] < 100 and row["down_bytes"] < 100 for row in tuned)
    assert [
        line.fields for line in audit_log.read_audit(site_settings.read_site(files[1])) if line.phase == "tune"
    ] == [("classifier",)] * 2
    (kept,) = (tmp_path / "sites" / "b" / "runs").glob("*/fgl/seed-0/clients/1/set.*.safetensors")
    sent: Data = load(Data, kept)
    made = at.state.synthetic.read(SimpleNamespace(task=at.task, store=FolderStore(tmp_path / "run/trials/fgl/seed-0")))
    assert torch.equal(sent.x, made.images)
    scores = [sum(row["correct"]) for row in rows if row["phase"] == "evaluate" and row["client"] == 1]
    assert len(set(scores)) > 1, "its own model is what is scored"
    with pytest.raises(GenfedError, match="fgl: the site of client 1 keeps its classifier, and the server has no part"):
        export.find_trained(tmp_path / "run", None, None, 1)
    assert export.find_trained(tmp_path / "run", None, None, 0).score is not None


@pytest.mark.parametrize("method", REFUSE_IT)
def test_a_method_that_must_see_it_is_refused_before_training(tmp_path: Path, method: str) -> None:
    config = owned(method)
    grid = Grid(sites(config, tmp_path / "sites"))
    assert serve(config, grid, tmp_path / "run").error == (
        f"{method} runs each architecture at the server or at other sites, and only site b knows {OWN}: use one of "
        "`genfed list architectures`, or gefl, gefl_f or fgl"
    )
    assert not (tmp_path / "run").exists()
    asked = {json.loads(m.content.config_records["message"]["head"])["ask"] for m in grid.sent}
    assert asked == {"hello"}


@pytest.mark.parametrize("method", SHARE_ITS_EXTRACTOR)
def test_an_architecture_without_an_extractor_is_refused_before_training(tmp_path: Path, method: str) -> None:
    config = owned(method)
    grid = Grid(sites(config, tmp_path / "sites"))
    assert serve(config, grid, tmp_path / "run").error == (
        f"{method}: architecture {OWN} has no extractor and header: a network whose extractor is shared has exactly "
        "these two children (site b)"
    )
    assert not (tmp_path / "run").exists()


def test_a_method_of_ones_own_that_looks_at_it_is_refused_before_training(tmp_path: Path) -> None:
    config = owned("mine", method={"mine": {"kind": "tests.toys:Looks"}})
    allowed = {name: {"allow": ["tests.toys:Looks"]} for name in NAMES}
    grid = Grid(sites(config, tmp_path / "sites", **allowed))
    assert serve(config, grid, tmp_path / "run").error == (
        f"mine: it must run {OWN}, which only its site knows: use one of `genfed list architectures`, or gefl (site b)"
    )
    assert not (tmp_path / "run").exists()


def test_the_first_architecture_by_name_may_be_a_site_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds the shape of the shared features by another's extractor."""
    monkeypatch.setitem(sys.modules, "a_toy", toys)
    config = owned("gefl_f", own="a_toy:Headed")
    config["method"]["gefl_f"] |= {"pool": "server"}
    start(config, tmp_path / "embedded")
    assert not serve(config, Grid(sites(config, tmp_path / "sites")), tmp_path / "sited").error
    assert state_of(tmp_path / "sited", "gefl_f") == state_of(tmp_path / "embedded", "gefl_f")


def test_sites_evaluate_on_the_part_that_the_report_names() -> None:
    hello = SiteDescription("a", "linear", "image", (1, 8, 8), ("x", "y"), 10, 5, "", "cpu", 0, 0.0, False, 1, 0.0)
    both = [hello, SiteDescription(**vars(hello) | {"name": "b", "part": "validation"})]

    def said(split: str) -> list[str]:
        return agreement.find_disagreements(
            read_config(some("fedcgs", federation={"clients": 2}, evaluation={"split": split})), both
        )

    (line,) = said("test")
    assert line.startswith('evaluation.split = "test", and b would be evaluated on another part: set `part`')
    (line,) = said("validation")
    assert line.startswith('evaluation.split = "validation", and a would be')


def test_label_sets_that_differ_are_reported_before_training(tmp_path: Path) -> None:
    hello = SiteDescription("", "linear", "image", (1, 8, 8), (), 10, 5, "", "cpu", 0, 0.0, False, 1, 0.0)

    def said(**sets: str) -> list[str]:
        made = [SiteDescription(**vars(hello) | {"name": n, "classes": tuple(c)}) for n, c in sets.items()]
        return agreement.describe_label_sets(made)

    assert said(a="xy", b="xy") == []
    assert said(a="xy", b="yx") == [
        "the sites name the same classes in different orders: give all the same list `classes` in SITE.toml"
    ]
    assert said(a="xy", b="vw") == ["label sets do not overlap: a has 'x', 'y'; b has 'v', 'w'"]
    (line,) = said(a="xyz", b="xyz", c="xyw")
    assert line.startswith("label sets differ: a lacks 'w'; b lacks 'w'; c alone has 'w' (renamed?) and lacks 'z'; ")
    (line,) = said(a="xyz", b="xyz", c="xy")
    assert line.startswith("label sets differ: c lacks 'z'; ")
    config = some("fedavg")
    ten = list("0123456789")
    files = sites(config, tmp_path / "sites", b={"classes": [*ten, "ten"]})
    outcome = serve(config, Grid(files), tmp_path / "run")
    assert outcome.error.startswith("label sets differ: a lacks 'ten'; b alone has 'ten'; c lacks 'ten'; ")
    assert not (tmp_path / "run").exists()


def test_sites_can_name_one_schema_of_public_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With it the served classifier reads new rows as the sites read theirs."""
    towns, folder = {"a": ("oslo", "bergen"), "b": ("alta", "bergen"), "c": ("oslo", "bergen")}, tmp_path / "sites"
    folder.mkdir()
    for name, (ill, well) in towns.items():
        rows = [f"{20 + i * 7 % 60},{ill if i % 2 else well},{'ill' if i % 2 else 'well'}" for i in range(80)]
        (folder / f"{name}.csv").write_text("\n".join(["age,town,label", *rows]))
    everything = [line for name in towns for line in (folder / f"{name}.csv").read_text().splitlines()[1:]]
    (folder / "all.csv").write_text("\n".join(["age,town,label", *everything]))

    def files(**more: str) -> list[Path]:
        found = []
        for name in towns:
            data = {"kind": "table", "path": f"{name}.csv", "label": "label"} | more
            about = {"name": name, "architecture": "linear", "data": data, "link": {"insecure": True}}
            (folder / f"{name}.toml").write_text(tomli_w.dumps(about))
            found.append(folder / f"{name}.toml")
        return found

    config = tiny("fedavg", federation={"clients": 3, "quorum": 1.0}) | {"data": {"kind": "sites"}}
    config["federation"].pop("architectures", None)
    config["federation"].pop("max_examples", None)
    data = {"kind": "table", "path": str(folder / "all.csv"), "label": "label"}
    start(tiny("local") | {"data": data}, tmp_path / "one")
    (folder / "encoder.json").write_bytes((tmp_path / "one" / "encoder.json").read_bytes())
    outcome = serve(config, Grid(files(encoder="encoder.json")), tmp_path / "run")
    assert not outcome.error
    words = ("predict", str(tmp_path / "run"), str(folder / "a.csv"), "--out", str(tmp_path / "p.csv"))
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert ended.value.code == 2
    assert "put the encoder.json that they name in data.encoder into the run's folder" in capsys.readouterr().err
    export.export(tmp_path / "run", tmp_path / "before")
    assert "the encoder.json that the sites share" in (tmp_path / "before" / "model.json").read_text()
    (tmp_path / "run" / "encoder.json").write_bytes((folder / "encoder.json").read_bytes())
    export.export(tmp_path / "run", tmp_path / "model")
    for run, out in ((tmp_path / "run", "p.csv"), (tmp_path / "model", "q.csv")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["predict", str(run), str(folder / "a.csv"), "--out", str(tmp_path / out)])
        assert ended.value.code == 0
    assert (tmp_path / "p.csv").read_text() == (tmp_path / "q.csv").read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "b"}, "two sites are named b; each needs a name of its own"),
        ({"architecture": "lineal"}, "no such architecture: 'lineal'; did you mean 'linear'?"),
        ({"data": {"kind": "npz", "path": "nowhere.npz"}}, "could not read or write a file; its own log says more"),
        # "group 'y': '0' is in the given train and test parts" quotes a value of the data
        ({"data": {"kind": "npz", "path": "b.npz", "group": "y"}}, "could not read or write a file; its own"),
        ({"classes": ["0", "1"]}, "classes: the data have a class '2', which the list lacks"),
    ],
)
def test_a_site_that_is_wrong_stops_the_run_before_training(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config = some("fedavg")
    outcome = serve(config, Grid(sites(config, tmp_path / "sites", a=changes)), tmp_path / "run")
    assert says in outcome.error
    assert str(tmp_path) not in outcome.error
    assert not (tmp_path / "run").exists()


def test_what_a_site_s_own_code_says_stays_there(tmp_path: Path) -> None:
    files = sites(some("fedavg"), tmp_path / "sites", a={"architecture": "tests.toys:Tells"})
    outcome = serve(some("fedavg"), Grid(files), tmp_path / "run")
    assert outcome.error == "site a: ValueError; its own log says more"
    assert "patient 17" in (tmp_path / "sites" / "a" / "site.log").read_text()


def _raised(*chain: Exception, quiet: bool = False) -> Exception:
    """The last, raised from the one before it and so on; `quiet`: "from None"."""
    for before, after in itertools.pairwise(chain):
        after.__context__ = before
        after.__cause__, after.__suppress_context__ = (None, True) if quiet else (before, True)
    return chain[-1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (GenfedError("part = 'test': the data have no such part"), "part = 'test': the data have no such part"),
        (_raised(GenfedError("age: x"), GenfedError("table: age: x")), "table: age: x"),
        (ValueError("patient 17"), "ValueError; its own log says more"),
        (_raised(ValueError("patient 17"), GenfedError("it fails (patient 17)")), "ValueError; its own log says more"),
        (
            _raised(KeyError("patient 17"), GenfedError("patient 17"), GenfedError("column: patient 17"), quiet=True),
            "KeyError; its own log says more",
        ),
        (_raised(OSError("patient 17"), GenfedError("patient 17")), "it could not read or write a file; its own log"),
        (GenfedError("scans/17.png is no image"), "it could not read or write a file; its own log says more"),
        (SystemExit("patient 17"), "SystemExit; its own log says more"),
    ],
)
def test_the_server_hears_genfed_s_own_words_alone(error: Exception, told: str) -> None:
    assert deployment_site._public_text(error).startswith(told)


def test_a_folder_that_cannot_be_written_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file, *_) = sites(some("fedavg"), tmp_path / "sites")

    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "audit.jsonl"))

    monkeypatch.setattr(audit_log, "write_audit", full)
    with pytest.raises(GenfedError, match=r"^it cannot write to its own folder$"):
        deployment_site.handle({"genfed": genfed.__version__, "ask": "hello"}, EMPTY, {"site": str(file)})


def test_stock_is_taken_anew_when_the_data_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperNode that is started by hand has not been told to read them."""
    (file, *_) = sites(some("fedavg"), tmp_path / "sites")
    taken: list[str] = []
    read_all = site_data.load_site_data

    def load_changed(site: site_settings.LocatedSite) -> site_data.SiteHoldings:
        taken.append(site.config.part)
        return read_all(site)

    monkeypatch.setattr(site_data, "load_site_data", load_changed)

    def stock(**changes: Any) -> site_data.SiteHoldings:
        about = tomllib.loads(file.read_text()) | changes
        file.write_text(tomli_w.dumps(about))
        return site_data.describe_holdings(site_settings.read_site(file))

    first = stock()
    assert len(stock(threads=2, device="cpu").train) == len(first.train)
    assert taken == ["test"], "what says nothing of the data changes nothing"
    ten = list("0123456789")
    assert stock(classes=[*reversed(ten)]).train.y.tolist() == [9 - y for y in first.train.y.tolist()]
    assert stock(classes=ten).train.y.tolist() == first.train.y.tolist()
    assert len(taken) == 3
    arrays = dict(np.load(tmp_path / "sites" / "a.npz"))
    more = {name: np.concatenate([arrays[name]] * 2) for name in ("x_train", "y_train")}
    np.savez(tmp_path / "sites" / "a.npz", **arrays | more)
    assert len(stock().train) == 2 * len(first.train)
    cut = {"kind": "npz", "path": "a.npz", "validation": 0.25}
    stock(data=cut, part="validation")
    held_out = stock().held_out
    assert len(held_out) == pytest.approx(2 * len(first.train) / 4, abs=10), "rounded in each class"
    assert len(taken) == 5
    (tmp_path / "sites" / "a.npz").unlink()
    with pytest.raises(GenfedError, match=r"a\.npz"):
        stock()


def test_every_file_of_a_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "scans" / "0").mkdir(parents=True)
    (tmp_path / "scans" / "0" / "1.png").write_bytes(b"1")
    about = {"name": "a", "architecture": "linear", "folder": "scans/kept", "data": {"kind": "folder", "path": "scans"}}
    (tmp_path / "a.toml").write_text(tomli_w.dumps(about))
    site = site_settings.read_site(tmp_path / "a.toml")
    named = [site_data.fingerprint_source(site)]
    for change in (
        lambda: (tmp_path / "scans" / "0" / "2.png").write_bytes(b"2"),
        lambda: (tmp_path / "scans" / "0" / "2.png").write_bytes(b"22"),
        lambda: os.utime(tmp_path / "scans" / "0" / "1.png", (1, 1)),
        lambda: (tmp_path / "scans" / "0" / "1.png").rename(tmp_path / "scans" / "0" / "3.png"),
    ):
        change()
        named.append(site_data.fingerprint_source(site))
    assert len(set(named)) == len(named)
    site.folder.mkdir()
    (site.folder / "site.log").write_text("what it keeps there is no data")
    assert site_data.fingerprint_source(site) == named[-1]


def test_every_file_behind_a_link_counts(tmp_path: Path) -> None:
    disk, scans = tmp_path / "disk", tmp_path / "scans"
    for folder in (disk / "a", disk / "more", scans / "b"):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"1")
    (scans / "a").symlink_to(disk / "a")
    (scans / "b" / "deeper").symlink_to(disk / "more")
    (scans / "b" / "again").symlink_to(scans)
    about = {"name": "a", "architecture": "linear", "folder": "disk/kept", "data": {"kind": "folder", "path": "scans"}}
    (tmp_path / "a.toml").write_text(tomli_w.dumps(about))
    site = site_settings.read_site(tmp_path / "a.toml")
    named = [site_data.fingerprint_source(site)]
    for file in (disk / "a" / "1.png", disk / "more" / "1.png", scans / "b" / "1.png"):
        file.unlink()
        named.append(site_data.fingerprint_source(site))
    assert len(set(named)) == len(named)
    (scans / "disk").symlink_to(disk)
    before = site_data.fingerprint_source(site)
    site.folder.mkdir()
    (site.folder / "site.log").write_text("what it keeps there is no data, whatever leads there")
    assert site_data.fingerprint_source(site) == before


def test_numbers_of_sites(tmp_path: Path) -> None:
    config = some("fedavg")
    files = sites(config, tmp_path / "sites")
    few = serve(config, Grid(files[:2]), tmp_path / "few")
    assert few.error == "2 of 3 sites have joined after 1 s"
    many = serve(config | {"federation": config["federation"] | {"clients": 2, "architectures": ["linear"]}},
                 Grid(files), tmp_path / "many")  # fmt: skip
    assert many.error == "3 sites have joined (a, b, c) for federation.clients = 2"


def test_a_site_cannot_pass_for_another(tmp_path: Path) -> None:
    config = some("fedavg")
    grid = Grid(sites(config, tmp_path / "sites"))
    grid.registered = {100: "a", 101: "c"}
    outcome = serve(config, grid, tmp_path / "run")
    assert outcome.error == "site c: it calls itself b, and its key is registered as c"
    heads = [(m.metadata.dst_node_id, m.content.config_records["message"]["head"]) for m in grid.sent]
    assert 101 in [node for node, head in heads if '"refused"' in head]
    notice = "the server refuses this site: it calls itself b, and its key is registered as c"
    assert (tmp_path / "sites" / "b" / "notices.log").read_text() == f"{notice}\n"


def test_a_name_belongs_to_the_key_it_is_registered_with(tmp_path: Path) -> None:
    """Whoever comes first, and whether or not the other has a key."""
    files = sites(some("fedavg"), tmp_path / "sites", b={"name": "a"})
    for first, second in ((100, 101), (101, 100)):
        for registered in ({100: "a"}, {100: "a", 101: "b"}):
            grid = Grid(files[:2])
            grid.registered = registered
            roster = SiteRoster(MessageLink(grid, pause=0.001))
            there = dict(grid.nodes)
            for node in (first, second):
                grid.nodes = {n: file for n, file in there.items() if n == node or (n in grid.nodes and n == first)}
                roster.look()
            assert [site.node for site in roster.here()] == [100]
            (reason,) = roster.refused.values()
            says = "it calls itself a, and its key is registered as b" if 101 in registered else "the name a belongs to"
            assert says in reason


def test_a_name_without_keys_belongs_to_the_first_node_while_it_is_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("genfed.deployment.roster.time", SimpleNamespace(monotonic=lambda: clock, time=lambda: 0.0))
    grid = Grid(sites(some("fedavg"), tmp_path / "sites", b={"name": "a"})[:2])
    first, second = grid.nodes
    other = grid.nodes.pop(second)
    roster = SiteRoster(MessageLink(grid, pause=0.001))
    roster.look()
    grid.nodes[second] = other
    roster.look()
    assert [site.node for site in roster.here()] == [first]
    assert roster.refused == {second: "site a: two sites are named a; each needs a name of its own in its SITE.toml"}
    del grid.nodes[first]
    clock += 10
    assert roster.node_of("a") == second, "it was the same site before a restart"
    assert not roster.refused


def test_a_site_whose_name_changes_during_a_run_is_refused(tmp_path: Path) -> None:
    config = some("fedavg", federation={"quorum": 0.5})
    files = sites(config, tmp_path / "sites")

    def renames(handle: Any, message: Any, context: Any) -> Any:
        head = decode_message(message.content)[0]
        if head.get("step", {}).get("number") == 1 and context.node_config["site"] == str(files[1]):
            files[1].write_text(files[1].read_text().replace('name = "b"', 'name = "z"'))
        return answer_message(handle, message, context)

    assert not serve(config, Grid(files, renames), tmp_path / "run").error
    (trial,) = from_json((tmp_path / "run" / "report.json").read_text()).trials
    assert [line for line in trial.failures if line.startswith("train")] == [
        "train round 2: client 1 excluded: site b: this message is for site 'b', and this is site z: a site keeps its "
        "name during a run"
    ]
    assert not (tmp_path / "sites" / "z" / "runs").exists()


def test_why_a_site_is_absent_is_said_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_server, "BACK_SECONDS", 0.0)
    config = some("fedavg", federation={"quorum": 0.5})
    files = sites(config, tmp_path / "sites")
    monkeypatch.setattr(SiteRoster, "node_of", lambda self, name: None if name == "b" else self._find(name))
    monkeypatch.setattr(SiteRoster, "_find", lambda self, name: {"a": 100, "c": 102}.get(name))
    assert not serve(config, Grid(files), tmp_path / "run").error
    (trial,) = from_json((tmp_path / "run" / "report.json").read_text()).trials
    assert "train round 2: client 1 excluded: site b: it is not connected" in trial.failures


def test_a_site_shows_what_the_server_says_on_one_bounded_line(tmp_path: Path) -> None:
    (file, *_) = sites(some("fedavg"), tmp_path / "sites")
    site = site_settings.read_site(file)
    site.folder.mkdir()
    reader = notices.NoticeReader(site)
    for reason in ("no\nFORGED: \x1b[2J\u202e" + "x" * 9999, {"a": [1]}, None):
        head = {"genfed": genfed.__version__, "ask": "refused", "reason": reason}
        deployment_site.handle(head, EMPTY, {"site": str(file)})
    lines = reader.read()
    assert len(lines) == 3
    assert lines[0].startswith(r"the server refuses this site: no\nFORGED: \x1b[2J\u202exx")
    assert all(line.isprintable() and len(line) <= 500 for line in lines)
    assert reader.read() == []


def test_a_node_that_is_silent_or_refused_stalls_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites a and b take part; the others are asked who they are where one of those is missing, once in a minute."""
    clock, silent, refused = 0.0, 102, 103
    monkeypatch.setattr("genfed.deployment.roster.time", SimpleNamespace(monotonic=lambda: clock, time=lambda: 0.0))
    monkeypatch.setattr("genfed.deployment.roster.ROUND_SECONDS", 0.2)

    def answer(handle: Any, message: Any, context: Any) -> Any:
        if message.metadata.dst_node_id == silent:
            return None
        reply = answer_message(handle, message, context)
        if message.metadata.dst_node_id == refused:
            reply.content.config_records["message"]["head"] = "{}"
        return reply

    files = sites(some("fedavg", federation={"clients": 4}), tmp_path)
    grid = Grid(files, answer)
    others = {node: grid.nodes.pop(node) for node in (silent, refused)}
    roll = SiteRoster(MessageLink(grid, pause=0.001))
    clock += 10
    assert (roll.node_of("a"), roll.node_of("b")) == (100, 101)

    def asked() -> list[int]:
        heads = [(m.metadata.dst_node_id, json.loads(m.content.config_records["message"]["head"])) for m in grid.sent]
        nodes = [node for node, head in heads if head["ask"] == "hello"]
        grid.sent.clear()
        return nodes

    assert asked() == [100, 101]
    grid.nodes |= others
    clock += 10
    assert (roll.node_of("a"), roll.node_of("b"), asked()) == (100, 101, [])
    gone = grid.nodes.pop(101)
    clock += 10
    begun = time.monotonic()
    assert (roll.node_of("b"), asked()) == (None, [silent, refused])
    assert 0.2 <= time.monotonic() - begun < 5
    assert roll.refused[silent] == f"node {silent}: took longer than 0.2 s"
    assert "its description of itself is wrong" in roll.refused[refused]
    clock += 59
    assert (roll.node_of("b"), roll.node_of("a"), asked()) == (None, 100, [])
    clock += 2
    assert (roll.node_of("b"), asked()) == (None, [silent, refused])
    grid.nodes[105] = gone
    clock += 10
    assert (roll.node_of("b"), asked()) == (105, [105]), "it is back, and waits for nobody"


def test_a_missing_site_that_was_too_slow_is_asked_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is busy needs longer than a round waits for the description of a node that came back."""
    monkeypatch.setattr("genfed.deployment.roster.ROUND_SECONDS", 0.05)
    silent = {101, 102}
    files = sites(some("fedavg"), tmp_path)

    def answer(handle: Any, message: Any, context: Any) -> Any:
        return None if message.metadata.dst_node_id in silent else answer_message(handle, message, context)

    grid = Grid(files, answer)
    grid.registered = {100: "a", 101: "b", 102: "c"}
    roster = SiteRoster(MessageLink(grid, pause=0.001))
    roster._looked = -10.0
    assert roster.node_of("b") is None
    assert roster.why_absent("b") == "site b: took longer than 0.05 s"
    silent.clear()
    grid.sent.clear()
    roster._looked = -10.0
    assert roster.node_of("b") == 101
    assert [message.metadata.dst_node_id for message in grid.sent] == [101], "c is not what the round waits for"


def test_another_version_of_genfed_is_refused_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = some("fedavg")
    grid = Grid(sites(config, tmp_path / "sites"))
    monkeypatch.setattr("genfed.deployment.roster.__version__", "9.9")
    outcome = serve(config, grid, tmp_path / "run")
    assert outcome.error == f"the server has genfed 9.9, and site a has {genfed.__version__}"


def test_a_site_runs_no_code_that_the_server_names(tmp_path: Path) -> None:
    config = some("mine", method={"mine": {"kind": "tests.toys:Paired"}})
    files = sites(config, tmp_path / "sites")
    outcome = serve(config, Grid(files), tmp_path / "run")
    assert "site a does not allow tests.toys:Paired; its SITE.toml would name it in allow" in outcome.error
    allowed = {name: {"allow": ["tests.toys:Paired"]} for name in NAMES}
    assert not serve(config, Grid(sites(config, tmp_path / "sites", **allowed)), tmp_path / "allowed").error


@pytest.mark.parametrize("table", ["privacy", "client_privacy"])
def test_a_site_imports_no_mechanism_that_the_server_names(table: str, tmp_path: Path) -> None:
    (tmp_path / "hostile_mechanism.py").write_text("raise SystemExit('imported')")
    config = some("fedavg")
    (file, *_) = sites(config, tmp_path / "sites")
    head = letter(config)
    head["open"] = json.dumps(json.loads(head["open"]) | {table: {"kind": "hostile_mechanism:Thing", "delta": 1e-3}})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(GenfedError, match=r"privacy\.kind = 'hostile_mechanism:Thing': expected 'dp_"):
            asked(file, head, initial(config))
    assert "hostile_mechanism" not in sys.modules


def test_flower_takes_what_serve_asks_for() -> None:
    """Without a SuperLink: Flower refuses run settings that the app does not declare."""
    from flwr.common.config import get_fused_config_from_dir

    wanted = deployment_server.to_settings(deployment_server.ServeRequest("x"))
    assert get_fused_config_from_dir(processes.APP, wanted) == wanted


def test_a_site_opens_no_model_that_it_has_not_allowed(tmp_path: Path) -> None:
    config = some("fgl", evaluation={"every": 0})
    assert read_config(config).method["fgl"].foundation.model == tiny_foundation()  # type: ignore[attr-defined]
    files = sites(config, tmp_path / "sites", a={"allow": []})
    assert serve(config, Grid(files), tmp_path / "run").error == (
        "tell round 1: 2 of 3 clients answered and the quorum is 3; client 0: site a opens no foundation.model but "
        '"shipped" and those that its SITE.toml names in allow'
    )
    left = audit_log.read_audit(site_settings.read_site(files[0]))
    assert [(line.phase, line.says) for line in left][-1] == ("tell", ("failed",))


def test_which_models_a_site_opens(tmp_path: Path) -> None:
    (file, *_) = sites(some("fedavg"), tmp_path / "sites", a={"allow": ["some/model", "some/captioner"]})
    config, task = site_settings.read_site(file).config, Task("image", (3, 8, 8), ("a", "b"))
    device = torch.device("cpu")
    for kind in ("fgl", "oscar", "feddeo", "prompts_only", "fedlmg"):
        for model, allowed in (("shipped", True), ("some/model", True), ("other/model", False), (str(tmp_path), False)):
            method: Any = read_method({"kind": kind, "foundation": {"model": model}})
            guarded: Any = deployment_site._restrict_models(method, config)
            list(guarded.phases())
            assert (guarded == method) is allowed
            if not allowed:
                with pytest.raises(GenfedError, match=r'^site a opens no foundation\.model but "shipped" and those'):
                    guarded.foundation.load(task, device, "float32")
    words = {"kind": "fgl", "level": "instance", "templates": ["{caption}"]}
    for captioner, allowed in ((None, True), ("some/captioner", True), ("other/captioner", False)):
        method = read_method(words | ({} if captioner is None else {"captioner": captioner}))
        if allowed:
            assert deployment_site._restrict_models(method, config) == method
            continue
        with pytest.raises(GenfedError, match=r"^site a opens no captioner but those that its SITE\.toml names in"):
            deployment_site._restrict_models(method, config)


def test_which_models_of_encoders_a_site_opens(tmp_path: Path) -> None:
    """A server could otherwise have it read any directory, and would be sent a digest of what is there."""
    (file, *_) = sites(some("fedavg"), tmp_path / "sites", a={"allow": ["some/model"]})
    config = site_settings.read_site(file).config
    for model, allowed in (("some/model", True), (str(tmp_path), False)):
        encoder: dict[str, Any] = {"kind": "pretrained", "model": model}
        for nested in (encoder, {"kind": "whitened", "components": 2, "encoder": encoder}):
            for kind in ("fedcgs", "fedpft", "gh_ofl", "gefl_f"):
                method: Any = read_method({"kind": kind, "encoder": nested})
                if allowed:
                    assert deployment_site._restrict_models(method, config) == method
                    continue
                with pytest.raises(GenfedError, match=r"^site a opens no model of an encoder but those that its SITE"):
                    deployment_site._restrict_models(method, config)


def test_pooled_methods_are_refused(tmp_path: Path) -> None:
    config = some("centralised")
    outcome = serve(config, Grid([]), tmp_path / "run")
    assert outcome.error.startswith("centralised pools all data, which sites keep: remove it")
    with pytest.raises(GenfedError, match="the data lie at the sites, so use `genfed serve`"):
        start(config | {"data": {"kind": "sites"}}, tmp_path / "here")


def test_a_site_is_not_left_out_by_its_number(tmp_path: Path) -> None:
    outcome = serve(some("fedcgs", federation={"excluded": [1]}), Grid([]), tmp_path / "run")
    assert outcome.error.startswith("federation.excluded = (1,) leaves out no site: one that is to be left out does")


def test_a_check_says_what_there_is_and_trains_nothing(tmp_path: Path) -> None:
    config = some("fedavg")
    outcome = serve(config, Grid(sites(config, tmp_path / "sites")), tmp_path / "run", check=True)
    assert [hello.name for hello in outcome.sites] == ["a", "b", "c"]
    assert outcome.problems == ()
    assert not (tmp_path / "run").exists()
    (row, *_) = deployment_server.site_rows(outcome)
    assert len(row) == len(deployment_server.COLUMNS)
    assert row[:3] == ("a", "linear", f"{outcome.sites[0].examples} + {outcome.sites[0].held_out}")


def test_a_check_says_whose_memory_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = some("gefl", method={"gefl": {"generator": {"kind": "cvae", "width": 64, "latent_dim": 4}}})
    files = sites(config, tmp_path / "sites")
    free = iter([0, 2**35, 2**28])  # not known, enough, too little: as they are asked
    monkeypatch.setattr(deployment_site, "free_memory", lambda: next(free))
    outcome = serve(config, Grid(files), tmp_path / "run", check=True)
    (line,) = outcome.problems
    assert re.fullmatch(r"c has 0\.2 GiB of memory free, and phase joint of gefl needs 0\.\d GiB or more", line)


Spoil = Any


def _spoiled(how: Spoil, phase: str = "train") -> Any:
    """Answers in which client 1's part in a phase goes wrong."""

    def answer(handle: Any, message: Any, context: Any) -> Any:
        reply = answer_message(handle, message, context)
        head, _ = decode_message(message.content)
        if head.get("client") == 1 and head["step"]["phase"] == phase:
            return how(reply, message)
        return reply

    return answer


def _with(change: Any) -> Spoil:
    def how(reply: Any, message: Any) -> Any:
        head, body = decode_message(reply.content)
        change(head, body.tensors)
        return Message(encode_message(head, body), reply_to=message)

    return how


def _scored(**changes: Any) -> Spoil:
    """Other scores."""

    def how(reply: Any, message: Any) -> Any:
        head, body = decode_message(reply.content)
        scores = replace(unpack(ClassifierScores, body), **changes)
        return Message(encode_message(head, pack(scores)), reply_to=message)

    return how


def _deep(reply: Any, message: Any) -> Any:
    reply.content.config_records["message"]["head"] = '{"weight":' * 100_000
    return Message(reply.content, reply_to=message)


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (_with(lambda head, t: t.update({_first(t): t[_first(t)].mul(float("nan"))})), "numbers that are not finite"),
        (_with(lambda head, t: t.update({_first(t): t[_first(t)][:1]})), "is torch.float32 (1"),
        (_with(lambda head, t: t.pop(_first(t))), "the tensor is missing"),
        (_with(lambda head, t: head.update(weight=-1.0)), "its weight is -1.0; a weight is above 0"),
        (_with(lambda head, t: head.update(metrics="none")), "lacks a weight, metrics or seconds"),
        (_with(lambda head, t: head.update(weight=10**400)), "lacks a weight, metrics or seconds"),
        (lambda reply, m: Message(RecordDict({}), reply_to=m), "it is no message of genfed"),
        (_deep, "it is no message of genfed"),
    ],
)
def test_a_reply_that_would_spoil_the_mean_is_left_out(tmp_path: Path, how: Spoil, says: str) -> None:
    config = some("fedavg", federation={"quorum": 0.5})
    outcome = serve(config, Grid(sites(config, tmp_path / "sites"), _spoiled(how)), tmp_path / "run")
    assert not outcome.error
    (trial,) = from_json((tmp_path / "run" / "report.json").read_text()).trials
    assert any(line.startswith("train round 1: client 1 excluded: ") and says in line for line in trial.failures)


NONE = torch.zeros(10, dtype=torch.int64)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (_scored(correct=NONE, total=NONE), "total is 0 in every class: it was scored on no examples"),
        (_scored(correct=torch.tensor(1), total=torch.tensor(1)), "correct is torch.int64 (); torch.int64 (10,) is"),
        (_scored(correct=NONE + 10**9, total=NONE + 1), "correct is below 0 or above total in a class"),
        (_scored(total=NONE + 10**15), "total is 10,000,000,000,000,000 over all classes; there are "),
        (_scored(own_accuracy={1: 2.0}), "own_accuracy is 2; 0 to 1 is allowed"),
        (_scored(auroc=2.0), "auroc is 2; 0 to 1 is allowed"),
        (_scored(ece=float("nan")), "ece holds numbers that are not finite"),
        (_scored(confusion=torch.full((10, 10), 2**62)), "confusion holds numbers beyond"),
        (_scored(confusion=NONE[:, None] + 10**9 + NONE), "confusion has more examples of a class than total"),
        (_with(lambda head, t: head.update(seconds=10**400)), "lacks a weight, metrics or seconds"),
        (_deep, "it is no message of genfed"),
    ],
)
def test_scores_that_no_classifier_has_are_left_out(tmp_path: Path, how: Spoil, says: str) -> None:
    config = some("fedavg", federation={"quorum": 0.5}, evaluation={"every": 0})
    outcome = serve(config, Grid(sites(config, tmp_path / "sites"), _spoiled(how, "evaluate")), tmp_path / "run")
    assert not outcome.error
    (trial,) = from_json((tmp_path / "run" / "report.json").read_text()).trials
    assert [score.client for score in trial.clients] == [0, 2]
    assert 0 <= trial.accuracy <= 1
    assert any(line.startswith("evaluate round 1: client 1 excluded: ") and says in line for line in trial.failures)


def test_a_metric_cannot_pass_for_a_score(tmp_path: Path) -> None:
    config = some("fedavg", evaluation={"every": 0})
    more = {"own_of": 1.0, "triggered": 1e9, "frechet": 1.0}
    how = _spoiled(_with(lambda head, t: head["metrics"].update(more)), "evaluate")
    assert not serve(config, Grid(sites(config, tmp_path / "sites"), how), tmp_path / "run").error
    assert not any(more.keys() & row.keys() for row in rows_of(tmp_path / "run"))


# What protects a site.

NOISY = {"noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"}
EXAMPLES: Any = {"kind": "dp_sgd"}
CLIENTS: Any = {"kind": "dp_fedavg"}
FIXED = NOISY | {"reproducible_noise": True}
ALIKE = {"architectures": ["linear"]}
HERE = {"epsilon": 8.0, "delta": 1e-3, "accountant": "rdp"}


@pytest.mark.parametrize(
    "protects",
    [
        {"secure_aggregation": {}},
        {"privacy": EXAMPLES | FIXED},
        {
            "privacy": EXAMPLES | FIXED | {"epsilon": 3.0, "noise_multiplier": None},
            "federation": ALIKE | {"client_fraction": 0.6},
        },
        {"privacy": CLIENTS | FIXED | {"clip_norm": 1.0}},
        {"privacy": CLIENTS | FIXED | {"clip_norm": 1.0}, "secure_aggregation": {}},
        {"privacy": CLIENTS | FIXED | {"secret_sampling": True}, "federation": ALIKE | {"client_fraction": 0.3}},
    ],
    ids=["secure", "privacy", "planned", "client_privacy", "distributed", "secret"],
)
def test_what_protects_at_sites_comes_to_the_bits_of_the_embedded_engine(
    tmp_path: Path, protects: dict[str, Any]
) -> None:
    pytest.importorskip("opacus")
    protects = json.loads(json.dumps(protects))
    for table in protects.values():
        for name in [name for name, value in table.items() if value is None]:
            del table[name]
    config = some("fedavg", "local", **({"federation": ALIKE} | protects))
    start(config, tmp_path / "embedded")
    assert not serve(config, Grid(sites(config, tmp_path / "sites")), tmp_path / "sited").error
    for method in config["methods"]:
        assert state_of(tmp_path / "sited", method) == state_of(tmp_path / "embedded", method)
    there, here = (from_json((tmp_path / each / "report.json").read_text()) for each in ("sited", "embedded"))
    assert [trial.accuracy for trial in there.trials] == [trial.accuracy for trial in here.trials]
    assert [trial.protection for trial in there.trials] == [trial.protection for trial in here.trials]
    assert (there.trials[0].protection is None) == (protects == {"secure_aggregation": {}})
    assert there.notes == here.notes


@pytest.mark.parametrize(
    ("demands", "changes", "says"),
    [
        ({"privacy": HERE}, {}, "site b: it takes part only under [privacy], since its file has a privacy budget"),
        ({"privacy": HERE}, {"privacy": EXAMPLES | FIXED}, "site b: it refuses privacy.reproducible_noise"),
        (
            {"privacy": HERE | {"epsilon": 0.5}},
            {"privacy": EXAMPLES | NOISY},
            "site b: this run costs ε = 2.71 and would exceed the site's privacy budget over all runs: "
            "of ε = 0.5 at δ = 0.001, 0.00 is spent",
        ),
        (
            {"minimum_group": 3},
            {},
            "site b: it uploads only under [secure_aggregation], and fedavg would upload without masks",
        ),
        (
            {"minimum_group": 3},
            {"secure_aggregation": {"neighbors": 2, "threshold": 0.9}},
            "site b: secure_aggregation.neighbors: on a ring no client knows how many uploads are in a sum",
        ),
        (
            {"minimum_group": 4},
            {"secure_aggregation": {}},
            "site b: secure_aggregation.minimum_group = 3: it needs sums of 4 uploads or more",
        ),
        (
            {"minimum_class_count": 3},
            {},
            "site b: minimum_class_count = 3 in its file: in phase train of fedavg it would upload something of every "
            "class that it has",
        ),
        (
            {"architecture": "tests.toys:Normed"},
            {"privacy": EXAMPLES | NOISY},
            "site b: architecture tests.toys:Normed cannot be trained under [privacy]: ",
        ),
    ],
)
def test_a_site_s_demands_are_heard_before_training(
    tmp_path: Path, demands: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, **changes)
    grid = Grid(sites(config, tmp_path / "sites", b=demands))
    for check in (True, False):
        outcome = serve(config, grid, tmp_path / "run", check=check)
        assert outcome.error.startswith(says)
    assert not (tmp_path / "run").exists()


def test_a_site_takes_part_where_small_classes_are_left_out(tmp_path: Path) -> None:
    def outcome(minimum: int) -> str:
        own = {"encoder": {"kind": "identity"}, "generator": {"kind": "gaussian", "minimum_class_count": minimum}}
        config = some("fedcgs", method={"fedcgs": own}, federation=ALIKE)
        folder = tmp_path / str(minimum)
        return serve(config, Grid(sites(config, folder / "sites", b={"minimum_class_count": 4})), folder / "run").error

    assert not outcome(4)
    assert outcome(3).startswith(
        "site b: minimum_class_count = 4 in its file: in phase statistics of fedcgs it would upload something of "
        "classes of 3 examples; a generator of sums"
    )


def with_keys(folder: Path, *known: str) -> dict[str, dict[str, Any]]:
    """Sites with keys, each of which knows those of the named sites."""
    from genfed.deployment.certificates import make_keys

    make_keys(folder / "keys", NAMES[:3])
    (folder / "peers").mkdir()
    for name in known:
        (folder / "keys" / f"{name}.pub").rename(folder / "peers" / f"{name}.pub")
    about = {"minimum_group": 3, "peer_keys": "peers"}
    return {name: about | {"link": {"key": f"keys/{name}"}} for name in NAMES[:3]}


def test_sites_that_know_one_another_come_to_the_bits_of_the_embedded_engine(tmp_path: Path) -> None:
    config = some("fedavg", federation=ALIKE, secure_aggregation={})
    start(config, tmp_path / "embedded")
    demands = with_keys(tmp_path / "sites", "a", "b", "c")
    assert not serve(config, Grid(sites(config, tmp_path / "sites", **demands)), tmp_path / "sited").error
    assert state_of(tmp_path / "sited", "fedavg") == state_of(tmp_path / "embedded", "fedavg")


def test_a_site_that_the_others_do_not_know_is_in_no_sum(tmp_path: Path) -> None:
    """It could be the server's own."""
    config = some("fedavg", federation=ALIKE | {"quorum": 0.1}, secure_aggregation={})
    demands = with_keys(tmp_path / "sites", "a", "b")
    outcome = serve(config, Grid(sites(config, tmp_path / "sites", **demands)), tmp_path / "sited")
    assert "client 2 signs with a key that this site does not know" in outcome.error
    assert "\n" not in outcome.error


@pytest.mark.parametrize("lie", ["epochs", "clip", "seed"])
def test_a_server_that_describes_the_trial_otherwise_to_some_sites_gets_no_sum(lie: str, tmp_path: Path) -> None:
    """Others that train nothing, or add little noise, would leave a's upload in the sum."""
    privacy: dict[str, Any] = {"privacy": CLIENTS | NOISY} if lie == "clip" else {}
    config = some("fedavg", federation=ALIKE, secure_aggregation={}, **privacy)

    def change(text: str) -> str:
        about = json.loads(text)
        if lie == "epochs":
            about["method"]["training"]["epochs"] = 0
        elif lie == "clip":
            about["client_privacy"]["clip_norm"] = 1e-3
        else:
            about["seed"] += 1
        return json.dumps(about)

    def answer(handle: Any, message: Any, context: Any) -> Any:
        head, body = decode_message(message.content)
        if "open" in head and not context.node_config["site"].endswith("a.toml"):
            told = head["open"]
            head["open"] = [change(text) for text in told] if isinstance(told, list) else change(told)
            message.content = encode_message(head, body)
        return answer_message(handle, message, context)

    demands = with_keys(tmp_path / "sites", "a", "b", "c")
    outcome = serve(config, Grid(sites(config, tmp_path / "sites", **demands), answer), tmp_path / "run")
    assert "train.shares round 1: 0 of 3 clients answered" in outcome.error
    assert "site a: the server describes this trial otherwise to client 1" in outcome.error


def test_a_server_cannot_lower_the_share_that_sites_with_known_keys_withstand(tmp_path: Path) -> None:
    config = some("fedavg", federation=ALIKE, secure_aggregation={"threshold": 0.51, "corrupt_share": 0.0})
    grid = Grid(sites(config, tmp_path / "sites", **with_keys(tmp_path / "sites", "a", "b", "c")))
    outcome = serve(config, grid, tmp_path / "run", check=True)
    assert "secure_aggregation.corrupt_share = 0: it has peer_keys, and needs 0.2 or more" in outcome.error


def test_a_site_without_uploads_needs_no_masks(tmp_path: Path) -> None:
    config = some("local", federation=ALIKE)
    grid = Grid(sites(config, tmp_path / "sites", b={"minimum_group": 3}))
    assert not serve(config, grid, tmp_path / "run").error


def test_a_site_s_budget_is_for_all_runs_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opacus")
    from genfed.cli.main import main

    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY | {"noise_multiplier": 2.0})
    files = sites(config, tmp_path / "sites", b={"privacy": HERE | {"epsilon": 1.3}})
    assert not serve(config, Grid(files), tmp_path / "first").error
    folder = site_settings.read_site(files[1]).folder
    (paid,) = read_site_ledger(folder).trials
    assert [(charge.phase, charge.round, charge.step) for charge in paid.charges] == [("train", 0, 0), ("train", 1, 1)]
    assert not serve(config, Grid(files), tmp_path / "second").error
    third = serve(config, Grid(files), tmp_path / "third")
    assert third.error.startswith("site b: this run costs ε = ")
    assert "and would exceed the site's privacy budget over all runs" in third.error
    assert len(read_site_ledger(folder).trials) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["site", "budget", str(files[1])])
    assert caught.value.code in (0, None)
    shown = capsys.readouterr().out
    assert shown.count("fedavg") == 2
    assert "budget: ε = 1.3 at δ = 0.001" in shown


def letter(config: dict[str, Any], method: str = "fedavg", phase: str = "train", number: int = 0) -> dict[str, Any]:
    """What the server of the run would have a site work on."""
    settings = read_config(config)
    task = partitioning.partition_data(settings, load_data(settings), 0).task
    about, step = (
        deployment_server._describe_trial(RunInputs(settings, task, (), {}), method, 0, "run"),
        {"phase": phase, "round": number, "number": number},
    )
    return {"genfed": genfed.__version__, "ask": "work", "open": about, "step": step, "client": 0}


def asked(file: Path, head: dict[str, Any], body: Any) -> Any:
    return deployment_site.handle(head, body, {"site": str(file)})[1]


def initial(config: dict[str, Any]) -> Any:
    settings = read_config(config)
    shards = partitioning.partition_data(settings, load_data(settings), 0)
    network = Architectures().new("linear", shards.task, torch.Generator().manual_seed(0))
    return pack(Model(weights_of(network)))


def stopped(config: dict[str, Any], grid: Grid, out: Path) -> None:
    """Serves a run until the server stops in the second round of training."""

    def stop(head: Any) -> bool:
        step = head.get("step") or {}
        return (step.get("phase"), step.get("round")) == ("train", 1)

    def answer(handle: Any, message: Any, context: Any) -> Any:
        if stop(decode_message(message.content)[0]):
            raise KeyboardInterrupt
        return answer_message(handle, message, context)

    before, grid._answer = grid._answer, answer
    with pytest.raises(KeyboardInterrupt):
        serve(config, grid, out)
    grid._answer = before


def test_other_data_in_the_middle_of_a_run_are_refused_by_their_site(tmp_path: Path) -> None:
    config = some("fedavg")
    files = sites(config, tmp_path / "sites")
    grid, out, data = Grid(files), tmp_path / "run", tmp_path / "sites" / "b.npz"
    stopped(config, grid, out)
    before = data.read_bytes()
    arrays = dict(np.load(data))
    np.savez(data, **arrays | {"x_train": -arrays["x_train"]})
    assert serve(config, grid, out, on_existing="resume").error == (
        "train round 2: 2 of 3 clients answered and the quorum is 3; client 1: the data of site b have changed since "
        "the first round of this run: put them back as they were, or begin the run anew"
    )
    data.write_bytes(before)  # the same examples in a newer file
    assert not serve(config, grid, out, on_existing="resume").error
    start(config, tmp_path / "embedded")
    assert state_of(out, "fedavg") == state_of(tmp_path / "embedded", "fedavg")


def test_what_a_site_stores_is_on_its_disk_before_its_reply_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, forced, fsync = some("local"), set[str](), os.fsync
    grid, out = Grid(sites(config, tmp_path / "sites")), tmp_path / "run"

    def watched(handle: int) -> None:
        forced.add(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    assert not serve(config, grid, out).error
    assert "model.0.safetensors" in forced
    assert f".index.safetensors.{os.getpid()}.part" in forced


def test_a_site_that_has_lost_what_it_stored_says_so(tmp_path: Path) -> None:
    config = some("local")
    files = sites(config, tmp_path / "sites")
    grid, out = Grid(files), tmp_path / "run"
    stopped(config, grid, out)
    runs = site_settings.read_site(files[1]).folder / "runs"
    shutil.move(runs, tmp_path / "runs")
    outcome = serve(config, grid, out, on_existing="resume")
    assert outcome.error == (
        "train round 2: 2 of 3 clients answered and the quorum is 3; client 1: site b: it could not read or write a "
        "file; its own log says more"
    )
    log = (runs.parent / "site.log").read_text()
    assert "index.safetensors is missing, and the run counts on what the client stored in round 0; put" in log
    shutil.rmtree(runs)
    shutil.move(tmp_path / "runs", runs)
    assert not serve(config, grid, out, on_existing="resume").error


def test_a_site_that_has_lost_its_budget_takes_no_part(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY)
    files = sites(config, tmp_path / "sites", b={"privacy": HERE | {"epsilon": 100.0}})
    grid = Grid(files)
    stopped(config, grid, tmp_path / "run")
    (site_settings.read_site(files[1]).folder / BUDGET).unlink()
    for out, options in (("run", {"on_existing": "resume"}), ("other", {})):
        outcome = serve(config, grid, tmp_path / out, **options)
        assert outcome.error.startswith("site b: budget.safetensors, which says what the site's privacy budget was ch")
        assert outcome.error.endswith("is lost; put the newest one back")
    shutil.rmtree(site_settings.read_site(files[1]).folder / "runs")
    assert serve(config, grid, tmp_path / "third").error.endswith("is lost; put the newest one back")


def test_an_older_budget_is_refused(tmp_path: Path) -> None:
    """Otherwise the runs since last night's backup would be free."""
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY)
    files = sites(config, tmp_path / "sites", b={"privacy": HERE | {"epsilon": 100.0}})
    grid, folder = Grid(files), site_settings.read_site(files[1]).folder
    serve(config, grid, tmp_path / "first")
    backup = (folder / BUDGET).read_bytes()
    serve(config, grid, tmp_path / "second")
    newest = (folder / BUDGET).read_bytes()
    (folder / BUDGET).write_bytes(backup)
    for _ in range(2):
        error = serve(config, grid, tmp_path / "third").error
        assert "is older than it was: it has 2 of 4 charges; put the newest one back" in error
        shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / BUDGET).write_bytes(newest)
    assert not serve(config, grid, tmp_path / "fourth").error
    (folder / COUNTS).write_text("{")
    assert "charges.json, the number of charges to the" in serve(config, grid, tmp_path / "fifth").error


def test_a_run_whose_folder_was_deleted_is_not_gone_on_with(tmp_path: Path) -> None:
    """The charges say that round 0 is paid for, and nothing says that its result has left the site."""
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY)
    (file, *_) = sites(config, tmp_path / "sites", a={"privacy": HERE | {"epsilon": 100.0}})
    asked(file, letter(config), initial(config))
    shutil.rmtree(site_settings.read_site(file).folder / "runs")
    with pytest.raises(GenfedError, match="site a has taken part in this run before, and what it stored then was del"):
        asked(file, letter(config), initial(config))


@pytest.mark.parametrize("lost", [LEDGER, BUDGET])
def test_a_site_killed_between_its_budget_and_its_ledger_is_charged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The budget is written first. Both must say the same after the kill, and one cannot be put back without the
    other.
    """
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY)
    (file, *_) = sites(config, tmp_path / "sites", a={"privacy": HERE | {"epsilon": 100.0}})
    folder, sent = site_settings.read_site(file).folder, initial(config)
    asked(file, letter(config), sent)
    replace_file = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == LEDGER:
            raise KeyboardInterrupt
        return replace_file(self, target)

    (old,) = folder.rglob(lost)
    before = old.read_bytes()
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        asked(file, letter(config, number=1), sent)
    monkeypatch.undo()

    def charged() -> list[int]:
        return [charge.step for each in read_site_ledger(folder).trials for charge in each.charges]

    assert charged() == [0, 1]
    asked(file, letter(config, number=1), sent)
    asked(file, letter(config, number=2), sent)
    assert charged() == [0, 1, 2]
    (client,) = folder.glob("runs/*/*/*/clients/0")
    assert [charge.step for charge in read_ledger(client).charges] == [0, 1, 2]
    old.write_bytes(before)
    with pytest.raises(
        GenfedError, match=r"it could not read or write a file|is older than it was: it has 1 of 3 charges"
    ):
        asked(file, letter(config, number=3), sent)


def test_a_server_cannot_have_more_trained_than_is_charged(tmp_path: Path) -> None:
    pytest.importorskip("opacus")

    config = some("gefl", federation=ALIKE, privacy=EXAMPLES | NOISY)
    config["method"] = {"gefl": config["method"]["gefl"] | {"generator": {"kind": "cvae", "width": 4, "norm": "group"}}}
    (file, *_) = sites(config, tmp_path / "sites", a={"privacy": HERE | {"epsilon": 100.0}})
    settings, folder = read_config(config), site_settings.read_site(file).folder
    shards = partitioning.partition_data(settings, load_data(settings), 0)
    method: Any = settings.method["gefl"]
    task = shards.task
    server = new_server(task, shards.clients, settings.compute, Architectures().new, 0, 0, "init")
    generator, joint, *_ = flatten_phases(method.phases())
    state = method.init(server)
    sent = pack(generator.send(server, state, shards.clients[0]))  # type: ignore[misc]
    first = letter(config, "gefl", "generator")

    def charged() -> list[tuple[int, int]]:
        return [(charge.step, charge.steps) for each in read_site_ledger(folder).trials for charge in each.charges]

    answer = asked(file, first, sent)
    paid = charged()
    assert len(paid) == 1
    assert digest(asked(file, first, sent)) == digest(answer), "the same answer, not one with other noise"
    assert charged() == paid
    # Another answer takes the place of the one that is kept: then the step is done and charged anew.
    asked(file, letter(config, "gefl", "generator", number=1), sent)
    asked(file, first, sent)
    assert charged() == [paid[0], (1, paid[0][1]), paid[0]]
    with pytest.raises(GenfedError):
        asked(file, letter(config, "gefl", "generator", number=2), pack(Model({"no": torch.zeros(1)})))
    assert charged()[-1] == (2, paid[0][1]), "to fail tells something"
    asked(file, letter(config, "gefl", "generator", number=2), sent)
    assert [step for step, _ in charged()] == [0, 1, 0, 2, 2]
    # Nor by another name for the site, other settings, or a step that is not what it seems.
    before = charged()
    about = json.loads(first["open"])
    about["method"]["generator_epochs"] = 5
    for wrong, says in (
        (first | {"client": 1}, "describes this trial otherwise than before"),
        (first | {"open": json.dumps(about)}, "describes this trial otherwise than before"),
        (first | {"step": first["step"] | {"number": 0.0}}, "a step is a phase, a round and a number"),
        (first | {"step": first["step"] | {"number": True}}, "a step is a phase, a round and a number"),
        (first | {"step": first["step"] | {"round": -1}}, "a step is a phase, a round and a number"),
    ):
        with pytest.raises(GenfedError, match=says):
            asked(file, wrong, sent)
    assert charged() == before
    assert joint.name == "joint"


def test_two_letters_at_once_train_once(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    from concurrent.futures import ThreadPoolExecutor

    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY)
    (file, *_) = sites(config, tmp_path / "sites", a={"privacy": HERE | {"epsilon": 100.0}})
    site_data.load_site_data(site_settings.read_site(file))  # as `genfed join` does
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: digest(asked(file, letter(config), initial(config))), range(2)))
    assert both[0] == both[1]
    (paid,) = read_site_ledger(site_settings.read_site(file).folder).trials
    assert len(paid.charges) == 1


def test_what_a_site_comes_to_demand_holds_for_a_run_that_goes_on(tmp_path: Path) -> None:
    config = some("fedavg", federation=ALIKE)
    (file, *_) = sites(config, tmp_path / "sites")
    asked(file, letter(config), initial(config))
    file.write_text("minimum_group = 3\n" + file.read_text())
    with pytest.raises(GenfedError, match=r"it uploads only under \[secure_aggregation\]"):
        asked(file, letter(config, number=1), initial(config))
    file.write_text(file.read_text().replace("minimum_group = 3", "privacy = { epsilon = 8.0, delta = 1e-3 }"))
    with pytest.raises(GenfedError, match=r"it takes part only under \[privacy\]"):
        asked(file, letter(config, number=1), initial(config))
    file.write_text("minimum_group = 3\n" + file.read_text())
    with pytest.raises(GenfedError, match="the site's file cannot be read; its own log says more"):
        asked(file, letter(config, number=1), initial(config))
    with pytest.raises(
        GenfedError, match=r"\[privacy\] with minimum_group: no run has DP-SGD and \[secure_aggregation\] both"
    ):
        site_settings.read_site(file)


def test_a_budget_that_holds_a_run_holds_it_after_a_stop(tmp_path: Path) -> None:
    pytest.importorskip("opacus")

    class KilledError(KeyboardInterrupt):
        pass

    def stops(handle: Any, message: Any, context: Any) -> Any:
        head = decode_message(message.content)[0]
        if head.get("step", {}).get("phase") == "train" and head["step"]["round"] == 1:
            raise KilledError
        return answer_message(handle, message, context)

    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY | {"noise_multiplier": 2.0})
    files = sites(config, tmp_path / "sites", b={"privacy": HERE | {"epsilon": 0.8}})  # a run comes to 0.78
    with pytest.raises(KilledError):
        serve(config, Grid(files, stops), tmp_path / "run")
    assert not serve(config, Grid(files), tmp_path / "run", on_existing="resume").error
    assert not serve(config, Grid(files), tmp_path / "run", on_existing="resume").error
    other = serve(config, Grid(files), tmp_path / "other")
    assert "this run costs ε = 0.78 and would exceed the site's privacy budget over all runs: " in other.error
    assert "of ε = 0.8 at δ = 0.001, 0.78 is spent" in other.error


def test_what_a_run_s_budget_refuses_costs_the_site_nothing(tmp_path: Path) -> None:
    pytest.importorskip("opacus")

    config = some("fedavg", federation=ALIKE | {"quorum": 0.0}, privacy=EXAMPLES | NOISY | {"epsilon": 2.5})
    files = sites(config, tmp_path / "sites", b={"privacy": HERE})
    assert "another round would exceed its privacy budget" in serve(config, Grid(files), tmp_path / "run").error
    (paid,) = read_site_ledger(site_settings.read_site(files[1]).folder).trials
    assert len(paid.charges) == 1


def test_nobody_can_ask_for_an_upload_without_its_masks(tmp_path: Path) -> None:
    config = some("fedavg", federation=ALIKE, secure_aggregation={})
    (file, *_) = sites(config, tmp_path / "sites")
    with pytest.raises(
        GenfedError, match=r"no phase 'train' in which clients work; there are: evaluate, train\.agree, "
    ):
        asked(file, letter(config), initial(config))


def test_a_site_that_does_not_say_what_it_spent_is_taken_to_have_spent_all(tmp_path: Path) -> None:
    pytest.importorskip("opacus")

    def answer(handle: Any, message: Any, context: Any) -> Any:
        head = decode_message(message.content)[0]
        reply = answer_message(handle, message, context)
        if head["ask"] == "spent" and head["client"] == 1:
            reply.content = encode_message({"mechanisms": [[1e300, 0.5, 10**12]]}, EMPTY)
        return reply

    config = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY)
    files = sites(config, tmp_path / "sites")
    assert not serve(config, Grid(files), tmp_path / "said").error
    assert not serve(config, Grid(files, answer), tmp_path / "unsaid").error
    said, unsaid = (from_json((tmp_path / each / "report.json").read_text()) for each in ("said", "unsaid"))
    assert [trial.protection for trial in said.trials] == [trial.protection for trial in unsaid.trials]
    assert "its ε is what is planned" in (tmp_path / "unsaid" / "run.log").read_text("utf-8")


def test_sites_whose_pixels_are_on_unlike_scales_are_refused_by_name() -> None:
    hello = SiteDescription("", "linear", "image", (1, 8, 8), ("x", "y"), 10, 5, "", "cpu", 0, 0.0, False, 1, 0.0)

    def said(**scales: PixelScale | None) -> str:
        digests = {name: digest_encoder(scale, "image") for name, scale in scales.items()}
        sites = [replace(hello, name=name, encoder=found) for name, found in digests.items()]
        return "; ".join(agreement.find_disagreements(read_config(some("fedavg")), sites))

    pictures = {"a": PixelScale(), "b": PixelScale(numbers=(0, 1)), "c": None}
    assert said(**pictures) == ""
    line = said(**pictures | {"c": PixelScale(numbers=(-2, 3), bytes=None)})
    assert "pixels are scaled differently at a/b and c: one image would give different numbers" in line
    assert "set data.pixels and data.background" in line
    assert "a/c and b" in said(**pictures | {"b": PixelScale(ground="black")})
