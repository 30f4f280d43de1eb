"""The first lines of pip's scripts, as `wg4netnsctl setup` changes them."""

from pathlib import Path

import pytest

from wg4netnsd.ctl import launcher

BODY = "import sys\nsys.exit()\n"
ENV = "/usr/bin/env -S --block-signal=INT "


def sh(command: str) -> str:
    return f"#!/bin/sh\n'''exec' {command} \"$0\" \"$@\"\n' '''\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "wg4netnsctl"


@pytest.mark.parametrize(
    ("pips", "isolated", "blocking"),
    [
        ("#!/v/bin/python3\n", "#!/v/bin/python3 -I\n", f"#!{ENV}/v/bin/python3 -I\n"),
        ("#!/v/bin/python3.11\n", "#!/v/bin/python3.11 -I\n", f"#!{ENV}/v/bin/python3.11 -I\n"),
        (sh("/v/python"), sh("/v/python -I"), sh("env --block-signal=INT /v/python -I")),
        (sh('"/v v/py"'), sh('"/v v/py" -I'), sh('env --block-signal=INT "/v v/py" -I')),
    ],
)  # fmt: skip
def test_there_and_back(script: Path, pips: str, isolated: str, blocking: str) -> None:
    script.write_text(pips + BODY)
    script.chmod(0o755)
    assert not launcher.restore(script)
    for block, expected in ((True, blocking), (False, isolated)):
        assert launcher.isolate(script, block_interrupts=block)
        assert script.read_text() == expected + BODY
        assert not launcher.isolate(script, block_interrupts=block)
    assert script.stat().st_mode & 0o777 == 0o755
    assert launcher.restore(script)
    assert script.read_text() == pips + BODY
    assert list(script.parent.iterdir()) == [script]


@pytest.mark.parametrize("first", ["#!/usr/bin/env python3\n", "#!python\n", "\x7fELF", ""])
def test_others_stay(script: Path, first: str) -> None:
    script.write_text(first + BODY)
    assert not launcher.isolate(script, block_interrupts=True)
    assert script.read_text() == first + BODY


def test_a_line_that_the_kernel_would_cut(script: Path) -> None:
    python = f"/{'v' * 220}/python"
    script.write_text(f"#!{python}\n")
    assert launcher.isolate(script, block_interrupts=True)
    assert script.read_text() == f"#!{python} -I\n"


def test_an_env_that_cannot_block(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_BLOCK", "--no-such-option")
    script.write_text("#!/v/bin/python3\n")
    assert launcher.isolate(script, block_interrupts=True)
    assert script.read_text() == "#!/v/bin/python3 -I\n"
