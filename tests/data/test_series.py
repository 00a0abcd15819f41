"""Windows of series in an .npz: layouts, parts by subject, one scale of the channels, and every error."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genfed.config.reader import read_config, read_source
from genfed.core.errors import GenfedError
from genfed.data.encoder import digest_encoder, read_channel_scale, write_encoder
from genfed.data.fitted import describe_fitted
from genfed.data.series import Series
from genfed.deployment import agreement
from genfed.deployment.roster import SiteDescription
from genfed.experiment.inputs import load_public
from genfed.preprocessing.channel_scale import ChannelScale
from tests.conftest import tiny_series, tiny_waves

RNG = np.random.default_rng(0)
X = RNG.normal([[10.0], [-3.0]], [[2.0], [0.5]], (60, 2, 16))
Y = np.arange(60) % 2
WHO = np.arange(60) // 6


def write(folder: Path, name: str = "a.npz", **arrays: Any) -> str:
    np.savez(folder / name, **arrays)
    return str(folder / name)


def test_channels_are_scaled_by_the_training_windows(tmp_path: Path) -> None:
    data = Series(path=write(tmp_path, x=X, y=Y)).load()
    assert (data.task.kind, data.task.shape, data.task.classes) == ("series", (2, 16), ("0", "1"))
    assert data.train.x.dtype == torch.float32
    assert data.train.x.mean((0, 2)).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert data.train.x.std((0, 2), correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert abs(float(data.test.x.mean())) > 1e-4, "the test part has the scale of the training part"
    assert data.summary.facts[0].startswith(f"{tmp_path}/a.npz: windows of 2 channels × 16 steps, ")


def test_both_layouts_and_one_channel(tmp_path: Path) -> None:
    first = Series(path=write(tmp_path, x=X, y=Y)).load()
    last = Series(path=write(tmp_path, x=X.transpose(0, 2, 1), y=Y), layout="NTC").load()
    assert torch.equal(first.train.x, last.train.x)
    assert Series(path=write(tmp_path, x=X[:, 0], y=Y)).load().task.shape == (1, 16)
    swapped = Series(path=write(tmp_path, x=X.transpose(0, 2, 1), y=Y)).load().summary.warnings
    assert "windows have more channels (16) than steps (2); if the axes are swapped, set layout" in swapped


def test_named_groups_are_the_parts(tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=Y, who=WHO)
    data = Series(path=path, group="who", test_groups=("3", "8"), validation_groups=("0",)).load()
    assert set(data.test_columns["who"]) == {"3", "8"}
    assert set(data.validation_columns["who"]) == {"0"}
    assert set(data.columns["who"]) == {"1", "2", "4", "5", "6", "7", "9"}
    assert data.split_off == (), "which part an example is in depends on no other"
    drawn = Series(path=path, group="who", test_groups=("3", "8"), validation=0.25).load()
    assert len(set(drawn.validation_columns["who"])) == 2
    assert drawn.split_off == ("validation",)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"test_groups": ("3",)}, "test_groups: set group, the natural column that they are values of"),
        ({"group": "who", "test_groups": ("33",)}, "test_groups: who '33' is not there; did you mean '3'?"),
        (
            {"group": "who", "test_groups": ("3",), "validation_groups": ("3",)},
            "validation_groups and test_groups both name '3'",
        ),
        ({"group": "who", "test_groups": tuple("0123456789")}, "0 groups are too few"),
    ],
)
def test_groups_that_cannot_be_parts_are_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=Y, who=WHO)
    with pytest.raises(GenfedError, match=reason):
        Series(path=path, **settings).load()


def test_groups_of_a_part_that_the_data_have_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, x_train=X, y_train=Y, who_train=WHO, x_test=X, y_test=Y, who_test=WHO + 10)
    with pytest.raises(GenfedError, match="test_groups: the data have a test part already; leave it unset"):
        Series(path=path, group="who", test_groups=("3",)).load()


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.full((60, 2, 16), "a"), r"x of train is <U1 \(60, 2, 16\); numbers \[n, channels, steps\] are allowed"),
        (X[:, None], r"x of train is float64 \(60, 1, 2, 16\); numbers"),
        (np.where(X > 14, np.nan, X), r"x of train holds \d+ values that are NaN or infinite"),
        (np.where(X > 14, 1e200, X), "channel 0 is too large to scale"),
        (X[:, :, :0], "numbers"),
    ],
)
def test_arrays_that_are_no_windows_are_refused(x: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=reason):
        Series(path=write(tmp_path, x=x, y=Y)).load()


def test_a_given_scale_is_used_and_checked(tmp_path: Path) -> None:
    data = Series(path=write(tmp_path, x=X, y=Y)).load()
    assert isinstance(data.encoder, ChannelScale)
    write_encoder(data.encoder, tmp_path / "encoder.json")
    other = write(tmp_path, "b.npz", x=X + 100, y=Y)
    given = Series(path=other, encoder=str(tmp_path / "encoder.json")).load()
    assert given.encoder == data.encoder
    (line,) = [line for line in given.summary.warnings if "far from those of training" in line]
    assert line.endswith("channel 0, 1: most values are far from those of training; is it in another unit?")
    one = write(tmp_path, "one.npz", x=X[:, :1], y=Y)
    with pytest.raises(GenfedError, match="x of train: windows of 1 channels; 2 are allowed"):
        Series(path=one, encoder=str(tmp_path / "encoder.json")).load()
    (tmp_path / "wrong.json").write_text(json.dumps({"kind": "table", "numbers": {}, "categories": {}}))
    with pytest.raises(GenfedError, match=r"wrong\.json: not the encoder\.json of a run on series"):
        read_channel_scale(str(tmp_path / "wrong.json"))
    (tmp_path / "wrong.json").write_text('{"kind": "series", "means": [0], "deviations": [0]}')
    with pytest.raises(GenfedError, match=r"not the encoder\.json of a run on series"):
        read_channel_scale(str(tmp_path / "wrong.json"))


def test_a_scale_is_fitted_unless_it_is_given(tmp_path: Path) -> None:
    source = Series(path=write(tmp_path, x=X, y=Y))
    data = source.load()
    assert "set data.encoder" in describe_fitted(source, data)
    assert data.encoder is not None
    write_encoder(data.encoder, tmp_path / "encoder.json")
    given = replace(source, encoder=str(tmp_path / "encoder.json"))
    assert describe_fitted(given, given.load()) == ""


def test_new_windows_are_read_as_those_of_training(tmp_path: Path) -> None:
    source = Series(path=write(tmp_path, x=X, y=Y, row=np.arange(60)), columns=("row",))
    data = source.load()
    (found,) = source.read(write(tmp_path, "new.npz", x=X), data.task, data.encoder)
    rows = [int(row) for row in data.columns["row"]]
    assert torch.equal(found.x[rows], data.train.x)
    (far,) = source.read(write(tmp_path, "far.npz", x=X * 100), data.task, data.encoder)
    assert len(far.warnings) == 1
    for arrays, encoder, reason in (
        ({"x": X[:, :, :8]}, data.encoder, "2 × 8"),
        ({"x": X[:0]}, data.encoder, "holds no examples"),
        ({"x": X}, None, "the run's folder has no encoder.json"),
    ):
        with pytest.raises(GenfedError, match=reason):
            next(source.read(write(tmp_path, "bad.npz", **arrays), data.task, encoder))
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(GenfedError, match=r"the run's examples are series; an \.npz with an array x is allowed"):
        next(source.read(str(tmp_path / "a.csv"), data.task, data.encoder))


def test_sites_whose_channels_are_on_unlike_scales_are_refused_by_name() -> None:
    hello = SiteDescription("", "cnn1d", "series", (2, 16), ("x", "y"), 10, 5, "", "cpu", 0, 0.0, False, 1, 0.0)
    config = read_config(tiny_series("fedavg", federation={"clients": 2}))

    def said(*scales: ChannelScale) -> str:
        digests = [digest_encoder(scale, "series") for scale in scales]
        sites = [replace(hello, name=f"site-{i}", encoder=found) for i, found in enumerate(digests)]
        return "; ".join(agreement.find_disagreements(config, sites))

    one = ChannelScale((0.0, 1.0), (1.0, 2.0))
    assert said(one, one) == ""
    assert "channels are scaled differently at site-0 and site-1" in said(one, ChannelScale((0.0, 1.0), (1.0, 2.1)))


def test_public_windows_on_another_scale_are_refused(tmp_path: Path) -> None:
    config = read_config(tiny_series("fedavg"))
    data = config.data.load()
    digest = digest_encoder(data.encoder, "series")
    same = read_config(tiny_series("fedavg") | {"public": {"kind": "series", "path": tiny_waves()}})
    assert load_public(same, data.task, digest) is not None
    with np.load(tiny_waves()) as arrays:
        path = write(tmp_path, x=arrays["x"] * 2, y=arrays["y"])
    other = read_config(tiny_series("fedavg") | {"public": {"kind": "series", "path": path}})
    with pytest.raises(GenfedError, match="public: its channels are on another scale than the clients'"):
        load_public(other, data.task, digest)


def test_the_source_is_found_by_its_name() -> None:
    assert isinstance(read_source({"kind": "series", "path": tiny_waves()}), Series)
