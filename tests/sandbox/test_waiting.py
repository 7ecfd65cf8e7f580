"""`wait` and `create --wait`: an address that DHCP gives, a ping's answer, an SSH server's greeting; several at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from provisioner.actions.sandbox import Process
from tests.sandbox.kvm_host import KvmHost, complaints
from tests.sandbox.test_json import valid

#: Tells in which state a machine is when `create` says that it is about to run.
CREATE = """
from provisioner.actions import machines
from provisioner.actions.request import CreateRequest, NicRequest
from provisioner.context import Options, open_context
context = open_context(Options(), readonly=False, say=print)
request = CreateRequest(name="told", nics=(NicRequest(),), memory=96 << 20)
machines.create(context, request, lambda uuid: print(context.hypervisor.state(uuid)))
context.close()
"""

#: A server on port 22 that says the words to each who comes.
SERVER = """
import socket, sys
with socket.create_server(("", 22)) as server:
    while True:
        with server.accept()[0] as one:
            for word in sys.argv[1:]:
                one.sendall(word.encode().decode("unicode_escape").encode())
"""


@pytest.fixture
def clean(host: KvmHost) -> Iterator[KvmHost]:
    host.clear()
    yield host
    host.clear()


@pytest.fixture
def dhcp(clean: KvmHost) -> Iterator[KvmHost]:
    clean.nodes.dhcp(True)
    yield clean
    clean.nodes.dhcp(False)


def given(host: KvmHost, mac: str) -> list[str]:
    """What the LAN's DHCP server gave to a MAC."""
    leases = [line.split() for line in host.sh("cat /run/macvm-dhcp.leases", node=host.lan).splitlines()]
    return [line[2] for line in leases if line[1] == mac]


@pytest.mark.parametrize("words", [["--wait=ip"], ["--wait"], ["--wait=ip", "--mode", "private"]], ids=" ".join)
def test_create_waits_for_what_dhcp_gives(dhcp: KvmHost, words: list[str]) -> None:
    made = json.loads(dhcp.create("asks", "--ip", "dhcp", *words, "-o", "json").stdout)
    (nic,) = made["nics"]
    assert [(one["address"], one["source"]) for one in nic["addresses"]] == [(given(dhcp, nic["mac"])[0], "wire")]


def test_several_are_pinged_at_what_dhcp_gives(dhcp: KvmHost) -> None:
    made = dhcp.create("asks", "--ip", "dhcp", "--count", 2, "--wait=ping", "-o", "name").stdout.split()
    assert made == ["asks-1", "asks-2"]
    found = valid(json.loads(dhcp.macvm("wait", *made, "-o", "json").stdout), "wait.json")
    wanted = [(name, "ping", given(dhcp, dhcp.show(name)["nics"][0]["mac"])[0]) for name in made]
    assert [(one["name"], one["answered"], one["address"]) for one in found] == wanted


def test_a_machine_is_told_of_while_it_waits_to_run(clean: KvmHost) -> None:
    assert clean.node.run([sys.executable, "-c", CREATE], check=True).stdout.splitlines()[-1] == "paused"


@pytest.fixture
def endpoints(host: KvmHost) -> Iterator[KvmHost]:
    for name, address in (("one", "192.0.2.51"), ("other", "192.0.2.52")):
        host.macvm("endpoint", "create", name, "--parent", "eth0", "--ip", f"{address}/24")
    yield host
    host.macvm("endpoint", "delete", "one", "other")


def serve(host: KvmHost, name: str, *says: str) -> Process:
    return host.node.start(["macvm", "endpoint", "exec", name, "--", sys.executable, "-c", SERVER, *says])


@pytest.mark.parametrize("says", [["SSH-2.0-x\\r\\n"], ["welcome\\r\\n", "SSH", "-2.0-x\\r\\n"]], ids=repr)
def test_an_ssh_server_greets(endpoints: KvmHost, says: list[str]) -> None:
    with serve(endpoints, "one", *says):
        done = endpoints.macvm("wait", "one", "--for", "ssh")
    assert done.stderr == "one answers ssh at 192.0.2.51\n"


@pytest.mark.parametrize("says", [["HTTP/1.1 400 SSH-2.0\\r\\n"], []], ids=repr)
def test_another_server_is_no_ssh_server(endpoints: KvmHost, says: list[str]) -> None:
    with serve(endpoints, "one", *says):
        done = endpoints.macvm("wait", "one", "--for", "ssh", "--timeout", "1s", status=9)
    assert "no answer of an SSH server within 1 s from one (192.0.2.51)" in complaints(done.stderr)[0][0]


def test_those_that_are_missing_are_named(endpoints: KvmHost) -> None:
    endpoints.macvm("endpoint", "exec", "other", "--", "ip", "link", "set", "eth0", "down")
    endpoints.macvm("wait", "one", "other", "--for", "ip")
    ((said, hint),) = complaints(endpoints.macvm("wait", "other", "one", "other", "--timeout", "2s", status=9).stderr)
    assert said == "no answer within 2 s from other (192.0.2.52)"
    assert "macvm endpoint exec other -- ip address" in hint


def test_a_guest_that_has_no_address_says_why(clean: KvmHost) -> None:
    clean.create("mute", "--ip", "none", "--no-start")
    for what in ("ip", "ping"):
        ((said, hint),) = complaints(clean.macvm("wait", "mute", "--for", what, "--timeout", "0.3s", status=9).stderr)
        assert said == "after 0.3 s no address of mute is known: it is off"
        assert hint.startswith("macvm start mute")
    assert clean.macvm("wait", "nobody", status=3).stdout == ""
