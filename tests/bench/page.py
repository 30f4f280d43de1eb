"""docs/performance.md, from the recordings."""

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

What wg4netnsd costs, beside what one would otherwise run, in the same run on the same machine.
`scripts/bench --record all` measures it anew, and `scripts/bench report` writes this page.

Machines are noisy, so the contenders take turns, and the order is reversed from round to round.
Tables give the median, in brackets p95 and p99 where values are many enough, the least and the
most, then the median's ratio (×) to the reference's, whose name is in *italics*. In a plot each
value is a dot, from top to bottom in the order of measuring, and the bar ends at the median; of
more than 100 values there are 100 dots, evenly spaced among the sorted ones. What lies beyond the
edge is counted there. **Trust the ratios**, not the absolute figures.
"""


def recordings() -> Recordings:
    return {file.stem: load(file.read_text()) for file in sorted(DIRECTORY.glob("*.json"))}


def render(found: Recordings, tried: str) -> str:
    """The page. Raises LookupError for a table that no group of bench.subjects shows."""
    lines = [HEAD, "## Targets", "", *_targets(found), "", *_machines(found)]
    for subject in SUBJECTS:
        if subject.what in found:
            lines += ["", *_subject(subject, found[subject.what])]
    return "\n".join(lines) + "\n\n" + tried


def belonging(group: Group, recording: Recording) -> list[Table]:
    return [each for each in recording.tables if re.fullmatch(group.titles, each.title)]


def number(value: float) -> str:
    """With three digits that say something."""
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
    yield "Of several figures, as for 1 stream and 8, up and down, each has to meet the target."
    if remarks:
        yield from ["", "Of those missed:", "", *remarks]


def _machines(found: Recordings) -> Iterator[str]:
    """Once where all were measured on the same."""
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
    """A row for each table, a column for each size."""
    first = tables[0]
    yield f"| {first.axis} | {' | '.join(first.rows)} |"
    yield f"|---|{'---:|' * len(first.rows)}"
    for each in tables:
        cells = [_cell(values) for values in each.rows.values()]
        yield f"| {each.title}, {_measure(each)} | {' | '.join(cells)} |"


def _by_contender(tables: Sequence[Table]) -> Iterator[str]:
    """A row for each contender, and a column for each table."""
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
    """The unit, and how many values there are."""
    counts = sorted({len(values) for values in table.rows.values()})
    return f"{table.unit}, n = " + " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))


def _cell(values: Sequence[float]) -> str:
    """The median; then p95 and p99 where there are enough values, the least and the most."""
    middle = f"**{number(statistics.median(values))}**"
    if len(values) == 1:
        return middle
    rest = f"{number(min(values))}–{number(max(values))}"
    for percent, enough in ((99, 100), (95, 20)):
        if len(values) >= enough:
            rest = f"p{percent} {number(percentile(values, percent))}, {rest}"
    return f"{middle} ({rest})"
