"""Matplotlib figures as inline SVG that follows the page's colours, font and width.

Figures are drawn in stand-in colours; in the SVG each becomes a CSS variable, so that light and dark need no second
figure. Text stays text. Ids get a prefix, because all figures share one document.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

INK = "#010203"
MUTED = "#040506"
LINE = "#070809"
SURFACE = "#0a0b0c"
SERIES = ("#1a0001", "#1a0002", "#1a0003", "#1a0004", "#1a0005", "#1a0006")
"""One colour a series; a seventh series would repeat the first."""

_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    SURFACE: "var(--surface)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}

WIDTH = 420
"""Width of a figure in its own units; text of 12 units is then still readable on a phone."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fl-sim",
    "text.parse_math": False,
    "font.size": 12.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12.0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 1.0,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 12.0,
    "ytick.labelsize": 12.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
}


def draw_svg(draw: Callable[[Figure], None], *, name: str, height: int, description: str) -> Markup:
    """Draw a figure and return it as ``<svg>`` for an HTML page.

    Args:
        draw: Fills the figure, in the stand-in colours of this module.
        name: Prefix of the ids inside, unique on the page; letters, digits and hyphens.
        height: Height in the units of `WIDTH`.
        description: What a screen reader says in place of the figure.
    """
    points_per_inch = 72
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the text; that matplotlib's own font lacks a letter does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH / points_per_inch, height / points_per_inch), layout="constrained")
        draw(figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return Markup(_embed(stream.getvalue(), name, height, description))


def _embed(svg: str, name: str, height: int, description: str) -> str:
    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r" ?font-family: [^;\"]+;?", "", body)
    body = re.sub(r'\b(d|x|y)="[^"]*"', lambda match: _round_coordinates(match.group()), body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    opening = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(
        description, WIDTH, height
    )
    return opening + Markup(_prefix_ids(body, name))


def _round_coordinates(attribute: str) -> str:
    return re.sub(r"(\.\d)\d+", r"\1", attribute)


def _prefix_ids(body: str, name: str) -> str:
    """Drop the ids that nothing refers to and make the others unique on the page."""
    referenced = set(re.findall(r'(?:href="|url\()#([^")]+)', body))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match.group(1)}"' if match.group(1) in referenced else ""

    body = re.sub(r' id="([^"]*)"', rename, body)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
