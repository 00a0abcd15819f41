"""How a shape is coloured: a colour, a background and an effect, each with the word that a prompt has for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (220, 30, 30),
    "green": (20, 130, 50),
    "blue": (30, 60, 200),
    "yellow": (250, 220, 40),
    "pink": (250, 110, 190),
    "cyan": (40, 200, 220),
}
"""Words that prompts use, and their RGB."""
EFFECTS = ("plain", "outlined", "blurred", "noisy", "striped")
"""Nothing; the rim alone; soft; grain over all; stripes over the background."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Style:
    """How one shape is shown."""

    colour: str
    background: str
    effect: str = "plain"

    def prompt(self, what: str, *more: str) -> str:
        """E.g. "a red digit seven on a white background, slanted" for what = "digit seven", more = ("slanted",)."""
        effect = () if self.effect == "plain" else (self.effect,)
        return ", ".join((f"a {self.colour} {what} on a {self.background} background", *more, *effect))


def describe_character(character: str) -> str:
    """What a prompt calls it: "digit seven", "letter k"."""
    return f"digit {WORDS[int(character)]}" if character.isdigit() else f"letter {character.lower()}"


def paint(shapes: Tensor, styles: Sequence[Style], rng: torch.Generator) -> Tensor:
    """Shapes [n, H, W] in [0, 1], 1 being ink → uint8 [n, 3, H, W], each in its style; `rng` draws the grain."""
    ink, size = shapes.clone(), shapes.shape[1:]
    for effect, change in (("outlined", _rim), ("blurred", _soft)):
        rows = _with(styles, effect)
        ink[rows] = change(ink[rows])
    colour = torch.tensor([COLOURS[style.colour] for style in styles]).float()[..., None, None]
    behind = torch.tensor([COLOURS[style.background] for style in styles]).float()[..., None, None].expand(-1, 3, *size)
    behind = behind.clone()
    band = max(1, size[0] // 8)
    rows, stripes = _with(styles, "striped"), (torch.arange(size[0]) // band % 2).view(1, 1, -1, 1)
    behind[rows] += 0.35 * stripes * (colour[rows] - behind[rows])
    x = behind + ink[:, None] * (colour - behind)
    rows = _with(styles, "noisy")
    x[rows] += 30 * torch.randn(x[rows].shape, generator=rng)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _with(styles: Sequence[Style], effect: str) -> Tensor:
    return torch.tensor([i for i, style in enumerate(styles) if style.effect == effect], dtype=torch.int64)


def _rim(ink: Tensor) -> Tensor:
    return F.max_pool2d(ink, 3, 1, 1) - ink if len(ink) else ink


def _soft(ink: Tensor) -> Tensor:
    return F.avg_pool2d(ink, 3, 1, 1) if len(ink) else ink
