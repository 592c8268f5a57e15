"""How charts are drawn and kept: styles, axes, and files that do not differ between two runs.

A line belongs here when it would be the same for a chart of anything else.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rerank_async.bench._words import one_line, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "GRID",
    "INK",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "check_installed",
    "legend_below",
    "load_axis",
    "log_axis",
    "new_figure",
    "number_axis",
    "png_of",
    "style",
    "svg_of",
    "title_of",
]

# Okabe and Ito's, and the greys of the text. A page gives them other values in the dark.
BLUE = "#0072b2"
GREEN = "#009e73"
ORANGE = "#e69f00"
VERMILLION = "#d55e00"
PURPLE = "#cc79a7"
SKY = "#9ad0f0"
INK = "#1b1f24"
GREY = "#6b7280"
GRID = "#e3e6ea"
PAPER = "#ffffff"

_MISSING = 'charts need matplotlib: pip install "rerank-async[bench]"'


def check_installed() -> None:
    """Whether charts can be drawn; to be asked before a benchmark, not after it.

    Raises:
        RuntimeError: matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise RuntimeError(_MISSING) from None


@contextmanager
def style() -> Iterator[None]:
    """Draw and keep charts within it: matplotlib's own defaults, whatever the user's are, and ours.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    check_installed()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "rerank-async",
                # Text stays text: it can be searched, and read aloud.
                "svg.fonttype": "none",
                "font.family": ["DejaVu Sans"],
                "font.size": 10,
                # A "$" in a model's name is a "$".
                "text.parse_math": False,
                "text.color": INK,
                "axes.edgecolor": GREY,
                "axes.labelcolor": INK,
                "xtick.color": INK,
                "ytick.color": INK,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": GRID,
                "figure.facecolor": PAPER,
                "axes.facecolor": "none",
                "legend.frameon": False,
            }
        )
        with warnings.catch_warnings():
            # A name in a script that the font lacks is boxes in the PNG, and itself in the SVG.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
            yield


def new_figure(
    rows: int, *, height: float = 4.6, share_x: bool = False
) -> tuple[Figure, list[Any]]:
    """A figure with so many axes below one another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=share_x, squeeze=False)
    return figure, [row[0] for row in axes]


def title_of(figure: Figure, title: str, below: str) -> None:
    """What the chart shows, and of whom."""
    figure.suptitle(f"{title}\n{below}", x=0.01, ha="left", fontsize=10)


def legend_below(figure: Figure, *all_axes: Axes) -> None:
    """One legend for all axes, where no data can be."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if len(found) < 2 and len(all_axes) == 1:
        return
    longest = max(map(len, found))
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=min(
            len(found), 5 if longest < 18 else 4 if longest < 23 else 3 if longest < 26 else 1
        ),
        fontsize=9,
        handlelength=3.2,
    )


# ── axes ──


def number_axis(axes: Axes, label: str, most: float, *, ticks: int = 6) -> None:
    """Upwards from zero, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(0, most * 1.08 if most > 0 else 1)
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.set_ylabel(label)


def load_axis(axes: Axes, loads: Sequence[float], label: str) -> None:
    """To the right, with ticks at the loads that were held, as many as there is room for."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    places = sorted(set(loads))
    is_log = places[0] > 0 and places[-1] / places[0] >= 8
    if is_log:
        axes.set_xscale("log", base=2)
    at = [math.log2(place) if is_log else place for place in places]
    width = (at[-1] - at[0]) or 1.0
    shown = [places[i] for i in _with_room([(p - at[0]) / width for p in at], map(tick, places))]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([tick(place) for place in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    # The whole range, so that a load at which nothing was answered is seen to lack.
    room = 0.04 * width if len(places) > 1 else 0.5
    low, high = at[0] - room, at[-1] + room
    axes.set_xlim(*((2**low, 2**high) if is_log else (low, high)))
    axes.set_xlabel(f"{label}, log scale" if is_log else label)


def _with_room(places: Sequence[float], labels: Iterator[str]) -> list[int]:
    """Which labels can stand beside one another; the last one does in any case.

    Args:
        places: the places of the labels, from 0 to 1, in order.
        labels: the labels at these places.
    """
    # So much of the width does a character take.
    halves = [0.0075 * (len(label) + 1) for label in labels]
    last = len(places) - 1
    chosen: list[int] = []
    for i, place in enumerate(places):
        clear = not chosen or place - halves[i] >= places[chosen[-1]] + halves[chosen[-1]]
        if clear or i == last:
            while chosen and place - halves[i] < places[chosen[-1]] + halves[chosen[-1]]:
                chosen.pop()
            chosen.append(i)
    return chosen


def log_axis(axis: Axis, label: str, values: Sequence[float], *, few: bool = False) -> None:
    """Logarithmic, around `values`, with plain numbers that a person would choose as ticks."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ticks = log_ticks([value for value in values if value > 0], 4 if few else 9)
    axes: Any = axis.axes
    name = "x" if axis is axes.xaxis else "y"
    getattr(axes, f"set_{name}scale")("log")
    getattr(axes, f"set_{name}lim")(ticks[0], ticks[-1])
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([tick(value) for value in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_label_text(label)


def log_ticks(values: Sequence[float], most: int) -> list[float]:
    """Round numbers of which the first is below all values and the last above; about `most`.

    They are 1, 2, 5, 10 and so on, or powers of ten where these would be too many.
    """
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    found: list[float] = []
    for steps, skip in (((1, 2, 5), 1), *(((1,), skip) for skip in (1, 2, 3, 4, 6, 9))):
        every = [float(f"{s}e{e}") for e in range(first, last + skip, skip) for s in steps]
        while len(every) > 2 and every[1] <= low / 1.05:
            every.pop(0)
        while len(every) > 2 and every[-2] >= high * 1.05:
            every.pop()
        found = every
        if len(found) <= most + 1:
            break
    return found


# ── files ──


def png_of(figure: Figure) -> bytes:
    """The chart as PNG, twice as fine as it is shown."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def svg_of(figure: Figure, name: str) -> bytes:
    """The chart as SVG; its ids begin with `name`, so that several can be on one page."""
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!DOCTYPE[^>]*>\s*", "", text)
    text = re.sub(r'(\bid=")', rf"\1{one_line(name)}-", text)
    text = re.sub(r'((?:xlink:href="|url\()#)', rf"\1{one_line(name)}-", text)
    # Who has not this font has another one without serifs.
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    # Lines that end in a blank are a trap for editors, and mean nothing.
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).encode()
