"""docs/performance/*.svg: the recordings' tables, drawn with matplotlib.

The same tables give the same bytes. Colours are those of Okabe and Ito, which are told apart by the
colour-blind too.
"""

import io
import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures import percentile
from bench.page import number
from bench.record import Table
from bench.subjects import Group

COLOURS = {
    "wg4netnsd": "#0072B2",
    "stock": "#E69F00",
    "predecessor": "#D55E00",
    "slirp4netns": "#009E73",
    "pasta": "#CC79A7",
    "floor": "#767676",
}
"""By how a contender's name begins. What has none of these names is wg4netnsd's own."""

DOTS = 100
BAND = 0.32
"""How far up and down from its row's middle the dots of a row go; rows are 1 apart."""
DOT = {"markersize": 2.4, "alpha": 0.6, "markeredgewidth": 0}
NOTE = {"fontsize": 7.5, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}

LINES = ("#0072B2", "#E69F00", "#009E73")

STYLE = {
    "svg.hashsalt": "wg4netnsd",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#767676",
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
}


def svg(group: Group, tables: Sequence[Table]) -> str:
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        draw(tables).savefig(file, format="svg", metadata={"Title": group.heading, "Date": None})
    text = re.sub(r"<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    title = f"<title>{group.heading}</title>"
    assert title in text
    told = "; ".join(each.title for each in tables)
    text = text.replace(title, f"{title}\n <desc>Plots of these tables: {told}.</desc>", 1)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def draw(tables: Sequence[Table]) -> Figure:
    return _lines(tables) if tables[0].axis else _strips(tables)


def _end(rows: Iterable[Sequence[float]]) -> float:
    """Where an axis ends: a few values far out are not to make all else small."""
    return 1.3 * max(percentile(values, 95) for values in rows) or 1


def _dots(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """When each was measured, from -1 to 1, and the values."""
    chosen: Sequence[int] = range(len(values))
    if len(values) > DOTS:
        ordered = sorted(chosen, key=values.__getitem__)
        chosen = sorted(ordered[round(n * (len(values) - 1) / (DOTS - 1))] for n in range(DOTS))
    last = len(values) - 1
    times = [2 * index / last - 1 if last else 0 for index in chosen]
    return times, [values[index] for index in chosen]


# ---------------------------------------------------------------- contenders


def _strips(tables: Sequence[Table]) -> Figure:
    """A panel for each table, in two columns, and in it a row for each contender."""
    columns = min(2, len(tables))
    rows = math.ceil(len(tables) / columns)
    contenders = max(len(each.rows) for each in tables)
    figure = Figure(figsize=(9, rows * (0.9 + 0.34 * contenders)), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, each in zip(panels, tables, strict=False):
        _strip(panel, each, 90 // columns - 10)
    for panel in panels[len(tables) :]:
        panel.remove()
    return figure


def _strip(panel: Axes, table: Table, width: int) -> None:
    """`width`: of the title, in characters."""
    end = _end(table.rows.values())
    for place, (name, values) in enumerate(table.rows.items()):
        colour = _colour(name)
        panel.barh(place, statistics.median(values), height=0.8, color=colour, alpha=0.35)
        times, shown = _dots(values)
        panel.plot(shown, [place + BAND * time for time in times], "o", color=colour, **DOT)
        if beyond := sum(value > end for value in values):
            note = f"{beyond} more, up to {number(max(values))} ▸"
            panel.text(end, place, note, ha="right", va="center", **NOTE)
    names = [f"{name}  {number(statistics.median(each))}" for name, each in table.rows.items()]
    panel.set_yticks(range(len(names)), names)
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.set_xlim(0, end)
    panel.grid(axis="x")
    panel.set_title(textwrap.fill(table.title, width))
    panel.set_xlabel(table.unit)


def _colour(name: str) -> str:
    for start, colour in COLOURS.items():
        if name.startswith(start):
            return colour
    return COLOURS["wg4netnsd"]


# ---------------------------------------------------------------- sizes


def _lines(tables: Sequence[Table]) -> Figure:
    """One panel: a line for each table, through its medians; a dashed one through its p95."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panel = figure.subplots()
    panel.set_xscale("log", base=2)
    end = _end(values for table in tables for values in table.rows.values())
    for number_of_line, (table, colour) in enumerate(zip(tables, LINES, strict=False)):
        sizes = [int(name) for name in table.rows]
        side = 0.3 * (number_of_line - (len(tables) - 1) / 2)
        for size, values in zip(sizes, table.rows.values(), strict=True):
            times, shown = _dots(values)
            places = [size * 2 ** (side + 0.12 * time) for time in times]
            panel.plot(places, shown, "o", color=colour, **DOT)
            if beyond := sum(value > end for value in values):
                note = f"{beyond} more,\nup to {number(max(values))} ▴"
                panel.text(size * 2**side, end, note, ha="center", va="top", **NOTE)
        middles = [statistics.median(values) for values in table.rows.values()]
        panel.plot(sizes, middles, "s-", color=colour, label=table.title, markersize=5)
        if any(len(values) >= 20 for values in table.rows.values()):
            tops = [percentile(values, 95) for values in table.rows.values()]
            panel.plot(sizes, tops, "--", color=colour, label="… its p95", linewidth=1)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.set_ylim(0, end)
    panel.grid(axis="y")
    panel.set_xlabel(tables[0].axis)
    panel.set_ylabel(tables[0].unit)
    figure.legend(loc="outside upper left", frameon=False, ncols=2)
    return figure
