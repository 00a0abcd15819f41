"""One scale of pixels, fitted to the training part: whatever an image is stored as, its numbers are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from genfed.core.errors import GenfedError
from genfed.data.encoder import digest_encoder, read_encoder, write_encoder
from genfed.preprocessing.pixel_scale import (
    PixelScale,
    describe_pixels,
    find_doubts,
    find_unlike_parts,
    fit_pixel_scale,
    measure_pixels,
    set_pixel_scale,
)
from genfed.training.pixels import normalize_pixels

PIXELS = arrays_of.arrays(np.uint8, st.tuples(st.integers(2, 5), st.just(1), st.integers(1, 4), st.integers(1, 4)))
STORED: dict[str, Any] = {
    "int64": lambda x: x.astype(np.int64),
    "uint16, big-endian": lambda x: x.astype(">u2"),
    "float64 to 255": lambda x: x.astype(np.float64),
    "float16 to 255": lambda x: x.astype(np.float16),
    "float64 to 1": lambda x: x / 255,
    "float32 to 1": lambda x: x.astype(np.float32) / 255,
    "float32 to 1, another way": lambda x: x.astype(np.float32) * np.float32(1 / 255),
    "float16 to 1": lambda x: (x / 255).astype(np.float16),
    "big-endian float32 to 1": lambda x: (x / 255).astype(">f4"),
    "float32 from -1 to 1": lambda x: (x / 127.5 - 1).astype(np.float32),
    "float16 from -1 to 1": lambda x: (x / 127.5 - 1).astype(np.float16),
    "float64 from -0.5 to 0.5": lambda x: x / 255 - 0.5,
    "Fortran order": lambda x: np.asfortranarray(x / 255),
}


def fit(x: Any, asked: tuple[float, float] | None = None) -> PixelScale:
    if asked is not None:
        return set_pixel_scale(asked, x.dtype, "white")
    return fit_pixel_scale(measure_pixels(x), "white", "x")


@pytest.mark.parametrize("name", STORED)
@fast(max_examples=12, deadline=None)
@given(x=PIXELS)
def test_bytes_stay_the_same_bytes_however_they_are_stored(name: str, x: Any) -> None:
    x[0].flat[0], x[-1].flat[0] = 0, 255  # an image set shows its scale
    stored = STORED[name](x)
    scale = fit(stored)
    assert torch.equal(scale.encode(stored, "x"), torch.from_numpy(x))
    assert torch.equal(scale.encode(x, "x", file=True), torch.from_numpy(x)), "as an image file"


@fast(max_examples=30, deadline=None)
@given(
    arrays_of.arrays(np.float64, (3, 1, 2, 2), elements=st.floats(-1e6, 1e6, width=32)), st.sampled_from([1e-3, 1, 50])
)
def test_any_floats_lie_in_the_range_of_networks_and_come_back(x: Any, by: float) -> None:
    x = x * by
    scale = fit(x)
    found = normalize_pixels(scale.encode(x, "x"))
    assert float(found.min()) >= -1.11
    assert float(found.max()) <= 1.11
    span = scale.numbers[1] - scale.numbers[0]
    assert np.allclose(scale.decode(found).numpy(), x, atol=span * 1e-5)


def test_two_values_are_black_and_white() -> None:
    x = np.array([0, 1, 1, 0]).reshape(2, 1, 1, 2)
    for stored in (x > 0, x.astype(np.uint8), x.astype(np.float32), x):
        assert fit(stored).encode(stored, "x").flatten().tolist() == [0, 255, 255, 0]
    scale = fit(x)
    assert scale.encode(x * 255, "mask.png", file=True).flatten().tolist() == [0, 255, 255, 0]
    assert list(find_doubts(measure_pixels(x), scale)) == [
        "pixels are 0 and 1 only, taken for black and white; set data.pixels = [0, 255] if both are dark greys"
    ]
    assert not list(find_doubts(measure_pixels(x > 0), fit(x > 0)))
    assert fit(x, (0, 255)).encode(x, "x").flatten().tolist() == [0, 1, 1, 0]


def test_a_scale_is_fitted_where_none_is_known() -> None:
    x = np.array([-2.0, 0, 3, 1]).reshape(2, 1, 1, 2)
    scale = fit(x)
    assert (scale.numbers, scale.bytes) == ((-2, 3), None)
    assert normalize_pixels(scale.encode(x, "x")).flatten().tolist() == pytest.approx([-1, -0.2, 1, 0.2])
    (line,) = find_doubts(measure_pixels(x), scale)
    assert "floats from -2 to 3, on no known scale" in line
    assert "set data.pixels to the numbers of black and white, such as [-2, 3]" in line
    with pytest.raises(GenfedError, match=r"a.png holds bytes from 7 to 7; the training pixels are from -2 to 3"):
        scale.encode(np.full((1, 1, 1, 1), 7, np.uint8), "a.png", file=True)
    whole = np.array([0.0, 16, 3, 1]).reshape(2, 1, 1, 2)  # as scikit-learn's digits are
    assert fit(whole).numbers == (0, 16)
    assert fit(whole, (0, 16)).bytes == (0, 255)
    assert fit(np.full((2, 1, 1, 1), 7.5)).encode(np.full((2, 1, 1, 1), 7.5), "x").tolist() == [[[[0.0]]]] * 2


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (0, 250, (0, 255)),
        (-6, 260, (0, 255)),
        (-0.02, 1.03, (0, 1)),
        (-1.05, 0.9, (-1, 1)),
        (-0.5, 0.5, (-0.5, 0.5)),
        (0, 90, (0, 90)),
        (-0.42, 2.8, (-0.42, 2.8)),
    ],
)
def test_floats_show_their_scale(low: float, high: float, scale: tuple[float, float]) -> None:
    assert fit(np.array([low, high, (low + high) / 3]).reshape(3, 1, 1, 1)).numbers == scale


def test_dark_images_and_unlike_parts_are_warned_of() -> None:
    dark, bright = (np.array([0, top], np.uint8).reshape(2, 1, 1, 1) for top in (16, 255))
    (line,) = find_doubts(measure_pixels(dark), fit(dark))
    assert line.startswith("pixels from 0 to 16 fill little of 0 to 255; ")
    assert line.endswith("set data.pixels to the numbers of black and white, such as [0, 16]")
    assert fit(dark, (0, 16)).encode(dark, "x").flatten().tolist() == [0, 255]
    assert not list(find_doubts(measure_pixels(bright), fit(bright)))
    ranges = {"train": measure_pixels(bright), "test": measure_pixels(dark)}
    (line,) = find_unlike_parts(ranges, ranges["train"], fit(bright))
    assert line == "pixels of test are bytes from 0 to 16, of train bytes from 0 to 255: are both on one scale?"
    assert "bytes from 0 to 16; the training pixels" in (fit(bright).doubt(measure_pixels(dark)) or "")
    assert fit(bright).doubt(measure_pixels(bright)) is None


def test_pixels_are_compared_with_the_ends_that_they_are_encoded_by() -> None:
    ink = np.array([0, 1]).reshape(2, 1, 1, 1)
    floats, stored = fit(ink / 1.0), measure_pixels(ink)
    assert floats.encode(ink, "x").flatten().tolist() == [0, 255]
    assert floats.doubt(stored) is None
    assert floats.doubt(stored, file=True) == "holds bytes from 0 to 1; the training pixels are from 0 to 255"
    deep, dim = set_pixel_scale((0, 4095), np.dtype(np.uint16), "white"), (ink * 200).astype(np.uint16)
    said = "holds whole numbers from 0 to 200; the training pixels are from 0 to 4095"
    assert deep.doubt(deep.measure(dim)) == said
    grey = np.array([0.0, 255.0]).reshape(2, 1, 1, 1)
    (line,) = find_unlike_parts({"test": stored}, measure_pixels(grey), fit(grey))
    assert line == "test holds bytes from 0 to 1; the training pixels are from 0 to 255"


def test_whole_numbers_beyond_bytes_need_a_range() -> None:
    for low, high, said in [
        (0, 700, "[0, 1023]"),
        (0, 60000, "[0, 65535]"),
        (0, 70000, "[0, 70000]"),
        (-128, 127, "[-128, 127]"),
    ]:
        x = np.array([low, high]).reshape(2, 1, 1, 1)
        with pytest.raises(GenfedError, match="set pixels to the numbers of black and white") as error:
            fit(x)
        assert str(error.value).endswith(said)
        assert fit(x, (low, high)).encode(x, "x").flatten().tolist() == [0, 255]
    deep = np.array([0, 30000, 65535], np.uint16).reshape(3, 1, 1, 1)
    scale = fit(deep, (0, 65535))
    assert scale.encode(deep, "x").flatten().tolist() == pytest.approx([-1, -0.0845, 1], abs=1e-4)
    assert scale.encode(np.full((1, 1, 1, 1), 255, np.uint8), "8-bit.png", file=True).tolist() == [[[[255]]]]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).random((7, 1, 3, 2))
    whole = fit(x), fit(x).encode(x, "x")
    monkeypatch.setattr("genfed.preprocessing.pixel_scale._AT_ONCE", 12)
    assert fit(x) == whole[0]
    assert torch.equal(fit(x).encode(x, "x"), whole[1])
    assert measure_pixels(x, torch.tensor([0, 2, 4, 5, 6])).high == x[[0, 2, 4, 5, 6]].max()


def test_a_scale_is_the_same_after_a_file(tmp_path: Path) -> None:
    for scale in (PixelScale(), PixelScale(numbers=(-2.5, 1 / 3), bytes=None, ground="black")):
        write_encoder(scale, tmp_path / "encoder.json")
        assert read_encoder(tmp_path / "encoder.json") == scale
    (tmp_path / "encoder.json").write_text('{"kind": "pixels", "numbers": ["a", 1]}')
    with pytest.raises(GenfedError, match=r"encoder.json is damaged"):
        read_encoder(tmp_path / "encoder.json")


def test_sites_agree_where_one_image_gives_the_same_numbers() -> None:
    same = [
        PixelScale(),
        PixelScale(numbers=(0, 1)),
        PixelScale(numbers=(0, 1), bytes=(0, 1)),
        PixelScale(numbers=(-1, 1)),
    ]
    assert len({digest_encoder(scale) for scale in same}) == 1
    other = [
        PixelScale(),
        PixelScale(ground="black"),
        PixelScale(numbers=(-2, 3), bytes=None),
        PixelScale(numbers=(-2, 4), bytes=None),
    ]
    assert len({digest_encoder(scale) for scale in other}) == 4


def test_sites_that_set_other_numbers_do_not_agree() -> None:
    """Of image files, of arrays of bytes, and of arrays of wider numbers."""
    for stored in (None, np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32)):
        asked: list[tuple[float, float]] = [(0, 100), (0, 255), (0, 4095), (0, 65535), (0, 65535.5)]
        scales = [set_pixel_scale(numbers, stored, "white") for numbers in asked]
        assert len({digest_encoder(scale) for scale in scales}) == 5
        assert digest_encoder(scales[0]) == digest_encoder(set_pixel_scale((0, 100), stored, "white"))


def test_a_scale_is_described_in_words() -> None:
    x = np.array([[0.0, 1.0]]).reshape(2, 1, 1, 1)
    assert describe_pixels(measure_pixels(x), fit(x)) == "pixels: floats from 0 to 1; black is 0, white is 1"
    assert PixelScale().formula.endswith("; of pixels from 0 to 255 it is pixel · 2/255 − 1")
    assert (
        "of bytes from 0 to 255 it is pixel · 2/255 − 1; of other numbers from 0 to 1 it is pixel · 2/1 − 1"
        in fit(x).formula
    )
    z = PixelScale(numbers=(-2, 3), bytes=None).formula
    assert (
        z == "−1 is -2 and 1 is 3 of the data's own numbers; of other numbers from -2 to 3 it is (pixel + 2) · 2/5 − 1"
    )
