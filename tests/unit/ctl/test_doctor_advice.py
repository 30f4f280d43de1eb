"""The advice of `wg4netnsctl doctor` when the kernel refuses namespaces, for causes that no single
machine has."""

import errno

import pytest

from wg4netnsd.ctl.doctor import namespaces, system, trial
from wg4netnsd.ctl.doctor.trial import Outcome

APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"
CLONE = "kernel.unprivileged_userns_clone"
MOST = "user.max_user_namespaces"


@pytest.mark.parametrize(
    ("code", "sysctls", "others", "words"),
    [
        (errno.ENOSPC, {MOST: "0"}, {}, f"{MOST} is 0."),
        (errno.ENOSPC, {MOST: "9"}, {}, f"The limit {MOST} is reached, here (9)"),
        (errno.EPERM, {CLONE: "0"}, {}, f"{CLONE} is 0"),
        (errno.EPERM, {CLONE: "1", APPARMOR: "1"}, {}, "AppArmor allows them only to programs"),
        (errno.EACCES, {APPARMOR: "1"}, {}, "AppArmor allows them only to programs"),
        (errno.EPERM, {APPARMOR: "0"}, {"chroot": True}, "This is a chroot"),
        (errno.EINVAL, {}, {}, "This kernel has none"),
        (errno.ENOSYS, {}, {"seccomp": "2"}, "This kernel has none"),
        (errno.EPERM, {}, {"seccomp": "2"}, "A system call filter (seccomp) is in force"),
        (errno.EACCES, {}, {"selinux": "1"}, "SELinux may have refused it"),
        (errno.EACCES, {}, {"selinux": "0"}, "None of the known causes"),
        (errno.EPERM, {}, {"selinux": "1"}, "None of the known causes"),
    ],
)
def test_why_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    sysctls: dict[str, str],
    others: dict[str, object],
    words: str,
) -> None:
    files = {
        "/sys/fs/selinux/enforce": others.get("selinux", ""),
        "/proc/self/status": f"Name:\tdoctor\nSeccomp:\t{others.get('seccomp', '0')}\n",
    }
    monkeypatch.setattr(system, "sysctl", lambda name: sysctls.get(name, ""))
    monkeypatch.setattr(system, "read", lambda path: files.get(path, ""))
    monkeypatch.setattr(system, "is_chroot", lambda: others.get("chroot", False))
    remedy = namespaces._remedy(trial.USER_NAMESPACE, Outcome(code, "unshare"))
    assert remedy.startswith(words)
