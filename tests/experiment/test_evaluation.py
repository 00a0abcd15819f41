"""Every client is scored on data like its own too."""

import dataclasses
import shutil
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genfed.config.reader import read_config
from genfed.core.client import Client
from genfed.core.federated_data import FederatedData
from genfed.core.phase import Empty
from genfed.core.record import digest, load, pack, save, unpack
from genfed.engines.client_runner import ClientRunner, ClientRuntime
from genfed.engines.messages import RoundId
from genfed.experiment import evaluation
from genfed.experiment import run as runs
from genfed.experiment.evaluation import ClassifierScores, add_evaluation
from genfed.experiment.inputs import data_fingerprint, load_data
from genfed.experiment.partitioning import count_classes, partition_data, pool_clients
from genfed.report.metrics_log import read_metrics as read_metrics
from genfed.report.results import Measures, from_json
from genfed.training.evaluation import predict
from tests.conftest import start, tiny


class Says(nn.Module):
    """The class is the first feature."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0].long(), 3).float()


class Stub:
    """A method without training."""

    ignores_architecture = False

    def phases(self) -> list[Any]:
        return []

    def send_classifier(self) -> None:
        raise NotImplementedError

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        return Says()


def own_accuracies(shards: FederatedData, folder: Path) -> list[dict[int, float]]:
    """What each client replies whose classifier is `Says`."""
    method: Any = Stub()
    site = ClientRunner(
        add_evaluation(method, shards.held_out, shards.own), shards, folder, 0, ClientRuntime(lambda *_: Says())
    )
    sent = pack(Empty())
    answers = [site.work(RoundId("evaluate", 0, 0), info.id, sent) for info in shards.clients]
    return [unpack(ClassifierScores, answer.upload).own_accuracy for answer in answers]


def partitioned(
    folder: Path,
    partition: dict[str, Any],
    clients: int = 2,
    architectures: tuple[str, ...] = ("linear",),
    **arrays: Any,
) -> FederatedData:
    np.savez(folder / "data.npz", **arrays)
    data = {"kind": "npz", "path": str(folder / "data.npz"), "validation": 0.0, "scale": "none"}
    if "column" in partition:
        data["columns"] = [partition["column"]]
    config = tiny("local") | {"data": data, "partition": partition}
    config["federation"] = {"clients": clients, "architectures": list(architectures)}
    settings = read_config(config)
    return partition_data(settings, load_data(settings), 0)


BY_SITE = {"kind": "by_column", "column": "site"}
TEST = [  # site, class, what is said
    *("A00", "A01", "A11", "A22"),
    *("B10", "B11", "B22", "B20", "B00"),
    "C00",
]
SITES: dict[str, Any] = {
    "x_train": np.zeros((8, 1)),
    "y_train": np.array([0, 0, 0, 1, 1, 2, 2, 2]),
    "site_train": np.array(list("AAAABBBB")),
    "x_test": np.array([[float(row[2])] for row in TEST]),
    "y_test": np.array([int(row[1]) for row in TEST]),
}
SITE_TEST = np.array([row[0] for row in TEST])


def test_feature_skew_by_hand(tmp_path: Path) -> None:
    """A has classes 0, 0, 0, 1 and B 1, 2, 2, 2."""
    shards = partitioned(tmp_path, BY_SITE, **SITES, site_test=SITE_TEST)
    assert [each.values for own in shards.own.values() for each in own] == [("A",), ("B",)]
    expected = [{0: pytest.approx((3 * 1 / 2 + 1 * 1 / 1) / 4)}, {1: pytest.approx((1 * 1 / 2 + 3 * 1 / 2) / 4)}]
    assert own_accuracies(shards, tmp_path) == expected


def test_one_client_with_several_values(tmp_path: Path) -> None:
    shards = partitioned(tmp_path, BY_SITE, 1, **SITES, site_test=SITE_TEST)
    assert shards.own[0][0].values == ("A", "B")
    # of A and B together, class 0: 2 of 3, class 1: 2 of 3, class 2: 2 of 3
    assert own_accuracies(shards, tmp_path) == [{0: pytest.approx(2 / 3)}]


def test_a_test_part_without_the_column_counts_whole(tmp_path: Path) -> None:
    shards = partitioned(tmp_path, BY_SITE, **SITES)
    assert [each.values for own in shards.own.values() for each in own] == [(), ()]
    # class 0: 3 of 4, class 1: 2 of 3, class 2: 2 of 3
    expected = [{0: pytest.approx((3 * 3 / 4 + 1 * 2 / 3) / 4)}, {1: pytest.approx(2 / 3)}]
    assert own_accuracies(shards, tmp_path) == expected


def test_what_was_not_tested_is_left_out(tmp_path: Path) -> None:
    other = np.array(["C" if row in ("A00", "A01") or row[0] == "B" else row[0] for row in TEST])
    shards = partitioned(tmp_path, BY_SITE, **SITES, site_test=other)
    # of A classes 1 and 2 are left, and A has no 2; of B there is nothing
    assert own_accuracies(shards, tmp_path) == [{0: 1.0}, {}]


def test_the_ceiling_is_scored_for_every_client_of_its_architecture(tmp_path: Path) -> None:
    shards = pool_clients(partitioned(tmp_path, BY_SITE, **SITES, site_test=SITE_TEST))
    assert own_accuracies(shards, tmp_path) == [{0: pytest.approx(0.625), 1: pytest.approx(0.5)}]
    two = pool_clients(partitioned(tmp_path, BY_SITE, 2, ("mlp-small", "linear"), **SITES, site_test=SITE_TEST))
    assert [info.architecture for info in two.clients] == ["linear", "mlp-small"]
    assert own_accuracies(two, tmp_path) == [{1: pytest.approx(0.5)}, {0: pytest.approx(0.625)}]


@pytest.mark.parametrize(
    "partition",
    [
        {"kind": "dirichlet", "alpha": 0.3},
        {"kind": "pathological", "labels": 2},
        {"kind": "disjoint_labels"},
        {"kind": "overlapping_labels"},
        {"kind": "iid"},
    ],
)
def test_label_skew_weighs_the_recall_of_each_class(partition: dict[str, Any], tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    x, y = draw.integers(3, size=(240, 1)).astype(float), np.arange(240) % 3
    shards = partitioned(tmp_path, partition, 3, x=x, y=y)
    said, true = shards.held_out.x[:, 0].numpy(), shards.held_out.y.numpy()
    recall = [np.mean(said[true == c] == c) for c in range(3)]
    assert len({round(float(r), 3) for r in recall}) == 3
    expected = [np.dot(counts, recall) / sum(counts) for counts in count_classes(shards)]
    assert own_accuracies(shards, tmp_path) == [{i: pytest.approx(e)} for i, e in enumerate(expected)]


def test_for_one_client_with_all_data_it_is_the_common_accuracy(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=draw.normal(size=(100, 4)), y=np.arange(100) % 2)
    config = tiny("fedavg", data={"kind": "npz", "path": str(tmp_path / "d.npz")})
    config["data"].pop("size")
    config["federation"] = {"clients": 1, "architectures": ["linear"]}
    trial = start(config, tmp_path / "run").trials[0]
    assert 0 < trial.accuracy < 1
    assert trial.personal_accuracy == pytest.approx(trial.accuracy)


def domains(**changes: Any) -> dict[str, Any]:
    config = tiny("local", "centralised", **changes) | {"data": {"kind": "digit_domains", "size": 8}}
    return config | {"partition": {"kind": "by_column", "column": "domain"}}


@pytest.mark.usefixtures("page")
def test_a_run_reports_it_and_goes_on_where_it_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    report = start(domains(), run)
    assert from_json((run / "report.json").read_text()) == report
    assert (report.skewed, report.column) == (True, "domain")
    assert report.natural == {"0": (("blueprint",), ("chalk",), ("ink",), ("neon",))}
    local, ceiling = report.trials
    assert [s.client for s in local.own] == [s.client for s in ceiling.own] == [0, 1, 2, 3]
    assert [s.architecture for s in ceiling.own] == ["linear", "mlp-small"] * 2
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["phase"] == "evaluate"]
    last = [row for row in rows if row["client"] is not None and row["round"] == 1]
    assert [row["own"] for row in last[:4]] == [s.accuracy for s in local.own]
    assert [list(row["own_of"]) for row in last[4:]] == [["0", "2"], ["1", "3"]]
    assert sum(row["own"] for row in last[4:]) / 2 == pytest.approx(ceiling.personal_accuracy)
    assert "By domain" in (run / "report.html").read_text("utf-8")

    def without(path: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in ("own", "own_of")} for row in read_metrics(path)]

    monkeypatch.setattr(runs, "read_metrics", without)
    again = start(domains(), run, on_existing="resume")
    assert [(t.accuracy, t.own, t.personal_accuracy, t.personal_worst) for t in again.trials] == [
        (t.accuracy, (), None, None) for t in report.trials
    ]
    assert "By domain" not in (run / "report.html").read_text("utf-8")


def test_what_is_held_out_like_ones_own_does_not_name_the_data(tmp_path: Path) -> None:
    """The name is that of a record without it."""
    settings = read_config(domains())
    shards = partition_data(settings, load_data(settings), 0)
    fields = [f for f in dataclasses.fields(FederatedData) if f.name not in ("own", "held_out_counts")]
    before = make_dataclass("FederatedData", [(f.name, f.type) for f in fields], frozen=True)
    assert data_fingerprint(shards, None) == digest(pack(before(*(getattr(shards, f.name) for f in fields))))
    save(shards, tmp_path / "shards.safetensors")
    there = load(FederatedData, tmp_path / "shards.safetensors")
    assert digest(pack(there)) == digest(pack(shards))
    shutil.rmtree(tmp_path)
    rows = [each.rows for own in there.own.values() for each in own]
    assert all(r is not None for r in rows)
    assert torch.cat([r for r in rows if r is not None]).sort().values.tolist() == list(range(len(there.held_out)))


def test_clients_of_one_classifier_have_it_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand clients of ten architectures an evaluation is ten classifiers' work; what a client keeps for
    itself is another one each."""
    scored: list[object] = []

    def watched(*given: Any) -> Tensor:
        scored.append(given)
        return predict(*given)

    monkeypatch.setattr(evaluation, "predict", watched)
    for label, times in (("fedavg", 2), ("local", 4)):
        scored.clear()
        start(tiny(label) | {"evaluation": {"every": 0}, "baselines": []}, tmp_path / label)
        assert len(scored) == times


def test_training_that_diverged_is_said_and_scores_nothing(tmp_path: Path) -> None:
    """The greatest of nothing but NaN is the first: such a classifier would be right on every example of class 0."""
    config = tiny("local", baselines=["centralised"], defaults={"training": {"epochs": 2, "learning_rate": 1e30}},
                  federation={"clients": 3, "max_examples": 120, "architectures": ["cnn1"]})  # fmt: skip
    report = start(config, tmp_path / "run")
    assert [trial.accuracy for trial in report.trials] == [0.0, 0.0]
    for label in ("local", "centralised"):
        (note,) = (note for note in report.notes if note.startswith(f"{label}, seed 0: training has diverged"))
        assert note.endswith("Examples without finite scores count as wrong. Lower the learning rate.")


def test_a_classifier_that_reads_the_clients_data_is_scored_for_each(tmp_path: Path) -> None:
    """Clients of one architecture are sent the same record, and have unlike classifiers all the same."""
    scores = []
    for workers in (0, 2):
        config = tiny("mine", method={"mine": {"kind": "tests.toys:OwnPrior"}}, compute={"workers": workers},
                      partition={"kind": "disjoint_labels"}, evaluation={"every": 0},
                      federation={"clients": 4, "max_examples": 200, "architectures": ["linear"]})  # fmt: skip
        (trial, *_) = start(config, tmp_path / str(workers)).trials
        scores.append([score.accuracy for score in trial.clients])
    assert scores[0] == scores[1]
    assert len(set(scores[0])) > 1


@pytest.mark.usefixtures("page")
def test_a_run_reports_more_than_accuracy_and_goes_on_where_it_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", tiny("local", baselines=[])
    (trial,) = start(config, run).trials
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["phase"] == "evaluate" and row["round"] == 1]
    clients = [row for row in rows if row["client"] is not None]
    for row, score in zip(clients, trial.clients, strict=True):
        known = [recall for recall in score.recall if recall is not None]
        assert score.measures is not None
        assert score.measures.balanced_accuracy == pytest.approx(sum(known) / len(known))
        assert score.measures == Measures(row["balanced_accuracy"], row["f1"], row["auroc"], row["ece"])
    assert sum(map(sum, trial.confusion)) == sum(sum(row["total"]) for row in clients)
    assert [trial.confusion[k][k] for k in range(10)] == [sum(row["correct"][k] for row in clients) for k in range(10)]
    assert "Balanced accuracy, F1, AUROC and calibration" in (run / "report.html").read_text("utf-8")

    def without(path: Path) -> list[dict[str, Any]]:
        new = ("balanced_accuracy", "f1", "auroc", "ece", "confusion")
        return [{k: v for k, v in row.items() if k not in new} for row in read_metrics(path)]

    monkeypatch.setattr(runs, "read_metrics", without)
    (again,) = start(config, run, on_existing="resume").trials
    assert (again.accuracy, again.measures, again.by_class, again.confusion) == (trial.accuracy, None, (), ())
    assert "Balanced accuracy" not in (run / "report.html").read_text("utf-8")
