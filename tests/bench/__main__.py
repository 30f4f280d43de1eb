"""Run one benchmark on the stage, as an ordinary user: scripts/bench NAME"""

import argparse
import os
import sys

from bench import (
    adopt,
    calls,
    create,
    floor,
    growth,
    idle,
    latency,
    memory,
    mtu,
    pairs,
    reach,
    run,
    signals,
    survive,
    throughput,
    transit,
)
from bench.figures import shown
from bench.record import dump, recording


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--record-fd", type=int, help=argparse.SUPPRESS)  # scripts/bench --record
    what = parser.add_subparsers(required=True, metavar="NAME", dest="what")

    command = what.add_parser("adopt", help="how long a killed daemon is absent")
    command.add_argument("--sizes", type=int, nargs="+", default=[1, 64], help="tunnels")
    command.add_argument("--kills", type=int, default=10)
    command.set_defaults(run=adopt.run)

    command = what.add_parser("calls", help="calls answered per second")
    command.add_argument("--tunnels", type=int, default=64)
    command.add_argument("--rounds", type=int, default=20)
    command.set_defaults(run=calls.run)

    command = what.add_parser("create", help="time to a configured interface, beside slirp4netns")
    command.add_argument("--rounds", type=int, default=100)
    command.set_defaults(run=create.run)

    command = what.add_parser("floor", help="the cost of encryption and copying alone")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seconds", type=int, default=2)
    command.set_defaults(run=floor.run)

    command = what.add_parser("growth", help="time to create and memory, by number of tunnels")
    command.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 64, 256])
    command.add_argument("--rounds", type=int, default=200)
    command.set_defaults(run=growth.run)

    command = what.add_parser("idle", help="the cost of tunnels that only wait")
    command.add_argument("--sizes", type=int, nargs="+", default=[1, 64, 256], help="tunnels")
    command.add_argument("--seconds", type=float, default=120)
    command.set_defaults(run=idle.run)

    command = what.add_parser("latency", help="pings, idle and under load, beside the peers")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--pings", type=int, default=200, help="per round; 100 per second")
    command.set_defaults(run=latency.run)

    command = what.add_parser("memory", help="memory before and after a burst, beside the peers")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--seconds", type=float, default=3, help="up, and then as many down")
    command.add_argument("--pause", type=float, default=60, help="seconds after a burst")
    command.set_defaults(run=memory.run)

    command = what.add_parser("mtu", help="20 MiB over paths of small MTUs, beside stock")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--carried", type=int, nargs="+", default=mtu.CARRIED, help="path MTUs")
    command.set_defaults(run=mtu.run)

    command = what.add_parser("pairs", help="TCP between two namespaces, beside the predecessor")
    command.add_argument("--rounds", type=int, default=8)
    command.add_argument("--seconds", type=int, default=2)
    command.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    command.set_defaults(run=pairs.run)

    command = what.add_parser("reach", help="through a proxy into a tunnel, beside netstack's way")
    command.add_argument("--rounds", type=int, default=6)
    command.add_argument("--seconds", type=float, default=3)
    command.add_argument("--directions", nargs="+", default=["up", "down"], choices=["up", "down"])
    command.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    command.set_defaults(run=reach.run)

    command = what.add_parser("run", help="time to a command's first byte, beside the peers")
    command.add_argument("--rounds", type=int, default=50)
    command.set_defaults(run=run.run)

    command = what.add_parser("signals", help="delay of signals, beside a bare signal")
    command.add_argument("--tunnels", type=int, default=25, help="at most 31")
    command.add_argument("--rounds", type=int, default=20, help="handshakes per tunnel")
    command.set_defaults(run=signals.run)

    command = what.add_parser("survive", help="TCP while engines and daemons are killed")
    command.add_argument("--engine-kills", type=int, default=50)
    command.add_argument("--daemon-kills", type=int, default=100)
    command.add_argument("--restarts", type=int, default=20, help="restarts of the daemon")
    command.add_argument("--tunnels", type=int, default=4, help="one stream each; at most 31")
    command.set_defaults(run=survive.run)

    command = what.add_parser("throughput", help="TCP and UDP, and their cost, beside the peers")
    command.add_argument("--rounds", type=int, default=4)
    command.add_argument("--seconds", type=int, default=2)
    command.add_argument("--protocols", nargs="+", default=["TCP", "UDP"], choices=["TCP", "UDP"])
    command.add_argument("--directions", nargs="+", default=["up", "down"], choices=["up", "down"])
    command.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    command.set_defaults(run=throughput.run)

    command = what.add_parser("transit", help="TCP through two hops, beside one and beside stock's")
    command.add_argument("--rounds", type=int, default=6)
    command.add_argument("--seconds", type=int, default=3)
    command.add_argument("--directions", nargs="+", default=["up", "down"], choices=["up", "down"])
    command.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    command.set_defaults(run=transit.run)

    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # so that a log shows how far it got, too
    tables = arguments.run(arguments)
    for table in tables:
        print(shown(table), end="\n\n")
    if arguments.record_fd is not None:
        with os.fdopen(arguments.record_fd, "w") as file:
            file.write(dump(recording(arguments.what, tables)))


if __name__ == "__main__":
    main()
