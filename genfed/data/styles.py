"""Styles of a drawn shape: a colour, a background and an effect, each with its word in a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLORS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (220, 30, 30),
    "green": (20, 130, 50),
    "blue": (30, 60, 200),
    "yellow": (250, 220, 40),
    "pink": (250, 110, 190),
    "cyan": (40, 200, 220),
}
"""RGB values by the word that prompts use."""
EFFECTS = ("plain", "outlined", "blurred", "noisy", "striped")
"""No effect; the outline only; blurred ink; noise over the image; stripes over the background."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Style:
    """The style of one shape."""

    color: str
    background: str
    effect: str = "plain"

    def write_prompt(self, what: str, *more: str) -> str:
        """Returns a prompt, e.g. "a red digit seven on a white background, slanted" for ("digit seven", "slanted")."""
        effect = () if self.effect == "plain" else (self.effect,)
        return ", ".join((f"a {self.color} {what} on a {self.background} background", *more, *effect))


def describe_character(character: str) -> str:
    """Returns the words for a character in a prompt: "digit seven", "letter k"."""
    return f"digit {WORDS[int(character)]}" if character.isdigit() else f"letter {character.lower()}"


def paint(shapes: Tensor, styles: Sequence[Style], rng: torch.Generator) -> Tensor:
    """Paints shapes [n, H, W] in [0, 1] (1 is ink), each in its style, as uint8 [n, 3, H, W]; `rng` draws the noise."""
    ink, size = shapes.clone(), shapes.shape[1:]
    for effect, change in (("outlined", _outline), ("blurred", _blur)):
        rows = _find_rows(styles, effect)
        ink[rows] = change(ink[rows])
    color = torch.tensor([COLORS[style.color] for style in styles]).float()[..., None, None]
    behind = torch.tensor([COLORS[style.background] for style in styles]).float()[..., None, None].expand(-1, 3, *size)
    behind = behind.clone()
    band = max(1, size[0] // 8)
    rows, stripes = _find_rows(styles, "striped"), (torch.arange(size[0]) // band % 2).view(1, 1, -1, 1)
    behind[rows] += 0.35 * stripes * (color[rows] - behind[rows])
    x = behind + ink[:, None] * (color - behind)
    rows = _find_rows(styles, "noisy")
    x[rows] += 30 * torch.randn(x[rows].shape, generator=rng)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _find_rows(styles: Sequence[Style], effect: str) -> Tensor:
    return torch.tensor([i for i, style in enumerate(styles) if style.effect == effect], dtype=torch.int64)


def _outline(ink: Tensor) -> Tensor:
    return F.max_pool2d(ink, 3, 1, 1) - ink if len(ink) else ink


def _blur(ink: Tensor) -> Tensor:
    return F.avg_pool2d(ink, 3, 1, 1) if len(ink) else ink
