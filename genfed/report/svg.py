"""How a figure becomes SVG that takes its text color and font from the page around it."""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from genfed.core.text import one_line

INK = "#010203"
"""Stands for the page's text color until the SVG is written."""
COLORS = ("#3b82d6", "#e07b1a", "#2a9d6e", "#9b6bd3", "#d64550", "#2a9fb0", "#a87544", "#d667a8")
"""Colors that are seen on light and dark."""
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it is read aloud, found and scaled
    "text.parse_math": False,  # a label may hold a $
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def shorten(text: str, most: int = 18) -> str:
    """Returns a text as a label of a figure, of at most `most` characters."""
    return one_line(text, most)


def render_svg(
    paint: Callable[[Axes], None],
    alt: str,
    legend: Mapping[str, Line2D],
    height: float = 3.2,
    projection: str | None = None,
    width: float = 5.2,
) -> Markup:
    """Returns a figure as SVG.

    Args:
        paint: Draws on its axes.
        alt: What it shows, in words.
        legend: The lines that it explains, by their labels.
        height: In inches, before the page scales it.
        projection: The kind of axes; None: rectangular.
        width: As `height`.
    """
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": alt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the font that we lack
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot(projection=projection))
        if legend:
            handles, labels = list(legend.values()), [shorten(label, 24) for label in legend]
            figure.legend(handles, labels, loc="outside lower center", ncols=3)
        text = _save_svg(figure)
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z]+[\w.]*_\d+"', "", text)  # names of groups, which would stand twice in the page
    box = re.search(r'viewBox="[^"]*"', text)
    assert box
    body = text[text.index(">") + 1 :].replace(INK, "currentColor")
    # matplotlib escapes the texts of the figure
    return Markup(f'<svg {box[0]} role="img" aria-label="{escape(alt)}">{body}')  # nosec B704


def _save_svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
