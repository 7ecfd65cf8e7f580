"""What the standard library's netlink dumps say is what `ip -j` says."""

from __future__ import annotations

import ipaddress

import pytest

from provisioner.errors import NotFound
from provisioner.host import netlink
from tests.netns.conftest import ip

pytestmark = pytest.mark.usefixtures("lan")


def furnish() -> None:
    """One of each kind of thing that a dump can show."""
    ip("link add mv0 link eth0 address 02:00:00:00:00:01 type macvlan mode bridge")
    ip("link add mv1 link eth0 type macvlan mode private")
    ip("link add mt0 link far type macvtap mode passthru")
    ip("link add br0 type bridge")
    ip("link add port type veth peer name other mtu 9000")
    ip("link set port master br0")
    ip("link set mv0 alias macvm:shim:eth0")
    ip("link set mv0 up")
    ip("link set other up")
    ip("addr add 192.0.2.9/32 dev mv0")
    ip("addr add 10.0.0.1 peer 10.0.0.2/32 dev other")
    ip("addr add fe80::9/64 dev mv0 nodad")
    ip("route add 192.0.2.11/32 dev mv0 src 192.0.2.2 proto 109")
    ip("route add default via 192.0.2.1 dev eth0")
    ip("route add blackhole 203.0.113.0/24")
    ip("route add 198.51.100.0/24 dev eth0 table 77")
    ip("-6 route add 2001:db8::11/128 dev mv0 src 2001:db8::2 proto 109")
    ip("-6 route add default via 2001:db8::1 dev eth0")
    ip("neigh add 192.0.2.11 lladdr 02:00:00:00:00:0b dev mv0 nud permanent")
    ip("-6 neigh add 2001:db8::11 lladdr 02:00:00:00:00:0b dev mv0 nud permanent")
    ip("-6 neigh add proxy 2001:db8::2 dev mv0")


def test_links() -> None:
    furnish()
    theirs = {entry["ifname"]: entry for entry in ip("-d link show")}
    ours = {link.name: link for link in netlink.links()}
    assert set(ours) == set(theirs)
    for name, link in ours.items():
        entry = theirs[name]
        info = entry.get("linkinfo", {})
        assert link.index == entry["ifindex"]
        assert link.mac == entry["address"]
        assert link.mtu == entry["mtu"]
        assert link.up == ("UP" in entry["flags"])
        assert link.carrier == ("LOWER_UP" in entry["flags"]) or not link.up
        assert link.kind == info.get("info_kind", "")
        assert link.alias == entry.get("ifalias", "")
        assert (link.hardware == netlink.ARPHRD_ETHER) == (entry["link_type"] == "ether")
        assert link.mode == (info.get("info_data", {}).get("mode") or "").replace("passthru", "passthrough")
        lower = entry.get("link") if link.kind != "veth" else None
        assert link.lower == (theirs[lower]["ifindex"] if lower else 0)
        assert link.enslaved_to == (theirs[entry["master"]]["ifindex"] if "master" in entry else 0)
    for name, link in ours.items():
        assert netlink.find_link(name) == link
    with pytest.raises(NotFound, match="nosuch"):
        netlink.get_link("nosuch")


@pytest.mark.parametrize("name", ["nosuch", "", "second", "eth0\0", "n" * 15, "n" * 16, "größe", "\udcff"])
def test_no_such_link(name: str) -> None:
    """By another name of its own neither: all that is looked at has its first name."""
    furnish()
    ip("link property add dev eth0 altname second")
    assert netlink.find_link(name) is None


def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_RTM_GETLINK", 1000)
    with pytest.raises(netlink.NetlinkFailed, match="not supported"):
        netlink.find_link("lo")
    with pytest.raises(netlink.NetlinkFailed, match="not supported"):
        netlink.links()


def test_addresses_of_global_scope() -> None:
    furnish()
    for entry in ip("addr show"):
        theirs = {f"{one['local']}/{one['prefixlen']}" for one in entry["addr_info"] if one["scope"] == "global"}
        assert {str(one) for one in netlink.addresses(entry["ifindex"])} == theirs
    assert {str(one) for one in netlink.addresses(netlink.get_link("eth0").index)} == {"192.0.2.2/24", "2001:db8::2/64"}


def test_unicast_routes_of_the_main_table() -> None:
    furnish()
    names = {link.index: link.name for link in netlink.links()}
    theirs = set()  # a protocol that is left out is RTPROT_BOOT, 3: that of `ip route add`
    for family in ("-4", "-6"):
        for entry in ip(family, "-N route show table main"):
            if entry.get("type", "unicast") == "unicast":
                destination = {"default": "0.0.0.0/0" if family == "-4" else "::/0"}.get(entry["dst"], entry["dst"])
                gateway, source = entry.get("gateway"), entry.get("prefsrc")
                theirs.add(
                    (
                        str(ipaddress.ip_network(destination)),
                        entry["dev"],
                        gateway,
                        source,
                        int(entry.get("protocol", 3)),
                    )
                )
    ours = {
        (
            str(route.destination),
            names[route.device],
            str(route.gateway) if route.gateway else None,
            str(route.source) if route.source else None,
            route.protocol,
        )
        for route in netlink.routes()
    }
    assert ours == theirs
    assert ("192.0.2.11/32", "mv0", None, "192.0.2.2", 109) in ours
    assert ("2001:db8::11/128", "mv0", None, "2001:db8::2", 109) in ours


def test_neighbours_and_proxies() -> None:
    furnish()
    index = netlink.get_link("mv0").index
    entries = {(str(one.address), one.mac, one.state, one.proxy) for one in netlink.neighbours() if one.device == index}
    permanent = 0x80
    assert entries >= {
        ("192.0.2.11", "02:00:00:00:00:0b", permanent, False),
        ("2001:db8::11", "02:00:00:00:00:0b", permanent, False),
    }
    assert not any(proxy for *_, proxy in entries)
    assert [(str(one.address), one.device, one.proxy) for one in netlink.neighbours(proxies=True)] == [
        ("2001:db8::2", index, True)
    ]


def test_when_neighbours_were_there() -> None:
    """In seconds, as `ip -s neigh` has it."""
    furnish()
    names = {link.index: link.name for link in netlink.links()}
    ages = {(names[device], str(address)): age for (device, address), age in netlink.confirmed().items()}
    theirs = {(one["dev"], one["dst"]): one["confirmed"] for one in ip("-s neigh show") if one["dev"] == "mv0"}
    assert len(theirs) >= 2
    assert {key: ages[key] for key in theirs} == pytest.approx(theirs, abs=5)


def test_the_default_routes_link_is_the_default_parent() -> None:
    assert netlink.default_parent() is None
    ip("-6 route add default via 2001:db8::1 dev eth0")
    assert netlink.default_parent() == "eth0"
    ip("route add default dev far")
    assert netlink.default_parent() == "far"


def test_a_dump_of_many_links_is_whole() -> None:
    for number in range(120):
        ip(f"link add m{number} link eth0 type macvlan mode bridge")
    assert len([link for link in netlink.links() if link.kind == "macvlan"]) == 120
