"""`scripts/bench WHAT`: runs one benchmark on the stage, as an ordinary user."""

import argparse
import sys

from bench import (
    adopt,
    create,
    floor,
    growth,
    latency,
    memory,
    run,
    signals,
    survive,
    throughput,
)
from bench.figures import shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    what = parser.add_subparsers(required=True, metavar="WHAT")

    command = what.add_parser("adopt", help="how long a killed daemon is away")
    command.add_argument("--sizes", type=int, nargs="+", default=[1, 64], help="tunnels")
    command.add_argument("--kills", type=int, default=10)
    command.set_defaults(run=adopt.run)

    command = what.add_parser("create", help="time to a configured interface, beside slirp4netns")
    command.add_argument("--rounds", type=int, default=200)
    command.set_defaults(run=create.run)

    command = what.add_parser("floor", help="what encryption and copying cost by themselves")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seconds", type=int, default=2)
    command.set_defaults(run=floor.run)

    command = what.add_parser("growth", help="time, memory and calls with ever more tunnels")
    command.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 64, 255])
    command.add_argument("--rounds", type=int, default=100)
    command.set_defaults(run=growth.run)

    command = what.add_parser("latency", help="pings, idle and under load, beside the peers'")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--pings", type=int, default=200, help="a round; 100 a second")
    command.set_defaults(run=latency.run)

    command = what.add_parser(
        "memory", help="engines', before and after a burst, beside the peers'"
    )
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--seconds", type=float, default=3, help="up, and as many down")
    command.add_argument("--pause", type=float, default=60, help="seconds after a burst")
    command.set_defaults(run=memory.run)

    command = what.add_parser("run", help="to a command's first byte, beside pasta, slirp4netns")
    command.add_argument("--rounds", type=int, default=50)
    command.set_defaults(run=run.run)

    command = what.add_parser("signals", help="their delay, and what it costs to wait for them")
    command.add_argument("--tunnels", type=int, default=25, help="with handshakes; at most 31")
    command.add_argument("--rounds", type=int, default=20, help="handshakes of each tunnel")
    command.add_argument("--idle-tunnels", type=int, default=50)
    command.add_argument("--idle-seconds", type=float, default=120, help="0: leave it out")
    command.set_defaults(run=signals.run)

    command = what.add_parser("survive", help="TCP while engines and daemons are killed under it")
    command.add_argument("--engine-kills", type=int, default=50)
    command.add_argument("--daemon-kills", type=int, default=100)
    command.add_argument("--restarts", type=int, default=20, help="of the daemon")
    command.add_argument("--tunnels", type=int, default=4, help="with a stream each; at most 31")
    command.set_defaults(run=survive.run)

    command = what.add_parser("throughput", help="TCP and UDP, and their cost, beside the peers'")
    command.add_argument("--rounds", type=int, default=4)
    command.add_argument("--seconds", type=int, default=2)
    command.add_argument("--protocols", nargs="+", default=["TCP", "UDP"], choices=["TCP", "UDP"])
    command.add_argument("--directions", nargs="+", default=["up", "down"], choices=["up", "down"])
    command.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    command.set_defaults(run=throughput.run)

    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # a log, too, is to show how far it got
    for table in arguments.run(arguments):
        print(shown(table), end="\n\n")


if __name__ == "__main__":
    main()
