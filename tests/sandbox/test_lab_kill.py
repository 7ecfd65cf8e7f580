"""`lab up` killed by SIGKILL at random moments: the next one ends in what is wanted, with nothing twice and nothing
left."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Node
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import assert_same, state_of
from tests.sandbox.test_kill import macvm

pytestmark = pytest.mark.xdist_group("lab kill")

FILE = """
lab: killed
defaults: {image: tiny, memory: 128M, virt_type: qemu, ssh_keys: []}
networks: {lan: {parent: eth0, subnets: [192.0.2.0/24]}}
vms:
  off: {count: 3, start: false, nics: [{network: lan}]}
  runs: {nics: [{network: lan, ip: 192.0.2.50}]}
endpoints: {probe: {network: lan}}
shims: [eth0]
"""
NAMES = ["off-1", "off-2", "off-3", "probe", "runs"]


def prepare(host: Node, folder: Path) -> Path:
    """The lab's file; what macvm makes once is there already."""
    file = folder / "killed.yaml"
    file.write_text("lab: nothing\n")
    assert macvm(host, "image", "build", "tiny").returncode == 0
    for words in (("up", str(file)), ("down", "nothing", "--yes")):
        done = macvm(host, "lab", *words)
        assert done.returncode == 0, done.stderr
    file.write_text(FILE)
    return file


def kill_once(host: Node, file: Path, after: float) -> None:
    with host.start(["macvm", "lab", "up", str(file)]) as running:
        time.sleep(after)
        running.signal(signal.SIGKILL)
        running.wait(60)
    again = host.run(["macvm", "lab", "up", str(file)], timeout=200)
    assert again.returncode == 0, again.stderr
    plan = host.run(["macvm", "lab", "plan", str(file), "--exit-code"])
    assert plan.returncode == 0, plan.stdout
    machines = json.loads(host.run(["macvm", "list", "-o", "json"]).stdout)
    assert sorted(one["name"] for one in machines) == NAMES
    held = [address["address"] for one in machines for nic in one["nics"] for address in nic["addresses"]]
    assert len(held) == len(set(held)) == len(NAMES)
    down = host.run(["macvm", "lab", "down", "killed", "--yes"], timeout=120)
    assert down.returncode == 0, down.stderr


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with make_sandbox() as box:
        yield box.host(1)


def test_up_killed_at_random_moments(host: Node, tmp_path: Path) -> None:
    file = prepare(host, tmp_path)
    before = state_of(host)
    moments = random.Random(8)
    for _ in range(5):
        kill_once(host, file, moments.uniform(0.2, 2.5))
        assert_same(before, state_of(host))
