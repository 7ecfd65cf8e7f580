"""`macvm purge`: a host is as it was before anything, and what is not macvm's stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.actions.sandbox import Node
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import STATE, KvmHost, assert_same, complaints
from tests.sandbox.test_install import etc
from tests.sandbox.test_json import valid

pytestmark = pytest.mark.xdist_group("purge")

#: Of somebody else, with devices for which libvirt makes the folders that it keeps.
THEIRS = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disk}<serial type='pty'>
<log file='/var/log/libvirt/qemu/{name}-serial.log'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>"""

#: Before anything: a namespace of somebody else's, a second NIC, and a network of libvirt's.
SETTING = """
ip netns add box; ip -n box link set lo up
ip link add eth1 type veth peer name eth1p; ip link set eth1p up; ip link set eth1 up
virsh net-define /dev/stdin <<< '<network><name>inner</name><bridge name="inner0"/></network>'
virsh start theirs; virsh destroy theirs; virsh autostart theirs; virsh autostart --disable theirs; mkdir /run/state /run/mount
while ip -6 addr show tentative | grep -q inet6; do sleep 0.05; done
"""

#: What a macvm that was killed may leave, and what a store knows nothing of.
LEFT = f"""
touch {STATE}/images/.pull-0.part; mkdir {STATE}/images/.build-x; touch {STATE}/images/.build-x/disk
ip link add mp-x link eth0 type macvlan mode bridge; ip link set mp-x alias macvm:probe:9
ip route add 192.0.2.200 dev eth0 proto 109
ip neigh replace 192.0.2.200 lladdr 02:00:00:00:00:99 dev eth0 nud permanent protocol 109
mkdir -p /run/state/macvm/known_hosts; touch /run/state/macvm/known_hosts/$(cat /proc/sys/kernel/random/uuid)
echo log > /var/log/libvirt/qemu/web-serial.log.0
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[KvmHost]]:
    with make_sandbox(hosts=2) as box:
        made = [KvmHost(box, 1), KvmHost(box, 2)]
        for host in made:
            define(host, "theirs")
            host.sh(SETTING)
        yield made


@pytest.fixture
def host(hosts: list[KvmHost]) -> Iterator[KvmHost]:
    """One whose every test leaves it as it was before anything."""
    before = snapshot(hosts[0])
    yield hosts[0]
    assert_same(before, snapshot(hosts[0]))


def define(host: KvmHost, name: str, disk: str = "") -> None:
    host.node.run(["virsh", "define", "/dev/stdin"], input=THEIRS.format(name=name, disk=disk), check=True)


def snapshot(host: KvmHost) -> dict[str, list[str]]:
    beside = "ip rule; ip -6 rule; ls /run/netns; ip -n box -d link; ls /run /run/state /var/lib; virsh net-list --all"
    return {**host.state(), "etc": etc(host), "beside": sorted(host.sh(f"({beside}) 2>&1").splitlines())}


def purge(host: KvmHost, *words: str, status: int = 0) -> str:
    """What it says. A home is the machine's own, in a sandbox too."""
    command = ["env", "XDG_STATE_HOME=/run/state", "macvm", "purge", *words]
    done = host.node.run(command, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def purge_json(host: KvmHost, *words: str) -> Any:
    return valid(json.loads(purge(host, "--yes", "-q", "-o", "json", *words)), "purge.json")


def furnish(host: KvmHost) -> None:
    """Uses everything."""
    host.macvm("image", "build", "tiny")
    host.create("web", "--ip", "192.0.2.11/24", "--ip", "2001:db8::11/64", "--autostart")
    host.create("through", "--parent", "eth1", "--mode", "passthrough", "--ip", "none")
    host.create("off", "--no-start", "--firmware", "uefi", "--ip", "none")
    words = ("--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.48/28")
    host.macvm("network", "create", "lab", "--parent", "eth0", *words)
    host.macvm("endpoint", "create", "alone", "--network", "lab", "--dns", "192.0.2.1")
    host.macvm("endpoint", "create", "guest", "--ip", "192.0.2.42/24", "--netns", "box")
    host.macvm("shim", "up", "eth0", "--to", "192.0.2.77,52:54:00:00:00:77")
    host.macvm("shim", "install", "eth0")
    host.macvm("hosts", "--write")
    host.sh(LEFT)
    kill_at(host.node, "create:start:after", "create", "half", "--memory", "128", "--ip", "192.0.2.12/24")


def import_disk(host: KvmHost) -> None:
    """An empty one in the place of the tiny image, for guests that need not boot."""
    empty = "/run/empty.qcow2"
    host.sh(f"qemu-img create -q -f qcow2 {empty} 1M; macvm image import {empty} tiny; rm {empty}")


def kill_at(node: Node, boundary: str, *words: str) -> int:
    driver = Path(__file__).with_name("failpoints.py")
    command = ["env", "XDG_STATE_HOME=/run/state", sys.executable, driver, f"kill={boundary}", "--", *words]
    return node.run(command, timeout=120).returncode


def test_all_goes_and_so_it_does_by_the_lines_of_the_dry_run(hosts: list[KvmHost]) -> None:
    before = [snapshot(host) for host in hosts]
    for host in hosts:
        furnish(host)
    first, second = hosts
    with first.unchanged():
        purge(first, "--dry-run")
        assert "3 VMs: " not in purge(first, "--yes", "--dry-run")
        said = purge(first, status=2)
    assert "hint: say --yes" in said
    for part in (
        "4 VMs: half (its power is cut), off, through (",
        "2 endpoints: alone, guest",
        "2 links: mv-eth0, mp-x",
    ):
        assert part in said
    done = purge_json(first)
    assert (done["machines"], done["endpoints"]) == (["off", "through", "web"], ["alone", "guest"])
    assert done["stays"] == done["remains"] == []
    assert_same(before[0], snapshot(first))
    assert "nothing of macvm's is left" in purge(first)

    # The files of `shim install` went into folders that it had to make, and their lines leave those.
    second.macvm("shim", "uninstall")
    lines = [line for line in purge(second, "--dry-run").splitlines() if not line.startswith(("unfinished", "hint"))]
    second.node.run(["bash", "-e"], input="\n".join(lines), check=True)
    assert_same(before[1], snapshot(second))


def test_vms_that_stay_start_and_are_known_again(host: KvmHost) -> None:
    furnish(host)
    done = purge_json(host, "--keep-vms")
    assert done["machines"] == done["remains"] == []
    # What a killed macvm asked the LAN from goes with the rest of its work.
    assert (done["endpoints"], done["links"]) == (["alone", "guest"], ["mv-eth0"])
    assert host.sh("ip link show type macvlan; ip route show proto 109; ls /run/netns") == "box\n"
    assert "net/ipv4/conf/eth1/arp_ignore" in " ".join(done["stays"]), "a guest that runs in passthrough needs it"
    assert purge_json(host, "--keep-vms")["files"] == [], "a second time nothing is left"

    host.sh("virsh destroy web; virsh start web; virsh start off; virsh destroy off")
    assert host.page("192.0.2.11", node=host.lan, seconds=120).startswith("web\n")

    # macvm comes back: its VMs, addresses and images are known, and what hangs on them can be deleted.
    shown = {one["name"]: one for one in host.json("list")}
    assert {name: one["made_by_macvm"] for name, one in shown.items()} == {
        "off": True, "through": True, "web": True, "theirs": False,
    }  # fmt: skip
    assert [one["source"] for one in shown["web"]["nics"][0]["addresses"]][:1] == ["lease"]
    assert host.json("network", "list") == []
    host.macvm("shim", "up")
    assert host.page("192.0.2.11").startswith("web\n")
    host.macvm("delete", "--yes", "web")
    assert purge_json(host)["machines"] == ["off", "through"]


def test_it_asks(host: KvmHost) -> None:
    host.macvm("endpoint", "create", "alone")
    with host.unchanged():
        done = host.terminal(["env", "XDG_STATE_HOME=/run/state", "macvm", "purge"], [("[y/N]:", "n\n")])
    assert done.returncode == 130
    assert "1 endpoint: alone" in done.stdout
    done = host.terminal(["env", "XDG_STATE_HOME=/run/state", "macvm", "-v", "purge"], [("[y/N]:", "y\n")])
    assert done.returncode == 0
    assert "step: purge: alone (endpoints)" in done.stdout


@pytest.mark.parametrize(
    "harm", [f"head -c 3000 /dev/urandom > {STATE}/macvm.db; rm -f {STATE}/macvm.db-*", f"rm -r {STATE}/*"], ids=["damaged", "gone"]
)  # fmt: skip
def test_without_a_store_all_is_found_by_its_marks(host: KvmHost, harm: str) -> None:
    import_disk(host)
    host.create("web", "--ip", "192.0.2.11/24")
    host.macvm("endpoint", "create", "alone")
    host.macvm("endpoint", "create", "guest", "--ip", "192.0.2.42/24", "--netns", "box")
    container = host.node.start(["unshare", "--net", "sleep", "1000"])
    host.macvm("endpoint", "create", "held", "--ip", "192.0.2.43/24", "--netns", container.pid)
    host.sh(harm)
    done = purge_json(host)
    assert (done["machines"], sorted(done["endpoints"])) == (["web"], ["alone", "guest", "held"])
    assert ["damaged" in line for line in done["stays"]] == ["head" in harm] * ("head" in harm)
    assert host.sh(f"nsenter --net=/proc/{container.pid}/ns/net ip link").count(": <") == 1
    container.close()


def test_what_is_not_macvms_stays_and_is_named(host: KvmHost) -> None:
    """A file and a link in the state directory, a VM on a base image, and one of another state directory."""
    import_disk(host)
    host.create("web", "--ip", "192.0.2.11/24", "--no-start")
    base, folder = host.sh(f"ls {STATE}/images/*.qcow2; ls -d {STATE}/machines/*").split()
    host.sh(f"qemu-img create -q -f qcow2 -F qcow2 -b {base} /run/above.qcow2; echo mine > {folder}/notes")
    define(host, "above", "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/run/above.qcow2'/>"
           "<target dev='vda' bus='virtio'/></disk>")  # fmt: skip
    link = f"{STATE}/machines/00000000-0000-4000-8000-000000000000"
    host.sh(f"mkdir /run/mine; touch /run/mine/seed.iso; ln -s /run/mine {link}")
    host.macvm("--state-dir", "/run/other", "image", "import", base, "tiny")
    host.macvm("--state-dir", "/run/other", "create", "second", "--image", "tiny", "--no-start", "--ip", "none")
    for _ in range(2):
        found = [error for error, _ in complaints(purge(host, "--yes", "-q", status=7))]
        assert sorted(found) == sorted([
            f"{base} stays: above stands on it",
            f"{link} stays: macvm did not make it",
            f"{folder}/notes stays: macvm did not make it",
            "second stays: it is of the state directory /run/other",
        ])  # fmt: skip
        left = host.sh(f"virsh list --all --name; find {STATE} /run/mine -type f; virsh domblklist second").split()
        assert {"above", "second", base, f"{folder}/notes", "/run/mine/seed.iso"} <= set(left)
        assert "web" not in left
    host.sh(f"virsh undefine above; rm -r {STATE}/machines/* /run/above.qcow2 /run/mine")
    purge(host, "--yes", "--state-dir", "/run/other")
    purge(host, "--yes")


def test_killed_anywhere_it_goes_on(host: KvmHost) -> None:
    import_disk(host)
    host.create("web", "--ip", "192.0.2.11/24")
    host.create("through", "--parent", "eth1", "--mode", "passthrough", "--ip", "none")
    host.macvm("endpoint", "create", "alone")
    host.macvm("hosts", "--write")
    # Each of these is come to once more, as what was done by then is not done again.
    for kind in ("restored", "machines", "machines", "endpoints", "links", "files", "files"):
        assert kill_at(host.node, f"purge:{kind}:after", "purge", "--yes") == 128 + 9, kind
    purge(host, "--yes")


def test_what_cannot_be_removed_is_named_and_holds_up_nothing_else(host: KvmHost) -> None:
    """A file that is a mount point; a VLAN's link that somebody else's is on (here a bridge, which bears macvm's mark)."""
    import_disk(host)
    host.create("web", "--ip", "192.0.2.11/24")
    host.create("other", "--no-start", "--ip", "none")
    seed = host.json("show", "web")["uuid"].join((f"{STATE}/machines/", "/seed.iso"))
    host.sh(f"touch /run/over; mount --bind /run/over {seed}")
    host.sh("ip link add eth0.50 type bridge; ip link set eth0.50 alias macvm:vlan:eth0.50")
    host.sh("ip link add eth0.51 type bridge; ip link set eth0.51 alias macvm:vlan:eth0.51")
    host.sh("ip link add theirs0 link eth0.50 type macvlan")
    found = [error for error, _ in complaints(purge(host, "--yes", "-q", status=7))]
    assert sorted(found) == [f"{seed}: Device or resource busy", "eth0.50 stays: theirs0 is on it"]
    assert host.sh("virsh list --all --name").split() == ["theirs"]
    assert "eth0.51" not in host.sh("ip link")
    host.sh(f"umount {seed}; ip link del theirs0")
    assert purge_json(host)["links"] == ["eth0.50"]
    host.sh("rm /run/over")


def test_a_vlan_that_a_vm_needs_stays_with_it(host: KvmHost) -> None:
    import_disk(host)
    host.sh("ip link add eth0.50 type bridge; ip link set eth0.50 up alias macvm:vlan:eth0.50")
    host.sh("ip link add eth0.51 type bridge; ip link set eth0.51 up alias macvm:vlan:eth0.51")
    host.create("web", "--no-start", "--parent", "eth0.50", "--ip", "none")
    done = purge_json(host, "--keep-vms")
    assert (done["links"], done["remains"]) == (["eth0.51"], [])
    assert any(line.startswith("eth0.50 stays, for web") for line in done["stays"])
    host.sh("virsh start web")
    assert purge_json(host)["links"] == ["eth0.50"]


def test_while_libvirt_is_away_its_vms_are_left_alone(host: KvmHost) -> None:
    import_disk(host)
    host.create("web", "--ip", "192.0.2.11/24")
    host.macvm("endpoint", "create", "alone")
    files = host.sh(f"find {STATE}/machines {STATE}/images | sort")
    host.sh("kill -KILL $(pgrep -x libvirtd); while pgrep -x libvirtd; do sleep 0.01; done")
    said = purge(host, "--yes", status=7)
    assert "VMs, disks, images and the store stay: libvirt at 'qemu:///system' is not reachable" in said
    assert host.sh(f"find {STATE}/machines {STATE}/images | sort") == files
    assert "mv-eth0" not in host.sh("ip link")
    assert purge(host, "--yes", status=7)
    assert f"nothing else of macvm's is left on this host\nnote: VMs, disks, images and the store stay, in {STATE}" in (
        purge(host, "--yes", "--keep-vms")
    )
    host.sh("libvirtd --daemon --pid-file /run/libvirtd.pid; timeout 30 sh -c 'until virsh list; do sleep 0.1; done'")
    host.macvm("delete", "--yes", "web")
    assert "note: images and the store stay" in purge(host, "--yes", "--keep-vms")
    assert len(purge_json(host)["files"]) > 1


def test_nobody_is_interrupted(host: KvmHost) -> None:
    """A macvm that is at work; and one that may not."""
    import_disk(host)
    host.macvm("network", "create", "lab", "--parent", "eth0", "--subnet", "192.0.2.0/24")
    driver = Path(__file__).with_name("failpoints.py")
    words = ["pause=create:disk:before:1000", "--", "create", "web", "--memory", "128", "--network", "lab"]
    with host.node.start([sys.executable, driver, *words]) as working:
        asked = f'sqlite3 {STATE}/macvm.db "SELECT step FROM steps" | grep disk'
        host.sh(f"timeout 60 sh -c 'until {asked}; do sleep 0.1; done'")
        said = purge(host, "--yes", status=4)
        assert "another macvm is at work: create web" in said
        working.signal(2)
        working.wait(60)
    purge(host, "--yes")
