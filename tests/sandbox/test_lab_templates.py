"""The labs of templates/labs/, each as it is, and what its first lines claim; and a lab of a dozen VMs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from provisioner.actions.sandbox import Sandbox
from provisioner.resources import resource
from tests.sandbox.kvm_host import KvmHost

pytestmark = pytest.mark.xdist_group("lab templates")

LABS = resource("templates", "labs")
HOST, LAN = "192.0.2.2", "192.0.2.1"

#: Emulated guests on a busy machine.
PATIENCE = 300


@pytest.fixture(scope="module", autouse=True)
def key(host: KvmHost) -> None:
    """The first lab ever makes a key, which stays."""
    host.macvm("lab", "up", "/dev/stdin", input="lab: first")
    host.macvm("lab", "down", "first", "--yes")


@contextmanager
def lab(host: KvmHost, name: str, *, wait: bool = True) -> Iterator[None]:
    """Up while it lasts; afterwards all is as it was."""
    host.clear()
    words = ["--wait", "--timeout", f"{PATIENCE}s"] if wait else []
    with host.unchanged():
        try:
            host.macvm("lab", "up", LABS / f"{name}.yaml", *words, timeout=PATIENCE + 60)
            assert host.macvm("lab", "plan", name, "--exit-code").stdout == f"{name}: nothing to change\n"
            yield
        finally:
            host.macvm("lab", "down", name, "--yes")


def answers(host: KvmHost, one: str, *others: str) -> list[bool]:
    """Which of the addresses answer the pings of the VM at another."""
    # Those that never answer take their time.
    ask = f"until curl -sfg -m 30 'http://{'[' + one + ']' if ':' in one else one}/cgi-bin/ping?{','.join(others)}'; do sleep 0.3; done"
    said = host.sh(f"timeout {PATIENCE} bash -c {shlex.quote(ask)}", node=host.lan, timeout=PATIENCE + 10)
    found = dict(line.split() for line in said.splitlines())
    return [found[other] == "yes" for other in others]


def addresses(host: KvmHost, name: str) -> dict[str, list[str]]:
    """Of a lab's VMs and endpoints."""
    things = host.json("lab", "status", name)["things"]
    return {one["name"]: one["addresses"] for one in things if one["kind"] in ("vm", "endpoint")}


def test_every_one_says_first_what_it_is(host: KvmHost) -> None:
    files = sorted(LABS.iterdir())
    assert {"classic.yaml", "modes.yaml", "router.yaml", "spin-up.sh", "trunk.yaml"} < {file.name for file in files}
    for file in files:
        lines = file.read_text().splitlines()
        comment = lines[0] if lines[0] != "#!/bin/sh" else lines[1]
        assert re.match(r"# [A-Z]", comment), file
        if file.suffix == ".yaml":
            host.macvm("lab", "plan", file)
        else:
            host.sh(f"sh -n {file}; test -x {file}")


def test_classic(host: KvmHost) -> None:
    with lab(host, "classic"):
        assert answers(host, "192.0.2.11", "192.0.2.12", HOST, LAN) == [True, True, True]
        assert answers(host, "192.0.2.12", "192.0.2.11", HOST, LAN) == [True, True, True]
        assert host.page("192.0.2.11").startswith("anna\n")


def test_modes(host: KvmHost) -> None:
    anna, ben, vera, pia, otto = (f"192.0.2.{number}" for number in (13, 14, 15, 16, 17))
    assert isinstance(host.nodes, Sandbox)
    with lab(host, "modes", wait=False):  # this host does not reach all of them, but the LAN does
        for address in (anna, ben, vera, pia, otto):
            host.page(address, node=host.lan, seconds=PATIENCE)
        assert answers(host, anna, ben, vera, pia, otto, LAN) == [True, False, False, True, True]
        assert answers(host, vera, anna, pia, otto, LAN) == [False, False, True, True]
        assert answers(host, pia, anna, vera, otto, LAN) == [False, False, True, True]
        assert answers(host, otto, HOST) == [True]
        host.nodes.hairpin(True)
        try:
            assert answers(host, anna, ben, vera, pia) == [True, True, False]
            assert answers(host, pia, anna, vera, LAN) == [False, False, True]
        finally:
            host.nodes.hairpin(False)


def test_containers(host: KvmHost) -> None:
    with lab(host, "containers"):
        found = {name: held[0] for name, held in addresses(host, "containers").items()}
        assert set(found) == {"web-1", "web-2", "box1", "box2"}
        assert answers(host, found["web-1"], found["web-2"], found["box1"], found["box2"]) == [True] * 3
        for address in (found["web-2"], found["box2"]):
            host.macvm("endpoint", "exec", "box1", "--", "ping", "-c1", "-W10", address)
        for address in found.values():
            host.sh(f"ping -c1 -W10 {address}")


def test_dual_stack(host: KvmHost) -> None:
    with lab(host, "dual-stack"):
        one, two = (addresses(host, "dual-stack")[name] for name in ("six-1", "six-2"))
        assert [":" in address for address in one] == [False, True]
        assert answers(host, one[0], *two) == [True, True]
        assert answers(host, one[1], *two) == [True, True]
        for address in (*one, *two):
            host.sh(f"ping -c1 -W10 {address}")


def test_router(host: KvmHost) -> None:
    with lab(host, "router"):
        assert answers(host, "192.0.2.62", "198.51.100.62", "192.0.2.61") == [True, True]
        # By way of the router, and by none else: each hop takes one off.
        assert "Time to live exceeded" in host.sh(
            "ip route add 198.51.100.62 via 192.0.2.61; ping -c1 -t1 198.51.100.62; ip route del 198.51.100.62",
            node=host.lan,
        )
        for address in ("192.0.2.61", "198.51.100.61", "192.0.2.62", "198.51.100.62"):
            host.sh(f"ping -c1 -W10 {address}")


def test_trunk_is_planned(host: KvmHost) -> None:
    """Only another kernel than this one's may have VLANs."""
    said = host.macvm("lab", "plan", LABS / "trunk.yaml").stdout
    assert said.startswith("trunk: 5 to add, 0 to change, 0 to remove\n")
    assert "+ network office: bridge on eth0.50, 198.51.100.0/24" in said
    assert "+ vm both: tiny, bridge on office (198.51.100.33), bridge on guests (203.0.113.33)" in said


def test_spin_up(host: KvmHost) -> None:
    host.clear()
    with host.unchanged():
        said = host.node.run([LABS / "spin-up.sh", "2"], check=True, timeout=PATIENCE).stdout
        macs = [host.show(f"node-{number}")["nics"][0]["mac"] for number in (1, 2)]
        assert said.splitlines() == [f"node-1 {macs[0]} 192.0.2.71", f"node-2 {macs[1]} 192.0.2.72"]
        host.sh("ping -c1 -W10 192.0.2.71 && ping -c1 -W10 192.0.2.72")
        host.macvm("delete", "--yes", "--lab", "spin-up")


def test_two_hosts(two_hosts: Sandbox) -> None:
    said = two_hosts.host(1).run([LABS / "two-hosts.sh"], check=True, timeout=PATIENCE).stdout
    assert said.splitlines() == [
        "web1 pings web2: 192.0.2.12 yes",
        "web2 pings web1: 192.0.2.11 yes",
        "the other host reaches web1: 192.0.2.3 yes",
    ]
    for number in (1, 2):
        KvmHost(two_hosts, number).macvm("lab", "down", "two-hosts", "--yes")


def test_a_dozen_all_reached_from_the_host(host: KvmHost) -> None:
    host.clear()
    file = "lab: dozen\nvms:\n  many: {count: 12, image: tiny, memory: 128M, nics: [{ip: 192.0.2.71/24}]}\n"
    host.node.run(["tee", "/run/dozen.yaml"], input=file, check=True)
    with host.unchanged():
        host.macvm("lab", "up", "/run/dozen.yaml", "--wait", "--timeout", f"{PATIENCE}s", timeout=PATIENCE + 60)
        everyone = " ".join(f"192.0.2.{number}" for number in range(71, 83))
        host.sh(f"for address in {everyone}; do ping -c1 -W20 $address || exit; done", timeout=PATIENCE)
        shown = {one["name"]: (one["machines"], one["running"]) for one in host.json("lab", "list")}
        assert shown["dozen"] == (12, 12)
        host.macvm("lab", "down", "dozen", "--yes")
    host.sh("rm /run/dozen.yaml")
