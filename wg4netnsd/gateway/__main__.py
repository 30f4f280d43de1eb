"""The gateway's own program; daemon and gateway agree on it in protocol.py."""

import sys

# asyncio and dnspython import TLS if it is there: 5 MB of OpenSSL, which nothing here uses.
sys.modules["ssl"] = None  # type: ignore[assignment]

from wg4netnsd.gateway.program import main  # noqa: E402

main()
