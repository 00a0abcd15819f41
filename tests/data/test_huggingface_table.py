"""The table of a Hugging Face set is read by the rules of every table."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.data.features import TableSchema
from genfed.data.huggingface import HuggingFace

datasets = pytest.importorskip("datasets")
N = 60


def saved(folder: Path, **more: Any) -> str:
    columns = {
        "age": [20 + i * 7 % 50 for i in range(N)],
        "town": [["oslo", "bergen", None][i % 3] for i in range(N)],
        "seen": [datetime.datetime(2020, 1, 1) + datetime.timedelta(days=i * 5 % 70) for i in range(N)],
        "place": [i % 2 for i in range(N)],
        "vector": [[1.0, 2.0]] * N,
        "label": ["yes" if i // 2 % 2 else "no" for i in range(N)],
    }
    found = datasets.Dataset.from_dict(columns | more)
    found.cast_column("place", datasets.ClassLabel(names=["north", "south"])).save_to_disk(folder / "set")
    return str(folder / "set")


def test_texts_times_and_class_labels_are_used_and_the_rest_is_told(tmp_path: Path) -> None:
    data = HuggingFace(path=saved(tmp_path), label="label").load()
    assert isinstance(data.encoder, TableSchema)
    assert list(data.encoder.numbers) == ["age", "seen"]
    assert data.encoder.categories == {"town": ("(missing)", "bergen", "oslo"), "place": ("north", "south")}
    assert any(line == "column 'vector': neither numbers nor texts, not used" for line in data.summary.warnings)
    assert any(line.startswith("numbers: age 20 to 69, seen as days 18262 to ") for line in data.summary.facts)


def test_columns_are_named_as_in_a_table(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = HuggingFace(path=path, label="label", drop=("vector", "seen"), categorical=("town",)).load()
    assert data.task.shape == (1 + 3 + 2,)
    grouped = HuggingFace(path=path, label="label", drop=("vector",), group="seen").load()
    homes = [set(part["seen"]) for part in (grouped.columns, grouped.validation_columns, grouped.test_columns)]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 14


def test_new_rows_of_a_text_file_get_the_very_training_features(tmp_path: Path) -> None:
    source = HuggingFace(path=saved(tmp_path, row=list(range(N))), label="label", drop=("vector",), columns=("row",))
    data = source.load()
    lines = [
        f"{['north', 'south'][i % 2]},{['oslo', 'bergen', ''][i % 3]},"
        f"{datetime.datetime(2020, 1, 1) + datetime.timedelta(days=i * 5 % 70)},{20 + i * 7 % 50}"
        for i in range(N)
    ]
    (tmp_path / "new.csv").write_text("\n".join(["place,town,seen,age", *lines]))
    (found,) = source.read(str(tmp_path / "new.csv"), data.task, data.encoder)
    assert torch.equal(found.x[[int(row) for row in data.columns["row"]]], data.train.x)
    assert found.warnings == ()
