"""docs/performance.md and its plots show the recordings, and all of them."""

import re

import pytest

from bench.page import DIRECTORY, PAGE, belonging, number, recordings, render
from bench.record import Recording, Table, dump, load
from bench.report import drawings
from bench.subjects import SUBJECTS, Group, Subject
from bench.targets import TARGETS, Target

TIMES = Table("Time", "ms", {"ours": [1.23456, 2.0, 30], "theirs": [2.0]}, reference="theirs")
SIZES = Table("Memory", "MiB", {"1": [20.0], "64": [23456.7]}, axis="tunnels")


def recorded(*tables: Table, what: str = "create") -> Recording:
    return Recording(what, "2026-01-31", {"cores": "2"}, {"Python": "3.11"}, list(tables))


def test_a_recording_comes_back_as_it_was_but_rounded() -> None:
    found = load(dump(recorded(TIMES, SIZES)))
    assert found.tables[0].rows["ours"] == [1.235, 2.0, 30]
    assert found.tables[1].rows["64"] == [23460.0]
    assert load(dump(found)) == found


def test_a_row_is_a_line_of_the_file() -> None:
    assert '   "ours": [1.235, 2.0, 30],\n' in dump(recorded(TIMES))


def test_the_page_is_up_to_date() -> None:
    tried = (DIRECTORY / "tried.md").read_text()
    assert PAGE.read_text() == render(recordings(), tried), "run scripts/bench report"


def test_the_plots_are_up_to_date() -> None:
    drawn = {path.name: path.read_text() for path in DIRECTORY.glob("*.svg")}
    assert drawn == drawings(recordings()), "run scripts/bench report"


def test_the_directory_has_recordings_and_what_the_page_shows() -> None:
    shown = re.findall(r"\(performance/([^)]+)\)", PAGE.read_text())
    recorded_in = {path.name for path in DIRECTORY.glob("*.json")}
    assert {path.name for path in DIRECTORY.iterdir()} == {"tried.md", *recorded_in, *shown}


def test_each_subject_has_its_recording_and_each_recording_its_subject() -> None:
    assert recordings().keys() == {subject.what for subject in SUBJECTS}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.what)
def test_a_table_is_shown_once(subject: Subject) -> None:
    tables = recordings()[subject.what].tables
    assert tables
    for table in tables:
        alone = recorded(table)
        assert sum(bool(belonging(group, alone)) for group in subject.groups) == 1, table.title


def test_a_table_that_nobody_shows_is_not_forgotten() -> None:
    with pytest.raises(LookupError, match="Time"):
        render({"floor": recorded(TIMES, what="floor")}, "")


def test_tables_by_contender_and_by_size() -> None:
    page = render({"create": recorded(TIMES)}, "")
    assert "| ms, n = 1 to 3 | Time |" in page
    assert "| ours | **2.00** (1.23–30.0) ×1.00 |" in page
    assert "| *theirs* | **2.00** ×1.00 |" in page
    memory = Table("Memory of the daemon alone", "MiB", SIZES.rows, axis="tunnels")
    page = render({"growth": recorded(memory, what="growth")}, "")
    assert "| tunnels | 1 | 64 |" in page
    assert "| Memory of the daemon alone, MiB, n = 1 | **20.0** | **23457** |" in page


def test_what_is_not_recorded_is_not_measured() -> None:
    page = render({}, "")
    assert page.count("| not measured |") == len(TARGETS)


@pytest.mark.parametrize(
    ("at_least", "values", "met"),
    [
        (False, [1, 2], True),
        (False, [1, 2.1], False),
        (True, [2, 3], True),
        (True, [1.9, 3], False),
    ],
)
def test_each_figure_has_to_meet_the_target(at_least: bool, values: list[float], met: bool) -> None:
    assert Target("", 2, lambda _: values, at_least=at_least).met(values) is met


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1, "1.00"),
        (12.34, "12.3"),
        (99.99, "100"),
        (1234.5, "1234"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_plot_has_one_name_and_is_there() -> None:
    groups: list[Group] = [group for subject in SUBJECTS for group in subject.groups]
    names = [group.drawing for group in groups if group.drawing]
    assert len(names) == len(set(names))
    assert {f"{name}.svg" for name in names} == {path.name for path in DIRECTORY.glob("*.svg")}
