"""A KVM host on Debian's kernel, in emulation within emulation: libvirt and QEMU on parents that are no plain Ethernet link."""

from __future__ import annotations

from tests.kernel.lan import PEER
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost

ADDRESS = "198.51.100.11"


def test_a_machine_with_nics_on_a_vlan_and_on_a_bond(as_root: None) -> None:
    """Its disk is empty: a guest's boot would take longer than all the rest."""
    with make_sandbox() as box:
        host = KvmHost(box)
        host.sh(
            """
            ip link add link eth0 name eth0.50 type vlan id 50
            ip addr add 198.51.100.2/24 dev eth0.50
            ip link add port0 type veth peer name far0
            ip link add bond0 type bond mode active-backup miimon 100
            ip link set port0 master bond0
            for link in eth0.50 far0 bond0; do ip link set $link up; done
            qemu-img create -q -f qcow2 /tmp/empty.qcow2 8M"""
        )
        host.macvm("image", "import", "/tmp/empty.qcow2", "empty")
        nics = ["--nic", f"parent=eth0.50,ip={ADDRESS}/24", "--nic", "parent=bond0,ip=none"]
        host.macvm("create", "web1", "--image", "empty", "--memory", "32", *nics)
        machine = host.show("web1")
        assert machine["state"] == "running"
        links = host.sh("ip -o link show type macvtap")
        for nic, parent in zip(machine["nics"], ("eth0.50", "bond0"), strict=True):
            assert (nic["parent"], nic["kernel_mode"]) == (parent, "bridge")
            assert f"{nic['device']}@{parent}: <BROADCAST,MULTICAST,ALLMULTI,UP,LOWER_UP>" in links
        assert "dev mv-eth0.50" in host.sh(f"ip route get {ADDRESS}")
        host.sh(f"ping -c 1 -W 20 {PEER}")  # the trunk itself still carries what has no tag
        host.macvm("delete", "--yes", "web1")
        assert host.sh("ip -o link show type macvtap; ip -o link show type macvlan") == ""
