"""Configurations that can't be read."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as Opens
from pathlib import Path

import pytest

from support.bus import Client
from support.configs import Secrets
from support.containers import podman
from support.daemon import Daemon
from support.fds import memfd, opened
from support.namespaces import Namespace
from support.refusals import CREATE_FROM_PATHS, Refuses, a_pipe_that_never_ends


@contextlib.contextmanager
def ten_megabytes_in_a_pipe() -> Iterator[int]:
    with subprocess.Popen(["head", "-c10M", "/dev/zero"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        yield writer.stdout.fileno()


@pytest.mark.parametrize(
    ("config", "error", "fragment"),
    [
        pytest.param(lambda: memfd(""), "InvalidConfig", "is empty", id="empty"),
        pytest.param(lambda: opened("/dev/null"), "InvalidConfig", "neither a file", id="dev-null"),
        pytest.param(lambda: opened("/dev/zero"), "InvalidConfig", "neither a file", id="dev-zero"),
        pytest.param(lambda: opened("/"), "InvalidConfig", "neither a file", id="directory"),
        pytest.param(
            lambda: opened("/etc/passwd", os.O_PATH), "InvalidConfig", "Bad file", id="O_PATH"
        ),
        pytest.param(
            lambda: memfd("#" * 10_000_000),
            "LimitExceeded",
            "has 10000000 bytes: at most 2097152",
            id="10M",
        ),
        pytest.param(
            ten_megabytes_in_a_pipe, "LimitExceeded", "longer than 2097152", id="10M-pipe"
        ),
        pytest.param(a_pipe_that_never_ends, "Timeout", "no end of file within 5 s", id="endless"),
        pytest.param(lambda: opened("/bin/true"), "InvalidConfig", "line 1: a NUL", id="binary"),
        pytest.param(lambda: memfd(b"\xff=1"), "InvalidConfig", "line 1: not UTF-8", id="latin-1"),
        pytest.param(lambda: memfd("[Peer"), "InvalidConfig", "line 1: unknown section", id="bad"),
    ],
)
def test_no_configuration(
    refuses: Refuses, inside: Namespace, config: Callable[[], Opens[int]], error: str, fragment: str
) -> None:
    with opened(inside.path) as netns, config() as fd:
        refuses.create(error, fragment, netns, fd, {})


def test_a_configuration_that_may_not_be_read(refuses: Refuses, inside: Namespace) -> None:
    with (
        opened(inside.path) as netns,
        memfd(b"") as fd,
        opened(f"/proc/self/fd/{fd}", os.O_WRONLY) as written,
    ):
        refuses.create("InvalidConfig", "config: Bad file descriptor", netns, written, {})


@pytest.mark.parametrize(
    ("path", "error", "fragment"),
    [
        ("wg.conf", "InvalidArgs", "config_path: 'wg.conf': expected an absolute path"),
        ("/proc/self/fd/0", "InvalidArgs", "the daemon's own file"),
        ("//dev/fd/0", "InvalidArgs", "the daemon's own file"),
        ("/nowhere", "InvalidConfig", "/nowhere: No such file or directory"),
        ("/etc/shadow", "InvalidConfig", "/etc/shadow: Permission denied"),
        ("/", "InvalidConfig", "neither a file nor a pipe"),
        ("/dev/zero", "InvalidConfig", "neither a file nor a pipe"),
    ],
)
def test_no_path_of_a_configuration(
    refuses: Refuses, inside: Namespace, path: str, error: str, fragment: str
) -> None:
    refuses.create_from_paths(error, fragment, inside.path, path, {})


def test_a_fifo_that_nobody_writes_to(refuses: Refuses, inside: Namespace, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    refuses.create_from_paths(
        "Timeout", "no end of file within 5 s", inside.path, str(tmp_path / "fifo"), {}
    )


def test_a_file_of_another_user(
    refuses: Refuses, inside: Namespace, secrets: Secrets, tmp_path: Path
) -> None:
    """One of the subordinate ids that this user has."""
    theirs = tmp_path / "wg.conf"
    theirs.write_text(secrets.conf())
    theirs.chmod(0o644)
    podman("unshare", "chown", "1:1", str(theirs))
    owner = theirs.stat().st_uid
    assert owner not in (os.getuid(), 0)
    refuses.create_from_paths(
        "InvalidConfig",
        f"owned by uid {owner}: expected a file of yours",
        inside.path,
        str(theirs),
        {},
    )


def test_a_file_that_others_may_read_is_warned_of(
    daemon: Daemon, client: Client, inside: Namespace, secrets: Secrets, tmp_path: Path
) -> None:
    config = tmp_path / "wg.conf"
    config.write_text(secrets.conf())
    for mode, warned in ((0o600, 0), (0o640, 1)):
        config.chmod(mode)
        path = client.manager(
            "CreateTunnelFromPaths", CREATE_FROM_PATHS, inside.path, str(config), {}
        )
        client.close_tunnel(path)
        assert daemon.log.count(f"{config} holds a private key") == warned
