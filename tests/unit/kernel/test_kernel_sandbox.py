"""What a process can't do any more: wg4netnsd/kernel/sandbox.py."""

import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import os, socket, sys, threading
from wg4netnsd.kernel import sandbox
from wg4netnsd.kernel.syscalls import PR_SET_NO_NEW_PRIVS, prctl, landlock_version
prctl(PR_SET_NO_NEW_PRIVS, 1)
def refused(function, *arguments):
    try:
        function(*arguments)
    except PermissionError:
        return
    raise AssertionError(f"{function} {arguments} was allowed")
"""


def run(*statements: str) -> str:
    program = PRELUDE + "\n".join(statements)
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout


def test_denied_system_calls_fail_and_others_do_not() -> None:
    shown = run(
        "sandbox.deny_system_calls()",
        "refused(os.execv, '/bin/true', ['true'])",
        "refused(os.kill, os.getppid(), 0)",
        "thread = threading.Thread(target=print, args=['a thread runs'])",
        "thread.start(); thread.join()",
        "ours, theirs = socket.socketpair(); ours.send(b'x'); assert theirs.recv(1) == b'x'",
    )
    assert shown == "a thread runs\n"


def test_only_what_is_named_can_be_read_and_nothing_be_written(tmp_path: Path) -> None:
    try:
        run("landlock_version()")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel has no Landlock")
    readable, hidden = tmp_path / "readable", tmp_path / "hidden"
    for each in (readable, hidden):
        each.mkdir()
        (each / "file").write_text("content")
    run(
        f"sandbox.restrict_files([{str(readable)!r}, '/nonexistent'])",
        f"assert open('{readable}/file').read() == 'content'",
        f"assert os.listdir('{readable}') == ['file']",
        f"refused(open, '{hidden}/file')",
        f"refused(os.listdir, '{hidden}')",
        f"refused(open, '{readable}/file', 'a')",
        f"refused(open, '{readable}/new', 'w')",
        f"refused(os.unlink, '{readable}/file')",
        f"refused(os.mkdir, '{hidden}/new')",
    )
