"""The pytest plugin of the guest: runs the tests that it is asked for, one by one, and says how they went.

Asked on descriptor 4, a line for each test: its node id and the next one's (or None), as a Python literal. Answers on
descriptor 3, also literals a line each: `"ready"` once all is collected, the reports of each test, then `"done"`.
Literals and not JSON, since pytest tells tuples from lists in its reports.
"""

from __future__ import annotations

import ast

import pytest

#: Descriptors, as guest.sh opens them.
ANSWERS, REQUESTS = 3, 4


class Inside:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.answers = open(ANSWERS, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (for the whole session)

    def answer(self, value: object) -> None:
        self.answers.write(f"{value!r}\n")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:  # to collect: what is said of it is on standard error
            return False
        items = {item.nodeid: item for item in session.items}
        self.answer("ready")
        with open(REQUESTS, encoding="utf-8") as requests:
            for request in requests:
                wanted, following = ast.literal_eval(request)
                nextitem = items.get(following)
                self.config.hook.pytest_runtest_protocol(item=items[wanted], nextitem=nextitem)
                self.answer("done")
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.answer(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Inside(config))
