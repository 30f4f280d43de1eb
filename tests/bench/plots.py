"""Draw docs/performance/*.svg: the recordings' tables, as SVG.

The same tables give the same bytes, so a drawing changes only with its figures. A row's dots are
one path of zero-length lines, whose round caps are the dots: some 9 bytes each. The colours are
Okabe and Ito's, which the colour-blind can tell apart, too.
"""

import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from xml.sax.saxutils import escape

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
"""By how a contender's name begins. A row with any other name is wg4netnsd's own."""

LINES = ("#0072B2", "#E69F00", "#009E73")

DOTS = 50

STYLE = """
text{font:11px sans-serif;fill:#222}
.title{font-size:12px;font-weight:bold}
.end{text-anchor:end}
.middle{text-anchor:middle}
.note{font-size:10px;stroke:#fff;stroke-width:3px;paint-order:stroke}
.axis{stroke:#767676;fill:none}
.grid{stroke:#e4e4e4;fill:none}
.bar{opacity:.35}
.dots{fill:none;stroke-width:3px;stroke-linecap:round;opacity:.6}
.line{fill:none;stroke-width:1.5px}
.p95{fill:none;stroke-dasharray:5 3}
"""

# All in pixels.
WIDTH = 860
EDGE = 12
LETTER = 6.2  # the width of one, on average
LINE = 15  # of text
ROW = 26
BAR = 20
BAND = 8  # how far up and down from its row's middle a dot can be
AXIS = 34  # below a panel: ticks and unit
HEIGHT = 260  # of a plot by size

Scale = Callable[[float], int]


def svg(group: Group, tables: Sequence[Table]) -> str:
    shapes, height = _by_size(tables) if tables[0].axis else _by_contender(tables)
    titles = "; ".join(each.title for each in tables)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}">',
        f"<title>{escape(group.heading)}</title>",
        f"<desc>Plots of these tables: {escape(titles)}.</desc>",
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        *shapes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- contenders


def _by_contender(tables: Sequence[Table]) -> tuple[list[str], int]:
    """A panel for each table, in two columns, and in it a row for each contender."""
    columns = min(2, len(tables))
    width = WIDTH // columns
    letters = max(len(label) for each in tables for label in _labels(each))
    titles = [textwrap.wrap(each.title, int((width - 2 * EDGE) / LETTER / 1.2)) for each in tables]
    shapes: list[str] = []
    top = EDGE
    for first in range(0, len(tables), columns):
        together = range(first, min(first + columns, len(tables)))
        start = top + LINE * max(len(titles[index]) for index in together)
        for index in together:
            left = width * (index - first)
            for line, words in enumerate(titles[index]):
                shapes.append(_text(left + EDGE, top + LINE * line + 10, words, "title"))
            edges = left + EDGE + math.ceil(letters * LETTER), left + width - EDGE
            shapes += _panel(tables[index], *edges, start)
        top = start + ROW * max(len(tables[index].rows) for index in together) + AXIS + EDGE
    return shapes, top


def _panel(table: Table, left: int, right: int, top: int) -> list[str]:
    """One table, with its rows below one another from `top` on."""
    end, bottom = _end(table.rows.values()), top + ROW * len(table.rows)
    x = _scale(end, left, right)
    shapes = []
    for tick in _ticks(end):
        shapes.append(f'<path class="grid" d="M{x(tick)} {top}V{bottom}"/>')
        shapes.append(_text(x(tick), bottom + 13, f"{tick:g}", "middle"))
    shapes.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    shapes.append(_text((left + right) // 2, bottom + 27, table.unit, "middle"))
    for place, (label, name) in enumerate(zip(_labels(table), table.rows, strict=True)):
        values, middle, colour = table.rows[name], top + ROW * place + ROW // 2, _colour(name)
        shapes.append(_text(left - 6, middle + 4, label, "end"))
        length = min(x(statistics.median(values)), right) - left
        shapes.append(
            f'<rect class="bar" x="{left}" y="{middle - BAR // 2}" width="{length}"'
            f' height="{BAR}" fill="{colour}"/>'
        )
        points = [(x(value), middle + round(BAND * time)) for time, value in _dots(values, end)]
        shapes.append(_path_of_dots(points, colour))
        if beyond := sum(value > end for value in values):
            note = f"{beyond} more, up to {number(max(values))} ▸"
            shapes.append(_text(right, middle + 4, note, "end note"))
    return shapes


def _labels(table: Table) -> list[str]:
    # An en space: SVG collapses two ordinary ones.
    return [f"{name}\u2002{number(statistics.median(each))}" for name, each in table.rows.items()]


def _colour(name: str) -> str:
    for start, colour in COLOURS.items():
        if name.startswith(start):
            return colour
    return COLOURS["wg4netnsd"]


# ---------------------------------------------------------------- sizes


def _by_size(tables: Sequence[Table]) -> tuple[list[str], int]:
    """One panel: a line for each table through its medians, and a dashed one through its p95."""
    end = _end(values for table in tables for values in table.rows.values())
    top = EDGE + LINE * len(tables)
    left, right, bottom = EDGE + 40, WIDTH - EDGE, top + HEIGHT
    sizes = [int(name) for name in tables[0].rows]
    powers = _scale(math.log2(sizes[-1] / sizes[0]) + 1, left, right)
    y = _scale(end, bottom, top)

    def x(size: int, aside: float = 0) -> int:
        return powers(math.log2(size / sizes[0]) + 0.5 + aside)

    shapes = []
    for tick in _ticks(end):
        shapes.append(f'<path class="grid" d="M{left} {y(tick)}H{right}"/>')
        shapes.append(_text(left - 5, y(tick) + 4, f"{tick:g}", "end"))
    shapes.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    shapes += [_text(x(size), bottom + 13, str(size), "middle") for size in sizes]
    shapes.append(_text((left + right) // 2, bottom + 27, tables[0].axis, "middle"))
    for place, (table, colour) in enumerate(zip(tables, LINES, strict=False)):
        legend = f"{table.title}, {table.unit}"
        side = 0.3 * (place - (len(tables) - 1) / 2)
        for size, values in zip(sizes, table.rows.values(), strict=True):
            points = [(x(size, side + 0.12 * time), y(each)) for time, each in _dots(values, end)]
            shapes.append(_path_of_dots(points, colour))
            if beyond := sum(value > end for value in values):
                note = f"{beyond} more, up to {number(max(values))} ▴"
                shapes.append(_text(x(size), top + 10 + 12 * place, note, "middle note"))
        middles = [(x(int(name)), y(statistics.median(each))) for name, each in table.rows.items()]
        shapes.append(_line(middles, colour, "line"))
        squares = "".join(f"M{x - 3} {y - 3}h6v6h-6z" for x, y in middles)
        shapes.append(f'<path d="{squares}" fill="{colour}"/>')
        if any(len(values) >= 20 for values in table.rows.values()):
            tops = [(x(int(name)), y(percentile(each, 95))) for name, each in table.rows.items()]
            shapes.append(_line(tops, colour, "p95"))
            legend += "; dashed: its p95"
        height = EDGE + LINE * place
        shapes.append(f'<rect x="{left}" y="{height}" width="10" height="10" fill="{colour}"/>')
        shapes.append(_text(left + 16, height + 9, legend))
    return shapes, bottom + AXIS


# ---------------------------------------------------------------- both


def _end(rows: Iterable[Sequence[float]]) -> float:
    """Where an axis ends: a few values far out must not make everything else small."""
    return 1.3 * max(percentile(values, 95) for values in rows) or 1


def _scale(end: float, first: int, last: int) -> Scale:
    """From 0 … end to pixels."""
    return lambda value: round(first + (last - first) * value / end)


def _ticks(end: float) -> list[float]:
    """At most 6 round numbers from 0 to `end`."""
    decade = 10.0 ** math.floor(math.log10(end))
    steps = (decade * factor for factor in (0.1, 0.2, 0.5, 1, 2))
    step = next(each for each in steps if end / each < 6)
    return [round(step * index, 10) for index in range(int(end / step) + 1)]


def _dots(values: Sequence[float], end: float) -> list[tuple[float, float]]:
    """Pairs of when a value was measured, from -1 to 1, and the value; none beyond `end`."""
    chosen: Sequence[int] = range(len(values))
    if len(values) > DOTS:
        ordered = sorted(chosen, key=values.__getitem__)
        chosen = sorted(ordered[round(n * (len(values) - 1) / (DOTS - 1))] for n in range(DOTS))
    last = len(values) - 1
    times = [2 * index / last - 1 if last else 0.0 for index in chosen]
    pairs = zip(times, (values[index] for index in chosen), strict=True)
    return [(time, value) for time, value in pairs if value <= end]


def _path_of_dots(points: Iterable[tuple[int, int]], colour: str) -> str:
    path = "".join(f"M{x} {y}h0" for x, y in points)
    return f'<path class="dots" stroke="{colour}" d="{path}"/>'


def _line(points: Iterable[tuple[int, int]], colour: str, kind: str) -> str:
    path = "L".join(f"{x} {y}" for x, y in points)
    return f'<path class="{kind}" stroke="{colour}" d="M{path}"/>'


def _text(x: int, y: int, words: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(words)}</text>'
