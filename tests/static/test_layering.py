"""Imports point only one way: a module imports those above it in this table, and no others."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "wg4netnsd"

MAY_IMPORT: dict[str, set[str]] = {
    "names": set(),
    "errors": {"names"},
    # What runs inside a caller's namespace has nothing of ours but one another.
    "syscalls": set(),
    "nlmsg": set(),
    "rtinfo": {"nlmsg"},
    "rtnetlink": {"nlmsg", "rtinfo"},
    "tun": {"syscalls"},
    "linkwatch": {"nlmsg", "rtinfo", "rtnetlink", "tun"},
    "interface": {"linkwatch", "rtnetlink", "syscalls", "tun"},
    "agent": {"interface", "linkwatch", "rtnetlink", "syscalls"},
    "journal": {"errors"},
    "systemd": {"names"},
    "backoff": set(),
    "process": set(),
    "rundir": set(),
    "signals": set(),
    "tasks": set(),
    "blocking": {"errors"},
    "paths": {"errors"},
    "contract": set(),
    "config": {"errors"},
    "wgquick": {"config", "errors"},
    "lifetime": {"blocking", "errors", "paths"},
    "uapi": {"config", "errors"},
    "lines": set(),
    "events": set(),
    "session": {"events"},
    "pace": set(),
    "engine": {"errors", "events", "journal", "lines", "process", "rundir", "uapi"},
    "resolvconf": {"config", "errors", "journal", "rundir"},
    "netns": {"agent", "blocking", "errors", "linkwatch", "paths", "syscalls", "tasks", "tun"},
    "resolve": {"blocking", "errors"},
    "endpoints": {"config", "errors", "events", "resolve", "tasks"},
    "peer": {
        "config", "endpoints", "errors", "events", "pace", "resolve", "session", "uapi",
    },
    "peers": {
        "config", "endpoints", "errors", "events", "peer", "resolve", "session", "uapi",
    },
    "lifecycle": {"errors", "journal"},
    "configfile": {"blocking", "config", "errors", "paths", "wgquick"},
    "observer": {"errors", "journal", "lifecycle", "pace", "peer", "session"},
    "spec": {"agent", "config", "lifetime"},
    "fdstore": {"paths", "process", "systemd"},
    "record": {"config", "errors", "events", "fdstore", "lifetime", "spec", "wgquick"},
    "link": {"agent", "blocking", "errors", "journal", "linkwatch", "netns", "tasks", "tun"},
    "supervised": {
        "config", "engine", "errors", "events", "fdstore", "journal", "peer", "peers", "process",
        "record", "resolve", "rundir", "spec", "tasks", "uapi",
    },
    "tunnel": {
        "agent", "backoff", "config", "engine", "errors", "fdstore", "journal", "lifecycle",
        "lifetime", "link", "netns", "observer", "peers", "record", "resolvconf", "spec",
        "supervised", "tasks", "uapi",
    },
    "manager": {
        "agent", "engine", "errors", "lifecycle", "lifetime", "netns", "observer", "record", "spec",
        "tunnel",
    },
    "restore": {
        "engine", "errors", "fdstore", "lifecycle", "lifetime", "manager", "netns", "process",
        "record", "resolvconf", "systemd", "tunnel",
    },
    "wire": set(),
    "turns": {"wire"},
    "addresses": set(),
    "connection": {"addresses", "wire"},
    "call": {"blocking", "errors"},
    "services": {"connection"},
    "bus": {"blocking", "call", "connection", "errors", "services", "turns", "wire"},
    "hostnet": {"nlmsg", "rtinfo", "rtnetlink"},
    "suspend": {"services", "syscalls"},
    "objects": {"bus", "contract", "errors"},
    "options": {"bus", "config", "errors", "lifetime", "names", "wgquick"},
    "service": {
        "__init__", "agent", "bus", "configfile", "engine", "errors", "fdstore", "lifecycle",
        "lifetime", "manager", "names", "netns", "objects", "options", "pace", "peer", "restore",
        "session", "spec", "systemd", "tunnel",
    },
    "daemon": {
        "__init__", "agent", "bus", "engine", "fdstore", "hostnet", "journal", "manager", "restore",
        "service", "services", "signals", "suspend", "systemd", "tasks",
    },
    "__main__": {"daemon"},
    "__init__": set(),
    # wg4netnsctl knows of the daemon what any client of the bus does.
    "ctl.xdg": set(),
    "ctl.setup": {"contract", "ctl.xdg", "errors", "names"},
    "ctl.failure": {"names"},
    "ctl.client": {"addresses", "ctl.failure", "names"},
    "ctl.changes": {"ctl.client", "names"},
    "ctl.monitor": {"ctl.changes", "ctl.client", "ctl.colours", "ctl.failure", "names", "signals"},
    "ctl.progress": {"ctl.client"},
    "ctl.mounts": {"syscalls"},
    "ctl.namespaces": {"ctl.failure", "ctl.mounts", "syscalls"},
    "ctl.sshconfig": set(),
    "ctl.lookups": {"ctl.mounts", "ctl.sshconfig", "syscalls"},
    "ctl.command": {"ctl.failure", "ctl.mounts", "syscalls"},
    "ctl.create": {"ctl.client", "ctl.failure", "ctl.progress", "ctl.xdg", "names"},
    "ctl.run": {
        "ctl.client", "ctl.command", "ctl.create", "ctl.failure", "ctl.lookups", "ctl.mounts",
        "ctl.namespaces", "ctl.sshconfig",
    },
    "ctl.foreground": {
        "ctl.client", "ctl.create", "ctl.failure", "ctl.namespaces", "names", "signals", "systemd",
    },
    "ctl.tunnels": {
        "ctl.client", "ctl.create", "ctl.failure", "ctl.foreground", "ctl.namespaces",
        "ctl.progress", "names",
    },
    "ctl.colours": set(),
    "ctl.show": {"ctl.client", "ctl.colours", "ctl.failure"},
    "ctl.wg": {
        "ctl.client", "ctl.command", "ctl.failure", "ctl.mounts", "ctl.namespaces", "syscalls",
    },
    # doctor, which tries for itself what others ask for.
    "ctl.doctor.finding": set(),
    "ctl.doctor.procfs": set(),
    "ctl.doctor.trial": {"ctl.namespaces", "syscalls", "tun"},
    "ctl.doctor.busprobe": {"ctl.client", "names"},
    "ctl.doctor.namespaces": {
        "ctl.doctor.finding", "ctl.doctor.procfs", "ctl.doctor.trial", "tun",
    },
    "ctl.doctor.machine": {
        "__init__", "ctl.doctor.finding", "ctl.doctor.procfs", "ctl.doctor.trial", "syscalls",
    },
    "ctl.doctor.session": {
        "addresses", "ctl.doctor.busprobe", "ctl.doctor.finding", "ctl.doctor.procfs",
    },
    "ctl.doctor.daemon": {
        "__init__", "ctl.doctor.busprobe", "ctl.doctor.finding", "ctl.doctor.session", "ctl.setup",
        "errors", "names",
    },
    "ctl.doctor.programs": {"ctl.doctor.finding", "ctl.doctor.procfs"},
    "ctl.doctor.__init__": {
        "ctl.colours", "ctl.doctor.busprobe", "ctl.doctor.daemon", "ctl.doctor.finding",
        "ctl.doctor.machine", "ctl.doctor.namespaces", "ctl.doctor.programs", "ctl.doctor.session",
    },
    "ctl.program": {"__init__", "ctl.failure", "errors", "names"},
    "ctl.__init__": {"ctl.program"},
}  # fmt: skip

ONLY_IN = {
    "dbus_next": {"connection"},
    "jeepney": {"ctl.client", "ctl.doctor.busprobe"},
    "systemd": {"journal", "systemd"},
}
"""Third parties' packages that have one door."""


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The names of our modules and of other top-level packages that a file imports."""
    ours: set[str] = set()
    others: set[str] = set()
    packages = {"wg4netnsd": "", "wg4netnsd.ctl": "ctl.", "wg4netnsd.ctl.doctor": "ctl.doctor."}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, module = alias.name.partition(".")
                if package == "wg4netnsd":
                    ours.add(module or "__init__")
                else:
                    others.add(package)
        elif isinstance(node, ast.ImportFrom) and node.module in packages:
            prefix = packages[node.module]
            imported = {"__init__" if a.name == "__version__" else a.name for a in node.names}
            ours |= {prefix + name for name in imported}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("wg4netnsd."):
            ours.add(str(node.module).removeprefix("wg4netnsd."))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides what it imports"
            others.add(str(node.module).partition(".")[0])
    return ours, others


def modules() -> dict[str, Path]:
    found = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    return {".".join(path.with_suffix("").parts): PACKAGE / path for path in found}


def test_every_module_has_its_place() -> None:
    assert modules().keys() == MAY_IMPORT.keys()


def test_the_table_has_no_cycle() -> None:
    placed: set[str] = set()
    while len(placed) < len(MAY_IMPORT):
        free = {m for m, needed in MAY_IMPORT.items() if m not in placed and needed <= placed}
        assert free, f"a cycle among {MAY_IMPORT.keys() - placed}"
        placed |= free


def test_modules_import_what_they_may() -> None:
    """And may import nothing that they don't."""
    for module, path in modules().items():
        ours, others = imports(path)
        assert ours == MAY_IMPORT[module], module
        for package, doors in ONLY_IN.items():
            assert package not in others or module in doors, f"{module} imports {package}"


def test_no_file_holds_two_ideas() -> None:
    for path in modules().values():
        assert len(path.read_text().splitlines()) <= 400, path.name
