"""The digest of a run's examples: the same however they are divided, another for other examples."""

from dataclasses import replace
from pathlib import Path

import torch

from genfed.config.reader import read_config
from genfed.core.federated_data import FederatedData
from genfed.core.task import Data
from genfed.experiment.inputs import digest_pool, load_data
from genfed.experiment.partitioning import partition_data
from tests.conftest import start, tiny


def shards() -> FederatedData:
    config = read_config(tiny("local"))
    return partition_data(config, load_data(config), 0)


def test_the_digest_ignores_who_holds_what() -> None:
    made = shards()
    order = torch.randperm(len(made.train), generator=torch.Generator().manual_seed(0))
    assert digest_pool(replace(made, train=made.train[order])) == digest_pool(made)


def test_the_digest_sees_one_pixel_one_label_and_one_row() -> None:
    made = shards()
    found = {digest_pool(made)}
    for x, y in _changes(made):
        found.add(digest_pool(replace(made, train=Data(x, y))))
        found.add(digest_pool(replace(made, held_out=Data(x, y))))
    assert len(found) == 7


def _changes(made: FederatedData) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pixel, label = made.train.x.clone(), made.train.y.clone()
    pixel[3, 0, 0, 0] += 1
    label[3] = 1 - label[3]
    return [(pixel, made.train.y), (made.train.x, label), (made.train.x[1:], made.train.y[1:])]


def test_a_report_has_the_digest_of_every_seed(tmp_path: Path) -> None:
    report = start(tiny("local", seeds=[0, 1]), tmp_path)
    assert set(report.data_digest) == {"0", "1"}
