"""Modes and addresses of a NIC."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.errors import Usage
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Addressing, Nic, parse_address, parse_addressing, parse_interface


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("bridge", MacvtapMode.BRIDGE),
        ("VEPA", MacvtapMode.VEPA),
        (" private ", MacvtapMode.PRIVATE),
        ("passthrough", MacvtapMode.PASSTHROUGH),
        ("passthru", MacvtapMode.PASSTHROUGH),
    ],
)
def test_modes(text: str, mode: MacvtapMode) -> None:
    assert MacvtapMode.parse(text) is mode


@pytest.mark.parametrize("text", ["", "brigde", "bridge\0", "nat", "<b>"])
def test_an_unknown_mode_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(Usage) as refused:
        MacvtapMode.parse(text)
    assert all(mode.value in refused.value.hint for mode in MacvtapMode)


def test_mode_source_is_refused_with_its_reason() -> None:
    with pytest.raises(Usage, match="libvirt has no word for it"):
        MacvtapMode.parse("source")


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.11/24", "192.0.2.11", "192.0.2.11/32", "192.0.2.0/31", "192.0.2.1/31", "192.0.2.255/23", "10.0.0.0/32",
        "2001:db8::11/64", "2001:db8::11", "2001:db8::/127", "2001:db8::/64", "fe80::1/64",
    ],
)  # fmt: skip
def test_addresses_that_a_guest_may_have(text: str) -> None:
    assert parse_interface(text) == ipaddress.ip_interface(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.0/24", "network address of 192.0.2.0/24"),
        ("192.0.2.255/24", "broadcast address of 192.0.2.0/24"),
        ("192.0.2.3/30", "broadcast"),
        ("192.0.2.0/0", "no address"),
        ("0.0.0.0", "no address"),
        ("255.255.255.255", "no address"),
        ("224.0.0.1/24", "no address"),
        ("127.0.0.2/8", "no address"),
        ("::", "no address"),
        ("::1/128", "no address"),
        ("ff02::1/64", "no address"),
        ("192.0.2.256/24", "no address"),
        ("192.0.2.11/33", "no address"),
        ("192.0.2.11/24/24", "no address"),
        ("192.0.2", "no address"),
        ("١٩٢.0.2.1", "no address"),
        ("2001:db8::11/129", "no address"),
        ("fe80::1%eth0/64", "no address"),
        ("fe80::1%a\n  evil: true/64", "no address"),
        ("web1", "no address"),
        ("", "no address"),
    ],
)
def test_addresses_that_no_guest_may_have(text: str, why: str) -> None:
    if text == "192.0.2.0/0":
        # A subnet that is everything: only its own first and last address are excluded.
        assert parse_interface(text).network.prefixlen == 0
        return
    with pytest.raises(Usage, match=why) as refused:
        parse_interface(text)
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("text", ["fe80::1%eth0", "fe80::1%\n", "", "192.0.2.1/24", "router"])
def test_gateways_that_are_none(text: str) -> None:
    with pytest.raises(Usage, match="is no gateway"):
        parse_address(text, "gateway")


def test_no_ip_at_all_is_dhcp() -> None:
    assert parse_addressing([]) == Addressing(dhcp=True)
    assert parse_addressing(["DHCP"]) == Addressing(dhcp=True)
    assert parse_addressing(["none"]) == Addressing()


def test_several_addresses_of_both_families() -> None:
    found = parse_addressing(["192.0.2.11/24", "2001:db8::11/64"], ["192.0.2.1", "fe80::1"], ["192.0.2.53"])
    assert [str(address) for address in found.addresses] == ["192.0.2.11", "2001:db8::11"]
    assert [str(gateway) for gateway in found.gateways] == ["192.0.2.1", "fe80::1"]
    assert str(found) == "192.0.2.11/24, 2001:db8::11/64"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["auto"], "needs a network"),
        (["auto", "192.0.2.11/24"], "needs a network"),
        (["dhcp", "192.0.2.11/24"], "dhcp and --ip 192.0.2.11/24 exclude"),
        (["192.0.2.11/24", "dhcp"], "dhcp and --ip 192.0.2.11/24 exclude"),
        (["none", "dhcp"], "exclude"),
        (["192.0.2.11/24", "192.0.2.11/24"], "twice"),
        (["192.0.2.11/24", "192.0.2.11"], "twice"),
        (["2001:db8::11", "2001:DB8:0::11"], "twice"),
    ],
)
def test_addresses_that_exclude_one_another(words: list[str], why: str) -> None:
    with pytest.raises(Usage, match=why):
        parse_addressing(words)


@given(st.ip_addresses(), st.integers(0, 128))
def test_an_accepted_address_reads_back_as_itself(address: ipaddress.IPv4Address, length: int) -> None:
    text = f"{address}/{min(length, address.max_prefixlen)}"
    try:
        interface = parse_interface(text)
    except Usage:
        return
    assert interface.ip == address
    assert parse_interface(str(interface)) == interface


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for parse in (parse_interface, parse_address, MacvtapMode.parse, Mac.parse):
        try:
            shown = str(parse(text))
        except Usage as refused:
            assert refused.message.isprintable()  # noqa: PT017
        else:
            assert shown.isprintable()


def test_a_direct_nic_has_a_device_and_a_network_nic_has_none() -> None:
    mac = Mac.parse("52:54:00:12:34:56")
    direct, network = Nic(mac, parent="eth0"), Nic(mac, libvirt_network="default")
    assert (direct.direct, direct.device, direct.wiring) == (True, "mt-525400123456", "bridge on eth0")
    assert (network.direct, network.device, network.wiring) == (False, "", "libvirt network default")
