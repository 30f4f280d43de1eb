"""`python -m wg4netnsd` is the daemon."""

from wg4netnsd.daemon import main

main()
