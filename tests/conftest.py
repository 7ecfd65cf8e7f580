"""What all layers share: the rule for tests that cannot run here, the golden files' flag, and a look at the command line."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from provisioner.cli.main import main

Require = Callable[[object, str], None]

# In a background job, or under nohup, these come ignored, and what the tests start and interrupt would ignore them too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="write the golden files anew, then look at the diff"
    )


#: What takes minutes; nobody else works for the rest of one that is begun last.
LONGEST = (
    "tests/kernel/",
    "tests/sandbox/test_cloud_init.py",
    "tests/sandbox/test_lab_templates.py",
    "tests/sandbox/test_dry_run.py",
    "tests/sandbox/test_pages.py",
    "tests/sandbox/test_nics.py",
    "tests/sandbox/test_labs.py",
    "tests/sandbox/test_reach.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker of xdist's: the longest files first, then those of the most tests."""
    if not hasattr(config, "workerinput"):
        return
    files = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int, str]:
        rank = next((n for n, one in enumerate(LONGEST) if item.nodeid.startswith(one)), len(LONGEST))
        return rank, -files[item.path], str(item.path)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """With `--dist loadfile`, one worker has all of tests/kernel: each one that has any of it boots a kernel."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/kernel" if nodeid.startswith("tests/kernel/") else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # they come in the order that is meant
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def required(condition: object, reason: str) -> None:
    """What the fixture `require` does, for those that are no test."""
    if condition:
        return
    if os.environ.get("CI") or os.environ.get("MACVM_REQUIRE_ALL") == "1":
        pytest.fail(f"cannot run here, and nothing may be skipped: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def require() -> Require:
    """`require(condition, reason)`: where the condition does not hold, the test is skipped with the reason; where all
    tests must run (CI is set, or MACVM_REQUIRE_ALL=1), it fails."""
    return required


@pytest.fixture(scope="session")
def as_root(require: Require) -> None:
    require(os.geteuid() == 0, "needs root")


@dataclass(frozen=True)
class Ran:
    """How a command line ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def macvm(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs `macvm` in this process, with no setting from the environment."""
    for name in list(os.environ):
        if name.startswith("MACVM_") or name == "LIBVIRT_DEFAULT_URI":
            monkeypatch.delenv(name)

    def run(*words: str) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, out, err)

    return run
