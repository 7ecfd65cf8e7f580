"""The seed's texts read back as what was asked for, whatever that was."""

from __future__ import annotations

import email
import ipaddress
import json
import re
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from provisioner.errors import Usage
from provisioner.model.masking import masked
from provisioner.model.names import Mac
from provisioner.model.nic import Addressing, Nic
from provisioner.model.seed import SeedRequest, json_text, seed_files, shown_files
from provisioner.model.user_data import check_combinable, check_script, combine, kind_of


def read_yaml(text: bytes, version: str = "1.1") -> Any:
    """As cloud-init reads it: YAML 1.1, where a MAC may be a number, and `on` is true."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml.load(text)


def strictly(text: bytes) -> Any:
    """JSON as CirrOS reads it, and no more than that: no key twice, no NaN."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once, parse_constant=pytest.fail)


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
    read = read_yaml(seed_files(SeedRequest("web1", "id", wanted))["network-config"])
    assert read["version"] == 2
    assert len(read["ethernets"]) == len(wanted)
    for index, nic in enumerate(wanted):
        told, found = nic.addressing, read["ethernets"][f"nic{index}"]
        assert found["match"] == {"macaddress": str(nic.mac)}
        assert found["set-name"] == f"eth{index}"
        assert (found["dhcp4"], found["dhcp6"], found.get("mtu")) == (told.dhcp, told.dhcp, nic.mtu)
        assert found.get("addresses", []) == [str(interface) for interface in told.static]
        routes = {route["to"]: route["via"] for route in found.get("routes", [])}
        for targets, version in ((["0.0.0.0/0"], 4), (["::/0", "::/1", "8000::/1"], 6)):
            gateway = [str(one) for one in told.gateways if one.version == version][:1]
            assert [routes.get(target) for target in targets] == (gateway or [None]) * len(targets)
        assert found.get("nameservers", {"addresses": []})["addresses"] == [str(server) for server in told.dns]


@given(nics)
def test_no_two_default_routes_of_a_family_have_one_metric(wanted: tuple[Nic, ...]) -> None:
    read = read_yaml(seed_files(SeedRequest("web1", "id", wanted))["network-config"])
    for target in ("0.0.0.0/0", "::/0", "8000::/1"):
        routes = [route for nic in read["ethernets"].values() for route in nic.get("routes", [])]
        metrics = [route.get("metric", 0) for route in routes if route["to"] == target]
        assert metrics == sorted(set(metrics))


@given(nics)
def test_interfaces_has_a_stanza_for_each_family_and_every_address_in_one(wanted: tuple[Nic, ...]) -> None:
    files = seed_files(SeedRequest("web1", "id", wanted))
    stanzas = files["files/etc/network/interfaces"].decode().split("\n\n")
    for index, nic in enumerate(wanted):
        mine = [stanza + "\n" for stanza in stanzas if stanza.startswith(f"iface eth{index} ")]
        heads = [stanza.split()[2] for stanza in mine]
        # busybox's ifup ends with an error, and does nothing at all, where a family comes twice.
        assert len(set(heads)) == len(heads)
        for interface in nic.addressing.static:
            family = "inet" if interface.version == 4 else "inet6"
            (stanza,) = [text for text in mine if text.split()[2] == family]
            added = f"    up ip address add {interface} dev eth{index}\n"
            assert (f"    address {interface.ip}\n" in stanza) != (added in stanza)
        assert ("manual" in "".join(mine)) == (not nic.addressing.dhcp and not nic.addressing.static)


@given(nics)
def test_dhcpcd_conf_has_a_block_for_each_nic_and_the_hook_the_rest(wanted: tuple[Nic, ...]) -> None:
    files = seed_files(SeedRequest("web1", "id", wanted))
    _, *blocks = re.split(r"^interface ", files["files/etc/dhcpcd.conf"].decode(), flags=re.MULTILINE)
    hook = files["files/etc/dhcpcd.exit-hook"].decode()
    waits = any(nic.addressing.dhcp or any(one.version == 4 for one in nic.addressing.static) for nic in wanted)
    names = [f"eth{index}" for index in range(len(wanted))]
    assert [block.split()[0] for block in blocks] == (names if waits else [*names, "lo"])
    for index, (nic, block) in enumerate(zip(wanted, blocks, strict=False)):
        told = nic.addressing
        values = dict(line.removeprefix("static ").split("=", 1) for line in block.splitlines() if "=" in line)
        for word, version in (("ip_address", 4), ("ip6_address", 6)):
            first, *more = [str(one) for one in told.static if one.version == version] or [None]
            assert values.get(word) == first
            assert all(f"ip address replace {one} dev eth{index}\n" in hook for one in more)
        assert values.get("domain_name_servers", "").split() == [str(server) for server in told.dns]
        assert values.get("interface_mtu") == (str(nic.mtu) if nic.mtu else None)
        assert ("noipv4" in block) == (not told.dhcp and "ip_address" not in values)


names = st.text(st.characters(exclude_categories=["Cs"]))


@given(names, st.lists(names, max_size=3))
def test_meta_data_is_json_and_yaml_whatever_stands_in_it(hostname: str, keys: list[str]) -> None:
    data = seed_files(SeedRequest(hostname, "id", (), tuple(keys)))["meta-data"]
    wanted: dict[str, Any] = {"instance-id": "id", "local-hostname": hostname}
    # CirrOS puts the keys one behind the other as they are.
    wanted |= {"public-keys": [f"{key}\n" for key in keys]} if keys else {}
    assert strictly(data) == wanted
    assert read_yaml(data) == read_yaml(data, "1.2") == wanted


@pytest.mark.parametrize("text", ["\N{GRINNING FACE}", "\u2028", "\x85", "\x7f", "\ufeff", "\U000e0001", '"\\\n\0'])
def test_what_json_and_yaml_differ_in_is_written_as_both_read_it(text: str) -> None:
    assert strictly(json_text([text])) == read_yaml(json_text([text])) == [text]


# user data


@given(st.binary(min_size=1))
def test_user_data_is_handed_on_byte_for_byte(given_: bytes) -> None:
    files = seed_files(SeedRequest("web1", "id", (), user_data=(given_,), password_hash="$6$x"))
    assert files["user-data"] == given_


BEGINNINGS = [b"#!", b"#cloud-config\n", b"#include\n", b"## template: jinja\n", b"#cloud-boothook\n", b"\x1f\x8b", b""]


@given(st.lists(st.builds(bytes.__add__, st.sampled_from(BEGINNINGS), st.binary()), min_size=2, max_size=4))
def test_several_texts_come_out_of_mime_as_they_went_in(parts: list[bytes]) -> None:
    one = combine(parts)
    read = email.message_from_bytes(one)
    assert read.get_content_type() == "multipart/mixed"
    found = read.get_payload()
    assert [part.get_payload(decode=True) for part in found] == parts
    for part, given_ in zip(found, parts, strict=True):
        kind = kind_of(given_)
        assert part.get_content_type() == (kind.media_type if kind else "text/plain")
    assert combine(parts) == one


def test_a_password_is_set_by_a_script_that_quotes_its_hash() -> None:
    request = SeedRequest("web1", "id", (), login="cirros", password_hash="$6$salt$ha/sh.")
    script = seed_files(request)["user-data"].decode()
    assert script.startswith("#!/bin/sh\n")
    assert shlex.split(script.splitlines()[1])[:3] == ["printf", "%s\\n", "cirros:$6$salt$ha/sh."]


def test_beside_user_data_a_password_comes_from_the_vendor() -> None:
    request = SeedRequest("web1", "id", (), user_data=(b"#cloud-config\n{}\n",), login="debian", password_hash="$6$x$y")
    files = seed_files(request)
    assert files["user-data"] == b"#cloud-config\n{}\n"
    config, script = email.message_from_bytes(files["vendor-data"]).get_payload()
    assert read_yaml(config.get_payload(decode=True))["updates"]["network"]["when"] == ["boot-new-instance", "boot"]
    assert b"'debian:$6$x$y' | chpasswd -e" in script.get_payload(decode=True)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"#cloud-config\n{}\n", "cloud-config"),
        (b"Content-Type: multipart/mixed\nMIME-Version: 1.0\n", "MIME"),
        (b"\x1f\x8b\x08", "packed with gzip"),
        (b"#include\nhttp://192.0.2.1/\n", "list of addresses"),
        (b"## template: jinja\n#!/bin/sh\n", "jinja"),
        (b" #!/bin/sh\n", "something else"),
        (b"echo\n", "something else"),
    ],
)
def test_guests_that_run_scripts_alone_are_given_nothing_else(data: bytes, why: str) -> None:
    with pytest.raises(Usage, match=why):
        check_script(data, "cirros")


def test_a_script_is_taken_whatever_follows() -> None:
    check_script(b"#!/bin/sh\nMIME-Version: 1.0\n\xff", "cirros")


@pytest.mark.parametrize("part", [b"MIME-Version: 1.0\n", b"hello\n", b""])
def test_what_cannot_stand_beside_others_is_refused(part: bytes) -> None:
    check_combinable([part])
    with pytest.raises(Usage, match="number 2 of 2"):
        check_combinable([b"#!/bin/sh\n", part])


# masking

SECRET = "open-sesame"


@pytest.mark.parametrize(
    "text",
    [
        f"#cloud-config\npassword: {SECRET}\n",
        f"#cloud-config\nchpasswd:\n  list: |\n    root:{SECRET}\n    cirros:{SECRET}\n",
        f"#cloud-config\nchpasswd:\n  users:\n  - name: root\n    password: {SECRET}\n",
        f"#cloud-config\npasswords:\n- {SECRET}\n",
        f'#cloud-config\nusers: [{{name: x, plain_text_passwd: "{SECRET}", sudo: y}}]\n',
        f"#cloud-config\npassword: >-\n\n   {SECRET}\n   {SECRET}\n",
        f'#cloud-config\n{{"hashed_passwd":\n  "{SECRET}"}}\n',
        f"#cloud-config\nwifi:\n  psk: {SECRET}\n",
        f"#!/bin/sh\nROOT_PASSWORD={SECRET}\nexport API_KEY='{SECRET}'\n",
        f"#!/bin/sh\necho root:{SECRET} | chpasswd\n",
        f"#!/bin/sh\nchpasswd <<EOF\nroot:{SECRET}\nEOF\n",
        f"#!/bin/sh\nchpasswd <<-'END'\n\troot:{SECRET}\n\tEND\n",
        f"#!/bin/sh\ncurl https://me:{SECRET}@example.org/\ncurl -H 'Authorization: Bearer {SECRET}'\n",
        f"#!/bin/sh\nmysql --password {SECRET}\n",
        f"#cloud-config\nx: root:$6${SECRET}${SECRET}\n",
        f"#cloud-config\nssh_keys:\n  rsa_private: |\n    -----BEGIN RSA PRIVATE KEY-----\n    {SECRET}\n    -----END RSA PRIVATE KEY-----\n",
        f"#!/bin/sh\ncat > key <<X\n-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----\nX\n",
    ],
)
def test_secrets_are_masked_and_the_rest_is_shown(text: str) -> None:
    begin, end = text.split("\n", 1)[0], "#after: 1\n"
    shown = masked((text + end).encode())
    assert SECRET not in shown
    assert shown.startswith(begin + "\n")
    assert shown.endswith(end)
    assert "(masked)" in shown


def test_what_is_no_secret_is_shown_as_it_is() -> None:
    text = "#cloud-config\npackages: [jq]\nruncmd:\n- [echo, '$PATH costs $5']\nwrite_files:\n- path: /x\n"
    assert masked(text.encode()) == text


def test_what_is_no_text_is_only_named() -> None:
    assert masked(b"\x1f\x8b\x08") == "(3 bytes that are packed with gzip)\n"
    assert masked(b"#!/bin/sh\n\xff") == "(11 bytes that are no text)\n"


@given(st.lists(st.sampled_from(BEGINNINGS).map(lambda word: word + b"\npassword: open-sesame\n"), max_size=3))
def test_a_shown_seed_has_neither_password_nor_hash(parts: list[bytes]) -> None:
    request = SeedRequest("web1", "id", (), user_data=tuple(parts), login="me", password_hash="$6$open-sesame")
    shown = "".join(shown_files(request).values())
    assert "open-sesame" not in shown
    assert "me:(masked)" in shown
