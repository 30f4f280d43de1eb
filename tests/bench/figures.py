"""Medians, percentiles, and tables of them."""

import math
import statistics
from collections.abc import Mapping, Sequence

from bench.record import Table


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(len(ordered) * percent / 100, 6)) - 1)]


def shown(table: Table) -> str:
    """Format a table for a terminal."""
    title = f"{table.title}, by {table.axis}" if table.axis else table.title
    return f"{title}\n{spread(table.unit, table.rows, table.reference)}"


def spread(unit: str, rows: Mapping[str, Sequence[float]], reference: str | None = None) -> str:
    """Format rows: p50, p95, p99, minimum, maximum, and the p50's ratio to the reference's."""
    figures = {}
    for name, values in rows.items():
        middle = statistics.median(values)
        rest = percentile(values, 95), percentile(values, 99), min(values), max(values)
        ratio = middle / statistics.median(rows[reference]) if reference else None
        figures[f"{name}, n={len(values)}"] = (middle, *rest, ratio)
    return grid(unit, ("p50", "p95", "p99", "min", "max", "ratio"), figures)


def grid(unit: str, columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    """Format rows with one figure per column."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {' '.join(f'{name:>9}' for name in columns)}   {unit}"]
    for name, values in rows.items():
        shown = (f"{'-':>9}" if value is None else f"{value:9.2f}" for value in values)
        lines.append(f"{name:{width}}  {' '.join(shown)}")
    return "\n".join(lines)
