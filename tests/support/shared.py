"""One world's share of the suite: the modules that it takes from tests/stage/suite.py's queue."""

import json
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from support import order

OUTCOMES = ("passed", "failed", "skipped")


class Share:
    """A pytest plugin: it runs whole modules, and reports each test."""

    def __init__(self, queue: int, results: int) -> None:
        """Takes over both descriptors: what tests start must not inherit them."""
        os.set_inheritable(queue, False)
        os.set_inheritable(results, False)
        self._queue, self._results = queue, results
        self._count: Counter[str] = Counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("some modules can't be collected")
        modules = order.by_module(session.items)
        for module in self._taken(modules):
            items, started = modules[module], time.monotonic()
            self._count.clear()
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
            counts = ", ".join(f"{n} {each}" for each in OUTCOMES if (n := self._count[each]))
            told = f"{counts}, {time.monotonic() - started:.0f} s"
            self._report(module=module, told=told)
        return True

    def _taken(self, modules: dict[str, list[pytest.Item]]) -> Iterator[str]:
        """This world's part of them, then those that are run in each."""
        shared = [name for name, items in modules.items() if not order.is_last(items[0])]
        while (number := struct.unpack("=I", os.read(self._queue, 4))[0]) < len(shared):
            yield shared[number]
        yield from (name for name in modules if name not in shared)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test passes once; what fails in its set-up or after it is a failure too."""
        if report.passed and report.when != "call":
            return
        text = report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        self._tell(report.nodeid, report.outcome, text)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell(report.nodeid, report.outcome, report.longreprtext)

    def pytest_sessionfinish(self) -> None:
        self._report(done="")

    def _tell(self, test: str, outcome: str, text: str) -> None:
        self._count[outcome] += 1
        self._report(test=test, outcome=outcome, text=text)

    def _report(self, **words: str) -> None:
        data = f"{json.dumps(words)}\n".encode()
        while data:
            data = data[os.write(self._results, data) :]
