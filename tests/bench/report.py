"""`scripts/bench report`: docs/performance.md and its plots, from docs/performance/*.json.

With --check, fails if the page is outdated, and writes nothing; that needs no matplotlib.
"""

import argparse
import sys

from bench.page import belonging, render
from bench.record import ROOT, load
from bench.subjects import SUBJECTS
from bench.targets import Recordings

PAGE = ROOT / "docs/performance.md"
DIRECTORY = ROOT / "docs/performance"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    recordings = {file.stem: load(file.read_text()) for file in sorted(DIRECTORY.glob("*.json"))}
    page = render(recordings, (DIRECTORY / "tried.md").read_text())
    if not parser.parse_args().check:
        PAGE.write_text(page)
        _draw(recordings)
    elif not PAGE.exists() or PAGE.read_text() != page:
        sys.exit(f"{PAGE.relative_to(ROOT)} is outdated: run scripts/bench report")


def _draw(recordings: Recordings) -> None:
    from bench.plots import svg  # matplotlib is not everywhere

    for file in DIRECTORY.glob("*.svg"):
        file.unlink()
    for subject in SUBJECTS:
        for group in subject.groups:
            tables = (
                belonging(group, recordings[subject.what]) if subject.what in recordings else []
            )
            if group.drawing and tables:
                (DIRECTORY / f"{group.drawing}.svg").write_text(svg(group, tables))


if __name__ == "__main__":
    main()
