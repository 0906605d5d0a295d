"""How the report's pictures are drawn: as SVG text, to stand inside an HTML page.

Drawn with matplotlib's object interface (no pyplot, no windows). Text stays text, so that it can
be searched and read aloud. Kinds and strategies differ by colour (Okabe and Ito's palette, told
apart with any colour vision) *and* by the shape of their marker. Names out of files are drawn as
they are, never as mathematics. The same input gives the same text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0  # inches, of every picture
DARK = "#222222"
GREY = "#6b6b6b"
HEADS, FFN, FULL = "#0072B2", "#D55E00", "#e4e4e4"

# colour and marker of each kind of candidate and each strategy
_STYLES = {
    "evolved": ("#767676", "o"),
    "exact": ("#0072B2", "D"),
    "uniform": ("#D55E00", "s"),
    "layers": ("#009E73", "^"),
    "hybrid": ("#AA4499", "v"),
    "search": ("#0072B2", "D"),
}
_OTHER_STYLES = (("#E69F00", "P"), ("#332288", "X"), ("#117733", "h"), ("#882255", "<"))

_SETTINGS: dict[Any, Any] = {  # of matplotlib's rc parameters
    "font.family": "sans-serif",
    # matplotlib ships the first; a browser without it takes one that is as wide
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Geneva", "sans-serif"],
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,
}


@contextmanager
def drawing(name: str, height: float) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """A new figure, and a function that gives its SVG once the block has ended.

    `name` keeps the ids of several pictures in one page apart.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn: list[str] = []
    with rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, lambda: drawn[0]
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
        drawn.append(_inline(buffer.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """The `<svg>` element alone, without metadata, as wide as the page, its ids its own."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", element).strip()


def looks_of(names: Iterator[str] | Sequence[str] | Any) -> dict[str, tuple[str, str]]:
    """Colour and marker of each name; unknown ones take the spare styles in order."""
    present = list(dict.fromkeys(names))
    known = {name: _STYLES[name] for name in _STYLES if name in present}
    unknown = [name for name in present if name not in _STYLES]
    spare = {name: _OTHER_STYLES[i % len(_OTHER_STYLES)] for i, name in enumerate(unknown)}
    return known | spare


def short(name: str, limit: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def side_label(axes: Axes, x: float, label: str) -> None:
    """Text along a vertical line, at its top, on the line's left."""
    axes.annotate(
        label,
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-3, -2),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=9.5,
        color=DARK,
    )


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Axes) -> None:
    """What the axes show, named below the whole picture."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def legend_outside(axes: Axes) -> None:
    """What the axes show, named on their right."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
