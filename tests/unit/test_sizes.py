"""Sizes, MTUs, times, labels, VNC places and `--nic`: the command line's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.cli import parameters, words
from provisioner.errors import Usage
from provisioner.model.machine import Vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.sizes import human_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1K", 1 << 10),
        ("512", 512 << 20),
        ("512M", 512 << 20),
        ("512 mib", 512 << 20),
        ("2G", 2 << 30),
        ("2gb", 2 << 30),
        ("3T", 3 << 40),
        ("1P", 1 << 50),
        (" 7m ", 7 << 20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "0G", "-1", "1.5G", "1e9", "G", "1X", "1 G B", "0x10", "٥G", "512\u212a", "1G\n1", "9" * 13, "512;id"],  # noqa: RUF001
    ids=ascii,
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="is no amount of memory") as refused:
        parse_size(text, what="amount of memory")
    assert refused.value.message.isprintable()


@given(st.integers(1, 10**12 - 1), st.sampled_from("KMGTP"))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    size = parse_size(f"{number}{unit}")
    assert size == number * 1024 ** ("KMGTP".index(unit) + 1)
    assert parse_size(str(number), plain_unit=unit.lower()) == size


@given(st.integers(1, 1 << 62))
def test_a_size_for_people_is_within_a_twentieth(size: int) -> None:
    number, unit = human_size(size).split()
    shown = float(number) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(shown - size) <= size / 20


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("60s", 60), ("2m", 120), ("0", 0), ("1.5", 1.5)])
def test_times(text: str, seconds: float) -> None:
    assert words.SECONDS.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "nan", "inf", "1h", "soon"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Usage, match="is no time"):
        words.SECONDS.convert(text, None, None)


@pytest.mark.parametrize(
    "text",
    ["", "67", "65536", "1500.0", "-1", "²", "\u0661\u0665\u0660\u0660", "1500\n", "9" * 5000],
    ids=lambda text: ascii(text)[:12],
)
def test_what_is_no_mtu(text: str) -> None:
    with pytest.raises(Usage, match="is no MTU"):
        parameters.MTU.convert(text, None, None)


@pytest.mark.parametrize("text", ["", "=x", "key", "a=\x01", "a=\ud800", "\0=a", "a=\ufffe"], ids=ascii)
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(Usage, match="is no label"):
        words.LABEL.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "vnc"),
    [
        ("", Vnc()),
        ("192.0.2.2", Vnc("192.0.2.2")),
        ("192.0.2.2:5901", Vnc("192.0.2.2", 5901)),
        (":5901", Vnc("127.0.0.1", 5901)),
        ("[2001:db8::2]", Vnc("2001:db8::2")),
        ("[::]:5901", Vnc("::", 5901)),
    ],
)
def test_vnc_places(text: str, vnc: Vnc) -> None:
    assert parameters.VNC.convert(text, None, None) == vnc


@pytest.mark.parametrize("text", ["host", "192.0.2.2:80", "192.0.2.2:70000", "192.0.2.2:x", "0.0.0.0:", "[::", "1:2:3"])
def test_what_is_no_vnc_place(text: str) -> None:
    if text == "0.0.0.0:":
        assert parameters.VNC.convert(text, None, None) == Vnc("0.0.0.0")
        return
    with pytest.raises(Usage):
        parameters.VNC.convert(text, None, None)


def test_a_nic_in_words() -> None:
    nic = parameters.parse_nic("parent=eth1,mode=vepa,ip=192.0.2.11/24,ip=2001:db8::11/64,mac=525400123456,mtu=1400")
    assert (nic.parent, nic.mode, nic.mac, nic.mtu) == ("eth1", MacvtapMode.VEPA, "52:54:00:12:34:56", 1400)
    assert [str(address) for address in nic.addressing.addresses] == ["192.0.2.11", "2001:db8::11"]
    assert parameters.parse_nic("libvirt=default").libvirt_network == "default"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not understood"),
        ("eth1", "not understood"),
        ("parent=", "not understood"),
        ("parent=eth1,", "not understood"),
        ("colour=red", "not understood"),
        ("parent=eth1,parent=eth2", "twice"),
        ("mode=source", "libvirt has no word"),
        ("mode=nat", "no macvtap mode"),
        ("ip=auto", "needs a network"),
        ("ip=dhcp,ip=192.0.2.11", "exclude"),
        ("mac=01:00:5e:00:00:01", "multicast"),
        ("mtu=1", "no MTU"),
        ("libvirt=default,parent=eth0", "takes no parent"),
    ],
)
def test_a_nic_in_wrong_words(text: str, why: str) -> None:
    with pytest.raises(Usage, match=why):
        parameters.parse_nic(text)


@given(st.text())
def test_any_words_are_a_nic_or_refused(text: str) -> None:
    try:
        parameters.parse_nic(text)
    except Usage as refused:
        assert refused.message.isprintable()  # noqa: PT017
