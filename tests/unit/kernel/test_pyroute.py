"""pyroute2 is imported in part, and whoever wants all of it gets that."""

import subprocess
import sys

import pytest

OURS = "from wg4netnsd.kernel.pyroute import rtmsg"
ALL = "from pyroute2 import IPRoute, NDB"
MESSAGES = "from pyroute2.netlink.rtnl.rtmsg import rtmsg as same; assert same is rtmsg"


def run(*statements: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(statements)], check=True)


def test_the_rest_of_it_is_not_imported() -> None:
    run(OURS, "import sys", "assert not {'pyroute2', 'pyroute2.iproute'} & sys.modules.keys()")


@pytest.mark.parametrize("imports", [(OURS, ALL), (ALL, OURS), (OURS, ALL, OURS)])
def test_beside_all_of_it(imports: tuple[str, ...]) -> None:
    run(*imports, MESSAGES, "import pyroute2", "assert pyroute2.IPRoute is IPRoute")
