"""Drawings by matplotlib as SVG that stands inside an HTML page.

The page's style sheet owns colours and typeface: strokes and fills are CSS variables (`--ink`,
`--method-0`, ...), so that one drawing serves light, dark and print, and text stays text.
"""

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins that matplotlib can draw; `to_svg` turns them into the page's variables.
INK, MUTED, GRID, BASE, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
METHODS = tuple(f"#0601{i:02d}" for i in range(1, 8))
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--rule",
    BASE: "--base",
    PAPER: "--paper",
    **{colour: f"--method-{i}" for i, colour in enumerate(METHODS)},
}

STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a method named "$x$" is a name, not mathematics
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Plot:
    """An SVG element, words for a reader who cannot see it, and the methods drawn (for a key)."""

    svg: str
    alt: str
    methods: tuple[str, ...] = ()


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of one plot; `height` in inches, where the width is 5.6."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        return figure, figure.subplots()


def to_svg(figure: Figure, name: str) -> str:
    """Render as an SVG element; `name` must differ between the drawings of one page."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text; what DejaVu lacks (a name in Chinese) does not matter here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    # One page holds several plots, and matplotlib calls each one's parts by the same names.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    # A style element inside an SVG would apply to the whole page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return svg
