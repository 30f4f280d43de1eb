"""Medians, percentiles, and the table that shows them."""

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


def table(unit: str, rows: dict[str, Sequence[float]]) -> str:
    """One row each: p50, p95, minimum, maximum, and the p50's ratio to the last row's."""
    reference = statistics.median(rows[list(rows)[-1]])
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'p50':>9} {'p95':>9} {'min':>9} {'max':>9} {'ratio':>7}   {unit}"]
    for name, values in rows.items():
        middle = statistics.median(values)
        figures = (middle, percentile(values, 95), min(values), max(values))
        shown = " ".join(f"{figure:9.2f}" for figure in figures)
        lines.append(f"{name:{width}}  {shown} {middle / reference:7.2f}   n={len(values)}")
    return "\n".join(lines)
