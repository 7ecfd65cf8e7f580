"""Takes this folder's tests into another kernel, and what came of them back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.lan import Lan, Space, make_lan
from tests.kernel.outside import Guest, GuestFailed, find_kernel, find_vng

HERE = Path(__file__).parent

_guest = pytest.StashKey[Guest]()


def _outside(item: pytest.Item | None) -> bool:
    return item is not None and item.path.is_relative_to(HERE) and os.environ.get("MACVM_TEST_KERNEL") != "own"


def _get_guest(config: pytest.Config) -> Guest:
    if _guest not in config.stash:
        config.stash[_guest] = Guest(find_vng(), find_kernel())
    return config.stash[_guest]


def _reports(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[pytest.TestReport]:
    following = nextitem.nodeid if nextitem and _outside(nextitem) else None
    try:
        for data in _get_guest(item.config).run(item.nodeid, following):
            yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    except pytest.skip.Exception as skipped:
        where = (str(item.path), item.location[1] or 0, f"Skipped: {skipped}")
        yield pytest.TestReport(item.nodeid, item.location, {}, "skipped", where, "setup")
    except (GuestFailed, pytest.fail.Exception) as failed:
        yield pytest.TestReport(item.nodeid, item.location, {}, "failed", str(failed), "call")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not _outside(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    if _guest in config.stash:
        config.stash[_guest].close()


@pytest.fixture
def make_space(as_root: None) -> Iterator[Callable[[], Space]]:
    """Makes network namespaces, which go with the test."""
    made: list[Space] = []

    def make() -> Space:
        made.append(Space())
        return made[-1]

    yield make
    for space in made:
        space.close()


@pytest.fixture
def lan(make_space: Callable[[], Space]) -> Lan:
    return make_lan(make_space)
