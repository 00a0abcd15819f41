from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genfed.core.errors import GenfedError
from genfed.data.dataset import Dataset
from genfed.data.npz import Npz
from genfed.preprocessing.pixel_scale import PixelScale

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


def test_two_axes_are_a_table(tmp_path: Path) -> None:
    table = Npz(path=write(tmp_path, x=IMAGES[:, 0].astype(">f8"), y=Y)).load()
    assert (table.task.kind, table.task.shape, table.train.x.dtype) == ("table", (5,), torch.float32)


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
    ({"x": IMAGES, "why": Y}, {}, "array 'y' is not there"),
    ({"x": IMAGES, "images": IMAGES, "target": Y, "labels": Y}, {}, "target and labels are there; which is y"),
    ({"images": IMAGES, "data": IMAGES, "y": Y}, {}, "images and data are there; which is x"),
    ({"x_train": IMAGES, "y_train": Y, "x_val": IMAGES, "x_valid": IMAGES}, {}, "x_val and x_valid are both x of val"),
    ({"x": np.zeros((20, 0, 5)), "y": Y}, {}, r"x of train has shape \(20, 0, 5\); an example without numbers"),
    ({"x": IMAGES, "y": Y.astype(np.uint64) + 2**63, "x_": Y}, {"classes": ("a",)}, "classes names 1 classes"),
    ({"x_train": IMAGES, "y_trian": Y}, {}, "array 'y_train' is not there; did you mean 'y_trian'"),
    ({"x_test": IMAGES, "y_test": Y}, {}, "there is x_test and no x_train"),
    ({"x": IMAGES[:0], "y": Y[:0]}, {}, "labels of train: there are no examples"),
    ({"x": np.array([[0, np.nan], [np.inf, 1]] * 10), "y": Y}, {}, "x of train holds 20 values that are NaN or inf"),
    ({"x": np.full((20, 2), 1e300), "y": Y}, {}, "holds 40 values that are NaN or infinite"),
    (
        {"x": IMAGES.astype(int) - 300, "y": Y},
        {},
        "whole numbers from -300 to -.*; set pixels to the numbers of black and white, such as",
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


def load(folder: Path, arrays: dict[str, Any], **set_to: Any) -> Dataset:
    return Npz(path=write(folder, **arrays), **set_to).load()


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),  # Keras' habit
        ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),  # MedMNIST
        ("X_train", "Y_train", "X_valid", "Y_valid", "X_test", "Y_test"),
        ("trainX", "trainY", "devX", "devY", "testX", "testY"),
        ("xtrain", "ytrain", "xdev", "ydev", "xtest", "ytest"),
        (
            "training-inputs",
            "training-targets",
            "validation-inputs",
            "validation-targets",
            "test_inputs",
            "test_targets",
        ),
    ],
)
def test_common_names_of_parts_are_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrays = [IMAGES, Y[:, None], IMAGES[:6] // 2, Y[:6], IMAGES[:4] // 3, Y[:4]]
    data = load(tmp_path, dict(zip(names, arrays, strict=True)))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 6, 4]
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(IMAGES[:4] // 3))
    assert "validation" in data.summary.facts[0]
    assert not [line for line in data.summary.warnings if "not read" in line]


def test_common_names_without_parts_are_read(tmp_path: Path) -> None:
    for names in (("X", "Y"), ("images", "labels"), ("data", "target"), ("x", "label")):
        data = load(tmp_path, {names[0]: IMAGES, names[1]: Y, "images_note": Y})
        assert len(data.train) == 14
        assert data.summary.facts[0].endswith(f": {names[0]} and {names[1]}")


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    own = {"x_train": IMAGES, "y_train": Y, "x_eval": IMAGES, "y_eval": Y, "x_test": IMAGES, "x": IMAGES, "site": Y}
    data = load(tmp_path, own)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [14, 2, 4]
    assert [line for line in data.summary.warnings if "x_test has no labels: not used" in line]
    (line,) = [line for line in data.summary.warnings if line.startswith("arrays that are not read")]
    assert line.startswith("arrays that are not read: x_eval, y_eval, x; ")
    assert "arrays that are not read: site; name natural columns in columns" in data.summary.facts
    assert not [f for f in load(tmp_path, own, columns=("site",)).summary.facts if "site" in f]


def test_marks_of_parts_are_read_in_every_form(tmp_path: Path) -> None:
    last = np.arange(20) >= 14
    words = np.where(last, "Testing", "train_set")
    for name, marks in [
        ("part", last),
        ("part", last.astype(float)),
        ("part", words),
        ("part", words.astype("S")),
        ("is_test", last),
        ("is_train", ~last),
        ("train_mask", (~last).astype(int)),
    ]:
        data = load(tmp_path, {"x": IMAGES, "y": Y, name: marks}, split=name, validation=0.0)
        assert torch.equal(data.test.x[:, 0], torch.from_numpy(IMAGES[14:])), name
    data = load(tmp_path, {"x": IMAGES, "y": Y, "is_val": last}, split="is_val")
    assert torch.equal(data.validation.x[:, 0], torch.from_numpy(IMAGES[14:]))


def test_texts_stored_as_bytes_are_decoded(tmp_path: Path) -> None:
    for encoding in ("utf-8", "latin-1"):
        words = np.array([word.encode(encoding) for word in ("süß", "bitter")])[Y]
        data = load(tmp_path, {"x": IMAGES, "y": words, "site": words}, columns=("site",), encoding=encoding)
        assert data.task.classes == ("bitter", "süß")
        assert set(data.columns["site"]) == {"bitter", "süß"}
    for arrays in ({"y": words}, {"y": Y, "site": words}):
        with pytest.raises(GenfedError, match=r"not utf-8 .*set encoding, such as .latin-1"):
            load(tmp_path, {"x": IMAGES, **arrays}, columns=("site",) if "site" in arrays else None)
    with pytest.raises(GenfedError, match="not utf-9"):
        load(tmp_path, {"x": IMAGES, "y": words}, encoding="utf-9")


def test_large_labels_keep_their_names(tmp_path: Path) -> None:
    large = Y.astype(np.uint64) + np.uint64(2**63 + 5)
    assert load(tmp_path, {"x": IMAGES, "y": large}).task.classes == (str(2**63 + 5), str(2**63 + 6))
    both = {"x_train": IMAGES, "x_test": IMAGES[:2], "y_test": np.array([5, 6])}
    mixed = load(
        tmp_path, both | {"y_train": np.where(Y, large, np.uint64(5)) + Y.astype(np.uint64) * 0, "y_test": [5, 5]}
    )
    assert mixed.task.classes == ("5", str(2**63 + 6))


def test_an_array_of_classes_names_labels(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "eel"])
    assert load(tmp_path, {"x": IMAGES, "y": Y * 2, "classes": names}).task.classes == ("cat", "eel")
    for classes, y in ((names, Y * 3), (names, Y - 1), (np.array([7, 8, 9]), Y), (np.array(["a", "a"]), Y)):
        assert load(tmp_path, {"x": IMAGES, "y": y, "classes": classes}).task.classes == tuple(map(str, sorted(set(y))))


def test_pixels_beyond_bytes_need_their_range(tmp_path: Path) -> None:
    deep = IMAGES.astype(np.uint16) * 16
    with pytest.raises(GenfedError, match=r"whole numbers from 0 to 40\d\d; set pixels .*such as \[0, 4095\]"):
        load(tmp_path, {"x": deep, "y": Y})
    data = load(tmp_path, {"x": deep, "y": Y}, pixels=(0, 4080))
    assert torch.equal(data.train.x, load(tmp_path, {"x": IMAGES, "y": Y}).train.x)
    assert data.encoder == PixelScale(numbers=(0, 4080))


def test_parts_on_unlike_scales_are_refused_or_warned_of(tmp_path: Path) -> None:
    photo = np.random.default_rng(1).random((20, 6, 5))
    z = (photo - 0.5) / 0.2
    for train, test, says in [
        (photo, IMAGES.astype(float), "x of test holds floats from 0 to 255; the training pixels are from 0 to 1"),
        (IMAGES, photo, "x of test holds floats from .*; the training pixels are from 0 to 255: multiply by 255"),
        (photo * 255, photo, "multiply by 255"),
        (z, photo * 255, "x of test holds floats"),
        (z, IMAGES, "x of test holds bytes from 0 to 255; the training pixels are from -2"),
        (photo, z, "x of test holds floats from -2"),
    ]:
        with pytest.raises(GenfedError, match=says):
            load(tmp_path, {"x_train": train, "y_train": Y, "x_test": test, "y_test": Y})
    doubtful: list[tuple[Any, Any]] = [(IMAGES, IMAGES // 128), (photo * 2 - 1, photo), (z, photo)]
    for train, test in doubtful:
        data = load(tmp_path, {"x_train": train, "y_train": Y, "x_test": test, "y_test": Y})
        assert [line for line in data.summary.warnings if "are both on one scale?" in line]
    alike: list[tuple[Any, Any]] = [(photo, IMAGES), (IMAGES, IMAGES > 99), (photo * 2 - 1, IMAGES)]
    for train, test in [*alike, (IMAGES, IMAGES.astype("f4"))]:
        data = load(tmp_path, {"x_train": train, "y_train": Y, "x_test": test, "y_test": Y})
        assert not [line for line in data.summary.warnings if "one scale" in line]
        assert data.test.x.dtype == torch.uint8
        assert int(data.test.x.max()) == 255


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    whole = Path(write(tmp_path, x=IMAGES, y=Y)).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "data.npz").write_bytes(
            bytes(damaged[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.2 else damaged)
        )
        said = ""
        try:
            Npz(path=str(tmp_path / "data.npz")).load()
        except GenfedError as error:
            said = str(error)
        assert "\n" not in said


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        ((0, 1), "healthy flu cold", "0 → healthy, 1 → flu"),
        ((1, 3), "healthy flu cold", "1 → healthy, 3 → cold"),
        ((0, 2), "healthy flu", None),
        ((1, 2), "healthy flu cold", "no label is 0, so label 1 may be 'flu' or 'healthy' of the array classes"),
    ],
)
def test_names_of_classes_are_counted_from_0_or_from_1(
    labels: tuple[int, int], names: str, says: str | None, tmp_path: Path
) -> None:
    y = np.array([labels[i % 2] for i in range(len(IMAGES))])
    source = Npz(path=write(tmp_path, x=IMAGES, y=y, classes=np.array(names.split())))
    if says is not None and "may be" in says:
        with pytest.raises(GenfedError, match=says):
            source.load()
        return
    lines = [line for line in source.load().summary.facts if line.startswith("class names: ")]
    assert lines == ([] if says is None else [f"class names: {says}"])
