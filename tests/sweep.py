"""`make sweep`: what takes too long for every run of the suite; run by hand, for hours.

Every kill at a step boundary twenty times, and kills at random moments. Figures go to tests/sweep.md, with their date.
"""

from __future__ import annotations

import argparse
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from provisioner.actions.sandbox import Node, Sandbox
from tests.sandbox import test_lab_kill
from tests.sandbox.kvm_host import assert_same, state_of

REPORT = Path(__file__).with_suffix(".md")
KILL_TESTS = sorted(str(path) for path in Path(__file__).parent.glob("sandbox/test_*kill.py"))
CREATE = ["macvm", "create", "web1", "--ip", "192.0.2.11/24", "--quiet"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep")
    parser.add_argument("--rounds", type=int, default=20, help="times each kill test runs")
    parser.add_argument("--moments", type=int, default=300, help="kills of create at random moments")
    parser.add_argument("--labs", type=int, default=50, help="kills of lab up at random moments")
    asked = parser.parse_args()
    began = time.strftime("%Y-%m-%d %H:%M")
    boundaries = at_boundaries(asked.rounds)
    moments = at_random_moments(asked.moments)
    labs = of_labs(asked.labs)
    lines = ["# The last sweep", "", f"{began}, Linux {platform.release()}", "", boundaries, "", moments, "", labs, ""]
    REPORT.write_text("\n".join(lines))
    print(REPORT.read_text())


def at_boundaries(rounds: int) -> str:
    passed = failed = 0
    for number in range(rounds):
        ran = subprocess.run([sys.executable, "-m", "pytest", "-q", *KILL_TESTS], capture_output=True, text=True)
        counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", ran.stdout)}
        passed += counts.get("passed", 0)
        failed += counts.get("failed", 0) + counts.get("error", 0)
        print(f"round {number + 1} of {rounds}: {passed} passed, {failed} failed so far", flush=True)
    return f"Kills at every step boundary, {rounds} rounds: {passed} passed, {failed} failed."


def at_random_moments(count: int) -> str:
    """create killed by SIGKILL somewhere in its run; then `gc`, and a look whether anything is left."""
    left = 0
    with Sandbox() as box:
        host = box.host(1)
        host.run(["macvm", "image", "build", "tiny"], check=True)
        before = state_of(host)
        for number in range(count):
            after = random.uniform(0, 0.7)
            kill_once(host, after)
            try:
                assert_same(before, state_of(host))
            except AssertionError as error:
                left += 1
                print(f"killed after {after:.3f} s: {error}", flush=True)
            print(f"kill {number + 1} of {count}: {left} left something", flush=True)
    return f"create killed at random moments of 0 to 0.7 s, {count} times: {left} left something after gc."


def of_labs(count: int) -> str:
    """lab up killed by SIGKILL somewhere in its run; then up again, a look at what there is, and down."""
    wrong = 0
    with Sandbox() as box, tempfile.TemporaryDirectory() as folder:
        host = box.host(1)
        file = test_lab_kill.prepare(host, Path(folder))
        before = state_of(host)
        for number in range(count):
            try:
                test_lab_kill.kill_once(host, file, random.uniform(0, 3))
                assert_same(before, state_of(host))
            except AssertionError as error:
                wrong += 1
                print(error, flush=True)
            print(f"kill {number + 1} of {count} labs: {wrong} went wrong", flush=True)
    return f"lab up killed at random moments of 0 to 3 s, {count} times: {wrong} were not as wanted after the next."


def kill_once(host: Node, after: float) -> None:
    with host.start(CREATE) as running:
        time.sleep(after)
        running.signal(signal.SIGKILL)
        running.wait(30)
    # A create that was done before the kill is there to stay; one that may be in flight wants a second look.
    driver = [sys.executable, str(Path(__file__).parent / "sandbox" / "failpoints.py")]
    host.run(["macvm", "gc"], check=True)
    host.run([*driver, "ahead=61", "--", "gc"], check=True)
    host.run(["macvm", "delete", "web1", "--yes"])


if __name__ == "__main__":
    main()
