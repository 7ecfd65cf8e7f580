"""A host whose own firewall lets in less by a shim than by its parent: firewalld, and rules of nftables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages import unpacked
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost

HOST, GUEST = "192.0.2.2", "192.0.2.31"

#: firewalld over D-Bus, as Debian packages them. What is in no zone is in `drop`; the parent is in `trusted`.
_FIREWALLD = """
mkdir /run/layer /run/dbus
mount -t tmpfs layer /run/layer
mkdir /run/layer/upper /run/layer/work
mount -t overlay -o lowerdir={packages}/usr:/usr,upperdir=/run/layer/upper,workdir=/run/layer/work overlay /usr
ln -s org.fedoraproject.FirewallD1.server.policy.choice /usr/share/polkit-1/actions/org.fedoraproject.FirewallD1.policy
cp -r {packages}/etc/firewalld /etc
sed -i 's/^DefaultZone=.*/DefaultZone=drop/' /etc/firewalld/firewalld.conf
firewall-offline-cmd --zone=trusted --add-interface=eth0
dbus-daemon --system --fork --nopidfile
firewalld --nopid
timeout 60 sh -c 'until firewall-cmd --state; do sleep 0.1; done' 2>/dev/null
"""


@pytest.fixture
def own() -> Iterator[KvmHost]:
    with make_sandbox() as box:
        yield KvmHost(box)


def guest(host: KvmHost) -> None:
    """An endpoint: a macvlan in a namespace is to the host what a macvtap guest is, and needs no boot."""
    host.macvm("endpoint", "create", "e1", "--parent", "eth0", "--ip", f"{GUEST}/24", "--no-probe")


def gets_in(host: KvmHost) -> bool:
    """From the guest to the host, with nothing that the host asked for first."""
    done = host.node.run(["macvm", "endpoint", "exec", "e1", "--", "ping", "-c", "1", "-W", "2", HOST])
    return done.returncode == 0


def test_the_shim_joins_its_parent_s_zone(own: KvmHost, packages: Path) -> None:
    own.sh(_FIREWALLD.format(packages=packages))
    zone = "firewall-cmd --get-zone-of-interface=mv-eth0"
    lasting = "firewall-cmd --permanent --get-zone-of-interface=mv-eth0"
    lines = own.macvm("shim", "up", "eth0", "--dry-run").stdout.splitlines()
    assert "firewall-cmd --zone=trusted --change-interface=mv-eth0" in lines

    guest(own)
    assert own.sh(f"{zone}; {lasting}") == "trusted\ntrusted\n"
    assert gets_in(own)
    own.sh("firewall-cmd --reload")
    assert gets_in(own)
    assert own.json("shim", "status")[0]["firewall"] == []

    own.sh("firewall-cmd --zone=trusted --remove-interface=mv-eth0")
    assert not gets_in(own)
    own.sh(f"ping -c 1 -W 5 {GUEST}")  # what the host asks for is answered
    [shut] = own.json("shim", "status")[0]["firewall"]
    assert shut["reason"] == "mv-eth0 is in firewalld's zone drop, and eth0 in trusted"
    assert shut["rule"] in own.macvm("shim", "status").stderr
    own.macvm("shim", "up", "eth0")
    assert gets_in(own)

    assert "firewall-cmd --zone=trusted --remove-interface=mv-eth0" in own.macvm("shim", "down", "--dry-run").stdout
    own.macvm("endpoint", "delete", "--yes", "e1")
    own.macvm("shim", "down")
    assert own.sh(f"{zone}; {lasting}; :") == ""
    assert own.sh("firewall-cmd --get-zone-of-interface=eth0") == "trusted\n"


def test_rules_that_name_the_parent_alone(own: KvmHost) -> None:
    own.sh(
        """
        nft add table inet filter
        nft 'add chain inet filter input { type filter hook input priority 0; policy drop; }'
        nft add rule inet filter input ct state established,related accept
        nft 'add rule inet filter input iifname { "lo", "eth0" } accept'"""
    )
    guest(own)
    assert not gets_in(own)
    [shut] = own.json("shim", "status")[0]["firewall"]
    assert shut["reason"].startswith("the chain inet filter input of nftables drops what comes in by mv-eth0")
    own.sh(shut["rule"])
    assert gets_in(own)
    assert own.json("shim", "status")[0]["firewall"] == []


@pytest.fixture(scope="module")
def packages() -> Path:
    return unpacked("firewalld", "python3-firewall", "python3-nftables")
