"""Medians, percentiles, and the tables that show them."""

import math
import statistics
from collections.abc import Mapping, Sequence

from bench.record import Table


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(len(ordered) * percent / 100, 6)) - 1)]


def table(unit: str, rows: Mapping[str, Sequence[float]]) -> str:
    """One row each: p50, p95, p99, minimum, maximum, and the p50's ratio to the last row's."""
    reference = statistics.median(rows[list(rows)[-1]])
    shown = {}
    for name, values in rows.items():
        middle = statistics.median(values)
        rest = percentile(values, 95), percentile(values, 99), min(values), max(values)
        shown[f"{name}, n={len(values)}"] = (middle, *rest, middle / reference)
    return grid(unit, ("p50", "p95", "p99", "min", "max", "ratio"), shown)


def grid(unit: str, columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    """One row each, of one figure for each column."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {' '.join(f'{name:>9}' for name in columns)}   {unit}"]
    for name, values in rows.items():
        shown = (f"{'-':>9}" if value is None else f"{value:9.2f}" for value in values)
        lines.append(f"{name:{width}}  {' '.join(shown)}")
    return "\n".join(lines)


def shown(found: Table) -> str:
    """As it is told in a terminal. The ratio is to the reference's p50."""
    reference = found.rows[found.reference] if found.reference else None
    rows = {}
    for name, values in found.rows.items():
        middle = statistics.median(values)
        rest = percentile(values, 95), percentile(values, 99), min(values), max(values)
        ratio = middle / statistics.median(reference) if reference else None
        rows[f"{name}, n={len(values)}"] = (middle, *rest, ratio)
    columns = ("p50", "p95", "p99", "min", "max", "ratio")
    return f"{found.title}\n{grid(found.unit, columns, rows)}"
