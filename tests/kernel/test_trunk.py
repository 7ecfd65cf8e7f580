"""The lab of a trunk, templates/labs/trunk.yaml, on a kernel that has VLANs."""

from __future__ import annotations

from provisioner.resources import resource
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost

TRUNK = resource("templates", "labs", "trunk.yaml")


def test_the_trunk_lab(as_root: None) -> None:
    """One VM of it, in both VLANs, with an empty disk: a guest's boot would take longer than all the rest."""
    with make_sandbox() as box:
        host = KvmHost(box)
        host.sh("qemu-img create -q -f qcow2 /tmp/empty.qcow2 8M")
        host.macvm("image", "import", "/tmp/empty.qcow2", "tiny")
        host.macvm("lab", "up", TRUNK, "both")
        nics = host.show("both")["nics"]
        assert [(nic["parent"], nic["kernel_mode"]) for nic in nics] == [("eth0.50", "bridge"), ("eth0.60", "bridge")]
        there = host.sh("ip -d -o link show type vlan; ip route get 198.51.100.33; ip route get 203.0.113.33")
        for number in (50, 60):
            assert f"eth0.{number}@eth0: " in there
            assert f"802.1Q id {number} " in there
            assert f"dev mv-eth0.{number} " in there
        host.macvm("lab", "down", "trunk", "--yes")
        assert host.sh("ip -o link show type vlan; ip -o link show type macvlan; ip -o link show type macvtap") == ""
