"""`wg4netnsctl doctor`: are there namespaces to be had, and interfaces in them?"""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys
from pathlib import Path
from typing import Final

from wg4netnsd.ctl.doctor import trial
from wg4netnsd.ctl.doctor.finding import Finding, after, note, ok, problem, run
from wg4netnsd.ctl.doctor.procfs import (
    is_chroot,
    is_initial_userns,
    mounts_beneath,
    read,
    status,
    sysctl,
)
from wg4netnsd.ctl.doctor.trial import Outcome
from wg4netnsd.kernel.tun import DEVICE as TUN_DEVICE

ENOUGH: Final = 15000
"""For the limits of namespaces; distributions have about as many."""

_APPARMOR_SYSCTL: Final = "kernel.apparmor_restrict_unprivileged_userns"


def user_namespaces() -> Finding:
    outcomes = trial.outcomes()
    for step in (trial.USER_NAMESPACE, trial.ID_MAP, trial.NETWORK_NAMESPACE, trial.LOOPBACK):
        if outcomes[step].code:
            found = f"none can be had: {step}: {outcomes[step]}"
            return problem(found, *_what_forbids(step, outcomes[step]))
    return ok("one can be had, with a network namespace in it")


def host() -> Finding:
    if is_initial_userns():
        return ok("this is no child user namespace")
    return problem(
        "this is a child user namespace, such as a rootless container's or unshare's: wg4netnsd "
        "does not start in one, and what follows is about it alone",
        "Leave it, and ask again on the host:",
        run("wg4netnsctl doctor"),
    )


def proc() -> Finding:
    outcomes = trial.outcomes()
    if trial.MOUNT_NAMESPACE not in outcomes:
        return after("user namespaces")
    for step in (trial.MOUNT_NAMESPACE, trial.PID_NAMESPACE):
        if outcomes[step].code:
            found = f"there is no PID namespace to be had: {step}: {outcomes[step]}"
            return note(found, *_what_forbids(step, outcomes[step]), _SHARE_PIDS)
    if not outcomes[trial.PROC].code:
        return ok("a PID namespace gets its own /proc")
    found = f"a PID namespace gets no /proc of its own: {outcomes[trial.PROC]}"
    if covered := mounts_beneath("/proc"):
        # mount_too_revealing() of the kernel's fs/namespace.c
        return note(
            f"{found}; this one is covered in places, such as {covered[0]}, and the kernel gives "
            "nobody a way around that",
            "Containers cover it. Start this one with podman's '--security-opt unmask=ALL', or "
            "docker's '--security-opt systempaths=unconfined'.",
            _SHARE_PIDS,
        )
    return note(found, _SHARE_PIDS)


_SHARE_PIDS: Final = (
    "Otherwise use 'wg4netnsctl run --share-pids', whose command sees the host's processes."
)


# ---------------------------------------------------------------- what forbids them


def _what_forbids(step: str, outcome: Outcome) -> list[str]:
    limit = _LIMITS.get(step)
    if limit and sysctl(limit) == "0":
        return [f"{limit} is 0.", *_set(limit, ENOUGH)]
    if sysctl("kernel.unprivileged_userns_clone") == "0":
        return [
            "kernel.unprivileged_userns_clone is 0: they are root's alone.",
            *_set("kernel.unprivileged_userns_clone", 1),
        ]
    if outcome.code in (errno.EPERM, errno.EACCES) and sysctl(_APPARMOR_SYSCTL) == "1":
        return _admit_by_apparmor(os.path.realpath(sys.argv[0]))
    if limit and outcome.code == errno.ENOSPC:
        return [
            f"There are as many as {limit} allows, here ({sysctl(limit)}) or in a user namespace "
            "around this one.",
            *_set(limit, 2 * max(ENOUGH, int(sysctl(limit) or 0))),
        ]
    if outcome.code in (errno.EINVAL, errno.ENOSYS):
        return ["This kernel has none: install one that is built with CONFIG_USER_NS=y."]
    if outcome.code == errno.EPERM and is_chroot():
        return [
            "This is a chroot, in which the kernel makes none (user_namespaces(7)). Leave it; or "
            "enter it so that it is the root of a mount namespace, as root:",
            run("systemd-nspawn --directory=DIRECTORY"),
        ]
    if status("Seccomp") == "2":
        return [
            "A filter of system calls (seccomp) is in force, as in a container or a unit. Start "
            "the container with '--security-opt seccomp=unconfined', or take the unit's "
            "RestrictNamespaces= and SystemCallFilter= away."
        ]
    if read("/sys/fs/selinux/enforce") == "1" and outcome.code == errno.EACCES:
        return ["SELinux may have refused it. What, and by which rule:", run(_AUDIT)]
    return ["None of the known reasons holds here. The kernel's log may tell:", run("sudo dmesg")]


_AUDIT: Final = "sudo ausearch --message AVC --start recent"

_LIMITS: Final = {
    trial.USER_NAMESPACE: "user.max_user_namespaces",
    trial.NETWORK_NAMESPACE: "user.max_net_namespaces",
    trial.MOUNT_NAMESPACE: "user.max_mnt_namespaces",
    trial.PID_NAMESPACE: "user.max_pid_namespaces",
}


def _set(name: str, value: int) -> list[str]:
    return [
        "Set it, and put the same setting into /etc/sysctl.d/60-wg4netns.conf to keep it:",
        run(f"sudo sysctl {name}={value}"),
    ]


def _admit_by_apparmor(program: str) -> list[str]:
    """Ubuntu's, from 23.10 on. A script's profile goes by the script's path, links resolved."""
    return [
        f"AppArmor gives them to programs with a profile alone ({_APPARMOR_SYSCTL} is 1). Write "
        "this one to /etc/apparmor.d/wg4netnsctl, as root:",
        run("abi <abi/4.0>,"),
        run("include <tunables/global>"),
        run(f'profile wg4netnsctl "{program}"'),
        run("    flags=(unconfined) {"),
        run("  userns,"),
        run("}"),
        "and load it:",
        run("sudo apparmor_parser --replace /etc/apparmor.d/wg4netnsctl"),
        "Whoever makes the namespaces needs the like: podman and bwrap may have theirs, unshare "
        "has none. Or lift the restriction for all programs:",
        run(f"sudo sysctl {_APPARMOR_SYSCTL}=0"),
    ]


# ---------------------------------------------------------------- the TUN


def tun() -> Finding:
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return problem(*_why_closed(error))
    outcome = trial.outcomes().get(trial.INTERFACE)
    if outcome is None:
        return after("user namespaces")
    if not outcome.code:
        return ok("an interface can be made in a namespace")
    found = f"no interface can be made in a namespace: {outcome}"
    if outcome.operation == "TUNGETDEVNETNS":
        return problem(found, "Linux 5.2 has what is lacking here: install 5.3 or newer.")
    return problem(found, "The kernel's log may tell why:", run("sudo dmesg"))


def _why_closed(error: OSError) -> list[str]:
    """What is found, and the advice."""
    match error.errno:
        case errno.ENOENT if _has_module():
            return [
                "is missing, though the kernel has its driver, as in a container",
                "Start the container with '--device /dev/net/tun'. Elsewhere, make it:",
                run("sudo mkdir -p /dev/net"),
                run("sudo mknod -m 0666 /dev/net/tun c 10 200"),
            ]
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return [f"has no driver: {error.strerror}", *_load_module()]
        case errno.EACCES:
            mode = stat.S_IMODE(os.stat(TUN_DEVICE).st_mode)
            return [
                f"is not open to you: its mode is {mode:04o}",
                "Open it to all users; an interface still takes a namespace of one's own:",
                run("sudo chmod 0666 /dev/net/tun"),
                "udev does so at each boot. Where it does not, put this line into "
                "/etc/udev/rules.d/60-tun.rules:",
                run('KERNEL=="tun", MODE="0666", OPTIONS+="static_node=net/tun"'),
            ]
        case errno.EPERM:
            return [
                "is not to be opened, whatever its mode: a container's list of devices forbids it",
                "Start the container with '--device /dev/net/tun'.",
            ]
    return [f"can't be opened: {error.strerror}", "The kernel's log may tell:", run("sudo dmesg")]


def _has_module() -> bool:
    return any(line.split()[1:] == ["tun"] for line in read("/proc/misc").splitlines())


def _load_module() -> list[str]:
    release = platform.release()
    if not Path("/lib/modules", release).is_dir():
        return [
            f"The modules of the running kernel ({release}) are not there, as after an upgrade: "
            "reboot. In a container, have the host load its module:",
            run("sudo modprobe tun"),
        ]
    return [
        "Load it, now and at each boot:",
        run("sudo modprobe tun"),
        run("echo tun | sudo tee /etc/modules-load.d/tun.conf"),
    ]
