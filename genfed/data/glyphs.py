"""Rendered characters with prompts: public data for a foundation model, without a download.

The fonts are those that matplotlib ships: DejaVu, STIX and Computer Modern.
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource
from genfed.data.styles import COLORS, EFFECTS, Style, describe_character, paint
from genfed.preprocessing.pixel_scale import PixelScale

_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
_CHARACTERS = {"digits": "0123456789", "letters": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_DRAWN = 64
"""Height and width in pixels at which a character is drawn before it is resized."""
_SIZES = (54, 64, 74)
_STYLED = ("prompt", "word", "colour", "background", "effect")


@settings
class Glyphs(ImageSource):
    """Digits or capital letters in many fonts, colours, backgrounds, slants and effects.

    Columns: prompt ("a red digit seven on a white background, slanted"), word ("digit seven"), colour, background,
    effect and font. The same settings give the same images on one version of Pillow.
    """

    characters: Literal["digits", "letters"] = "digits"
    """The classes."""
    examples: int = Field(default=20_000, ge=1)
    """Number of images; the classes take turns."""
    size: int = Field(default=16, ge=8, le=512)
    """Height and width of the images in pixels."""
    channels: Literal[1, 3] | None = Field(default=3)
    """Number of channels. 1: grey; 3: RGB."""
    colours: tuple[str, ...] = tuple(COLORS)
    """Colours of characters and backgrounds; the two in one image always differ."""
    effects: tuple[str, ...] = EFFECTS
    """Effects on the images. Half of the images are "plain" and the other effects share the rest; without "plain" they
    share all images."""
    slanted: float = Field(default=0.3, ge=0, le=1)
    """Share of the characters that lean to the left or right."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, given, known in (("colours", self.colours, COLORS), ("effects", self.effects, EFFECTS)):
            if unknown := [name for name in given if name not in known]:
                raise GenfedError(f"{key}: {unknown[0]!r} is not there; there are: {', '.join(known)}")
        if len(set(self.colours)) < 2 or not self.effects:
            raise GenfedError("colours takes at least two and effects at least one: a shape needs another background")

    @property
    def origin(self) -> str:
        return f"rendered {self.characters}"

    def load(self) -> Dataset:
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        names, rng = _CHARACTERS[self.characters], stream(self.seed, "glyphs")
        fonts = [(name, ImageFont.truetype(str(folder / f"{name}.ttf"), size)) for name in _FONTS for size in _SIZES]
        columns: dict[str, list[str]] = {name: [] for name in (*_STYLED, "font")}
        styles, drawn = [], torch.empty(self.examples, _DRAWN, _DRAWN, dtype=torch.uint8)
        for i in range(self.examples):
            draws = torch.rand(6, generator=rng).tolist()
            name, font = fonts[int(draws[0] * len(fonts))]
            slant = (0.25 + 0.25 * draws[2]) * (1 if draws[3] < 0.5 else -1) if draws[1] < self.slanted else 0.0
            drawn[i] = _draw_character(names[i % len(names)], font, slant, draws[4], draws[5])
            style, what = self._draw_style(rng), describe_character(names[i % len(names)])
            prompt = style.write_prompt(what, "slanted") if slant else style.write_prompt(what)
            for key, value in zip(_STYLED, (prompt, what, style.color, style.background, style.effect), strict=True):
                columns[key].append(value)
            columns["font"].append(name)
            styles.append(style)
        size = (self.size, self.size)
        shapes = torch.cat(
            [
                F.interpolate(part[:, None].float() / 255, size, mode="bilinear", antialias=True)[:, 0].clamp(0, 1)
                for part in torch.split(drawn, 1000)
            ]
        )
        data = Data(self.convert(paint(shapes, styles, rng)), torch.arange(self.examples) % len(names))
        return self.build_dataset("image", {"train": data}, tuple(names), columns, PixelScale(ground=self.background))

    def _draw_style(self, rng: torch.Generator) -> Style:
        color, background = (self.colours[i] for i in torch.randperm(len(self.colours), generator=rng)[:2].tolist())
        share, which = torch.rand(2, generator=rng).tolist()
        others = [effect for effect in self.effects if effect != "plain"]
        plain = "plain" in self.effects and (share < 0.5 or not others)
        return Style(color, background, "plain" if plain else others[int(which * len(others))])


def _draw_character(text: str, font: ImageFont.FreeTypeFont, slant: float, right: float, down: float) -> Tensor:
    """Draws the character, uint8 [_DRAWN, _DRAWN], in the middle or up to a twelfth of the side away from it."""
    image = Image.new("L", (_DRAWN, _DRAWN))
    x, y = (_DRAWN / 2 + (share - 0.5) * _DRAWN / 6 for share in (right, down))
    left, top, end, bottom = font.getbbox(text)
    ImageDraw.Draw(image).text((x - (left + end) / 2, y - (top + bottom) / 2), text, 255, font)
    if slant:
        lean = (1.0, slant, -slant * _DRAWN / 2, 0.0, 1.0, 0.0)
        image = image.transform(image.size, Image.Transform.AFFINE, lean, Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(_DRAWN, _DRAWN)
