"""Drawings by matplotlib as SVG that stands inside an HTML page.

The page's style sheet owns colours and typeface: strokes and fills are CSS variables (`--ink`,
`--method-0`, ...), so that one drawing serves light, dark and print, and text stays text.
"""

import contextlib
import csv
import functools
import importlib.resources
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dora_jax.analysis.atomic import write_bytes, write_text

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


Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """Figures, as of a plot what it shows: a header, and rows of as many cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: names its files.
        svg: an SVG element for the page.
        alt: words for a reader who cannot see it.
        methods: the arms drawn, for a key.
        table: what is drawn.
        figure: the drawing, for files of other kinds.
    """

    name: str
    svg: str
    alt: str
    methods: tuple[str, ...]
    table: Table
    figure: Figure = field(compare=False, repr=False)


def make_plot(
    figure: Figure, name: str, alt: str, table: Table, methods: Sequence[str] = ()
) -> Plot:
    """Finish a drawing; `name` must differ between the drawings of one page."""
    return Plot(name, to_svg(figure, name), alt, tuple(methods), table, figure)


def save_plot(plot: Plot, folder: Path) -> None:
    """Write a plot's `NAME.svg`, `NAME.png` and `NAME.csv`, in the page's light colours.

    Raises:
        DoraError: when a file cannot be written.
    """
    _recolour(plot.figure)
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        with _rendering(plot.name):
            plot.figure.savefig(buffer, format=kind, dpi=160, metadata=_METADATA[kind])
        write_bytes(folder / f"{plot.name}.{kind}", buffer.getvalue())
    save_table(plot.table, folder / f"{plot.name}.csv")


def save_table(table: Table, path: Path) -> None:
    """Write a table as CSV.

    Raises:
        DoraError: when the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([table.header, *table.rows])
    write_text(path, text.getvalue())


# Nothing that differs from one drawing of the same figures to the next.
_METADATA: dict[str, dict[str, None]] = {
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "png": {"Software": None},
}


@functools.cache
def _light() -> dict[str, str]:
    """Return the colour of each stand-in in the style sheet's light scheme, which comes first."""
    style = importlib.resources.files("dora_jax.analysis") / "templates" / "report.css"
    found = re.findall(r"(--[\w-]+):\s*(#[0-9a-f]{6})", style.read_text(encoding="utf-8"))
    first = dict(reversed(found))
    return {stand_in: first[variable] for stand_in, variable in VARIABLES.items()}


def _recolour(figure: Figure) -> None:
    """Give every part of a drawing the colour that its stand-in means."""
    light = _light()
    figure.set_facecolor(light[PAPER])
    names = ("color", "edgecolor", "facecolor", "markerfacecolor", "markeredgecolor")
    for artist in figure.findobj():
        for name in names:
            getter = getattr(artist, f"get_{name}", None)
            if getter is None or not hasattr(artist, f"set_{name}"):
                continue
            colour = getter()
            colour = colour[0] if isinstance(colour, np.ndarray) and colour.ndim == 2 else colour
            if not matplotlib.colors.is_color_like(colour):
                continue
            meant = light.get(matplotlib.colors.to_hex(colour))
            if meant is not None:
                getattr(artist, f"set_{name}")(meant)


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of one plot; `height` in inches, where the width is 5.6."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        return figure, figure.subplots()


@contextlib.contextmanager
def _rendering(name: str) -> Iterator[None]:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text; what DejaVu lacks (a name in Chinese) does not matter here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_svg(figure: Figure, name: str) -> str:
    """Render as an SVG element; `name` must differ between the drawings of one page."""
    buffer = io.StringIO()
    with _rendering(name):
        figure.savefig(buffer, format="svg", metadata=_METADATA["svg"])
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
