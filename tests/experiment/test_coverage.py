"""Classes and clients that a run never sees are named before it trains."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.federated_data import FederatedData
from genfed.core.schedule import Schedule
from genfed.core.task import Data, Task
from genfed.experiment.coverage import describe_single_holders
from tests.conftest import start, tiny


def warnings_of(tmp_path: Path, *methods: str, **changes: Any) -> list[str]:
    report = start(tiny(*methods, **changes), tmp_path / "run")
    return [line for line in report.data_summary.warnings if "no client" in line or "not used" in line]


def test_a_class_that_no_client_has(tmp_path: Path) -> None:
    partition = {"kind": "pathological", "labels": 2}
    (line,) = warnings_of(tmp_path, "local", partition=partition, federation={"clients": 2, "max_examples": 80})
    assert "no client has examples of class " in line
    assert "the ceiling included, and 6" in line  # 6 of 10 classes, so above 60 %


def test_clients_that_are_never_asked(tmp_path: Path) -> None:
    (line,) = warnings_of(tmp_path, "fedavg", "fedcgs", federation={"client_fraction": 0.5}, defaults={"rounds": 2})
    assert line == (
        "phase statistics of fedcgs has one round, and federation.client_fraction = 0.5 selects 2 of 4 clients for it: "
        "what the others have is not used"
    )


def test_nothing_is_said_where_all_is_seen(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, "local", "fedavg", "fedcgs", defaults={"rounds": 2}) == []
    half = {"client_fraction": 0.5}
    assert warnings_of(tmp_path / "half", "local", "fedavg", federation=half, defaults={"rounds": 2}) == []


def test_classes_of_one_client_are_named_where_masks_should_hide_it(tmp_path: Path) -> None:
    federation = {"clients": 5, "max_examples": 100, "architectures": ["linear"]}
    changes: dict[str, Any] = {"federation": federation, "secure_aggregation": {}}
    changes |= {"partition": {"kind": "disjoint_labels"}, "method": {"fedcgs": {"encoder": {"kind": "identity"}}}}
    report = start(tiny("fedcgs", **changes), tmp_path / "run")
    line = next(line for line in report.data_summary.warnings if "masks do not hide" in line)
    assert line.startswith(
        "of class 0, 1, 2, 3, 4, 5, 6, 7 … and 2 more one client has all examples: masks do not hide"
    )
    even = changes | {"partition": {"kind": "iid"}}
    assert not any("masks" in line for line in start(tiny("fedcgs", **even), tmp_path / "even").data_summary.warnings)
    prototypes = start(tiny("fedproto", **changes | {"method": {}}), tmp_path / "prototypes")
    (line,) = [line for line in prototypes.data_summary.warnings if "masks do not hide" in line]
    assert "what it adds up of them in fedproto, since" in line
    averaged = start(tiny("fedavg", **changes | {"method": {}}), tmp_path / "averaged")
    assert not any("masks" in line for line in averaged.data_summary.warnings)


def test_classes_of_one_selected_client_are_named(tmp_path: Path) -> None:
    """Of two clients with class a and two with class b, a round may have one of each."""
    config = read_config(
        tiny("fedcgs", "fedavg", federation={"client_fraction": 0.5}, secure_aggregation={"minimum_group": 2})
    )
    infos = tuple(ClientInfo(client, "linear", 1) for client in range(4))
    data = Data(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]))
    places = tuple((i, i + 1) for i in range(4))
    shards = FederatedData(Task("table", (1,), ("a", "b")), infos, places, data, data)
    whole = replace(config, federation=replace(config.federation, client_fraction=1.0))
    said = {seed: list(describe_single_holders(config, shards, seed)) for seed in range(8)}
    for seed, lines in said.items():
        asked = Schedule(config.method["fedcgs"], infos, 0.5, seed).participants("statistics", 0)
        assert len(lines) == (len({int(data.y[info.id]) for info in asked}) == 2)
        assert list(describe_single_holders(whole, shards, seed)) == []
    (line,) = next(lines for lines in said.values() if lines)
    assert line.startswith("of class a, b one client, of those that are selected for a round, has all examples: masks")
    assert "in fedcgs, since" in line
