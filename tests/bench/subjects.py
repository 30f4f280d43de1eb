"""What docs/performance.md tells of each benchmark, and which of its tables belong together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Tables that are shown as one."""

    heading: str
    titles: str
    """Of its tables, as a regular expression that matches them whole."""
    drawing: str = ""
    """The name of its plot, if it has one."""


@dataclass(frozen=True)
class Subject:
    what: str
    """The benchmark's name."""
    heading: str
    text: str
    groups: tuple[Group, ...]


SUBJECTS = (
    Subject(
        "create",
        "Create a tunnel",
        "From the bus call to a configured interface and engine. `persistent` has the "
        "interface made in place, `namespace` has it moved in from a throw-away sibling. "
        "Cold: no daemon runs, and the bus starts it. The predecessor's program is timed to "
        "its end, when the interface has no address yet; slirp4netns to its ready-fd, and it "
        "encrypts nothing.",
        (Group("Time to a configured interface", ".*", "create"),),
    ),
    Subject(
        "run",
        "Run a command in a tunnel",
        "From the start of the first process to the command's first byte: `wg4netnsctl run` "
        "with a daemon that runs, slirp4netns beside `unshare`, and pasta. Those two encrypt "
        "nothing.",
        (Group("Time to the first byte", ".*", "run"),),
    ),
    Subject(
        "growth",
        "Ever more tunnels",
        "The n-th tunnel is created and closed, in turns with the first one of another daemon, "
        "which does not grow. Memory is what is the daemon's alone (Private of smaps_rollup).",
        (
            Group("Time to create one", "CreateTunnel, .*", "growth-create"),
            Group("Memory of the daemon", "Memory .*", "growth-memory"),
        ),
    ),
    Subject(
        "throughput",
        "Throughput, and what it costs",
        "To the far end over one veth: `wg4netnsd` and `stock, as root` encrypt, as does the "
        "predecessor's way; slirp4netns and pasta do not. A GB is 1e9 bytes that were received; "
        "the client end is the contender's own process, the far end stock wireguard-go.",
        (
            Group("TCP, MTU 1420", r"TCP [^:]*, MTU 1420", "tcp"),
            Group("TCP, larger MTU", r"TCP [^:]*, larger MTU", "tcp-large"),
            Group("UDP, MTU 1420", r"UDP [^:]*, MTU 1420", "udp"),
            Group("UDP: lost", r"UDP .*: lost"),
            Group("TCP: CPU at the client end", r"TCP .*, MTU 1420: client end", "tcp-client"),
            Group("TCP: CPU at the far end", r"TCP .*, MTU 1420: far end", "tcp-far"),
            Group("TCP: CPU of the whole machine", r"TCP .*, MTU 1420: whole machine"),
            Group("TCP, larger MTU: CPU at the client end", r"TCP .*, larger MTU: client end"),
            Group("TCP, larger MTU: CPU at the far end", r"TCP .*, larger MTU: far end"),
            Group(
                "TCP, larger MTU: CPU of the whole machine", r"TCP .*, larger MTU: whole machine"
            ),
            Group("UDP: CPU at the client end", r"UDP .*: client end"),
            Group("UDP: CPU at the far end", r"UDP .*: far end"),
            Group("UDP: CPU of the whole machine", r"UDP .*: whole machine"),
            Group("Ratios, round by round", r"Throughput, .* round by round"),
            Group("Ratios of CPU, round by round", r"CPU-s/GB .* round by round"),
        ),
    ),
    Subject(
        "pairs",
        "From namespace to namespace",
        "On one machine, both ends made the same way. Where the far end is stock's, as above, "
        "its offloads help a client that does without them.",
        (
            Group("TCP", r"TCP [^:]*", "pairs"),
            Group("CPU of both engines", r"TCP .*: both engines"),
            Group("Ratios", ".* round by round"),
        ),
    ),
    Subject(
        "floor",
        "The physical floor",
        "What ChaCha20-Poly1305 and copying take by themselves, on one core.",
        (Group("Rate", "Floor of one core"), Group("Cost", "Floor of one core: cost")),
    ),
    Subject(
        "latency",
        "Added latency",
        "A ping's way through each, idle and while one TCP stream keeps it busy; the direct way "
        "over the veth, busy likewise, is the floor.",
        (
            Group("Ping", "Ping, [^:]*", "latency"),
            Group("Ping: lost", "Ping, .*: lost"),
        ),
    ),
    Subject(
        "memory",
        "Memory of an engine",
        "Of the process that carries the packets: new, at most under load (TCP, 8 streams), and "
        "a minute after that. Stock's is the stage's, one process for all rounds: its first value "
        "alone is of a new one.",
        (
            Group("RSS", "RSS [^/]*", "memory"),
            Group("Anonymous memory", "Anonymous .*"),
            Group("RSS after a burst / idle", "RSS .* / idle"),
        ),
    ),
    Subject(
        "idle",
        "Idle",
        "Context switches of all threads, of either kind, while nothing is sent: a process that "
        "sleeps makes none. Of the tunnels by number none has ever had a session.",
        (
            Group("By tunnels", "Daemon .*|The daemon .*", "idle"),
            Group("One engine", "One engine", "idle-engine"),
        ),
    ),
    Subject(
        "calls",
        "Calls",
        "One after the other, from one client. The floor is a call that the bus answers itself.",
        (Group("Calls a second", ".*", "calls"),),
    ),
    Subject(
        "signals",
        "Signals",
        "From a handshake's end, by the engine's clock, to the signal in a subscriber's hands. "
        "The floor is the same signal from a client that does nothing but send it.",
        (Group("Delay", ".*", "signals"),),
    ),
    Subject(
        "adopt",
        "A killed daemon's successor",
        "SIGKILL, in a real `systemd --user` with the shipped unit, which waits 200 ms before "
        "it starts the next one. Engines run on meanwhile.",
        (
            Group("Time until it is back", "From .*", "adopt"),
            Group("Packets lost", "Pings lost, .*"),
        ),
    ),
)
