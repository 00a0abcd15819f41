from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genfed.core.errors import GenfedError
from genfed.data.npz import Npz

Y = np.arange(20) % 2
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)


def write(folder: Path, **arrays: Any) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def test_one_pool_is_cut_into_three_parts(tmp_path: Path) -> None:
    data = Npz(path=write(tmp_path, x=IMAGES, y=Y), validation=0.1, test=0.3).load()
    assert (data.task.kind, data.task.shape, data.task.classes) == ("image", (1, 6, 5), ("0", "1"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 2, 6]
    seen = torch.cat([data.train.x, data.validation.x, data.test.x]).flatten(1)
    assert sorted(seen.tolist()) == sorted(IMAGES.reshape(20, -1).tolist())


def test_its_own_parts_are_kept(tmp_path: Path) -> None:
    own = {"x_train": IMAGES, "y_train": Y, "x_test": IMAGES[:4], "y_test": Y[:4]}
    data = Npz(path=write(tmp_path, **own), validation=0.2).load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 4, 4]
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(IMAGES[:4]))
    data = Npz(path=write(tmp_path, **own, x_validation=IMAGES[4:6], y_validation=Y[4:6])).load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 2, 4]


@pytest.mark.parametrize(
    ("axes", "layout", "shape"),
    [
        ((20, 6, 5, 3), None, (3, 6, 5)),
        ((20, 3, 6, 5), None, (3, 6, 5)),
        ((20, 1, 6, 5), None, (1, 6, 5)),
        ((20, 3, 6, 3), "NHWC", (3, 3, 6)),
        ((20, 4, 6, 5), "NCHW", (4, 6, 5)),
    ],
)
def test_channels_first_and_last(tmp_path: Path, axes: tuple[int, ...], layout: Any, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(axes)).reshape(axes) % 256
    data = Npz(path=write(tmp_path, x=x, y=Y), layout=layout).load()
    assert data.task.shape == shape
    assert data.train.x.dtype == torch.uint8


def test_an_ambiguous_layout_must_be_said(tmp_path: Path) -> None:
    for axes in ((20, 3, 6, 3), (20, 4, 4, 4)):
        with pytest.raises(GenfedError, match=r"which axis is the channels'. Set layout to NHWC or NCHW"):
            Npz(path=write(tmp_path, x=np.zeros(axes, np.uint8), y=Y)).load()


def test_resized_and_recoloured(tmp_path: Path) -> None:
    data = Npz(path=write(tmp_path, x=IMAGES, y=Y), size=8, channels=3).load()
    assert data.task.shape == (3, 8, 8)


def test_two_axes_are_a_table_and_floats_are_images(tmp_path: Path) -> None:
    table = Npz(path=write(tmp_path, x=IMAGES[:, 0].astype(">f8"), y=Y)).load()
    assert (table.task.kind, table.task.shape, table.train.x.dtype) == ("table", (5,), torch.float32)
    images = Npz(path=write(tmp_path, x=(IMAGES / 255).astype(np.float16), y=Y)).load()
    assert (images.task.kind, images.task.shape, images.train.x.dtype) == ("image", (1, 6, 5), torch.uint8)


def test_labels_of_any_kind_are_numbered_in_order(tmp_path: Path) -> None:
    names = np.array(["dog", "cat"])[Y]
    data = Npz(path=write(tmp_path, x=np.stack([Y, Y], 1), y=names), scale="none").load()
    assert data.task.classes == ("cat", "dog")
    assert torch.equal(data.train.y, 1 - data.train.x[:, 0].long())
    for labels, classes in [(Y * 12 - 3, ("-3", "9")), (Y[:, None].astype(float), ("0", "1")), (names.astype("S"), ())]:
        found = Npz(path=write(tmp_path, x=np.stack([Y, Y], 1), y=labels)).load()
        assert found.task.classes == (classes or ("cat", "dog"))
    assert Npz(path=write(tmp_path, x=IMAGES, y=Y), classes=("no", "yes")).load().task.classes == ("no", "yes")


def test_natural_columns_follow_the_training_rows(tmp_path: Path) -> None:
    x = np.stack([np.arange(20)] * 2, 1)
    path = write(tmp_path, x=x, y=Y, site=np.arange(20) * 10)
    data = Npz(path=path, columns=("site",), scale="none").load()
    assert data.columns["site"] == tuple(str(int(v) * 10) for v in data.train.x[:, 0])
    assert data.validation_columns["site"] == tuple(str(int(v) * 10) for v in data.validation.x[:, 0])
    assert data.test_columns["site"] == tuple(str(int(v) * 10) for v in data.test.x[:, 0])
    own = {"x_train": x, "y_train": Y, "x_test": x, "y_test": Y, "site_train": np.arange(20) * 10}
    data = Npz(path=write(tmp_path, **own, site_test=Y), columns=("site",), scale="none").load()
    assert data.columns["site"] == tuple(str(int(v) * 10) for v in data.train.x[:, 0])
    assert data.validation_columns["site"] == tuple(str(int(v) * 10) for v in data.validation.x[:, 0])
    assert data.test_columns["site"] == tuple(map(str, Y))
    assert Npz(path=write(tmp_path, **own), columns=("site",)).load().test_columns == {}


def test_a_split_array_divides_the_rows(tmp_path: Path) -> None:
    x = np.stack([np.arange(20)] * 2, 1)
    texts = np.repeat(["train", "test"], [12, 8])
    for marks in (np.repeat([0, 1], [12, 8]), np.repeat([False, True], [12, 8]), texts, texts.astype("S")):
        path = write(tmp_path, x=x, y=Y, part=marks, site=np.arange(20))
        data = Npz(path=path, split="part", columns=("site",), validation=0.0, scale="none").load()
        assert data.train.x[:, 0].tolist() == list(range(12))
        assert data.test.x[:, 0].tolist() == list(range(12, 20))
        assert data.columns["site"] == tuple(map(str, range(12)))
        assert data.test_columns["site"] == tuple(map(str, range(12, 20)))


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"x": IMAGES, "y": Y[:5]}, {}, r"x has shape \(20, 6, 5\), y \(5,\)"),
    ({"x": IMAGES, "Y": Y}, {}, "array 'y' is not there"),
    ({"x_train": IMAGES, "y_trian": Y}, {}, "array 'y_train' is not there; did you mean 'y_trian'"),
    ({"x_test": IMAGES, "y_test": Y}, {}, "there is x_test and no x_train"),
    ({"x": IMAGES[:0], "y": Y[:0]}, {}, "labels of train: there are no examples"),
    ({"x": np.array([[0, np.nan], [np.inf, 1]] * 10), "y": Y}, {}, "x of train holds 20 values that are NaN or inf"),
    ({"x": np.full((20, 2), 1e300), "y": Y}, {}, "holds 40 values that are NaN or infinite"),
    (
        {"x": IMAGES.astype(int) - 300, "y": Y},
        {},
        "whole numbers from -300 to -.*; set pixels to the numbers of black",
    ),
    ({"x": Y, "y": Y}, {}, r"x of train is int64 \(20,\); numbers \[n, features\]"),
    ({"x": np.full((20, 2), "a"), "y": Y}, {}, "x of train is <U1"),
    ({"x": IMAGES, "y": Y[:, None] * [1, 2]}, {}, r"labels of train have shape \(20, 2\)"),
    ({"x": IMAGES, "y": Y + 0.5}, {}, "labels of train are of type float64 or not whole"),
    ({"x": IMAGES, "y": np.full(20, np.nan)}, {}, "labels of train are of type float64 or not whole"),
    ({"x": IMAGES, "y": Y * 0}, {}, r"there is one class only \(0\)"),
    ({"x": IMAGES[:3], "y": np.array([0, 0, 1])}, {}, "class '0' has 2 examples: too few"),
    ({"x": IMAGES, "y": Y}, {"classes": ("a",)}, "classes names 1 classes and the labels have 2"),
    ({"x": IMAGES, "y": Y, "site": Y}, {"columns": ("sites",)}, "array 'sites' is not there; did you mean 'site'"),
    ({"x": IMAGES, "y": Y, "site": Y[:3]}, {"columns": ("site",)}, r"site has shape \(3,\); the examples have \(20,\)"),
    ({"x": IMAGES, "y": Y, "part": Y[:3]}, {"split": "part"}, r"part has shape \(3,\); one mark per row"),
    ({"x": IMAGES, "y": Y, "part": Y + 1}, {"split": "part"}, "part holds '2'; train, validation, test, 0, 1"),
    ({"x": IMAGES, "y": Y, "part": Y * 0 + 1}, {"split": "part"}, "part has no row of train"),
    (
        {"x_train": IMAGES, "y_train": Y, "x_test": IMAGES, "y_test": Y + 1},
        {},
        "class '2' is in the test part and not in train",
    ),
    (
        {"x_train": IMAGES, "y_train": Y, "x_test": IMAGES, "y_test": Y.astype(str)},
        {},
        "labels are numbers in one part and text in another",
    ),
    (
        {"x_train": IMAGES, "y_train": Y, "x_test": IMAGES[:, :4], "y_test": Y},
        {},
        r"one example of train has shape \(1, 6, 5\), one of test \(1, 4, 5\)",
    ),
]


@pytest.mark.parametrize(("arrays", "set_to", "says"), WRONG)
def test_refused(tmp_path: Path, arrays: dict[str, Any], set_to: dict[str, Any], says: str) -> None:
    with pytest.raises(GenfedError, match=says) as error:
        Npz(path=write(tmp_path, **arrays), **set_to).load()
    assert "\n" not in str(error.value)


def test_files_that_are_not_npz_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="no such file"):
        Npz(path=str(tmp_path / "none.npz")).load()
    whole = Path(write(tmp_path, x=IMAGES, y=Y)).read_bytes()
    for content in (b"", b"text", whole[:300], whole[:200] + b"0" * 50 + whole[250:]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(GenfedError, match=r"not a readable .npz file"):
            Npz(path=str(tmp_path / "bad.npz")).load()
    np.save(tmp_path / "one.npy", Y)
    with pytest.raises(GenfedError, match=r"one array; an .npz file of named arrays"):
        Npz(path=str(tmp_path / "one.npy")).load()
    objects = write(tmp_path, x=np.array([{}, {}], dtype=object), y=Y)
    with pytest.raises(GenfedError, match=r"not a readable .npz file .*allow_pickle"):
        Npz(path=objects).load()


def test_arrays_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    Npz(path=write(tmp_path, x=IMAGES, y=Y, notes=np.array([{}], dtype=object))).load()
