"""The seed's texts read back as what was asked for, whatever that was."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from provisioner.model.names import Mac
from provisioner.model.nic import Addressing, Nic
from provisioner.model.seed import SeedRequest, seed_files


def read_yaml(text: str) -> Any:
    """The blocks of mappings and lists that network-config is made of; every scalar and inline list is JSON's too.
    Strict: what it does not know is an error."""
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in text.splitlines()]

    def scalar(word: str) -> Any:
        return word if word.isidentifier() and word not in ("true", "false", "null") else json.loads(word)

    def block(indent: int) -> Any:
        found: Any = None
        while lines and lines[0][0] == indent:
            _, line = lines.pop(0)
            if line.startswith("- "):
                found = [] if found is None else found
                if ": " in line:
                    lines.insert(0, (indent + 2, line[2:]))
                    found.append(block(indent + 2))
                else:
                    found.append(scalar(line[2:]))
                continue
            key, colon, value = line.partition(":")
            found = {} if found is None else found
            assert colon and key not in found, line  # noqa: PT018
            found[key] = scalar(value.strip()) if value else block(lines[0][0])
        return found

    read = block(0)
    assert not lines, f"left over: {lines}"
    return read


interfaces = st.lists(
    st.builds(
        lambda ip, length: ipaddress.ip_interface((ip, min(length, ip.max_prefixlen))),
        st.ip_addresses(),
        st.integers(1, 128),
    ),
    max_size=3,
    unique=True,
)
addressings = st.builds(
    lambda static, dhcp, gateways, dns: Addressing(tuple(static), dhcp and not static, tuple(gateways), tuple(dns)),
    interfaces,
    st.booleans(),
    st.lists(st.ip_addresses(), max_size=2),
    st.lists(st.ip_addresses(), max_size=2),
)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: Mac(raw.hex(":")))
nics = st.lists(
    st.builds(
        lambda mac, mtu, told: Nic(mac, parent="eth0", mtu=mtu, addressing=told),
        macs,
        st.none() | st.integers(68, 9000),
        addressings,
    ),
    max_size=4,
).map(tuple)


@given(nics)
def test_network_config_is_yaml_that_says_the_same(wanted: tuple[Nic, ...]) -> None:
    text = seed_files(SeedRequest("web1", "id", wanted))["network-config"].decode()
    read = read_yaml(text)
    assert read["version"] == 2
    assert len(read["ethernets"]) == len(wanted)
    for index, nic in enumerate(wanted):
        told, found = nic.addressing, read["ethernets"][f"nic{index}"]
        assert found["match"] == {"macaddress": str(nic.mac)}
        assert found["set-name"] == f"eth{index}"
        assert (found["dhcp4"], found.get("mtu")) == (told.dhcp, nic.mtu)
        assert found.get("addresses", []) == [str(interface) for interface in told.static]
        assert [route["via"] for route in found.get("routes", [])] == [str(gateway) for gateway in told.gateways]
        assert found.get("nameservers", {"addresses": []})["addresses"] == [str(server) for server in told.dns]


@given(nics)
def test_interfaces_has_a_stanza_for_each_address(wanted: tuple[Nic, ...]) -> None:
    files = seed_files(SeedRequest("web1", "id", wanted))
    stanzas = files["files/etc/network/interfaces"].decode().split("\n\n")
    for index, nic in enumerate(wanted):
        mine = [stanza for stanza in stanzas if stanza.startswith(f"iface eth{index} ")]
        assert len(mine) == max(1, len(nic.addressing.static) + nic.addressing.dhcp)
        for interface in nic.addressing.static:
            assert any(f"    address {interface.ip}\n" in f"{stanza}\n" for stanza in mine)
        assert ("manual" in "".join(mine)) == (not nic.addressing.dhcp and not nic.addressing.static)


@given(st.text(), st.lists(st.text(), max_size=3))
def test_meta_data_is_json_whatever_stands_in_it(hostname: str, keys: list[str]) -> None:
    data = seed_files(SeedRequest(hostname, "id", (), tuple(keys)))["meta-data"]
    assert json.loads(data) == {"instance-id": "id", "local-hostname": hostname} | (
        {"public-keys": keys} if keys else {}
    )
    assert data.isascii(), "YAML 1.1 readers stumble over some characters beyond ASCII"


@given(st.binary(min_size=1))
def test_user_data_is_handed_on_byte_for_byte(given_: bytes) -> None:
    assert seed_files(SeedRequest("web1", "id", (), user_data=given_, password_hash="$6$x"))["user-data"] == given_


def test_a_password_is_set_by_a_script_that_quotes_its_hash() -> None:
    text = seed_files(SeedRequest("web1", "id", (), login="cirros", password_hash="$6$salt$ha/sh."))[
        "user-data"
    ].decode()
    assert text.startswith("#!/bin/sh\n")
    assert "'cirros:$6$salt$ha/sh.' | chpasswd -e" in text
