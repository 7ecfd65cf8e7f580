"""macvm killed at every step of creating, attaching and changing on a network whose next address the LAN has, or failing
at those that only such a network has: afterwards nothing holds an address and no link is left to ask from, or all is as
it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from provisioner.actions.sandbox import Node
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import assert_same, state_of
from tests.sandbox.test_kill import macvm, settle
from tests.sandbox.test_nic_kill import MAC, do, kill, look

pytestmark = pytest.mark.xdist_group("network kill")

NETWORK = ("network", "create", "lab", "--parent", "eth1", "--subnet", "198.51.100.0/24", "--ip-range", "198.51.100.16/28",
           "--subnet", "2001:db8:1::/64", "--ip-range", "2001:db8:1::10/124")  # fmt: skip
CREATE = ("create", "web2", "--memory", "128", "--network", "lab")
ATTACH = ("nic", "attach", "web1", "--mac", MAC, "--network", "lab")
PLUG = ("nic", "attach", "web1", "--mac", MAC, "--ip", "192.0.2.21/24")
SET = ("nic", "set", "web1", MAC, "--network", "lab", "--replug")

#: With a conflict. Those that come a second time are steps of telling the guest anew.
CREATE_STEPS = ("disk", "seed", "define", "start", "nics", "probe", "others", "seed@2", "start@2", "nics@2", "routes",
                "resume")  # fmt: skip
ATTACH_STEPS = ("live", "saved", "probe", "others", "link", "routes", "seed")
SET_STEPS = ("unplug", "plug", "saved", "lease", "probe", "others", "routes", "seed")


def boundaries(action: str, steps: tuple[str, ...]) -> list[str]:
    parts = [step.partition("@") for step in steps]
    around = [f"{action}:{step}:{side}{at}{turn}" for step, at, turn in parts for side in ("before", "after")]
    return [f"{action}:begin:after", *around]


#: Before a step all is as after the one before it, but for what was done in between outside of steps: the LAN is asked
#: from the start of `create` and of `attach` on.
CREATE_POINTS = [point for point in boundaries("create", CREATE_STEPS) if ":after" in point or "others" in point]
ATTACH_POINTS = [point for point in boundaries("attach", ATTACH_STEPS) if ":after" in point or "others" in point]
SET_POINTS = [point for point in boundaries("set", SET_STEPS) if ":after" in point or "others" in point]


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    """A guest that is up; `eth1` has no shim, and at its far end is a host with the first IPv4 address of the range."""
    with make_sandbox() as box:
        host = box.host(1)
        wire = ("ip netns add far", "ip link add eth1 type veth peer far1 netns far", "ip link set eth1 addrgenmode none up",
                "ip address add 198.51.100.2/24 dev eth1", "ip address add 2001:db8:1::2/64 dev eth1 nodad",
                "ip -n far address add 198.51.100.16/24 dev far1", "ip -n far link set far1 up")  # fmt: skip
        host.run(["bash", "-c", " && ".join(wire)], check=True)
        do(host, "image", "build", "tiny")
        do(host, "create", "web1", "--memory", "128", "--ip", "192.0.2.11/24", "--wait")
        yield host


def links(host: Node) -> str:
    """macvm's links that are no guest's."""
    return host.run(["bash", "-c", "ip -o link | grep -oE ' m[vp]-[^@]+' | sort"]).stdout


@pytest.fixture
def network(host: Node) -> Iterator[None]:
    """A network that begins anew, so that its next address is the one that is held; nothing may be left on it."""
    before = links(host)
    do(host, *NETWORK)
    yield
    do(host, "network", "delete", "lab")
    assert links(host) == before


@pytest.fixture
def clean(host: Node) -> Iterator[None]:
    before = state_of(host)
    yield
    assert_same(before, state_of(host))


@pytest.fixture
def bare(host: Node) -> Iterator[None]:
    before = look(host)
    assert MAC not in before
    yield
    assert look(host) == before


@pytest.fixture
def plugged(host: Node) -> Iterator[None]:
    """With a NIC on eth0 and an address that the user gave."""
    do(host, *PLUG)
    before = look(host)
    yield
    assert look(host) == before
    do(host, "nic", "detach", "web1", MAC)


def fail(host: Node, point: str, *words: str) -> None:
    failed = macvm(host, *words, fail=point)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.endswith(f"error: made to fail at {point}\nhint: none\n")


def test_the_boundaries_are_all_there_are(host: Node, network: None) -> None:
    record = "/run/network-boundaries"

    def recorded(*words: str) -> list[str]:
        host.run(["rm", "-f", record])
        done = macvm(host, *words, record=record)
        assert done.returncode == 0, done.stderr
        assert "198.51.100.16 is in use on the LAN" in done.stderr
        return host.run(["cat", record]).stdout.split()

    def plain(action: str, steps: tuple[str, ...]) -> list[str]:
        return [point.partition("@")[0] for point in boundaries(action, steps)]

    def afresh() -> None:
        do(host, "network", "delete", "lab")
        do(host, *NETWORK)

    assert recorded(*CREATE) == plain("create", CREATE_STEPS)
    do(host, "delete", "--yes", "web2")
    afresh()
    assert recorded(*ATTACH) == plain("attach", ATTACH_STEPS)
    do(host, "nic", "detach", "web1", MAC)
    afresh()
    do(host, *PLUG)
    assert recorded(*SET) == plain("set", SET_STEPS)
    do(host, "nic", "detach", "web1", MAC)


@pytest.mark.parametrize("point", CREATE_POINTS)
def test_create_killed_leaves_nothing(host: Node, clean: None, network: None, point: str) -> None:
    kill(host, point, *CREATE)
    assert "undid: create web2" in settle(host)


@pytest.mark.parametrize(
    "point", [point for point in CREATE_POINTS if "@2" in point or "probe" in point or "others" in point]
)
def test_create_failing_leaves_nothing(host: Node, clean: None, network: None, point: str) -> None:
    fail(host, point, *CREATE)


@pytest.mark.parametrize("point", ATTACH_POINTS)
def test_attach_killed_leaves_nothing(host: Node, bare: None, network: None, point: str) -> None:
    kill(host, point, *ATTACH)
    assert "undid: attach web1" in settle(host)


@pytest.mark.parametrize("point", ["attach:probe:after", "attach:others:after", "attach:seed:after"])
def test_attach_failing_leaves_nothing(host: Node, bare: None, network: None, point: str) -> None:
    fail(host, point, *ATTACH)


@pytest.mark.parametrize("point", SET_POINTS)
def test_set_killed_is_undone(host: Node, plugged: None, network: None, point: str) -> None:
    kill(host, point, *SET)
    assert "undid: set web1" in settle(host)


@pytest.mark.parametrize("point", ["set:probe:after", "set:others:after", "set:seed:after"])
def test_set_failing_is_undone(host: Node, plugged: None, network: None, point: str) -> None:
    fail(host, point, *SET)


def test_killed_while_it_asks_the_next_create_clears_the_way(host: Node, clean: None, network: None) -> None:
    kill(host, "create:probe:before", *CREATE)
    assert " mp-" in links(host)
    again = macvm(host, *CREATE)
    assert again.returncode == 0, again.stderr
    assert "undid: create web2" in again.stderr
    # What it was given first is given out last.
    assert host.run(["sqlite3", "/var/lib/macvm/macvm.db", "SELECT address FROM leases WHERE network = 'lab' ORDER BY 1"]
                    ).stdout.split() == ["198.51.100.17", "2001:db8:1::11"]  # fmt: skip
    do(host, "delete", "--yes", "web2")
