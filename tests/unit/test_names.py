"""Names, MACs and interface names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.errors import Usage
from provisioner.model.names import Mac, check_name, printable, shim_mac, shim_name

BAD_NAMES = [
    "", " ", "../x", "a b", "a/b", "a.b", "a_b", "<b>", "-rf", "web-", "$(id)", "`id`", "a;b", "a\n", "\na", "a\0",
    "Web1", "WEB", "café", "web١", "web²", "\u202eweb", "we\u202eb", "we\u200bb", "\udcff", "a" * 64, "a" * 300,  # noqa: RUF001
]  # fmt: skip


@pytest.mark.parametrize("name", ["a", "7", "web1", "a-b", "a--b", "a" * 63, "0-0"])
def test_good_names_pass_as_they_are(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_bad_names_are_refused_in_a_printable_line(name: str) -> None:
    with pytest.raises(Usage) as refused:
        check_name(name)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 120
    assert refused.value.hint


@given(st.text())
def test_no_text_passes_unless_it_is_a_host_label(text: str) -> None:
    label = text.isascii() and re.match(r"\A[a-z0-9](?:[-a-z0-9]*[a-z0-9])?\Z", text) and len(text) <= 63
    try:
        assert check_name(text) == text
    except Usage:
        assert not label
    else:
        assert label


@given(st.text())
def test_what_is_shown_is_printable_and_short(text: str) -> None:
    shown = printable(text, 40)
    assert shown.isprintable()
    assert len(shown) <= 40 * 2 + 3


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("52:54:00:12:34:56", "52:54:00:12:34:56"),
        ("52-54-00-AB-CD-EF", "52:54:00:ab:cd:ef"),
        ("525400abcdef", "52:54:00:ab:cd:ef"),
        (" 52:54:00:12:34:56\n", "52:54:00:12:34:56"),
        ("00:00:00:00:00:01", "00:00:00:00:00:01"),
    ],
)
def test_macs_are_read_as_people_write_them(text: str, mac: str) -> None:
    assert Mac.parse(text) == mac


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no MAC address"),
        ("52:54:00:12:34", "no MAC address"),
        ("52:54:00:12:34:56:78", "no MAC address"),
        ("52:54:00:12:34:5g", "no MAC address"),
        ("5254.0012.3456", "no MAC address"),
        ("52:54:00:12:34:5٦", "no MAC address"),
        ("eth0", "no MAC address"),
        ("01:00:5e:00:00:01", "multicast"),
        ("33:33:00:00:00:01", "multicast"),
        ("ff:ff:ff:ff:ff:ff", "multicast"),
        ("00:00:00:00:00:00", "no address that a NIC may have"),
    ],
)
def test_what_is_no_mac_of_a_nic_is_refused(text: str, why: str) -> None:
    with pytest.raises(Usage, match=why):
        Mac.parse(text)


unicast = st.binary(min_size=6, max_size=6).filter(lambda raw: not raw[0] & 1 and any(raw))


@given(unicast, st.sampled_from([":", "-", ""]), st.booleans())
def test_a_mac_survives_every_spelling(raw: bytes, between: str, upper: bool) -> None:
    text = raw.hex(between) if between else raw.hex()
    mac = Mac.parse(text.upper() if upper else text)
    assert mac == raw.hex(":")
    assert Mac.parse(mac) == mac
    assert mac.digits == raw.hex()
    assert mac.device == f"mt-{raw.hex()}"
    assert len(mac.device) == 15


def test_random_macs_are_unicast_of_qemus_prefix_and_differ() -> None:
    made = {Mac.random() for _ in range(50)}
    assert len(made) > 45
    assert all(Mac.parse(mac) == mac and mac.startswith("52:54:00:") for mac in made)


@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=15))
def test_a_shim_has_a_name_of_at_most_15_characters(parent: str) -> None:
    name = shim_name(parent)
    assert name.startswith("mv-")
    assert len(name) <= 15
    assert name == shim_name(parent)


def test_a_shim_is_named_after_its_parent_where_that_fits() -> None:
    assert shim_name("eth0") == "mv-eth0"
    assert shim_name("enp216s0f3np3") == "mv-" + shim_name("enp216s0f3np3")[3:]
    long = {shim_name(f"enx0011223344{number:02}") for number in range(99)}
    assert len(long) == 99


@given(unicast)
def test_a_shims_mac_is_stable_local_and_unicast(raw: bytes) -> None:
    mac = shim_mac(raw.hex(":"))
    first = int(mac[:2], 16)
    assert first & 0x03 == 0x02
    assert mac == shim_mac(raw.hex(":").upper())
    assert mac != raw.hex(":")
    assert Mac.parse(mac) == mac
