"""`wg4netnsctl doctor`: the kernel, its networks, its clock and its limits."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import time
from typing import Final

import wg4netnsd
from wg4netnsd.ctl.doctor import trial
from wg4netnsd.ctl.doctor.finding import Finding, after, note, ok, problem, run
from wg4netnsd.ctl.doctor.procfs import read, sysctl, user
from wg4netnsd.kernel.syscalls import adjtimex, landlock_version

UNSYNCHRONISED: Final = 16_000_000
"""Microseconds: NTP_PHASE_LIMIT of the kernel's ntp.c, an error that grows while nobody sets the
clock."""

MOST_TUNNELS: Final = 256
FDS_OF_DAEMON, FDS_OF_TUNNEL = 160, 10


def kernel() -> Finding:
    release = f"Linux {platform.release()}"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        found = f"{release}: pidfd_open: {error.strerror}"
        if error.errno == errno.ENOSYS:
            return problem(found, "Linux 5.3 or newer is needed: install one, and boot it.")
        return problem(found, "A container's filter of system calls forbids it, as old ones do.")
    try:
        return ok(f"{release}, with Landlock {landlock_version()}")
    except OSError as error:
        return note(f"{release}: Landlock: {error.strerror}", *_enable_landlock(error))


def _enable_landlock(error: OSError) -> list[str]:
    without = "Engines do without it."
    if error.errno == errno.EOPNOTSUPP:
        others = read("/sys/kernel/security/lsm")
        setting = run(f"lsm=landlock,{others}".removesuffix(","))
        return [f"{without} To have it, boot with this on the kernel's command line:", setting]
    if error.errno == errno.ENOSYS:
        return [f"{without} Linux has it from 5.13 on, if built with CONFIG_SECURITY_LANDLOCK=y."]
    return [f"{without} A container's filter of system calls may forbid it."]


# ---------------------------------------------------------------- networks


def ipv6() -> Finding:
    """As a new namespace has it, whatever the host's own settings are."""
    outcome = trial.outcomes().get(trial.IPV6)
    if outcome is None:
        return after("user namespaces")
    if not outcome.code:
        return ok("a new network namespace has it")
    found = f"a new network namespace has none ({outcome}): configurations with IPv6 addresses fail"
    if sysctl("net.core.devconf_inherit_init_net") in ("1", "3"):
        return note(
            found,
            "It has none as the host has none, by a setting. Put another into "
            "/etc/sysctl.d/60-wg4netns.conf, and set it:",
            run("sudo sysctl net.core.devconf_inherit_init_net=0"),
        )
    return note(
        found,
        "It is switched off where the kernel is booted. Take 'ipv6.disable=1' and "
        "'ipv6.disable_ipv6=1' out of GRUB_CMDLINE_LINUX in /etc/default/grub; then:",
        run("sudo update-grub && sudo reboot"),
    )


def ipv6_endpoints() -> Finding:
    """The host's side, from where engines send."""
    off = [
        name
        for name in ("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6")
        if sysctl(name) == "1"
    ]
    if _has_default_route():
        return ok("the host has a default route")
    if off:
        return note(
            f"the host has none: {off[0]} is 1; endpoints that have only IPv6 addresses are "
            "unreachable",
            "If the network has IPv6, take the line out of the file in /etc/sysctl.d that has it, "
            "and set it:",
            run(f"sudo sysctl {off[0]}=0"),
        )
    return note(
        "the host has no default route: endpoints that have only IPv6 addresses are unreachable",
        "Give such peers an IPv4 Endpoint, or the host IPv6. Its routes now:",
        run("ip -6 route"),
    )


def _has_default_route() -> bool:
    """From /proc/net/ipv6_route: destination, its length, source, its length, next hop, metric,
    references, uses, flags, interface."""
    rtf_up, rtf_reject = 0x0001, 0x0200  # linux/route.h
    routes = [line.split() for line in read("/proc/self/net/ipv6_route").splitlines()]
    return any(
        (route[0].strip("0"), route[1]) == ("", "00")
        and int(route[8], 16) & (rtf_up | rtf_reject) == rtf_up
        for route in routes
    )


# ---------------------------------------------------------------- the clock


def clock() -> Finding:
    """A handshake carries the time, and a peer takes none with one that is not later than the last
    (the WireGuard paper, 5.1)."""
    installed = os.stat(wg4netnsd.__file__).st_mtime
    now = time.time()
    today = time.strftime("%Y-%m-%d", time.localtime(now))
    if now < installed:
        return problem(
            f"it is set to {today}, which is before this installation was made: peers refuse "
            "handshakes that are older than the last",
            "Have it set by the network, or by hand:",
            run("sudo timedatectl set-ntp true"),
            run("sudo date --set 'YYYY-MM-DD HH:MM'"),
        )
    (max_error,) = struct.unpack_from("l", adjtimex(), 3 * ctypes.sizeof(ctypes.c_long))
    if max_error < UNSYNCHRONISED:
        return ok(f"{today}, kept by the network's time")
    return note(
        f"{today}; nobody keeps it by the network's time, and if it is set back, peers refuse "
        "handshakes until it is again where it was",
        "Have systemd-timesyncd, or what there is in its place, keep it:",
        run("sudo timedatectl set-ntp true"),
    )


# ---------------------------------------------------------------- limits


def open_files() -> Finding:
    """The daemon raises its soft limit by itself, so the hard one counts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tunnels = MOST_TUNNELS if hard == resource.RLIM_INFINITY else _tunnels(hard)
    if tunnels >= MOST_TUNNELS:
        return ok(f"the hard limit has room for {MOST_TUNNELS} tunnels")
    return note(
        f"the hard limit is {hard}, which has room for {max(tunnels, 0)} tunnels",
        "For as many as the daemon takes, put this line into "
        "/etc/security/limits.d/wg4netns.conf, and log in again:",
        run(f"{user()} hard nofile 8192"),
    )


def _tunnels(fds: int) -> int:
    return min(MOST_TUNNELS, (fds - FDS_OF_DAEMON) // FDS_OF_TUNNEL)
