"""The engine fails in the middle of a change, or is not there."""

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from support import processes
from support.bus import Bus, Client, DBusError
from support.fds import udp_port_in_use
from support.processes import wait_for
from support.reconfiguration import ONE, P2, P3, PAIRS, free_port, own_things, peer
from support.witnesses import Make, Tunnel, expected


def test_an_engine_that_hangs(tunnel: Make) -> None:
    """Whatever it has taken: it is replaced, and its successor has the old configuration."""
    subject = tunnel(ONE)
    pid, port, resolv_conf = subject.get("EnginePID"), subject.get("ListenPort"), subject.file()
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: processes.state(pid) == "T", "it has stopped")
    with pytest.raises(DBusError, match="Timeout"):
        subject.reconfigure(replace(ONE, mtu=1300, dns=("10.9.0.1",), peers=(P2, P3)))
    assert subject.file() == resolv_conf
    assert subject.get("State") == "up"
    assert subject.seen() == expected(ONE, port)
    assert subject.get("EnginePID") != pid


def test_an_engine_that_dies(tunnel: Make, client: Client, bus: Bus) -> None:
    """At any moment of a change: the tunnel has all of the new one, or all of the old."""
    subject = tunnel(ONE)
    port = subject.get("ListenPort")
    now, other = ONE, replace(ONE, addresses=("10.7.0.1/24", "fd07::1/64"), peers=(P3, P2))
    for number in range(20):
        pid = subject.get("EnginePID")
        killer = threading.Timer(number / 1000, os.kill, [pid, signal.SIGKILL])
        killer.start()
        error = subject.error_of(other)
        killer.join()
        assert error in ("", "EngineFailed")
        if not error:
            now, other = other, now
        wait_for(lambda pid=pid: subject.get("EnginePID") not in (0, pid), "a new engine")
        subject.wait_up()
        assert subject.seen() == expected(now, port)
        client.tunnel(subject.path, "Restart")  # is no crash, and those before count no more


def kill_until(subject: Tunnel, state: str) -> None:
    """Kill each engine; after the sixth there is none for more than a second (backoff.py)."""
    kills, enough = 0, 6 if state == "restarting" else 0
    while (now := subject.get("State")) != state or kills < enough:
        if now == "up" and (pid := subject.get("EnginePID")):  # it may be none by then
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills += 1
        time.sleep(0.01)  # no faster than the daemon can


def test_without_an_engine_the_next_one_gets_it(tunnel: Make, client: Client) -> None:
    subject = tunnel(ONE)
    new = replace(ONE, addresses=("10.7.0.1/24", "fd07::1/64"), mtu=1300, peers=(P2, peer(0)))
    for state in ("restarting", "failed"):
        kill_until(subject, state)
        new = replace(new, me=PAIRS[4], port=free_port())
        subject.reconfigure(replace(new, peers=()))
        subject.reconfigure(new)
        if state == "failed":
            assert subject.interface() == expected(new, new.port)[1]
            own_things(subject.inside)
            assert subject.error_of(replace(new, peers=(peer(3, "10.99.0.0/16"),))) == "TunFailed"
            assert subject.error_of(replace(new, peers=(peer(4),))) == "InvalidConfig"
            bound, taken = udp_port_in_use()
            with bound:
                assert subject.error_of(replace(new, port=taken)) == "EngineFailed"
            assert subject.get("State") == "failed"
            client.tunnel(subject.path, "Restart")
        subject.wait_up()
        assert subject.seen() == expected(new, new.port)


def test_an_own_key_that_nobody_recognises_yet(tunnel: Make, client: Client) -> None:
    """The tunnel can't come up with it, but what is there stays."""
    subject = tunnel(ONE)
    kill_until(subject, "restarting")
    subject.reconfigure(replace(ONE, me=PAIRS[1]))
    assert subject.get("PublicKey") == ""
    assert client.tunnel(subject.path, "WaitForState", "ast", ["failed"], 20_000_000) == "failed"
    assert "the interface's own" in subject.get("LastError")[1]
    subject.reconfigure(ONE)
    client.tunnel(subject.path, "Restart")
    assert subject.seen() == expected(ONE, subject.get("ListenPort"))
