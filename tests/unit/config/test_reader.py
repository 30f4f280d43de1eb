"""A configuration is read and parsed in one call, each within its time, and its fd is closed."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.files import file_processes
from wg4netnsd.aio import blocking
from wg4netnsd.config import reader, wgquick
from wg4netnsd.config.model import Config
from wg4netnsd.errors import InvalidConfig, LimitExceeded, Timeout
from wg4netnsd.files import content
from wg4netnsd.files.client import FileProcesses

KEY = "A" * 43 + "="
TEXT = f"[Interface]\nPrivateKey = {KEY}\nAddress = 10.0.0.2\n".encode()
LONG = TEXT + b"#" * reader.LONG
TOO_LONG = TEXT + b"#" * wgquick.MAX_SIZE


def memfd(text: bytes, _directory: Path) -> int:
    fd = os.memfd_create("config")
    os.write(fd, text)
    return fd


def file(text: bytes, directory: Path) -> int:
    (directory / "wg.conf").write_bytes(text)
    return os.open(directory / "wg.conf", os.O_RDONLY)


def pipe(text: bytes, _directory: Path) -> int:
    read_end, write_end = os.pipe()
    os.write(write_end, text[:65536])  # what a pipe holds
    os.close(write_end)
    return read_end


KINDS = pytest.mark.parametrize("make", [memfd, file, pipe], ids=lambda make: make.__name__)
Make = Callable[[bytes, Path], int]


@pytest.fixture(scope="module")
def processes() -> Iterator[FileProcesses]:
    with file_processes() as started:
        yield started


def load(fd: int) -> Config:
    return asyncio.run(reader.load_fd(fd, ()))


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").is_symlink()


@pytest.fixture
def closed_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The fds that were given to blocking.close()."""
    fds: list[int] = []
    monkeypatch.setattr(blocking, "close", fds.append)
    return fds


@KINDS
@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_it_is_read_and_closed(make: Make, text: bytes, tmp_path: Path) -> None:
    fd = make(text, tmp_path)
    assert load(fd) == wgquick.parse(TEXT, ())
    assert not is_open(fd)


@KINDS
def test_one_that_is_refused_is_closed_once(
    make: Make, tmp_path: Path, closed_again: list[int]
) -> None:
    """Its number may be another file's by then."""
    texts = [(b"[Nonsense]\n", InvalidConfig)]
    if make is not pipe:
        texts.append((TOO_LONG, LimitExceeded))
    for text, error in texts:
        fd = make(text, tmp_path)
        with pytest.raises(error):
            load(fd)
        assert not is_open(fd)
    assert closed_again == []


def test_one_that_no_thread_can_be_had_for_is_closed(
    tmp_path: Path, closed_again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "MAX_THREADS", 0)
    fd = file(LONG, tmp_path)
    with pytest.raises(LimitExceeded):
        load(fd)
    assert closed_again == [fd]
    os.close(fd)


def test_one_thread_is_all_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    call = blocking.call

    async def count(seconds: float, function: Callable[[], Config]) -> Config:
        calls.append(function)
        return await call(seconds, function)

    monkeypatch.setattr(blocking, "call", count)
    load(file(LONG, tmp_path))
    assert len(calls) == 1
    load(memfd(TEXT, tmp_path))
    assert len(calls) == 1


def test_parsing_may_take_longer_than_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(text: bytes, ignore: object) -> bytes:
        time.sleep(1.5)
        return text

    monkeypatch.setattr(reader, "READ_TIME", 0.1)  # and a second
    monkeypatch.setattr(wgquick, "parse", parse)
    assert load(file(LONG, tmp_path)) == LONG


def test_a_pipe_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "READ_TIME", 0.1)
    read_end, write_end = os.pipe()
    with pytest.raises(Timeout, match="config: no end of file within 0"):
        load(read_end)
    assert not is_open(read_end)
    os.close(write_end)


def test_a_path(processes: FileProcesses, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def load_path(name: str) -> Config:
        return asyncio.run(reader.load_path(processes, str(tmp_path / name), ()))

    (tmp_path / "wg.conf").write_bytes(TEXT)
    (tmp_path / "wg.conf").chmod(0o600)
    assert load_path("wg.conf") == wgquick.parse(TEXT, ())
    assert not caplog.messages
    (tmp_path / "wg.conf").chmod(0o640)
    assert load_path("wg.conf") == wgquick.parse(TEXT, ())
    assert "others may read it" in caplog.text
    (tmp_path / "wg.conf").chmod(0o660)
    for name, error in (
        ("none", "No such file"),
        ("", "neither a file nor"),
        ("wg.conf", r"others may write to it \(mode 0660\)"),
    ):
        with pytest.raises(InvalidConfig, match=error):
            load_path(name)
