"""macvm killed or failing at every step of attaching, detaching and changing a NIC of a running guest: afterwards the
NIC is as it was before, or as it was to be, live, saved, leased, routed and in the seed alike."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from provisioner.actions.sandbox import Node
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.test_kill import macvm, settle

pytestmark = pytest.mark.xdist_group("nic kill")

MAC = "52:54:00:00:00:21"
ATTACH = ("nic", "attach", "web1", "--mac", MAC, "--ip", "192.0.2.21/24", "--ip", "2001:db8::21/64")
DETACH = ("nic", "detach", "web1", MAC)

#: Each change, and the steps that it takes.
CHANGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "link": (("--link", "down"), ("link-live", "link-saved")),
    "mode": (("--mode", "private"), ("mode", "saved", "lease", "routes", "seed")),
    "parent": (("--parent", "eth1", "--replug"), ("unplug", "plug", "saved", "lease", "routes", "seed")),
    "address": (("--ip", "192.0.2.22/24"), ("lease", "routes", "seed")),
}
ATTACH_STEPS = ("live", "saved", "link", "routes", "seed")
DETACH_STEPS = ("live", "saved", "lease", "routes", "seed")

#: All that belongs to the guest's NICs, in words that a second run gives again: no time, and not the name that libvirt
#: gives the device anew at each attach.
LOOK = r"""
echo '# libvirt'
virsh 'dumpxml web1; echo saved:; dumpxml --inactive web1' | sed -n '/^saved:/p; /<interface/,/<\/interface>/p' | grep -v '<alias'
echo '# kernel'; ip -d -o link | grep -E ' m[tv]-' | sed -E 's/^[0-9]+: //; s/ state [A-Z]+//'
ip route; ip -6 route | grep -v fe80; (ip neigh; ip -6 neigh) | grep PERMANENT | sort
ip neigh show proxy
echo '# store'
sqlite3 /var/lib/macvm/macvm.db 'SELECT mac, told FROM macs ORDER BY mac; SELECT address, mac, parent FROM leases ORDER BY address;
SELECT * FROM journal; SELECT * FROM steps'
echo '# seed'
python3 - <<'END'
from pathlib import Path
from provisioner.host.seeds import read_seed
for path in Path('/var/lib/macvm/machines').glob('*/*.iso'):
    print(*(text.decode() for name, text in sorted(read_seed(path).items()) if 'network' in name or 'dhcpcd' in name))
END
"""


def boundaries(action: str, steps: tuple[str, ...]) -> list[str]:
    return [f"{action}:begin:after", *(f"{action}:{step}:{side}" for step in steps for side in ("before", "after"))]


def set_(change: str) -> tuple[str, ...]:
    return ("nic", "set", "web1", MAC, *CHANGES[change][0])


def look(host: Node) -> str:
    done = host.run(["bash", "-c", LOOK])
    assert done.returncode == 0, done.stderr
    return done.stdout


def do(host: Node, *words: str) -> None:
    done = macvm(host, *words)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    """A guest that is up, and a second parent beside eth0."""
    with make_sandbox() as box:
        host = box.host(1)
        host.run(["bash", "-c", "ip link add eth1 type veth peer far1 && ip link set eth1 up && ip link set far1 up"])
        do(host, "image", "build", "tiny")
        do(host, "create", "web1", "--memory", "128", "--ip", "192.0.2.11/24", "--wait")
        yield host


@pytest.fixture(scope="module")
def as_made(host: Node) -> str:
    return look(host)


@pytest.fixture
def bare(host: Node, as_made: str) -> Iterator[str]:
    """The guest without the NIC, as it was made, which is what it is to be afterwards too."""
    yield as_made
    if MAC in host.run(["virsh", "dumpxml", "web1"]).stdout:  # the test failed
        macvm(host, "gc", ahead="61")
        macvm(host, *DETACH)


@pytest.fixture(scope="module")
def plugged(host: Node, as_made: str) -> str:
    """The guest with it. Each test leaves it so, for the next."""
    do(host, *ATTACH)
    return look(host)


def kill(host: Node, point: str, *words: str) -> None:
    killed = macvm(host, *words, kill=point)
    assert killed.returncode == 128 + signal.SIGKILL, killed.stderr


def test_the_boundaries_are_all_there_are(host: Node, bare: str) -> None:
    record = "/run/nic-boundaries"

    def recorded(*words: str) -> list[str]:
        host.run(["rm", "-f", record])
        done = macvm(host, *words, record=record)
        assert done.returncode == 0, done.stderr
        return host.run(["cat", record]).stdout.split()

    assert recorded(*ATTACH) == boundaries("attach", ATTACH_STEPS)
    for change, back in (
        ("link", ("--link", "up")),
        ("mode", ("--mode", "bridge")),
        ("address", ("--ip", "192.0.2.21/24", "--ip", "2001:db8::21/64")),
        ("parent", ("--parent", "eth0", "--replug")),
    ):
        assert recorded(*set_(change)) == boundaries("set", CHANGES[change][1]), change
        do(host, "nic", "set", "web1", MAC, *back)
    assert recorded(*DETACH) == boundaries("detach", DETACH_STEPS)


@pytest.mark.parametrize("point", boundaries("attach", ATTACH_STEPS))
def test_attach_killed_leaves_nothing(host: Node, bare: str, point: str) -> None:
    kill(host, point, *ATTACH)
    assert "undid: attach web1" in settle(host)
    assert look(host) == bare


@pytest.mark.parametrize("point", boundaries("detach", DETACH_STEPS))
def test_detach_killed_is_finished(host: Node, bare: str, point: str) -> None:
    do(host, *ATTACH)
    kill(host, point, *DETACH)
    assert "finished: detach web1" in settle(host)
    assert look(host) == bare


@pytest.mark.parametrize("point", boundaries("attach", ATTACH_STEPS))
def test_attach_failing_leaves_neither_half(host: Node, bare: str, point: str) -> None:
    failed = macvm(host, *ATTACH, fail=point)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.endswith(f"error: made to fail at {point}\nhint: none\n")
    assert look(host) == bare


RESTARTS = (
    "attach:live:before",
    "attach:saved:before",
    "attach:link:before",
    "attach:seed:before",
    "attach:seed:after",
)


@pytest.mark.parametrize("point", RESTARTS)
def test_attach_goes_on_with_a_daemon_that_has_been_restarted(host: Node, bare: str, point: str) -> None:
    done = macvm(host, *ATTACH, restart_libvirtd=point)
    assert done.returncode == 0, done.stderr
    assert host.run(["virsh", "dumpxml", "web1"]).stdout.count(MAC) == 1
    do(host, *DETACH)
    assert look(host) == bare


@pytest.mark.parametrize("point", ["detach:live:before", "detach:saved:before", "detach:seed:before"])
def test_detach_goes_on_with_a_daemon_that_has_been_restarted(host: Node, bare: str, point: str) -> None:
    do(host, *ATTACH)
    done = macvm(host, *DETACH, restart_libvirtd=point)
    assert done.returncode == 0, done.stderr
    assert look(host) == bare


# --- on the NIC that stays: the last tests ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "point"), [(name, point) for name, (_, steps) in CHANGES.items() for point in boundaries("set", steps)]
)
def test_set_killed_is_undone(host: Node, plugged: str, change: str, point: str) -> None:
    kill(host, point, *set_(change))
    assert "undid: set web1" in settle(host)
    assert look(host) == plugged


@pytest.mark.parametrize(
    ("change", "point"), [(name, boundaries("set", steps)[-1]) for name, (_, steps) in CHANGES.items()]
)
def test_set_failing_at_its_end_is_undone(host: Node, plugged: str, change: str, point: str) -> None:
    failed = macvm(host, *set_(change), fail=point)
    assert failed.returncode == 1, failed.stderr
    assert look(host) == plugged
