"""Which links may carry a macvtap, and what is said of those that may not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from provisioner.actions.parents import Links, check_parent, choose_parent, usable_parents
from provisioner.errors import MacvmError, NotFound, Taken, Unable, Usage
from provisioner.host import netlink
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from tests.conftest import Require
from tests.netns.conftest import ip

pytestmark = pytest.mark.usefixtures("lan")

BRIDGE, PASSTHROUGH = MacvtapMode.BRIDGE, MacvtapMode.PASSTHROUGH


def check(name: str, mode: MacvtapMode = BRIDGE, mtu: int | None = None, take: bool = False) -> Link:
    return check_parent(Links.read(), name, mode, mtu, take=take)


@pytest.mark.parametrize("mode", [mode for mode in MacvtapMode if mode is not PASSTHROUGH])
def test_an_ethernet_link_is_fit_for_every_mode(mode: MacvtapMode) -> None:
    assert check("eth0", mode).name == "eth0"


@pytest.mark.parametrize("name", ["eth9", "", "../x", "\u202eeth0", "x" * 300], ids=ascii)
def test_a_missing_parent_names_those_that_are_there(name: str) -> None:
    with pytest.raises(NotFound, match="there is no link") as refused:
        check(name)
    assert "eth0" in refused.value.hint
    assert "lo" not in refused.value.hint.replace(":", " ").split()
    assert refused.value.message.isprintable()


def test_the_loopback_is_no_ethernet_link() -> None:
    with pytest.raises(Unable, match="the loopback"):
        check("lo")


def test_a_tun_or_a_tunnel_is_no_ethernet_link(require: Require) -> None:
    made = subprocess.run(["ip", "tuntap", "add", "tap0", "mode", "tap"], capture_output=True, check=False)
    require(made.returncode == 0, f"no tun device here: {made.stderr.decode().strip()}")
    with pytest.raises(Unable, match=r"no Ethernet link \(tun\)"):
        check("tap0")
    assert "tap0" not in usable_parents(Links.read())


def test_a_port_of_a_bridge_names_it() -> None:
    ip("link add upper0 type bridge")
    ip("link set far master upper0")
    with pytest.raises(Unable, match="far is a port of upper0") as refused:
        check("far")
    assert refused.value.hint == "use --parent upper0"
    assert check("upper0").name == "upper0"


def test_wireless_is_refused_with_an_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "is_wireless", lambda name: name == "eth0")
    with pytest.raises(Unable, match="is Wi-Fi") as refused:
        check("eth0")
    assert "libvirt=default" in refused.value.hint


def test_wireless_is_what_sysfs_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wlan0" / "phy80211").mkdir(parents=True)
    monkeypatch.setattr(netlink, "Path", lambda _, *below: tmp_path.joinpath(*below))
    assert netlink.is_wireless("wlan0")
    assert not netlink.is_wireless("eth0")


def test_an_mtu_is_at_most_the_parents() -> None:
    assert check("eth0", mtu=1500)
    with pytest.raises(Unable, match="MTU 1501 is above that of eth0, 1500"):
        check("eth0", mtu=1501)


def test_passthrough_shares_its_parent_with_nobody_in_either_order() -> None:
    ip("link add mt0 link far type macvtap mode bridge")
    with pytest.raises(Taken, match=r"far is held by mt0 \(bridge\)"):
        check("far", PASSTHROUGH)
    ip("link del mt0")
    assert check("far", PASSTHROUGH, take=False).name == "far"
    ip("link add mt0 link far type macvtap mode passthru")
    for mode in (BRIDGE, PASSTHROUGH):
        with pytest.raises(Taken, match=r"far is held by mt0 \(passthrough\)"):
            check("far", mode, take=True)


def test_macvms_own_shim_is_not_in_the_way_of_passthrough() -> None:
    ip("link add mv-far link far type macvlan mode bridge")
    ip("link set mv-far alias macvm:shim:far")
    assert check("far", PASSTHROUGH).name == "far"


def test_a_macvlan_as_parent_is_the_link_it_sits_on() -> None:
    ip("link add mv0 link far type macvlan mode bridge")
    assert check("mv0").name == "far"
    ip("link add real link mv0 type macvtap mode bridge")
    assert netlink.get_link("real").lower == netlink.get_link("far").index, "as the kernel has it"


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        ("addr add 203.0.113.5/24 dev far", r"203\.0\.113\.5/24"),
        ("-6 addr add 2001:db8:7::5/64 dev far nodad", "2001:db8:7::5/64"),
        ("route add 203.0.113.0/24 dev far", r"the route to 203\.0\.113\.0/24"),
    ],
)
def test_passthrough_takes_nothing_from_the_host_unless_told(make: str, loss: str) -> None:
    assert check("far", PASSTHROUGH)
    ip(make)
    with pytest.raises(Unable, match=loss) as refused:
        check("far", PASSTHROUGH)
    assert "--take-parent" in refused.value.hint
    assert check("far", PASSTHROUGH, take=True).name == "far"
    assert check("far", BRIDGE).name == "far"


def test_the_default_parent_is_the_default_routes_link_but_never_for_passthrough() -> None:
    host = Links.read()
    with pytest.raises(NotFound, match="no default route") as missing:
        choose_parent(host, "", BRIDGE)
    assert "eth0" in missing.value.hint
    ip("route add default via 192.0.2.1 dev eth0")
    assert choose_parent(host, "", BRIDGE) == "eth0"
    assert choose_parent(host, "far", BRIDGE) == "far"
    with pytest.raises(Usage, match="wants a --parent"):
        choose_parent(host, "", PASSTHROUGH)


def test_a_parent_in_another_namespace_is_not_mistaken_for_one_here() -> None:
    ip("link add mv0 link far type macvlan mode bridge")
    index = netlink.get_link("far").index
    assert [link.name for link in Links.read().on(netlink.get_link("far"))] == ["mv0"]
    other = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    try:
        for _ in range(200):
            if Path(f"/proc/{other.pid}/ns/net").readlink() != Path("/proc/thread-self/ns/net").readlink():
                break
        ip("link set far netns", other.pid)
        assert netlink.get_link("mv0").lower != index
    finally:
        other.kill()
        other.wait()


def test_every_refusal_has_a_hint() -> None:
    for name in ("lo", "eth9"):
        with pytest.raises(MacvmError) as refused:
            check(name)
        assert refused.value.hint
