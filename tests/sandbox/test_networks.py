"""`macvm network`, and NICs on networks: real guests that get what their network says, a LAN that holds addresses already,
and addresses that come back.

web1 and web2 are guests of one dual-stack network; its first IPv4 address and its second IPv6 address are the LAN
peer's. `eth1` is a parent without a shim, with a host at its far end that holds addresses too.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost, assert_same, complaints
from tests.sandbox.test_json import valid

pytestmark = pytest.mark.xdist_group("networks")

LAN_MAC = "02:00:c0:00:02:01"
HELD = ("192.0.2.64/24", "2001:db8::41/64")
LAN = ("--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.64/27", "--gateway", "192.0.2.1", "--subnet", "2001:db8::/64",
       "--ip-range", "2001:db8::40/122", "--gateway", "2001:db8::1", "--dns", "192.0.2.1", "--dns", "2001:db8::1",
       "--mtu", "1400", "--aux-address", "printer=192.0.2.66")  # fmt: skip

#: What a guest tells of itself, and whom it reaches of those it is asked for.
TELLS = r"""#!/bin/sh
cat > /www/cgi-bin/facts <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
for nic in /sys/class/net/eth*; do read -r mtu < $nic/mtu; echo "mtu ${nic##*/} $mtu"; done
ip -o address show scope global
# The kernel gives the NIC its link-local address once it has told of the carrier, up to a second later.
until ip -6 route | grep -q ^fe80; do sleep 0.2; done
ip route; ip -6 route
cat /etc/resolv.conf
END
cat > /www/cgi-bin/reach <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
for address in $(echo "$QUERY_STRING" | tr , ' '); do ping -c1 -W5 $address >/dev/null && echo $address; done
echo all
END
chmod +x /www/cgi-bin/*
"""

WEB1 = ("192.0.2.65", "2001:db8::40")
WEB2 = ("192.0.2.67", "2001:db8::42")


class Lab(KvmHost):
    """The host of the guests."""

    def network(self, name: str) -> Any:
        return valid(self.json("network", "show", name), "network.json")

    def held(self, name: str) -> dict[str, str]:
        """Address to holder."""
        return {lease["address"]: lease["owner"] for lease in self.network(name)["leases"]}

    def conflicts(self, name: str) -> dict[str, str]:
        return {one["address"]: one["mac"] for one in self.network(name)["conflicts"]}

    def addresses(self, name: str, number: int = 0) -> list[str]:
        return [one["address"] for one in self.show(name)["nics"][number]["addresses"]]

    def nic(self, *words: object, status: int = 0) -> Any:
        done = self.macvm("nic", *words, "-o", "json", status=status)
        return complaints(done.stderr) if status else valid(json.loads(done.stdout), "nic-change.json")

    def refused(self, *words: object, status: int) -> tuple[str, str]:
        """The one error, and its hint."""
        done = self.macvm(*words, status=status)
        assert done.stdout == ""
        ((error, hint),) = complaints(done.stderr)
        return error, hint

    def facts(self, address: str) -> str:
        return self.page(address, "cgi-bin/facts", lines=4, seconds=90)

    def reached(self, address: str, *targets: str) -> list[str]:
        """Those of the targets that answer the guest."""
        return self.page(address, f"cgi-bin/reach?{','.join(targets)}", seconds=90).splitlines()[:-1]

    def routes(self) -> str:
        return self.sh("ip route; ip -6 route; ip neigh show nud permanent")

    def macvlans(self) -> str:
        """macvm's links that are no guest's: its shims, and those that it asks the LAN from."""
        return self.sh("ip -o link | grep -oE ' m[vp]-[^@]+' || :").strip()

    def seed(self, name: str) -> str:
        """What a machine's seed says of its NICs."""
        code = "import sys; from pathlib import Path; from provisioner.host.seeds import read_seed; "
        code += "print(read_seed(Path(sys.argv[1]))['network-config'].decode())"
        path = f"/var/lib/macvm/machines/{self.show(name)['uuid']}/seed.iso"
        return self.node.run([sys.executable, "-c", code, path], check=True).stdout

    @contextmanager
    def network_of(self, name: str, *words: object) -> Iterator[str]:
        """A network for as long as the block runs; nothing may be left on it."""
        self.macvm("network", "create", name, *words)
        try:
            yield name
        except BaseException:
            # What failed is told, not what it left.
            self.node.run(["macvm", "network", "delete", name])
            raise
        self.macvm("network", "delete", name)

    @contextmanager
    def lan_has(self, *addresses: str) -> Iterator[None]:
        self.sh("".join(f"ip address add {one} dev eth0{nodad(one)};" for one in addresses), node=self.lan)
        try:
            yield
        finally:
            self.sh("".join(f"ip address del {one} dev eth0;" for one in addresses), node=self.lan)

    def same_but_conflicts(self) -> dict[str, list[str]]:
        """The state, without what a network remembers: where it gives out next, and whom the LAN showed; and without the
        time of each lease, which what undoes a change gives anew."""
        state = self.state()
        rows = [row for row in state["rows"] if not re.match("INSERT INTO (pools|released|conflicts) ", row)]
        return {**state, "rows": [re.sub(r",'[-0-9T:]+Z'\);$", "", row) for row in rows]}


def nodad(address: str) -> str:
    return " nodad" if ":" in address else ""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What `create` said of each guest."""
    return {}


@pytest.fixture(scope="module")
def lab(said: dict[str, str]) -> Iterator[Lab]:
    with make_sandbox() as box:
        lab = Lab(box)
        lab.sh(f"cat > /run/tells <<'TELLS'\n{TELLS}\nTELLS")
        lab.sh("ip netns add far; ip link add eth1 type veth peer far1 netns far; ip link set eth1 addrgenmode none up;"
               "ip address add 198.51.100.2/24 dev eth1; ip -n far address add 198.51.100.1/24 dev far1;"
               "ip -n far link set far1 up")  # fmt: skip
        lab.macvm("image", "build", "tiny")
        with lab.lan_has(*HELD):
            lab.macvm("network", "create", "lan", *LAN)
            for name in ("web1", "web2"):
                words = ("--memory", "192", "--network", "lan", "--user-data", "/run/tells")
                said[name] = lab.macvm("create", name, *words).stderr
            yield lab


# --- create ---------------------------------------------------------------------------------------------------------


def test_asked_by_rfc_5227(lab: Lab) -> None:
    """First, while the guests boot: three packets to the full timing, for the address that is free in the end."""
    capture = ["timeout", "60", "tcpdump", "-l", "-nn", "-tt", "-i", "eth0", "arp src 0.0.0.0 and arp dst 192.0.2.97"]
    with lab.lan_has("192.0.2.96/24"), lab.network_of("slow", "--ip-range", "192.0.2.96/28"):
        with lab.lan.start(capture) as tcpdump:
            while "listening on" not in tcpdump.stderr:
                time.sleep(0.01)
            done = lab.macvm("create", "slow", "--no-start", "--network", "slow", "--probe=rfc")
            lab.sh("ping -c1 -W2 192.0.2.1")
            tcpdump.signal(15)
            tcpdump.wait(10)
            asked = [float(line.split()[0]) for line in tcpdump.stdout.splitlines() if "192.0.2.97" in line]
        assert "192.0.2.96 is in use on the LAN" in done.stderr
        assert lab.addresses("slow") == ["192.0.2.97"]
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        # RFC 5227, 1.1: PROBE_MIN. What another probe of the same address would add is far shorter.
        assert [gap >= 0.95 for gap in gaps] == [True, True]
        lab.macvm("delete", "--yes", "slow")


def test_what_the_lan_has_is_not_given_out(lab: Lab, said: dict[str, str]) -> None:
    assert f"note: 192.0.2.64 is in use on the LAN by {LAN_MAC}: 192.0.2.65 instead\n" in said["web1"]
    assert f"note: 2001:db8::41 is in use on the LAN by {LAN_MAC}: 2001:db8::42 instead\n" in said["web2"]
    # The family that is not concerned keeps its address; .66 is the printer's.
    assert (tuple(lab.addresses("web1")), tuple(lab.addresses("web2"))) == (WEB1, WEB2)
    assert lab.conflicts("lan") == {"192.0.2.64": LAN_MAC, "2001:db8::41": LAN_MAC}
    assert lab.held("lan") == {**dict.fromkeys(WEB1, "web1"), **dict.fromkeys(WEB2, "web2")}
    shown = lab.macvm("network", "show", "lan").stdout
    assert re.search(rf"^IN USE BY OTHERS +MAC +SEEN\n192.0.2.64 +{LAN_MAC} +20", shown, re.MULTILINE)


def check_guest(lab: Lab, own: tuple[str, str], other: tuple[str, str]) -> None:
    v4, v6 = own
    facts = lab.facts(v4)
    assert re.findall(r"inet6? (\S+)", facts) == [f"{v4}/24", f"{v6}/64"]
    assert "mtu eth0 1400\n" in facts
    assert re.findall(r"^default via (\S+)", facts, re.MULTILINE) == ["192.0.2.1", "2001:db8::1"]
    assert re.findall(r"^nameserver (\S+)", facts, re.MULTILINE) == ["192.0.2.1", "2001:db8::1"]
    everybody = [*other, "192.0.2.2", "2001:db8::2", "192.0.2.1", "2001:db8::1"]
    assert lab.reached(v4, *everybody) == everybody
    for node in (lab.node, lab.lan):
        for address in own:
            assert f"{v4}/24 eth0" in lab.page(address, node=node)


def test_each_guest_has_what_its_network_says_and_reaches_all(lab: Lab) -> None:
    check_guest(lab, WEB1, WEB2)
    check_guest(lab, WEB2, WEB1)
    host_side = json.loads(lab.sh(f"ip -j link show dev {lab.show('web1')['nics'][0]['device']}"))
    assert host_side[0]["mtu"] == 1400


def test_an_endpoint_is_one_more_on_the_network(lab: Lab) -> None:
    lab.macvm("endpoint", "create", "box", "--network", "lan")
    own = [address for address, owner in lab.held("lan").items() if owner == "box"]
    assert len(own) == 2
    for guest in (WEB1, WEB2):
        assert lab.reached(guest[0], *own) == own
    for address in (*WEB1, *WEB2, "192.0.2.2", "2001:db8::2", "192.0.2.1", "2001:db8::1"):
        lab.macvm("endpoint", "exec", "box", "--", "ping", "-c1", "-W5", address)
    assert "box" in lab.refused("network", "delete", "lan", status=4)[0]
    lab.macvm("endpoint", "delete", "box")
    assert "box" not in lab.held("lan").values()


def test_a_given_address_that_the_lan_has_is_refused_and_nothing_is_left(lab: Lab) -> None:
    before = lab.same_but_conflicts()
    for address in ("192.0.2.64", "2001:db8::41"):
        error, hint = lab.refused("create", "web3", "--network", "lan", "--ip", address, "--no-start", status=4)
        assert error == f"{address} is in use on the LAN by {LAN_MAC}"
        assert "--no-probe" in hint
    assert_same(before, lab.same_but_conflicts())
    lab.macvm("create", "web3", "--network", "lan", "--ip", "192.0.2.64", "--no-start", "--no-probe")
    assert lab.addresses("web3") == ["192.0.2.64"]
    assert "192.0.2.64" not in lab.conflicts("lan")
    lab.macvm("delete", "--yes", "web3")
    assert_same(before, lab.same_but_conflicts())


def test_several_at_once(lab: Lab) -> None:
    """Machines by --count, NICs by --nic; each gets an address of its own, and reused last is what was released."""
    with lab.network_of("small", "--no-shim", "--subnet", "203.0.113.0/29", "--aux-address", "router=203.0.113.3"):
        lab.macvm("create", "n", "--count", "2", "--network", "small", "--no-start")
        lab.macvm("create", "m", "--nic", "network=small,ip=auto", "--nic", "network=small", "--no-start")
        free = {f"203.0.113.{number}": "" for number in (1, 2, 4, 5, 6)}
        assert lab.held("small") == dict(zip(free, ["n-1", "n-2", "m", "m"], strict=False))
        assert [nic["network"] for nic in lab.show("m")["nics"]] == ["small", "small"]
        (subnet,) = lab.network("small")["subnets"]
        assert (subnet["size"], subnet["used"], subnet["free"]) == (5, 4, 1)
        with lab.unchanged():
            # Before the first is made, for the pool has room for one of the two alone.
            error, hint = lab.refused("create", "o", "--count", "2", "--network", "small", "--no-start", status=4)
        assert error == "the pool of the network small is exhausted: 5 addresses in 203.0.113.0/29, held by m, n-1, n-2"
        assert "macvm network show small" in hint
        error, hint = lab.refused("network", "delete", "small", status=4)
        assert error == "the network small is in use by m, n-1, n-2"
        lab.macvm("delete", "--yes", "n-1")
        lab.macvm("create", "p", "--count", "2", "--network", "small", "--no-start")
        assert [lab.addresses(f"p-{number}") for number in (1, 2)] == [["203.0.113.6"], ["203.0.113.1"]]
        lab.macvm("delete", "--yes", "n-2", "m", "p-1", "p-2")


def test_a_pool_that_machines_on_the_bare_parent_have(lab: Lab) -> None:
    """An address is one of the LAN's, whoever gave it out."""
    lab.macvm("create", "bare", "--ip", "192.0.2.120/24", "--no-start")
    with lab.network_of("narrow", "--ip-range", "192.0.2.120/31"):
        (subnet,) = lab.network("narrow")["subnets"]
        assert (subnet["size"], subnet["used"], subnet["free"]) == (2, 1, 1)
        assert lab.held("narrow") == {"192.0.2.120": "bare"}
        lab.macvm("create", "x", "--network", "narrow", "--no-start")
        error, _ = lab.refused("create", "y", "--network", "narrow", "--no-start", status=4)
        assert error.endswith("2 addresses in 192.0.2.120/31, held by bare, x")
        assert lab.held("narrow") == {"192.0.2.120": "bare", "192.0.2.121": "x"}
        lab.macvm("delete", "--yes", "x", "bare")


def test_a_pool_that_the_lan_has_all_of(lab: Lab) -> None:
    held = ("192.0.2.120/24", "192.0.2.121/24")
    with lab.lan_has(*held), lab.network_of("narrow", "--ip-range", "192.0.2.120/31"):
        before = lab.same_but_conflicts()
        error, _ = lab.refused("create", "x", "--network", "narrow", "--no-start", status=4)
        assert error == (
            "the pool of the network narrow is exhausted: 2 addresses in 192.0.2.120/31; others on the LAN have "
            "192.0.2.120, 192.0.2.121"
        )
        assert lab.conflicts("narrow") == dict.fromkeys(("192.0.2.120", "192.0.2.121"), LAN_MAC)
        assert_same(before, lab.same_but_conflicts())


def test_a_large_pool_that_the_lan_has_all_of(lab: Lab) -> None:
    """Not every one of them is named."""
    held = [f"192.0.2.{number}/24" for number in range(96, 112)]
    with lab.lan_has(*held), lab.network_of("narrow", "--ip-range", "192.0.2.96/28"):
        error, _ = lab.refused("create", "x", "--network", "narrow", "--no-start", status=4)
        assert error.endswith(", 192.0.2.103 and 8 more"), error


def test_networks_are_deleted_together_or_not_at_all(lab: Lab) -> None:
    with lab.network_of("narrow", "--ip-range", "192.0.2.96/28"), lab.unchanged():
        error, _ = lab.refused("network", "delete", "narrow", "nothere", status=3)
        assert error == "there is no network 'nothere'"


@pytest.mark.parametrize(
    ("words", "asked"),
    [("--mode=bridge --no-shim", True), ("--mode=vepa", True), ("--mode=private", True), ("--mode=passthrough", False)],
)
def test_asked_from_a_link_that_is_gone_then(lab: Lab, words: str, asked: bool) -> None:
    """No shim is on eth1 to ask from; passthrough leaves no room for one."""
    lab.sh("ip -n far address add 198.51.100.16/24 dev far1")
    with lab.network_of("far", "--parent", "eth1", "--ip-range", "198.51.100.16/28", *words.split()):
        done = lab.macvm("create", "x", "--network", "far", "--no-start", "--take-parent")
        assert lab.addresses("x") == ["198.51.100.17" if asked else "198.51.100.16"]
        assert bool(lab.conflicts("far")) == asked
        unasked = "the LAN was not asked for 198.51.100.16: passthrough leaves no room on eth1 to ask from"
        assert (unasked in done.stderr) == (not asked)
        assert lab.macvlans() == "mv-eth0"
        lab.macvm("delete", "--yes", "x")
    lab.sh("ip -n far address del 198.51.100.16/24 dev far1")


# --- NICs of a running guest ----------------------------------------------------------------------------------------


def test_attach_and_set_on_networks(lab: Lab) -> None:
    """Attached to the LAN's network, moved to another parent's and back: lease, route and seed follow."""
    before = lab.same_but_conflicts()
    told = lab.macvm("nic", "attach", "web1", "--network", "lan", "--dry-run").stdout
    v4, v6 = re.findall(r"route add (\S+)/(?:32|128) ", told)
    after = str(ipaddress.ip_address(v4) + 1)
    with lab.lan_has(f"{v4}/24"):
        done = lab.macvm("nic", "attach", "web1", "--network", "lan", "--mac", "52:54:00:00:02:01")
    assert f"note: {v4} is in use on the LAN by {LAN_MAC}: {after} instead\n" in done.stderr
    new = (after, v6)
    assert lab.addresses("web1", 1) == list(new)
    assert set(new) < set(lab.held("lan"))
    for address in new:
        assert re.search(rf"^{address} .*dev mv-eth0 .*52:54:00:00:02:01 ", lab.routes(), re.MULTILINE)
        assert f"{address}/" in lab.seed("web1")

    lab.sh("ip -n far address add 198.51.100.16/24 dev far1; ip -n far address add 2001:db8:1::1/64 dev far1 nodad")
    with lab.network_of("far", "--parent", "eth1", "--ip-range", "198.51.100.16/28"):
        error, _ = lab.refused("nic", "set", "web1", "52:54:00:00:02:01", "--network", "far", status=2)
        assert "by unplugging it" in error
        words = ("nic", "set", "web1", "52:54:00:00:02:01", "--network", "far", "--replug", "--live")
        error, _ = lab.refused(*words, status=2)
        assert "in the definition of web1 too" in error
        done = lab.macvm("nic", "set", "web1", "52:54:00:00:02:01", "--network", "far", "--replug")
        assert re.search(r"^note: 198.51.100.16 is in use on the LAN by \S+: 198.51.100.17 instead$", done.stderr, re.M)
        assert lab.held("far") == {"198.51.100.17": "web1"}
        assert not set(new) & set(lab.held("lan"))
        assert "198.51.100.17 dev mv-eth1 " in lab.routes()
        assert not [address for address in new if f"{address} " in lab.routes()]
        assert "198.51.100.17/24" in lab.seed("web1")
        assert not [address for address in new if f"{address}/" in lab.seed("web1")]
        assert [nic["network"] for nic in lab.show("web1")["nics"]] == ["lan", "far"]
        # By the name of its network, and to an address that the user chose.
        lab.nic("set", "web1", "far", "--ip", "198.51.100.20")
        assert lab.held("far") == {"198.51.100.20": "web1"}
        there = lab.same_but_conflicts()
        ((error, _),) = lab.nic("set", "web1", "far", "--ip", "198.51.100.16", status=4)
        assert error.startswith("198.51.100.16 is in use on the LAN by ")
        assert_same(there, lab.same_but_conflicts())
        lab.nic("detach", "web1", "far")
        assert lab.held("far") == {}
    lab.sh("ip -n far address del 198.51.100.16/24 dev far1; ip -n far address del 2001:db8:1::1/64 dev far1")
    assert_same(before, lab.same_but_conflicts())


def test_an_mtu_goes_with_the_network_it_came_from(lab: Lab) -> None:
    with lab.network_of("plain", "--ip-range", "192.0.2.112/28"):
        lab.macvm("create", "x", "--network", "lan", "--no-start")
        assert "mtu: 1400" in lab.seed("x")
        lab.nic("set", "x", "--network", "plain")
        assert "mtu" not in lab.seed("x")
        assert lab.held("plain") == {"192.0.2.112": "x"}
        lab.macvm("delete", "--yes", "x")


# --- what libvirt no longer has -------------------------------------------------------------------------------------


def test_gc_gives_back_what_virsh_took_away(lab: Lab) -> None:
    before = lab.same_but_conflicts()
    with lab.network_of("tiny", "--no-shim", "--subnet", "203.0.113.8/31"):
        lab.macvm("create", "x", "--network", "tiny", "--memory", "128")
        lab.macvm("create", "y", "--network", "tiny", "--no-start")
        lab.sh("virsh destroy x; virsh undefine x; virsh undefine y")
        assert lab.held("tiny") == {"203.0.113.8": "x", "203.0.113.9": "y"}
        with lab.unchanged():
            told = lab.macvm("gc", "--dry-run").stdout
            assert "would release: 203.0.113.8 of x, which is gone from libvirt" in told
        told = lab.macvm("gc").stderr
        assert "released: 203.0.113.8 of x, which is gone from libvirt" in told
        assert "kept: the files of y, which is gone from libvirt: macvm delete y" in told
        assert lab.held("tiny") == {}
        lab.macvm("delete", "--yes", "x", "y")
        lab.macvm("create", "z", "--network", "tiny", "--count", "2", "--no-start")
        assert {*lab.held("tiny")} == {"203.0.113.8", "203.0.113.9"}
        lab.macvm("delete", "--yes", "z-1", "z-2")
    assert_same(before, lab.same_but_conflicts())


# --- several networks of one parent ---------------------------------------------------------------------------------


def test_two_networks_on_one_parent(lab: Lab) -> None:
    with lab.network_of("upper", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.100-192.0.2.109"), lab.unchanged():
        error, hint = lab.refused("network", "create", "all", "--subnet", "192.0.2.0/24", status=4)
        assert "on eth0 too: both would give out 192.0.2.64/27" in error
        assert "--ip-range" in hint
        words = ("--subnet", "192.0.2.64/26", "--ip-range", "192.0.2.105-192.0.2.112")
        error, _ = lab.refused("network", "create", "all", *words, status=4)
        assert error.endswith("of the network upper, on eth0 too: both would give out 192.0.2.105-192.0.2.109")
        again = complaints(lab.macvm("network", "create", "upper", *words, status=4).stderr)
        assert [one.partition(" overlaps ")[0] for one, _ in again] == [
            "there is a network upper already",
            "192.0.2.64/26",
        ]
        listed = valid(lab.json("network", "list"), "network-list.json")
        assert [one["name"] for one in listed] == ["lan", "upper"]
        # An address belongs to the LAN, whichever network gives it out.
        both = complaints(lab.macvm("create", "x", "--network", "upper", "--ip", "192.0.2.67", status=2).stderr)
        assert both[0][0] == "192.0.2.67 is outside the range 192.0.2.100-192.0.2.109 of the network upper"
        assert "192.0.2.67 is held by machine web2" in both[1][0]
        error, _ = lab.refused("create", "x", "--ip", "192.0.2.67", status=4)
        assert "192.0.2.67 is held by machine web2" in error


def test_the_parents_own_subnet_wants_a_range_and_is_proposed_a_free_one(lab: Lab) -> None:
    """Neither what the LAN answers for, nor what another network gives out, nor the host's own: from the top."""
    with lab.lan_has("192.0.2.250/24", "192.0.2.193/24"), lab.network_of("upper", "--ip-range", "192.0.2.160/28"):
        before = lab.same_but_conflicts()
        error, hint = lab.refused("network", "create", "dhcp", status=2)
        assert error == (
            "192.0.2.0/24 is eth0's own subnet, which the LAN's DHCP server shares: which range of it is macvm's?"
        )
        assert hint.startswith("--ip-range 192.0.2.128/27: nobody answered there; ")
        lab.macvm("create", "silent", "--ip", "192.0.2.130/24", "--no-start")
        _, hint = lab.refused("network", "create", "dhcp", status=2)
        assert hint.startswith("--ip-range 192.0.2.96/27: nobody answered there; "), "a machine that is off holds it"
        lab.macvm("delete", "--yes", "silent")
        assert_same(before, lab.same_but_conflicts())
        assert lab.macvlans() == "mv-eth0"


# --- looking --------------------------------------------------------------------------------------------------------


def test_a_network_in_words(lab: Lab) -> None:
    """`list` and `show` for people."""
    head, first, second = lab.macvm("network", "list").stdout.splitlines()
    assert re.split(" +", head) == ["NAME", "PARENT", "MODE", "SUBNET", "RANGE", "GATEWAY", "USED", "FREE"]
    assert re.split(" +", first) == ["lan", "eth0", "bridge", "192.0.2.0/24", "192.0.2.64/27", "192.0.2.1", "2", "29"]
    assert second.split() == ["2001:db8::/64", "2001:db8::40/122", "2001:db8::1", "2", "62"]
    shown = lab.macvm("network", "show", "lan").stdout
    for words in ("dns +192.0.2.1, 2001:db8::1", "mtu +1400", "reserved +printer 192.0.2.66", "MACs on the parent +4",
                  "2001:db8::40 +web1 +52:54:"):  # fmt: skip
        assert re.search(rf"^{words}", shown, re.MULTILINE), words
    assert lab.macvm("network", "list", "-o", "name").stdout == "lan\n"
    assert "bridge on eth0, network lan" in lab.macvm("show", "web1").stdout


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("create x --network lan", r"^ip -4 route add 192\.0\.2\.\d+/32 dev mv-eth0 .*$(.|\n)*address 192\.0\.2\.\d+$"),
        ("nic attach web1 --network lan", r"^ip -6 route add 2001:db8::4\w/128 dev mv-eth0 src 2001:db8::2 "),
        ("nic set web1 --ip auto", r"^ip -4 route add 192\.0\.2\.\d+/32 (.|\n)*^ip route del 192\.0\.2\.65 dev mv-eth0 "),
        ("nic set web1 --network far --replug", r"^virsh detach(.|\n)*^ip link add mv-eth1(.|\n)*^ip route del 2001:db8::40 "),
        ("nic detach web1 lan", "^virsh detach-interface web1 direct --mac .* --live --config\n"
         r"ip route del 192\.0\.2\.65 dev mv-eth0"),
        ("delete --yes web1", r"^ip route del 2001:db8::40 dev mv-eth0 "),
        ("network create new --subnet 203.0.113.0/24", "^# 203.0.113.0/24: gives out 203.0.113.0/24$"),
        ("network delete far", "^# only far itself is removed$"),
        ("network up", "^# nothing is missing$"),
    ],
)  # fmt: skip
def test_a_dry_run_changes_nothing(lab: Lab, words: str, lines: str) -> None:
    with lab.network_of("far", "--parent", "eth1", "--ip-range", "198.51.100.16/28"), lab.unchanged():
        told = lab.macvm(*words.split(), "--dry-run").stdout
        assert re.search(lines, told, re.MULTILINE), told


def test_a_dry_run_of_delete_takes_the_shim_with_the_last_route(lab: Lab) -> None:
    with lab.unchanged():
        told = lab.macvm("delete", "--yes", "web1", "web2", "--dry-run").stdout
        assert told.splitlines()[-1] == "ip link del mv-eth0"
        assert "ip link del" not in lab.macvm("delete", "--yes", "web1", "--dry-run").stdout


@pytest.mark.parametrize(
    "line", ["macvm create x --network ", "macvm network show l", "macvm nic attach web1 --network l"]
)
def test_names_of_networks_complete(lab: Lab, line: str) -> None:
    words = {"_MACVM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    setting = " ".join(f"{name}='{value}'" for name, value in words.items())
    assert lab.sh(f"{setting} macvm || :").split(",")[-1].strip() == "lan"


# --- over a power cycle ---------------------------------------------------------------------------------------------


def test_after_a_power_cycle_all_is_the_same(lab: Lab) -> None:
    """web1 shut down, web2 cut off; and a NIC that was attached to the running guest alone is gone, with what it held."""
    facts, routes, held = lab.facts(WEB1[0]), lab.routes(), lab.held("lan")
    gone = lab.nic("attach", "web1", "--network", "lan", "--live")["nic"]
    kept = lab.nic("attach", "web2", "--network", "lan")["nic"]
    lost, saved = ([one["address"] for one in nic["addresses"]] for nic in (gone, kept))
    assert set(lab.held("lan")) == {*held, *lost, *saved}
    lab.macvm("stop", "web1")
    lab.sh("virsh destroy web2")
    lab.macvm("start", "web1", "web2")
    told = f"of the NIC {gone['mac']} of web1, which is gone\n"
    assert f"would release: {', '.join(lost)} {told}" in lab.macvm("gc", "--dry-run").stdout
    assert f"released: {', '.join(lost)} {told}" in lab.macvm("gc").stderr
    assert lab.held("lan") == {**held, **dict.fromkeys(saved, "web2")}
    check_guest(lab, WEB1, WEB2)
    assert lab.facts(WEB1[0]) == facts
    facts = lab.facts(WEB2[0])
    assert [word for word in saved if f"{word}/" not in facts] == []
    assert set(routes.splitlines()) < set(lab.routes().splitlines())


def test_deleted_last_all_is_gone(lab: Lab) -> None:
    lab.macvm("delete", "--yes", "web1", "web2")
    assert lab.held("lan") == {}
    assert lab.macvlans() == ""
    lab.macvm("network", "delete", "lan")
    assert "proto 109" not in lab.routes()


# --- a parent that is gone ------------------------------------------------------------------------------------------


def test_a_parent_that_is_gone_is_named_wherever_it_is_missed(lab: Lab) -> None:
    lab.sh("ip link add eth9 type veth peer far9; ip link set eth9 up; ip link set far9 up")
    with lab.network_of("lost", "--parent", "eth9", "--subnet", "203.0.113.0/24"):
        lab.macvm("create", "x", "--network", "lost", "--no-start")
        lab.sh("ip link del eth9")
        with lab.unchanged():
            assert re.search(r"^parent +eth9 \(missing\)$", lab.macvm("network", "show", "lost").stdout, re.MULTILINE)
            assert lab.network("lost")["macs_on_parent"] is None
            error, _ = lab.refused("create", "y", "--network", "lost", "--no-start", status=3)
            assert error == "eth9, the parent of the network lost, is not there"
            error, _ = lab.refused("network", "up", status=3)
            assert error == "there is no link 'eth9' on this host, for the network lost"
            assert "no link eth9 on this host, for the network lost" in lab.macvm("network", "up", "--dry-run").stdout
        lab.macvm("delete", "--yes", "x")
