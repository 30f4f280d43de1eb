"""The text of docs/performance.md about each benchmark, and which tables it shows together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Tables that the page shows as one."""

    heading: str
    titles: str
    """A regular expression that matches the whole title of each of its tables."""
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
        "From the bus call until interface and engine are configured. With `persistent`, the "
        "interface is created in place; with `namespace`, it is moved in from a throw-away "
        "sibling namespace. Cold means that no daemon runs, so the bus starts it. The "
        "predecessor's time ends when its program does; its interface has no address by then. "
        "The time of slirp4netns ends at its ready-fd.",
        (Group("Time to a configured interface", ".*", "create"),),
    ),
    Subject(
        "run",
        "Run a command in a tunnel",
        "From the start of the first process to the command's first byte, for `wg4netnsctl run` "
        "with a running daemon, for slirp4netns with `unshare`, and for pasta.",
        (Group("Time to the first byte", ".*", "run"),),
    ),
    Subject(
        "growth",
        "A growing number of tunnels",
        "The benchmark creates and closes the n-th tunnel, in turns with the first tunnel of a "
        "second daemon that does not grow. Memory is what only the daemon uses (the Private lines "
        "of smaps_rollup).",
        (
            Group("Time to create one", "CreateTunnel, .*", "growth-create"),
            Group("Memory of the daemon", "Memory .*", "growth-memory"),
        ),
    ),
    Subject(
        "throughput",
        "Throughput, and what it costs",
        "To the far end over one veth. wg4netnsd, stock and the predecessor's way encrypt; "
        "slirp4netns and pasta do not. A GB is 1e9 received bytes. The client end is the "
        "contender's own process, the far end is stock wireguard-go.",
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
        "Both ends are on one machine and made the same way. In the measurements above, the far "
        "end is stock wireguard-go, whose offloads help a client that has none.",
        (
            Group("TCP", r"TCP [^:]*", "pairs"),
            Group("CPU of both engines", r"TCP .*: both engines"),
            Group("Ratios", ".* round by round"),
        ),
    ),
    Subject(
        "floor",
        "The physical floor",
        "The cost of ChaCha20-Poly1305 and of copying alone, on one core.",
        (Group("Rate", "Floor of one core"), Group("Cost", "Floor of one core: cost")),
    ),
    Subject(
        "latency",
        "Added latency",
        "Pings through each contender, idle and while one TCP stream keeps it busy. The floor is "
        "the direct way over the veth, equally busy.",
        (
            Group("Ping", "Ping, [^:]*", "latency"),
            Group("Ping: lost", "Ping, .*: lost"),
        ),
    ),
    Subject(
        "memory",
        "Memory of an engine",
        "Memory of the process that carries the packets: when it is new, its maximum under load "
        "(TCP, 8 streams), and a minute after that. All rounds share one stock process, so only "
        "its first value is that of a new process.",
        (
            Group("RSS", "RSS [^/]*", "memory"),
            Group("Anonymous memory", "Anonymous .*"),
            Group("RSS after a burst / idle", "RSS .* / idle"),
        ),
    ),
    Subject(
        "idle",
        "Idle",
        "Voluntary and involuntary context switches of all threads while nothing is sent. A "
        "process that sleeps makes none. In the measurement by number of tunnels, no tunnel has "
        "ever had a session.",
        (
            Group("By number of tunnels", "Daemon .*|The daemon .*", "idle"),
            Group("One engine", "One engine", "idle-engine"),
        ),
    ),
    Subject(
        "calls",
        "Calls",
        "Calls from one client, one after the other. The floor is a call that the bus itself "
        "answers. OpenSocket returns a socket of the tunnel's namespace; its time is the client's, "
        "from the call to the socket.",
        (
            Group("Calls per second", "Calls, .*", "calls"),
            Group("Time of OpenSocket", "OpenSocket, .*"),
        ),
    ),
    Subject(
        "signals",
        "Signals",
        "From the end of a handshake, by the engine's clock, until a subscriber has read the "
        "signal. The floor is the same signal from a client that only sends signals.",
        (Group("Delay", ".*", "signals"),),
    ),
    Subject(
        "adopt",
        "A killed daemon's successor",
        "The daemon gets SIGKILL, in a real `systemd --user` with the shipped unit, which waits "
        "200 ms before it starts the next daemon. Engines keep running.",
        (
            Group("Time until it is back", "From .*", "adopt"),
            Group("Packets lost", "Pings lost, .*"),
        ),
    ),
)
