"""`scripts/bench report`: write docs/performance.md and its plots from docs/performance/*.json."""

from bench.page import DIRECTORY, PAGE, belonging, recordings, render
from bench.plots import svg
from bench.subjects import SUBJECTS
from bench.targets import Recordings


def main() -> None:
    found = recordings()
    PAGE.write_text(render(found, (DIRECTORY / "tried.md").read_text()))
    for file in DIRECTORY.glob("*.svg"):
        file.unlink()
    for name, drawing in drawings(found).items():
        (DIRECTORY / name).write_text(drawing)


def drawings(found: Recordings) -> dict[str, str]:
    """Each drawing that the page shows, by its file's name."""
    return {
        f"{group.drawing}.svg": svg(group, tables)
        for subject in SUBJECTS
        if subject.what in found
        for group in subject.groups
        if group.drawing and (tables := belonging(group, found[subject.what]))
    }


if __name__ == "__main__":
    main()
