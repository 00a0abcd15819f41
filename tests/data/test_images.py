from io import BytesIO
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource
from genfed.preprocessing.pixel_scale import PixelScale


@settings
class Images(ImageSource):
    """What all sources of images have, by itself."""

    def load(self) -> Dataset:
        raise AssertionError


def png(mode: str, colour: object, size: tuple[int, int] = (4, 3)) -> bytes:
    file = BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")  # type: ignore[arg-type]
    return file.getvalue()


def decode(source: ImageSource, *images: tuple[str, Path | bytes]) -> torch.Tensor:
    return source.decode_all(lambda: images, len(images), PixelScale()).x


def test_nothing_asked_for_changes_nothing() -> None:
    x = torch.randint(256, (5, 2, 7, 6), dtype=torch.uint8, generator=torch.Generator())
    assert torch.equal(Images().convert(x), x)


def test_resizing_is_bilinear_and_smooths_when_it_shrinks() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    x[..., ::2] = 200
    assert Images(size=2).convert(x).float().mean() == pytest.approx(100, abs=15)
    expected = F.interpolate(x.float(), (9, 9), mode="bilinear").round().to(torch.uint8)
    assert torch.equal(Images(size=9).convert(x), expected)


def test_grey_and_colour_turn_into_one_another() -> None:
    red, green, white = [255, 0, 0], [0, 255, 0], [255, 255, 255]
    x = torch.tensor([red, green, white], dtype=torch.uint8).view(3, 3, 1, 1).expand(3, 3, 2, 2)
    grey = Images(channels=1).convert(x)
    assert grey[:, 0, 0, 0].tolist() == [76, 150, 255]
    assert Images(channels=3).convert(grey)[0, :, 0, 0].tolist() == [76, 76, 76]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(256, (7, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator())
    whole = Images(channels=1).convert(x)
    monkeypatch.setattr("genfed.data.images._AT_ONCE", 400)
    assert torch.equal(Images(channels=1).convert(x), whole)


def test_floats_stay_floats() -> None:
    out = Images(size=4).convert(torch.full((1, 1, 2, 2), -0.25))
    assert out.dtype == torch.float32
    assert out.unique(sorted=True).tolist() == [-0.25]  # type: ignore[no-untyped-call]


def test_other_channels_cannot_be_converted() -> None:
    with pytest.raises(GenfedError, match="images have 4 channels: only 1 and 3"):
        Images(channels=1).convert(torch.zeros(1, 4, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("mode", "colour", "pixel"),
    [
        ("1", 1, [255]),
        ("L", 7, [7]),
        ("LA", (7, 255), [7]),
        ("LA", (7, 0), [255]),
        ("P", 0, [0, 0, 0]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
    ],
)
def test_files_are_decoded(mode: str, colour: object, pixel: list[int]) -> None:
    x = decode(Images(), ("a", png(mode, colour)))
    assert x.shape == (1, len(pixel), 3, 4)
    assert x[0, :, 0, 0].tolist() == pixel


def test_images_must_be_alike() -> None:
    pair = [("a", png("L", 1)), ("b", png("L", 1, (5, 6)))]
    with pytest.raises(GenfedError, match="a is 4 × 3 pixels and b 5 × 6; set size"):
        decode(Images(), *pair)
    assert decode(Images(size=8), *pair).shape == (2, 1, 8, 8)
    mixed = [("a", png("L", 1)), ("b", png("RGB", (1, 1, 1)))]
    with pytest.raises(GenfedError, match="a has 1 channels and b has 3; set channels"):
        decode(Images(size=32), *mixed)
    assert decode(Images(size=32, channels=3), *mixed).shape == (2, 3, 32, 32)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = png("L", 1, (50, 50))
    for broken in (b"", b"text", whole[: len(whole) // 2]):
        with pytest.raises(GenfedError, match=r"^a: not a readable image"):
            decode(Images(), ("a", broken))
    with pytest.raises(GenfedError, match=r"^a: not a readable image"):
        decode(Images(), ("a", tmp_path / "none.png"))
    with pytest.raises(GenfedError, match="a: pixels of mode I;16, of more than 8 bits; set pixels"):
        decode(Images(), ("a", png("I;16", 1)))


def test_deep_images_beside_bytes_are_on_one_scale() -> None:
    source, scale = Images(pixels=(0, 65535)), PixelScale(numbers=(0, 65535))
    pair = [("a", png("L", 255)), ("b", png("I;16", 30000))]
    for images in (pair, pair[::-1]):
        x = source.decode_all(lambda images=images: images, 2, scale).x  # type: ignore[misc]
        assert x.dtype == torch.float32
        assert sorted(x[:, 0, 0, 0].tolist()) == pytest.approx([30000 * 2 / 65535 - 1, 1])
    whole = [("a", png("L", 255)), ("b", png("I;16", 257))]
    assert source.decode_all(lambda: whole, 2, scale).x[:, 0, 0, 0].tolist() == [255, 1]


def test_black_below_white() -> None:
    for pixels in ((1, 1), (255, 0)):
        with pytest.raises(GenfedError, match="black below white is allowed"):
            Images(pixels=pixels)
