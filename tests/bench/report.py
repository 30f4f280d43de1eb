"""`scripts/bench report`: docs/performance.md and its plots, from docs/performance/*.json."""

from bench.page import DIRECTORY, PAGE, belonging, recordings, render
from bench.plots import svg
from bench.subjects import SUBJECTS


def main() -> None:
    found = recordings()
    PAGE.write_text(render(found, (DIRECTORY / "tried.md").read_text()))
    for file in DIRECTORY.glob("*.svg"):
        file.unlink()
    for subject in SUBJECTS:
        if subject.what in found:
            for group in subject.groups:
                tables = belonging(group, found[subject.what])
                if group.drawing and tables:
                    (DIRECTORY / f"{group.drawing}.svg").write_text(svg(group, tables))


if __name__ == "__main__":
    main()
