"""Calls that have to fail."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from support.bus import CREATE, MANAGER, ROOT, Client, DBusError
from support.configs import Secrets
from support.fds import memfd, opened, pipe
from support.namespaces import Namespace

CREATE_FROM_PATHS = "ssa{sv}"


class Refuses:
    """A call that has to fail: with this error, and a message that holds this."""

    def __init__(self, client: Client, secrets: Secrets) -> None:
        self._client = client
        self._secrets = secrets

    def __call__(
        self, error: str, fragment: str, path: str, interface: str, member: str, *call: Any
    ) -> None:
        with pytest.raises(DBusError) as refused:
            self._client.call(path, interface, member, *call)
        self.judge(refused.value, error, fragment)

    def judge(self, refused: DBusError, error: str, fragment: str) -> None:
        assert refused.short_name == error, refused
        assert refused.message.startswith(f"{error}: "), refused
        assert fragment in refused.message
        self._secrets.assert_hidden_in(refused.message)

    def create(self, error: str, fragment: str, *body: Any) -> None:
        self(error, fragment, ROOT, MANAGER, "CreateTunnel", CREATE, body)

    def create_from_paths(self, error: str, fragment: str, *body: Any) -> None:
        self(error, fragment, ROOT, MANAGER, "CreateTunnelFromPaths", CREATE_FROM_PATHS, body)


@contextlib.contextmanager
def inside_and_config(inside: Namespace, secrets: Secrets) -> Iterator[tuple[int, int]]:
    with opened(inside.path) as netns, memfd(secrets.conf()) as config:
        yield netns, config


@contextlib.contextmanager
def a_pipe_that_never_ends() -> Iterator[int]:
    with pipe() as (end, writer):
        os.write(writer, b"[Interface]\n")
        yield end
