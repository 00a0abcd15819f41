import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.data.huggingface import HuggingFace
from genfed.data.huggingface_paths import check_resolved_files


@pytest.fixture(scope="module")
def datasets() -> Any:
    import datasets

    return datasets


def pictures(datasets: Any, shades: range) -> Any:
    """Labels 0 and 1 in turn, called cat and dog; the shade is the pixels' value."""
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=("cat", "dog")),
            "writer": datasets.Value("string"),
        }
    )
    images = [Image.new("L", (4, 3), shade) for shade in shades]
    columns = {"img": images, "label": [s % 2 for s in shades], "writer": [f"w{s % 3}" for s in shades]}
    return datasets.Dataset.from_dict(columns, features)


def table(datasets: Any, n: int = 20, **more: list[Any]) -> Any:
    columns = {"a": list(range(n)), "b": [None if i % 5 == 0 else i / 2 for i in range(n)], "y": ["u", "v"] * (n // 2)}
    return datasets.Dataset.from_dict(columns | more)


def test_images_of_a_saved_data_set(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": pictures(datasets, range(20)), "test": pictures(datasets, range(100, 106))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    data = HuggingFace(path=str(tmp_path), columns=("writer",), size=8).load()
    assert (data.task.kind, data.task.shape, data.task.classes) == ("image", (1, 8, 8), ("cat", "dog"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 6]
    shades = data.train.x[:, 0, 0, 0].tolist()
    assert data.train.y.tolist() == [shade % 2 for shade in shades]
    assert data.columns["writer"] == tuple(f"w{shade % 3}" for shade in shades)
    assert data.test.x[:, 0, 0, 0].tolist() == list(range(100, 106))
    assert data.test_columns["writer"] == tuple(f"w{shade % 3}" for shade in range(100, 106))


def test_one_split_is_cut_and_splits_can_be_named(datasets: Any, tmp_path: Path) -> None:
    pictures(datasets, range(20)).save_to_disk(tmp_path / "one")
    data = HuggingFace(path=str(tmp_path / "one"), image="img").load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [14, 2, 4]
    parts = {"fit": pictures(datasets, range(20)), "dev": pictures(datasets, range(100, 106))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    data = HuggingFace(path=str(tmp_path / "two"), train_split="fit", validation_split="dev").load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 6, 4]


def test_numbers_are_features_scaled_by_training_rows(datasets: Any, tmp_path: Path) -> None:
    table(datasets).save_to_disk(tmp_path / "t")
    data = HuggingFace(path=str(tmp_path / "t"), label="y").load()
    assert (data.task.kind, data.task.shape, data.task.classes) == ("table", (3,), ("u", "v"))
    assert torch.allclose(data.train.x[:, :2].mean(0), torch.zeros(2), atol=1e-6)
    wild = {"train": table(datasets), "test": table(datasets, 4, a=[10**6] * 4)}
    tame = {"train": table(datasets), "test": table(datasets, 4)}
    datasets.DatasetDict(wild).save_to_disk(tmp_path / "wild")
    datasets.DatasetDict(tame).save_to_disk(tmp_path / "tame")
    one, two = (HuggingFace(path=str(tmp_path / n), label="y", features=("a",)).load() for n in ("wild", "tame"))
    assert torch.equal(one.train.x, two.train.x)
    assert float(one.test.x.min()) > 1000


def test_a_folder_of_data_files(datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.csv").write_text("a,label\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    data = HuggingFace(path=str(folder)).load()
    assert (data.task.shape, data.task.classes) == ((1,), ("0", "1"))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"label": "lable"}, "column 'lable' is not there; did you mean 'label'"),
    ({"columns": ("writers",)}, "column 'writers' is not there; did you mean 'writer'"),
    ({"image": "writer"}, "image column 'writer' is not there; there are: img"),
    ({"train_split": "tran"}, "split 'tran' is not there; did you mean 'train'"),
    ({"test_split": "tset"}, "split 'tset' is not there; did you mean 'test'"),
    ({"numeric": ("writer",)}, "column 'writer' is not of numbers"),
    ({"label": "writer", "features": ()}, "there are no feature columns"),
]


def test_refused(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": pictures(datasets, range(20)), "test": pictures(datasets, range(100, 106))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    for set_to, says in WRONG:
        with pytest.raises(GenfedError, match=says) as error:
            HuggingFace(path=str(tmp_path), **set_to).load()
        assert "\n" not in str(error.value)


def named(datasets: Any, names: list[str], labels: list[int], shade: int = 0) -> Any:
    """Pictures whose shade is 10 for the class "cat" and 20 for others, with the labels of a ClassLabel."""
    kinds = [names[label] if label >= 0 else "cat" for label in labels]
    images = [Image.new("L", (4, 3), shade + (10 if kind == "cat" else 20)) for kind in kinds]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"img": images, "label": labels}, features)


def test_classes_go_by_name_where_splits_number_them_otherwise(datasets: Any, tmp_path: Path) -> None:
    train = named(datasets, ["dog", "cat"], [0, 1] * 10)
    for i, test in enumerate(
        [named(datasets, ["cat", "dog"], [0, 1, 1]), named(datasets, ["ape", "cat", "dog"], [1, 2, 2])]
    ):
        datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / str(i))
        data = HuggingFace(path=str(tmp_path / str(i))).load()
        assert data.task.classes == ("dog", "cat")
        for part in (data.train, data.test):
            assert torch.equal(part.y == 1, part.x[:, 0, 0, 0] == 10)
    words = train.add_column("word", ["cat", "dog"] * 10).remove_columns("label").rename_column("word", "label")
    datasets.DatasetDict(train=train, test=words).save_to_disk(tmp_path / "words")
    assert HuggingFace(path=str(tmp_path / "words")).load().test.y.tolist() == [1, 0] * 10
    datasets.DatasetDict(train=train, test=named(datasets, ["ape", "cat"], [0, 1])).save_to_disk(tmp_path / "ape")
    with pytest.raises(GenfedError, match="class 'ape' is in the test part and not in train"):
        HuggingFace(path=str(tmp_path / "ape")).load()


def test_natural_columns_go_by_name(datasets: Any, tmp_path: Path) -> None:
    parts = {}
    for part, names in (("train", ["north", "south"]), ("test", ["south", "north"])):
        column = [i % 2 if part == "train" else 1 - i % 2 for i in range(20)]
        made = pictures(datasets, range(20)).add_column("site", column)
        parts[part] = made.cast_column("site", datasets.ClassLabel(names=names))
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    data = HuggingFace(path=str(tmp_path), columns=("site",), validation=0.0).load()
    assert data.columns == data.test_columns == {"site": ("north", "south") * 10}


def test_spelled_splits_are_read_and_others_told(datasets: Any, tmp_path: Path) -> None:
    made = {
        name: pictures(datasets, range(n)) for name, n in (("training", 20), ("dev", 6), ("testing", 4), ("extra", 3))
    }
    datasets.DatasetDict(made).save_to_disk(tmp_path / "a")
    data = HuggingFace(path=str(tmp_path / "a")).load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 6, 4]
    assert data.summary.facts[0].endswith(": splits training 20, dev 6, testing 4")
    assert any(line.startswith("splits that are not read: extra 3; name them in") for line in data.summary.warnings)


def test_minus_one_is_a_label_unless_all_of_a_split_are(datasets: Any, tmp_path: Path) -> None:
    sign = {"train": table(datasets, label=[-1, 1] * 10), "test": table(datasets, 4, label=[-1] * 4)}
    datasets.DatasetDict(sign).save_to_disk(tmp_path / "sign")
    data = HuggingFace(path=str(tmp_path / "sign"), numeric=("a",)).load()
    assert (data.task.classes, len(data.test)) == (("-1", "1"), 4)
    held = {"train": table(datasets, label=[0, 1] * 10), "test": table(datasets, 4, label=[-1] * 4)}
    datasets.DatasetDict(held).save_to_disk(tmp_path / "held")
    data = HuggingFace(path=str(tmp_path / "held"), numeric=("a",)).load()
    assert [len(part) for part in (data.train, data.test)] == [14, 4]
    assert "the test split has no labels: not used" in data.summary.warnings
    table(datasets, label=[-1] * 4 + [0, 1] * 8).save_to_disk(tmp_path / "three")
    data = HuggingFace(path=str(tmp_path / "three"), numeric=("a",), validation=0.0).load()
    assert data.task.classes == ("-1", "0", "1")
    assert "label -1 of 4 train examples is taken for a class" in data.summary.warnings


ARRAYS: dict[str, Any] = {
    "Array2D": lambda d: d.Array2D((4, 5), "uint8"),
    "Array3D": lambda d: d.Array3D((1, 4, 5), "uint8"),
    "floats": lambda d: d.Array2D((4, 5), "float32"),
    "lists": lambda d: d.Sequence(d.Sequence(d.Value("uint8"))),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_images(datasets: Any, tmp_path: Path, kind: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 5))
    stored = x[:, None] if kind == "Array3D" else x / 255 if kind == "floats" else x
    features = datasets.Features({"pixels": ARRAYS[kind](datasets), "label": datasets.Value("int64")})
    columns = {"pixels": list(stored), "label": [i % 2 for i in range(20)]}
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path)
    for image in (None, "pixels"):
        data = HuggingFace(path=str(tmp_path), image=image).load()
        assert (data.task.kind, data.task.shape) == ("image", (1, 4, 5))
        seen = torch.cat([data.train.x, data.validation.x, data.test.x]).flatten(1)
        assert sorted(seen.tolist()) == sorted(x.reshape(20, -1).tolist())
    with pytest.raises(GenfedError, match=r"column 'pixels'"):
        HuggingFace(path=str(tmp_path), numeric=("pixels",)).load()


def test_arrays_of_several_shapes_are_refused(datasets: Any, tmp_path: Path) -> None:
    features = datasets.Features({"pixels": ARRAYS["lists"](datasets), "label": datasets.Value("int64")})
    columns = {"pixels": [[[1, 2]], [[1, 2], [3, 4]]] * 10, "label": [0, 1] * 10}
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path)
    with pytest.raises(GenfedError, match="pixels of train: arrays of one shape are allowed"):
        HuggingFace(path=str(tmp_path)).load()


def test_unlabelled_and_broken_examples_are_refused(datasets: Any, tmp_path: Path) -> None:
    named(datasets, ["cat", "dog"], [-1] * 3 + [0, 1] * 8).save_to_disk(tmp_path / "t")
    with pytest.raises(GenfedError, match="3 examples of train have no label"):
        HuggingFace(path=str(tmp_path / "t")).load()
    table(datasets, label=[None] * 3 + [0, 1] * 8 + [0]).save_to_disk(tmp_path / "n")
    with pytest.raises(GenfedError, match="3 examples of train have no label"):
        HuggingFace(path=str(tmp_path / "n")).load()
    columns = {"img": [{"bytes": b"none", "path": None}] * 2, "label": [0, 1]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "b")
    with pytest.raises(GenfedError, match="b: image 0 of train: not a readable image"):
        HuggingFace(path=str(tmp_path / "b")).load()


def test_what_cannot_be_loaded_is_refused(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(GenfedError, match="cannot be loaded"):
        HuggingFace(path=str(tmp_path)).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(GenfedError, match="empty: cannot be loaded"):
        HuggingFace(path=str(tmp_path / "empty")).load()


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(GenfedError, match=r"needs the extra \"huggingface\": pip install 'genfed\[huggingface\]'"):
        HuggingFace(path="ylecun/mnist").load()


def test_new_rows_are_read_from_a_table_of_text(datasets: Any, tmp_path: Path) -> None:
    table(datasets).save_to_disk(tmp_path / "t")
    source = HuggingFace(path=str(tmp_path / "t"), label="y", test=0.5, split_seed=1)
    data = source.load()
    rows = [f"{'' if i % 5 == 0 else i / 2},{i}" for i in range(20)]
    (tmp_path / "new.csv").write_text("\n".join(["b,a", *rows]))
    (found,) = source.read(str(tmp_path / "new.csv"), data.task, data.encoder)
    assert (found.column, found.names[:2]) == ("row", ("0", "1"))
    everything = torch.cat([data.train.x, data.validation.x, data.test.x])
    order = everything[:, 0].argsort()
    assert torch.equal(found.x[found.x[:, 0].argsort()], everything[order])


def test_new_images_are_read_as_files(datasets: Any, tmp_path: Path) -> None:
    pictures(datasets, range(20)).save_to_disk(tmp_path / "one")
    source = HuggingFace(path=str(tmp_path / "one"), size=8)
    Image.new("L", (4, 3), 77).save(tmp_path / "a.png")
    (found,) = source.read(str(tmp_path / "a.png"), source.load().task, None)
    assert (found.column, found.names, found.x.tolist()) == ("file", ("a.png",), [[[[77] * 8] * 8]])


OUTSIDE = (
    "{outside}/secret.csv",
    "../secret.csv",
    "file://{outside}/secret.csv",
    "http://127.0.0.1:9/x.csv",
    "~/x.csv",
)


@pytest.mark.parametrize("key", ["data_files", "data_dir"])
@pytest.mark.parametrize("named", [*OUTSIDE, "zip://x.csv::{outside}/secret.zip", "train/../../secret.csv"])
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_card_names_no_file_outside_of_its_folder(tmp_path: Path, key: str, named: str, card: str) -> None:
    (folder := tmp_path / "given").mkdir()
    for file in (tmp_path / "secret.csv", folder / "train.csv"):
        file.write_text("a,label\n" + "1,u\n2,v\n" * 20)
    text = named.format(outside=tmp_path)
    value = [{"split": "train", "path": ["train.csv", text]}] if key == "data_files" else text
    head = json.dumps({"configs": [{"config_name": "default", key: value}]})
    (folder / card).write_text(f"---\n{head}\n---\n" if card == "README.md" else head)
    with pytest.raises(GenfedError, match=rf"{card} names .*only files below") as raised:
        HuggingFace(path=str(folder)).load()
    assert text in str(raised.value)


def test_a_card_names_files_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("a,label\n" + "1,u\n2,v\n" * 20)
    head = json.dumps(
        {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.csv"}]}]}
    )
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n")
    assert len(HuggingFace(path=str(tmp_path)).load().train) > 20


@pytest.mark.parametrize("where", ["splits", "files"])
def test_a_saved_data_set_names_no_file_outside_of_its_folder(datasets: Any, tmp_path: Path, where: str) -> None:
    datasets.DatasetDict({"train": table(datasets)}).save_to_disk(tmp_path / "given")
    table(datasets).save_to_disk(tmp_path / "other")
    file = tmp_path / "given" / ("dataset_dict.json" if where == "splits" else "train/state.json")
    about = json.loads(file.read_text())
    if where == "splits":
        about["splits"].append("../other")
    else:
        about["_data_files"][0]["filename"] = "../../other/data-00000-of-00001.arrow"
    file.write_text(json.dumps(about))
    with pytest.raises(GenfedError, match=r"json names \.\./.*only files below"):
        HuggingFace(path=str(tmp_path / "given"), label="y").load()


@pytest.mark.parametrize("link", [False, True])
def test_a_row_names_no_picture_outside_of_the_folder(datasets: Any, tmp_path: Path, link: bool) -> None:
    Image.new("L", (4, 3), 7).save(tmp_path / "secret.png")
    (folder := tmp_path / "given").mkdir()
    for i in range(20):
        Image.new("L", (4, 3), i).save(folder / f"{i}.png")
    if link:  # of whoever may write there
        (folder / "0.png").unlink()
        (folder / "0.png").symlink_to(tmp_path / "secret.png")
    paths = [str(folder / f"{i}.png") for i in range(20)]
    if not link:
        paths[3] = str(folder / ".." / "secret.png")
    rows = {"img": [{"bytes": None, "path": path} for path in paths], "label": [0, 1] * 10}
    features = datasets.Features({"img": datasets.Image(decode=False), "label": datasets.Value("int64")})
    file = folder / "train.parquet"
    datasets.Dataset.from_dict(rows, features).cast_column("img", datasets.Image()).to_parquet(file, None)
    if link:
        assert len(HuggingFace(path=str(folder)).load().train) > 10
    else:
        with pytest.raises(GenfedError, match=r"image 3 of train is .*secret\.png, which is no file of this data set"):
            HuggingFace(path=str(folder)).load()


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("hf://datasets/a/b@main/x.csv", True),
        ("https://example.org/x.csv", True),
        ("zip://x.csv::hf://datasets/a/b@main/x.zip", True),
        ("/etc/passwd", False),
        ("file:///etc/passwd", False),
        ("zip://x.csv::/home/x.zip", False),
        ("zip://x.csv::file:///home/x.zip", False),
        ("simplecache::file:///etc/passwd", False),
        ("ssh://host/x.csv", False),
    ],
)
def test_a_data_set_of_the_hub_names_no_file_of_this_machine(file: str, allowed: bool) -> None:
    check_resolved_files(None, "a/b")
    if allowed:
        check_resolved_files({"train": ["hf://datasets/a/b/y.csv", file]}, "a/b")
    else:
        with pytest.raises(GenfedError, match=r"a/b names .*only files of the hub"):
            check_resolved_files({"train": ["hf://datasets/a/b/y.csv", file]}, "a/b")
