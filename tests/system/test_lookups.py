"""Confined look-ups by programs of each kind, on a host whose own services would answer them.

┌─ a host of the test's own: /etc, /run, network ──────┐
│  getent ──► nscd, systemd-resolved, avahi ──► DNS    │  192.0.2.66 to all
│                                                      │
│  ┌─ a namespace, confined ──────────────────┐        │
│  │  getent, musl, Go, busybox ──► DNS       │        │  198.51.100.7 to all
│  └──────────────────────────────────────────┘        │
└──────────────────────────────────────────────────────┘
"""

import itertools
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.hosts import HERE, HOSTS_ANSWER, INNER_ANSWER, SERVER, Confined, Host
from support.resolvers import RESOLVERS, resolver
from support.stage import Stage
from wg4netnsd.ctl import lookups, mounts

pytestmark = pytest.mark.distribution

Make = Callable[..., Confined]
_names = (f"lookup-{number}.example" for number in itertools.count())


@pytest.fixture
def host(stage: Stage, tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path, stage.unpacked) as started:
        yield started


@pytest.fixture
def confined(host: Host) -> Iterator[Make]:
    """Make confined namespaces on call; they end before their host."""
    made: list[Confined] = []

    def make(*users: str) -> Confined:
        made.append(Confined(host, *(users or ["--user", "--map-current-user", "--keep-caps"])))
        return made[-1]

    yield make
    for each in made:
        each.close()


# ------------------------------------------------------------------------------ who asks


@pytest.mark.parametrize("program", RESOLVERS)
def test_a_lookup_is_answered_inside_and_only_there(
    host: Host, confined: Make, program: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    host.nscd()
    inside = confined()
    command = resolver(program, tmp_path_factory.getbasetemp())
    marker = "marker-of-this-test"
    name = f"{marker}.example"
    with host.capture(marker) as seen:
        assert INNER_ANSWER in inside.check(*command, name)
    assert inside.asked(name) > 0
    assert host.asked(name) == 0
    assert seen["found"] == seen["missed"] == 0
    with host.capture(marker) as seen:  # to show that the capture notices it
        assert HOSTS_ANSWER in host.check(*command, name)
    assert host.asked(name) > 0
    assert seen["found"] > 0


# ------------------------------------------------------------------------------ who is not asked


def test_nscd(host: Host, confined: Make) -> None:
    host.nscd()
    count = host.nscd_lookups()
    assert HOSTS_ANSWER in host.lookup(next(_names))
    assert host.nscd_lookups() > count
    inside = confined()
    count = host.nscd_lookups()
    assert INNER_ANSWER in inside.lookup(next(_names))
    assert host.nscd_lookups() == count


def test_nscd_that_ends_and_starts_anew(host: Host, confined: Make) -> None:
    """The directory is new, as when systemd makes it by RuntimeDirectory=."""
    nscd = host.nscd()
    inside = confined()
    nscd.terminate()
    nscd.wait(10)
    host.check("sh", "-c", "rm -r /run/nscd && mkdir /run/nscd")
    host.nscd()
    assert HOSTS_ANSWER in host.lookup(next(_names))
    count = host.nscd_lookups()
    assert INNER_ANSWER in inside.lookup(next(_names))
    assert host.nscd_lookups() == count


def test_nscd_where_var_run_is_a_directory(host: Host, confined: Make) -> None:
    # The rest of it is in use by the programs of tests/stage.
    host.check("mkdir", "-p", "/mnt/var/run/nscd", "/mnt/var/cache")
    host.check("mount", "--rbind", "/var/cache", "/mnt/var/cache")
    host.check("mount", "--rbind", "/mnt/var", "/var")
    host.nscd()
    inside = confined()
    count = host.nscd_lookups()
    assert INNER_ANSWER in inside.lookup(next(_names))
    assert host.nscd_lookups() == count
    assert HOSTS_ANSWER in host.lookup(next(_names))
    assert host.nscd_lookups() > count


def test_systemd_resolved(host: Host, confined: Make) -> None:
    log = host.resolved()
    host.write("/etc/nsswitch.conf", "hosts: files resolve [!UNAVAIL=return] dns\n")
    inside = confined()
    name = next(_names)
    assert INNER_ANSWER in inside.lookup(name)
    assert "io.systemd.Resolve.Resolve" not in log.read_text()
    assert HOSTS_ANSWER in host.lookup(name)
    assert "io.systemd.Resolve.Resolve" in log.read_text()


def test_avahi(host: Host, confined: Make) -> None:
    """Its socket never answers here: the library then takes the next source."""
    host.write("/etc/nsswitch.conf", "hosts: files mdns4_minimal dns\n")
    path = host.directory / "avahi"
    with socket.socket(socket.AF_UNIX) as avahi:
        avahi.bind(str(path))
        avahi.listen()
        avahi.setblocking(False)
        host.check("touch", "/run/avahi-daemon/socket")
        host.check("mount", "--bind", str(path), "/run/avahi-daemon/socket")
        inside = confined()
        assert INNER_ANSWER in inside.lookup("printer.local")
        with pytest.raises(BlockingIOError):
            avahi.accept()
        avahi.settimeout(10)
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(host.lookup, "printer.local")
            avahi.accept()[0].close()
        assert not answer.result()


# ------------------------------------------------------------------------------ /etc and /run

EMPTIED = ["/run/avahi-daemon", "/run/systemd/resolve"]
STUB = "../run/systemd/resolve/stub-resolv.conf"


@pytest.mark.parametrize(
    "made",
    [
        "echo nameserver 192.0.2.99 >/etc/resolv.conf",
        f"ln -s {STUB} /etc/resolv.conf && echo nameserver 192.0.2.99 >/etc/{STUB}",
        "ln -s /run/resolv.conf /etc/resolv.conf && echo nameserver 192.0.2.99 >/run/resolv.conf",
        f"ln -s {STUB} /etc/resolv.conf",
        "ln -s /nowhere/resolv.conf /etc/resolv.conf",
        "ln -s resolv.conf /etc/resolv.conf",
        "true",
    ],
    ids=["file", "stub", "link", "dangling", "nowhere", "loop", "missing"],
)
@pytest.mark.parametrize("mounts", [False, True], ids=["overlay", "mounts in /etc"])
def test_whatever_resolv_conf_is(host: Host, confined: Make, made: str, mounts: bool) -> None:
    host.check("sh", "-ec", f"rm /etc/resolv.conf; {made}")
    if mounts:  # as in a container
        host.check("mount", "--bind", "/etc/issue", "/etc/hosts")
    inside = confined()
    assert inside.check("cat", "/etc/resolv.conf") == f"nameserver {SERVER}\n"
    assert INNER_ANSWER in inside.lookup(next(_names))
    assert bool(inside.run("findmnt", "--types=overlay", "/etc").stdout) != mounts
    # Everything else is as on the host.
    theirs = {"resolv.conf", "nsswitch.conf"}
    listed = [set(each.check("ls", "-A", "/etc").split()) for each in (host, inside)]
    assert listed[0] - theirs == listed[1] - theirs
    for look in ("cat /etc/hosts", "cat /etc/ld.so.conf.d/libc.conf", "readlink /etc/mtab"):
        assert inside.check(*look.split()) == host.check(*look.split())


@pytest.mark.parametrize("mounts", [False, True], ids=["overlay", "mounts in /etc"])
def test_the_host_replaces_its_files(host: Host, confined: Make, mounts: bool) -> None:
    """The host replaces them by rename(2), which would detach mounts on them."""
    if mounts:
        host.check("mount", "--bind", "/etc/issue", "/etc/hosts")
    inside = confined()
    host.write("/etc/resolv.conf", "nameserver 192.0.2.99\n")
    host.write("/etc/nsswitch.conf", "hosts: resolve\n")
    assert INNER_ANSWER in inside.lookup(next(_names))
    assert inside.check("cat", "/etc/resolv.conf") == f"nameserver {SERVER}\n"
    assert inside.check("cat", "/etc/nsswitch.conf") == "hosts: files dns\n"


def test_the_host_has_no_nsswitch_conf(host: Host, confined: Make) -> None:
    host.check("rm", "/etc/nsswitch.conf")
    inside = confined()
    assert INNER_ANSWER in inside.lookup(next(_names))
    assert inside.check("getent", "passwd", "root").startswith("root:")


def test_the_daemon_rewrites_its_file(confined: Make) -> None:
    inside = confined()
    inside.resolv_conf.write_text("nameserver 192.0.2.5\n")
    assert inside.check("cat", "/etc/resolv.conf") == "nameserver 192.0.2.5\n"


def test_all_else_in_run_stays(host: Host, confined: Make) -> None:
    """With nscd, the content of /run stays visible, and so do later mounts below it."""
    host.check("sh", "-ec", "mkdir /run/service; ln -s service /run/link; echo 1 >/run/file")
    host.check("touch", *(f"{directory}/socket" for directory in EMPTIED))
    inside = confined()
    host.check("sh", "-c", "echo 2 >/run/file && mkdir /run/user/1001 && touch /run/service/new")
    host.check("mount", "-t", "tmpfs", "late", "/run/user/1001")
    host.check("touch", "/run/user/1001/bus")
    expected = {"avahi-daemon", "file", "link", "service", "systemd", "user"}
    assert set(inside.check("ls", "-A", "/run").split()) == expected
    assert inside.check("cat", "/run/file") == "2\n"
    assert inside.check("ls", "/run/link/", "/run/user/1001").split() == [
        *("/run/link/:", "new", "/run/user/1001:", "bus")
    ]
    assert inside.check("ls", *EMPTIED).split() == [f"{directory}:" for directory in EMPTIED]
    for missing in ("/run/nscd", *(f"{directory}/socket" for directory in EMPTIED)):
        assert inside.run("touch", missing).returncode != 0


def test_without_nscd_run_is_the_hosts(host: Host, confined: Make) -> None:
    host.check("rmdir", "/run/nscd")
    inside = confined()
    host.check("touch", "/run/new")
    inside.check("test", "-e", "/run/new")


@pytest.mark.parametrize("users", [[], ["--user", "--map-current-user", "--keep-caps"]])
def test_nothing_shows_on_the_host(host: Host, users: list[str]) -> None:
    """Not in a new user namespace, nor in an existing one, as after setns()."""
    listing = ["ls", "-lAR", "/etc", "/run"]
    before, files = host.mounts(), host.check(*listing)
    inside = Confined(host, *users)
    with inside:
        assert (host.mounts(), host.check(*listing)) == (before, files)
        host.check("mount", "-t", "tmpfs", "late", "/srv")
        host.check("touch", "/srv/late")
        inside.check("test", "-e", "/srv/late")
        inside.check("mount", "-t", "tmpfs", "ours", "/opt")
    host.check("umount", "/srv")
    assert host.mounts() == before


@pytest.mark.parametrize("path", ["/nowhere/resolv.conf", "/etc/passwd/resolv.conf"])
def test_a_file_that_is_not_there_is_named(host: Host, path: str) -> None:
    command = [sys.executable, str(HERE / "confined.py"), path, "true"]
    refused = host.run("unshare", "--mount", *command)
    assert path in refused.stderr.splitlines()[-1]


def test_without_the_privilege_the_refused_call_is_named() -> None:
    with pytest.raises(OSError, match="mount /"):
        mounts.isolate()


# ------------------------------------------------------------------------------ nsswitch.conf

DEBIAN = """\
# /etc/nsswitch.conf

passwd:         files systemd
hosts:          files dns
networks:       files
netgroup:       nis
"""


@pytest.mark.parametrize(
    ("services", "left"),
    [
        ("files dns", "files dns"),  # Debian
        ("files mdns4_minimal [NOTFOUND=return] dns", "files dns"),  # Ubuntu
        ("files mdns4_minimal [NOTFOUND=return] dns myhostname mymachines", "files myhostname dns"),
        ("files myhostname resolve [!UNAVAIL=return] dns", "files myhostname dns"),  # Fedora
        ("mymachines resolve [!UNAVAIL=return] files myhostname dns", "files myhostname dns"),
        # Above: Arch; below: NixOS with avahi.
        ("mymachines mdns_minimal [NOTFOUND=return] resolve [!UNAVAIL=return] files myhostname dns",
         "files myhostname dns"),
        ("files libvirt libvirt_guest wins sss ldap [SUCCESS=return] nis dns", "files dns"),
        ("resolve", "files dns"),
        ("dns [!UNAVAIL=return] files # not myhostname", "files dns"),
        ("", "files dns"),
    ],
)  # fmt: skip
def test_hosts_are_asked_for_in_files_and_dns(services: str, left: str) -> None:
    text = DEBIAN.replace("files dns", services)
    expected = DEBIAN.replace("hosts:          files dns", f"hosts: {left}")
    assert lookups.restrict_hosts(text) == expected


@pytest.mark.parametrize(
    "line", ["hosts: resolve", "\t hosts:resolve", "hosts resolve", "hosts :\tdns"]
)
def test_as_the_c_library_reads_it(line: str) -> None:
    assert lookups.restrict_hosts(line) == "hosts: files dns\n"


def test_other_lines_are_no_hosts() -> None:
    others = "#hosts: resolve\n\nhostsfile: x\npasswd: hosts\n"
    assert lookups.restrict_hosts(others) == f"{others}hosts: files dns\n"
    assert lookups.restrict_hosts("") == "hosts: files dns\n"
