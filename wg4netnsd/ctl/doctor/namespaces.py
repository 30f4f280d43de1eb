"""The checks of namespaces and of the interfaces in them."""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys
from pathlib import Path
from typing import Final

from wg4netnsd.ctl.doctor import system, trial
from wg4netnsd.ctl.doctor.finding import DMESG, Finding, note, ok, problem
from wg4netnsd.kernel.tun import DEVICE

ENOUGH: Final = 15000
"""For the limits of namespaces; distributions have about as many."""

_CLONE_SYSCTL: Final = "kernel.unprivileged_userns_clone"
_APPARMOR_SYSCTL: Final = "kernel.apparmor_restrict_unprivileged_userns"
_LIMITS: Final = {
    trial.USER_NAMESPACE: "user.max_user_namespaces",
    trial.NETWORK_NAMESPACE: "user.max_net_namespaces",
    trial.MOUNT_NAMESPACE: "user.max_mnt_namespaces",
    trial.PID_NAMESPACE: "user.max_pid_namespaces",
}
_SHARE_PIDS: Final = (
    "Otherwise use 'wg4netnsctl run --share-pids': the command then sees the host's processes."
)


def host() -> Finding:
    if system.is_initial_userns():
        return ok("this is not a child user namespace")
    return problem(
        "this is a child user namespace, such as a rootless container's or unshare's: wg4netnsd "
        "does not start in one, and the other checks describe only this one"
    ).advise("""Leave it and run this on the host:
        $ wg4netnsctl doctor""")


def user_namespaces() -> Finding:
    for step in (trial.USER_NAMESPACE, trial.ID_MAP, trial.NETWORK_NAMESPACE, trial.LOOPBACK):
        if (outcome := trial.outcome(step)).code:
            refused = problem(f"none can be made: {step}: {outcome}")
            return refused.advise(_remedy(step, outcome))
    return ok("one can be made, with a network namespace in it")


def proc() -> Finding:
    for step in (trial.MOUNT_NAMESPACE, trial.PID_NAMESPACE):
        if (outcome := trial.outcome(step)).code:
            refused = note(f"no PID namespace can be made: {step}: {outcome}")
            return refused.advise(_remedy(step, outcome), _SHARE_PIDS)
    outcome = trial.outcome(trial.PROC)
    if not outcome.code:
        return ok("a PID namespace gets its own /proc")
    found = f"a PID namespace gets no /proc of its own: {outcome}"
    if covered := system.mounts_in_proc():
        # mount_too_revealing() in the kernel's fs/namespace.c
        found += f"; parts of this /proc are covered, such as {covered[0]}, and the kernel allows "
        uncover = """Containers do that. Start this one with podman's '--security-opt unmask=ALL'
            or docker's '--security-opt systempaths=unconfined'."""
        return note(f"{found}no new one that would show them").advise(uncover, _SHARE_PIDS)
    return note(found).advise(_SHARE_PIDS)


def _remedy(step: str, outcome: trial.Outcome) -> str:
    """Advice against the kernel's refusal of a step, by its cause."""
    limit = _LIMITS.get(step)
    if limit and system.sysctl(limit) == "0":
        return f"{limit} is 0. {_set(limit, ENOUGH)}"
    if system.sysctl(_CLONE_SYSCTL) == "0":
        return f"{_CLONE_SYSCTL} is 0: only root may make them. {_set(_CLONE_SYSCTL, 1)}"
    if outcome.code in (errno.EPERM, errno.EACCES) and system.sysctl(_APPARMOR_SYSCTL) == "1":
        return _apparmor_profile(os.path.realpath(sys.argv[0]))
    if limit and outcome.code == errno.ENOSPC:
        most = system.sysctl(limit)
        return f"""The limit {limit} is reached, here ({most}) or in a user namespace around this
            one. {_set(limit, 2 * max(ENOUGH, int(most or 0)))}"""
    if outcome.code in (errno.EINVAL, errno.ENOSYS):
        return "This kernel has none: install one that is built with CONFIG_USER_NS=y."
    if outcome.code == errno.EPERM and system.is_chroot():
        return """This is a chroot, where the kernel makes none (user_namespaces(7)). Leave it; or
            as root, enter it as the root of a mount namespace:
            $ systemd-nspawn --directory=DIRECTORY"""
    if "Seccomp:\t2" in system.read("/proc/self/status"):
        return """A system call filter (seccomp) is in force, as in a container or a unit. Start the
            container with '--security-opt seccomp=unconfined', or remove RestrictNamespaces= and
            SystemCallFilter= from the unit."""
    if system.read("/sys/fs/selinux/enforce") == "1" and outcome.code == errno.EACCES:
        return """SELinux may have refused it. This shows what it refused, and by which rule:
            $ sudo ausearch --message AVC --start recent"""
    return f"None of the known causes applies. {DMESG}"


def _set(name: str, value: int) -> str:
    return f"""Set it now, and in /etc/sysctl.d/60-wg4netns.conf for every boot:
        $ sudo sysctl {name}={value}"""


def _apparmor_profile(program: str) -> str:
    """Ubuntu's, from 23.10 on. AppArmor knows a script by its path, with links resolved."""
    return f"""AppArmor allows them only to programs that have a profile ({_APPARMOR_SYSCTL} is 1).
        As root, write this one to /etc/apparmor.d/wg4netnsctl:
        | abi <abi/4.0>,
        | include <tunables/global>
        | profile wg4netnsctl "{program}"
        |     flags=(unconfined) {{
        |   userns,
        | }}
        and load it:
        $ sudo apparmor_parser --replace /etc/apparmor.d/wg4netnsctl
        Every other program that makes the namespaces needs one too: podman and bwrap may have
        theirs, unshare has none. Or lift the restriction for all programs:
        $ sudo sysctl {_APPARMOR_SYSCTL}=0"""


def tun() -> Finding:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return _refused_tun(error)
    outcome = trial.outcome(trial.INTERFACE)
    if not outcome.code:
        return ok("an interface can be made in a namespace")
    refused = problem(f"no interface can be made in a namespace: {outcome}")
    if outcome.operation == "TUNGETDEVNETNS":
        return refused.advise("Linux has this from 5.2 on: install 5.3 or newer.")
    return refused.advise(DMESG)


def _refused_tun(error: OSError) -> Finding:
    has_driver = any(line.split()[1:] == ["tun"] for line in system.read("/proc/misc").splitlines())
    match error.errno:
        case errno.ENOENT if has_driver:
            return problem(
                "is missing although the kernel has its driver, as in a container"
            ).advise("""Start the container with '--device /dev/net/tun'. Elsewhere, create it:
                $ sudo mkdir -p /dev/net
                $ sudo mknod -m 0666 /dev/net/tun c 10 200""")
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return problem(f"has no driver: {error.strerror}").advise(_load_module())
        case errno.EACCES:
            mode = stat.S_IMODE(os.stat(DEVICE).st_mode)
            return problem(f"is not open to you: its mode is {mode:04o}").advise("""Open it to all
                users; they can still make interfaces only in namespaces of their own:
                $ sudo chmod 0666 /dev/net/tun
                udev does so at each boot. Where it does not, add this line to
                /etc/udev/rules.d/60-tun.rules:
                | KERNEL=="tun", MODE="0666", OPTIONS+="static_node=net/tun\"""")
        case errno.EPERM:
            return problem(
                "can't be opened, whatever its mode: a container's device list forbids it"
            ).advise("Start the container with '--device /dev/net/tun'.")
    return problem(f"can't be opened: {error.strerror}").advise(DMESG)


def _load_module() -> str:
    release = platform.release()
    if not Path("/lib/modules", release).is_dir():
        return f"""The modules of the running kernel ({release}) are missing, as after an upgrade:
            reboot. In a container, load the module on the host:
            $ sudo modprobe tun"""
    return """Load it, now and at each boot:
        $ sudo modprobe tun
        $ echo tun | sudo tee /etc/modules-load.d/tun.conf"""
