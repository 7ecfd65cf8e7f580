"""`macvm shim install`: what it writes, a reboot played, and what it leaves; systemd-networkd itself beside a shim."""

from __future__ import annotations

import json

import pytest

from provisioner.actions.sandbox import Sandbox
from tests.conftest import Require
from tests.sandbox.kvm_host import KvmHost, assert_same, complaints
from tests.sandbox.test_json import valid

BOOT = "/etc/systemd/system/macvm-shims.service"
FILES = [
    BOOT,
    "/etc/systemd/system/macvm-shims-watch.service",
    "/etc/systemd/system/libvirtd.service.d/macvm-networks.conf",
    "/etc/systemd/system/virtqemud.service.d/macvm-networks.conf",
    "/etc/systemd/network/05-macvm.network",
    "/etc/NetworkManager/conf.d/90-macvm.conf",
]
LINK = "/etc/systemd/system/multi-user.target.wants/macvm-shims.service"

#: An endpoint does not outlive a reboot; this stands for a container that its engine has made again.
BOX = """
ip netns add box
ip link add cc link eth0 type macvlan mode bridge
ip link set cc netns box name eth0 address 02:00:00:00:00:40
ip netns exec box sh -c 'ip link set lo up; ip addr add 192.0.2.40/24 dev eth0
  ip addr add 2001:db8::40/64 dev eth0 nodad; ip link set eth0 up'
"""
HOST_SIDE = "ip route; ip -6 route; ip neigh show nud permanent; ip neigh show proxy"


@pytest.fixture
def own(fresh_box: Sandbox) -> KvmHost:
    return KvmHost(fresh_box)


def etc(host: KvmHost) -> list[str]:
    return host.sh("find /etc -printf '%p %y %m %l\\n' | sort; find /etc -type f -exec md5sum {} + | sort").splitlines()


def host_side(host: KvmHost) -> list[str]:
    return sorted(host.sh(HOST_SIDE).splitlines())


def test_what_is_installed_brings_all_back_after_a_reboot_and_goes_without_a_trace(own: KvmHost) -> None:
    own.sh(BOX)
    own.macvm("shim", "up", "eth0", "--to", "192.0.2.40", "--to", "2001:db8::40")
    etc_before, wanted = etc(own), host_side(own)
    with own.unchanged():
        preview = own.macvm("shim", "install", "--dry-run").stdout.splitlines()
    assert etc(own) == etc_before
    assert [line.rpartition(" > ")[2] for line in preview if line.startswith("printf ")] == FILES
    done = own.macvm("shim", "install", "eth0", "-o", "json")
    assert valid(json.loads(done.stdout), "shim-install.json")["written"] == FILES
    assert "start at the next boot" in done.stderr
    once = etc(own)
    assert "macvm-shims.service brings this back" in own.macvm("shim", "up").stderr
    assert "macvm shim up brings them back" in own.macvm("--state-dir", "/run/other", "shim", "up", "eth0").stderr
    own.macvm("shim", "up")

    # A reboot: every link that is not the host's own goes, with its routes; the store stays.
    own.sh("ip link del mv-eth0; ip -n box link del eth0; ip netns del box")
    own.sh(BOX)
    assert "192.0.2.40" not in own.sh(HOST_SIDE)
    own.sh(f"$(sed -n 's/^ExecStart=//p' {LINK})")
    assert host_side(own) == wanted
    for address in ("192.0.2.40", "2001:db8::40"):
        assert " 0% packet loss" in own.sh(f"ping -c1 -W2 {address}")

    own.macvm("shim", "install")
    assert etc(own) == once, "a second time changes nothing"
    assert valid(own.json("shim", "uninstall"), "shim-uninstall.json")["removed"] == FILES
    assert etc(own) == etc_before
    assert host_side(own) == wanted, "shims stay: what went is their coming back"
    assert own.macvm("shim", "uninstall", "-o", "json").stdout == '{\n  "removed": []\n}\n'
    assert "macvm shim install" in own.macvm("shim", "up").stderr


def test_files_of_others_are_kept(own: KvmHost) -> None:
    own.sh(f"ln -s /dev/null {BOOT}; mkdir -p /etc/NetworkManager/conf.d; echo theirs > {FILES[-1]}")
    before, state = etc(own), own.state()
    found = complaints(own.macvm("shim", "install", "eth0", status=4).stderr)
    assert [error.split(" is ")[0] for error, _ in found] == [BOOT, FILES[-1]]
    own.macvm("shim", "install", "eth0", "--dry-run", status=4)
    assert f"{BOOT} stays: macvm did not write it" in own.macvm("shim", "uninstall").stderr
    assert etc(own) == before
    assert_same(state, own.state())


def test_only_root_installs(own: KvmHost) -> None:
    before = etc(own)
    for word in ("install", "uninstall"):
        script = f"setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search macvm shim {word}"
        assert own.node.run(["bash", "-c", script]).returncode == 5
    assert etc(own) == before


#: An administrator's file that takes the parent and what is on it, and gives the host's addresses again; those that are
#: there twice then would never be found free.
ALL_LINKS = """[Match]
Name=eth* m*
[Network]
LinkLocalAddressing=no
IPv6AcceptRA=no
Address=192.0.2.2/24
[Address]
Address=2001:db8::2/64
DuplicateAddressDetection=none
[Route]
Destination=198.51.100.0/24
Gateway=192.0.2.1
"""
#: systemd-networkd waits for udev unless /sys is read-only, as it is in containers.
NETWORKD = """
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network /run/systemd/netif
cat >/run/systemd/network/50-all.network
exec unshare -m sh -c 'mount -o remount,ro,bind /sys; exec /lib/systemd/systemd-networkd'
"""
SETTLED = """timeout 20 bash -c 'for link in eth0 mv-eth0; do
  until grep -Eq "ADMIN_STATE=(configured|unmanaged)" /run/systemd/netif/links/$(cat /sys/class/net/$link/ifindex); do sleep 0.1; done
done' 2>/dev/null; grep -h ADMIN_STATE /run/systemd/netif/links/$(cat /sys/class/net/mv-eth0/ifindex)"""
SHIM = """
ip route show dev mv-eth0; ip -6 route show dev mv-eth0; ip neigh show dev mv-eth0 nud permanent; ip addr show mv-eth0
ip route show proto 109; ip neigh show proxy; sysctl -a 2>/dev/null | grep mv-eth0
"""


@pytest.mark.parametrize("installed", [True, False])
def test_systemd_networkd_leaves_shims_and_their_routes_alone(own: KvmHost, require: Require, installed: bool) -> None:
    """It manages every other link, and foreign routes as by default; without the drop-in the shim is taken over."""
    require(own.sh("ls /lib/systemd/systemd-networkd || true"), "no systemd-networkd (the package systemd)")
    mac = "02:00:00:00:00:40"
    own.macvm("shim", "up", "eth0", "--to", f"192.0.2.40,{mac}", "--to", f"2001:db8::40,{mac}")
    if installed:
        own.macvm("shim", "install")
    before = own.sh(SHIM)
    assert "192.0.2.40 dev mv-eth0" in before
    with own.node.start(["sh", "-c", NETWORKD], input=ALL_LINKS):
        state = own.sh(SETTLED)
        assert "198.51.100.0/24" in own.sh("ip route show dev eth0"), "it is at work on the parent"
    if installed:
        assert (state, own.sh(SHIM)) == ("ADMIN_STATE=unmanaged\n", before)
    else:
        assert state == "ADMIN_STATE=configured\n"
        after = own.sh(SHIM)
        assert "net.ipv6.conf.mv-eth0.proxy_ndp = 0" in after
        assert "inet 192.0.2.2/24" in after, "the host's own address, on a second link of the same LAN"
