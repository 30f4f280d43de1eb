"""The checks of the machine: its kernel, networks, clock and limits."""

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
from wg4netnsd.ctl.doctor.finding import Finding, note, ok, problem
from wg4netnsd.ctl.doctor.system import read, sysctl, user
from wg4netnsd.kernel.syscalls import adjtimex, landlock_version

UNSYNCHRONISED: Final = 16_000_000
"""Microseconds: NTP_PHASE_LIMIT in the kernel's ntp.c, the error of an unset clock."""


def kernel() -> Finding:
    release = f"Linux {platform.release()}"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        lacks = problem(f"{release}: pidfd_open: {error.strerror}")
        if error.errno == errno.ENOSYS:
            return lacks.advise("wg4netnsd needs Linux 5.3 or newer: install it and reboot.")
        return lacks.advise("A container's system call filter forbids it, as old filters do.")
    try:
        return ok(f"{release}, with Landlock {landlock_version()}")
    except OSError as error:
        lacks = note(f"{release}: Landlock: {error.strerror}; engines run without it")
        if error.errno == errno.EOPNOTSUPP:
            modules = ",".join(filter(None, ("landlock", read("/sys/kernel/security/lsm"))))
            return lacks.advise(f"""To enable it, boot the kernel with this option:
                | lsm={modules}""")
        if error.errno == errno.ENOSYS:
            return lacks.advise("Linux 5.13 and newer have it, with CONFIG_SECURITY_LANDLOCK=y.")
        return lacks.advise("A container's system call filter may forbid it.")


def ipv6() -> Finding:
    """Check a new namespace: its settings are not the host's."""
    outcome = trial.outcome(trial.IPV6)
    if not outcome.code:
        return ok("a new network namespace has it")
    lacks = note(
        f"a new network namespace has none ({outcome}): configurations with IPv6 addresses fail"
    )
    if sysctl("net.core.devconf_inherit_init_net") in ("1", "3"):
        return lacks.advise("""A setting makes namespaces inherit that from the host. Change it,
            also in /etc/sysctl.d/60-wg4netns.conf:
            $ sudo sysctl net.core.devconf_inherit_init_net=0""")
    return lacks.advise("""It is disabled at boot. Remove 'ipv6.disable=1' and
        'ipv6.disable_ipv6=1' from GRUB_CMDLINE_LINUX in /etc/default/grub, then:
        $ sudo update-grub && sudo reboot""")


def ipv6_endpoints() -> Finding:
    """Check the host, from where engines send."""
    if _has_default_route():
        return ok("the host has a default route")
    found = "the host has no default route: endpoints with only IPv6 addresses are unreachable"
    for name in ("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"):
        if sysctl(name) == "1":
            return note(f"{found}; {name} is 1").advise(f"""If the network has IPv6, remove that
                line from its file in /etc/sysctl.d, and set it:
                $ sudo sysctl {name}=0""")
    return note(found).advise("""Give such peers an IPv4 Endpoint, or the host IPv6. Its routes now:
        $ ip -6 route""")


def _has_default_route() -> bool:
    """Read /proc/net/ipv6_route: destination, its length, source, its length, next hop, metric,
    references, uses, flags, interface."""
    rtf_up, rtf_reject = 0x0001, 0x0200  # linux/route.h
    routes = map(str.split, read("/proc/self/net/ipv6_route").splitlines())
    return any(
        (route[0].strip("0"), route[1]) == ("", "00")
        and int(route[8], 16) & (rtf_up | rtf_reject) == rtf_up
        for route in routes
    )


def clock() -> Finding:
    """Check the clock: a peer accepts only handshakes with a later time than the last one
    (the WireGuard paper, 5.1)."""
    now = time.time()
    today = time.strftime("%Y-%m-%d", time.localtime(now))
    if now < os.stat(wg4netnsd.__file__).st_mtime:
        return problem(
            f"it says {today}, which is before this installation was made: peers refuse handshakes "
            "that are older than the last one"
        ).advise("""Set it from the network, or by hand:
            $ sudo timedatectl set-ntp true
            $ sudo date --set 'YYYY-MM-DD HH:MM'""")
    (max_error,) = struct.unpack_from("l", adjtimex(), 3 * ctypes.sizeof(ctypes.c_long))
    if max_error < UNSYNCHRONISED:
        return ok(f"{today}, synchronised from the network")
    return note(
        f"{today}, not synchronised: if it is set back, peers refuse handshakes until it has "
        "caught up"
    ).advise("""Have systemd-timesyncd or its equivalent synchronise it:
        $ sudo timedatectl set-ntp true""")


def open_files() -> Finding:
    """Check the hard limit: the daemon raises its soft limit itself."""
    from wg4netnsd.tunnel.manager import FDS, MAX_TUNNELS, SPARE_FDS

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tunnels = max(hard - SPARE_FDS, 0) // FDS
    if hard == resource.RLIM_INFINITY or tunnels >= MAX_TUNNELS:
        return ok(f"the hard limit has room for {MAX_TUNNELS} tunnels")
    found = f"the hard limit is {hard}, which has room for {tunnels} tunnels"
    return note(found).advise(f"""For as many as the daemon accepts, add this line to
        /etc/security/limits.d/wg4netns.conf and log in again:
        | {user()} hard nofile 8192""")
