"""Render docs/performance.md from the recordings."""

import re
import statistics
from collections.abc import Iterator, Sequence

from bench.figures import percentile
from bench.record import ROOT, Recording, Table, load
from bench.subjects import SUBJECTS, Group, Subject
from bench.targets import TARGETS, Recordings

PAGE = ROOT / "docs/performance.md"
DIRECTORY = ROOT / "docs/performance"

HEAD = """\
<!-- Written by `scripts/bench report` from docs/performance/*.json and tried.md: edit those. -->
# Performance

What wg4netnsd costs, compared with what you could run instead, in the same run on the same machine.
`scripts/bench --record all` repeats the measurements, and `scripts/bench report` writes this page.

The contenders:

- *wg4netnsd*: a tunnel of the daemon's, in a rootless namespace
- *stock, as root*: upstream's wireguard-go, run by root, with its TUN on the host
- *predecessor's way*: what CMU's wireguard4netns does, a program that is started for each tunnel,
  here with a current wireguard-go
- *slirp4netns* and *pasta*: rootless networking without encryption
- *floor*: what the measurement costs with no contender in it

Machines are noisy, so the contenders take turns, and every other round reverses their order.
A table gives the median. In brackets follow p95 and p99, where there are enough values for them,
and the minimum and maximum. The last figure (×) is the median divided by the reference's median;
the reference's name is in *italics*. In a plot, each dot is a value, in the order of measuring, and
a bar ends at the median. Of more than 50 values, the plot shows 50 that are evenly spaced by rank.
A note counts the values beyond its edge. **Trust the ratios**, not the absolute figures.
"""


def recordings() -> Recordings:
    return {file.stem: load(file.read_text()) for file in sorted(DIRECTORY.glob("*.json"))}


def render(found: Recordings, tried: str) -> str:
    """Return the page. Raises LookupError for a table that no group of bench.subjects shows."""
    lines = [HEAD, "## Targets", "", *_targets(found), "", *_machines(found)]
    for subject in SUBJECTS:
        if subject.what in found:
            lines += ["", *_subject(subject, found[subject.what])]
    return "\n".join(lines) + "\n\n" + tried


def belonging(group: Group, recording: Recording) -> list[Table]:
    return [each for each in recording.tables if re.fullmatch(group.titles, each.title)]


def number(value: float) -> str:
    """Format with three significant digits."""
    if value == 0 or abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


# ---------------------------------------------------------------- targets


def _targets(found: Recordings) -> Iterator[str]:
    yield "| figure | target | measured | |"
    yield "|---|---|---|---|"
    remarks = []
    for target in TARGETS:
        limit = f"{'≥' if target.at_least else '≤'} {target.limit:g} {target.unit}".rstrip()
        try:
            values = target.measure(found)
        except LookupError:
            yield f"| {target.figure} | {limit} | | not measured |"
            continue
        measured = " to ".join(dict.fromkeys(map(number, (min(values), max(values)))))
        verdict = "met" if target.met(values) else "**missed**"
        yield f"| {target.figure} | {limit} | {f'{measured} {target.unit}'.rstrip()} | {verdict} |"
        if target.remark and not target.met(values):
            remarks.append(f"- *{target.figure}*: {target.remark}")
    yield ""
    yield "A target for several figures (1 and 8 streams, up and down) is met if each meets it."
    if remarks:
        yield from ["", "Why targets are missed:", "", *remarks]


def _machines(found: Recordings) -> Iterator[str]:
    """One entry per machine and date, with the benchmarks that were recorded there."""
    places: dict[str, list[str]] = {}
    for what, recording in found.items():
        machine = ", ".join(f"{name} {value}" for name, value in recording.machine.items())
        versions = ", ".join(f"{name} {value}" for name, value in recording.versions.items())
        places.setdefault(f"{recording.date}: {machine}; {versions}.", []).append(what)
    yield "## Where it was measured"
    yield ""
    for text, whats in places.items():
        yield f"- {', '.join(whats)}, {text}"


# ---------------------------------------------------------------- subjects


def _subject(subject: Subject, recording: Recording) -> Iterator[str]:
    shown = {each.title for group in subject.groups for each in belonging(group, recording)}
    for each in recording.tables:
        if each.title not in shown:
            raise LookupError(f"{subject.what}: no group in bench.subjects shows '{each.title}'")
    yield f"## {subject.heading}"
    yield ""
    yield subject.text
    for group in subject.groups:
        tables = belonging(group, recording)
        if not tables:
            continue
        yield ""
        if len(subject.groups) > 1:
            yield f"### {group.heading}"
            yield ""
        yield from _by_size(tables) if tables[0].axis else _by_contender(tables)
        if group.drawing:
            yield ""
            yield f"![{group.heading}](performance/{group.drawing}.svg)"


def _by_size(tables: Sequence[Table]) -> Iterator[str]:
    """Yield a row for each table, with a column for each size."""
    first = tables[0]
    yield f"| {first.axis} | {' | '.join(first.rows)} |"
    yield f"|---|{'---:|' * len(first.rows)}"
    for each in tables:
        cells = [_cell(values) for values in each.rows.values()]
        yield f"| {each.title}, {_measure(each)} | {' | '.join(cells)} |"


def _by_contender(tables: Sequence[Table]) -> Iterator[str]:
    """Yield a row for each contender, with a column for each table."""
    measures = {_measure(each) for each in tables}
    alike = len(measures) == 1
    titles = [each.title if alike else f"{each.title}, {_measure(each)}" for each in tables]
    yield f"| {measures.pop() if alike else ''} | {' | '.join(titles)} |"
    yield f"|---|{'---:|' * len(tables)}"
    references = {each.reference for each in tables}
    for name in dict.fromkeys(name for each in tables for name in each.rows):
        cells = [_compared(each, name) if name in each.rows else "" for each in tables]
        yield f"| {f'*{name}*' if name in references else name} | {' | '.join(cells)} |"


def _compared(table: Table, name: str) -> str:
    cell = _cell(table.rows[name])
    if table.reference is None:
        return cell
    middle, reference = (statistics.median(table.rows[row]) for row in (name, table.reference))
    return f"{cell} ×{number(middle / reference)}" if reference else cell


def _measure(table: Table) -> str:
    """Format the unit and the number of values."""
    counts = sorted({len(values) for values in table.rows.values()})
    return f"{table.unit}, n = " + " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))


def _cell(values: Sequence[float]) -> str:
    """Format the median, p95 and p99 if there are enough values, minimum and maximum."""
    middle = f"**{number(statistics.median(values))}**"
    if len(values) == 1:
        return middle
    rest = f"{number(min(values))}–{number(max(values))}"
    for percent, enough in ((99, 100), (95, 20)):
        if len(values) >= enough:
            rest = f"p{percent} {number(percentile(values, percent))}, {rest}"
    return f"{middle} ({rest})"
