"""`macvm create`: guests on the LAN, reached from their own host, in every mode and with every option.

The guests are shared by the tests of this module, and boot side by side.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.kvm_host import STATE, KvmHost, complaints

pytestmark = pytest.mark.xdist_group("create")

HOST_MAC, SHIM = "02:00:c0:00:02:02", "mv-eth0"

#: What beta does at its first boot: asks alpha, and shows what it got on its own page.
BETA = """#!/bin/sh
cat /sys/class/net/eth0/mtu > /www/mtu
until wget -q -O /www/peer.new http://192.0.2.11/; do sleep 0.3; done
ping -c1 -W2 192.0.2.11 > /www/ping
ping -c1 -W2 192.0.2.2 > /www/host
mv /www/peer.new /www/peer
"""

#: A machine of somebody's own: i440fx, no ACPI, a name and a disk that macvm replaces.
I440FX = """<domain type='kvm'>
  <name>of-old</name>
  <memory unit='GiB'>4</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><source file='/nowhere'/><target dev='hda' bus='ide'/></disk>
    <interface type='direct'><source dev='elsewhere' mode='vepa'/></interface>
    <serial type='pty'/>
    <console type='pty'/>
    <watchdog model='i6300esb' action='none'/>
  </devices>
</domain>
"""


@pytest.fixture(scope="module")
def guests(host: KvmHost) -> Iterator[KvmHost]:
    """alpha, beta (dual stack, smaller MTU, a script) and gamma (DHCP, a password)."""
    host.nodes.dhcp(True)
    with host.node.start(["bash", "-c", "cat > /run/beta; sleep 100000"], input=BETA):
        host.create("beta", "--ip", "192.0.2.12/24", "--ip", "2001:db8::12/64", "--mtu", "1400",
                    "--user-data", "/run/beta")  # fmt: skip
    host.create("gamma", "--password", "open sesame")
    host.create("alpha", "--mode", "bridge", "--ip", "192.0.2.11/24", "--wait")
    host.macvm("wait", "beta", "--timeout", "2m")
    yield host
    host.clear()
    host.nodes.dhcp(False)


def mac_of(host: KvmHost, name: str) -> str:
    return str(host.show(name)["nics"][0]["mac"])


def device_of(host: KvmHost, name: str) -> str:
    return str(host.show(name)["nics"][0]["device"])


# --- who reaches whom -----------------------------------------------------------------------------------------------


def test_the_host_reaches_its_guest(guests: KvmHost) -> None:
    guests.sh("ping -c1 -W2 192.0.2.11")
    assert guests.page("192.0.2.11") == "alpha\n192.0.2.11/24 eth0\n"


def test_the_lan_sees_the_guests_answers_with_the_guests_mac(guests: KvmHost) -> None:
    mac = mac_of(guests, "alpha")
    answers = f"ether src {mac} and (arp[6:2] = 2 or icmp[icmptype] = icmp-echoreply)"
    with guests.lan.start(["timeout", "20", "tcpdump", "-l", "-e", "-nn", "-i", "eth0", "-c", "2", answers]) as tcpdump:
        while "listening on" not in tcpdump.stderr:
            time.sleep(0.01)
        guests.sh("ip neigh flush dev eth0; ping -c2 -i0.2 -W2 192.0.2.11", node=guests.lan)
        tcpdump.wait(20)
        seen = tcpdump.stdout
    assert f"Reply 192.0.2.11 is-at {mac}" in seen
    assert "192.0.2.11 > 192.0.2.1: ICMP echo reply" in seen
    assert guests.page("192.0.2.11", node=guests.lan).startswith("alpha\n")


def test_guests_in_bridge_mode_reach_one_another_and_the_host(guests: KvmHost) -> None:
    assert guests.page("192.0.2.12", "peer") == "alpha\n192.0.2.11/24 eth0\n"
    assert " 0% packet loss" in guests.page("192.0.2.12", "ping")
    assert " 0% packet loss" in guests.page("192.0.2.12", "host")


@pytest.mark.parametrize("address", ["192.0.2.12", "2001:db8::12"])
def test_a_dual_stack_guest_answers_over_both(guests: KvmHost, address: str) -> None:
    served = "beta\n192.0.2.12/24 eth0\n2001:db8::12/64 eth0\n"
    assert guests.page(address, lines=3) == served
    assert guests.page(address, lines=3, node=guests.lan) == served


def test_a_dhcp_guest_gets_its_lease_from_the_lan(guests: KvmHost) -> None:
    wait = f"timeout 60 bash -c 'until grep {mac_of(guests, 'gamma')} /run/macvm-dhcp.leases; do sleep 0.2; done'"
    address = guests.sh(wait, node=guests.lan, timeout=70).split()[2]
    assert guests.page(address, node=guests.lan) == f"gamma\n{address}/24 eth0\n"


def test_strict_reverse_path_filtering_stops_nobody(guests: KvmHost) -> None:
    def strict(value: int) -> None:
        guests.sh(f"for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} > $f; done")

    strict(1)
    try:
        for round_ in range(2):  # the second with what the first has taught all neighbours
            guests.sh("ip neigh flush dev eth0; ping -c1 -W2 192.0.2.11; ping -c1 -W2 192.0.2.1")
            flush = "ip neigh flush dev eth0;" if round_ == 0 else ""
            guests.sh(f"{flush} ping -c1 -W2 192.0.2.2; ping -c1 -W2 192.0.2.11", node=guests.lan)
    finally:
        strict(0)


#: Asks for 192.0.2.2 twenty times, and prints the MACs that answer with how often they did.
ARP_PROBE = """
import collections, socket, time
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
link.bind(("eth0", 0))
own = link.getsockname()[4]
ask = (b"\\xff" * 6 + own + bytes.fromhex("0806" "0001080006040001") + own + socket.inet_aton("192.0.2.1")
       + bytes(6) + socket.inet_aton("192.0.2.2"))
answers = collections.Counter()
link.settimeout(0.02)
for _ in range(20):
    link.send(ask)
    end = time.monotonic() + 0.04
    while time.monotonic() < end:
        try:
            frame = link.recv(2048)
        except TimeoutError:
            continue
        if frame[20:22] == b"\\0\\2" and frame[28:32] == socket.inet_aton("192.0.2.2"):
            answers[frame[22:28].hex(":")] += 1
for mac, times in answers.items():
    print(mac, times)
"""


def test_only_the_parent_answers_the_lan_for_the_hosts_address(guests: KvmHost) -> None:
    def answers() -> dict[str, int]:
        lines = guests.lan.run(["python3", "-c", ARP_PROBE], check=True).stdout.splitlines()
        return {mac: int(times) for mac, times in map(str.split, lines)}

    guests.sh("ping -c1 -W2 192.0.2.11")
    assert answers() == {HOST_MAC: 20}
    guests.sh(f"sysctl -w net.ipv4.conf.{SHIM}.arp_filter=0")
    try:
        assert len(answers()) == 2  # so the probe does see a second one
    finally:
        guests.sh(f"sysctl -w net.ipv4.conf.{SHIM}.arp_filter=1")


def test_the_lan_peer_keeps_the_hosts_mac(guests: KvmHost) -> None:
    guests.sh("ip neigh flush dev eth0; ping -c1 -W2 192.0.2.2", node=guests.lan)
    guests.sh("ping -c1 -W2 192.0.2.11; ping -c1 -W2 192.0.2.12; ping -c1 -W2 2001:db8::12")
    entries = json.loads(guests.sh("ip -j neigh show to 192.0.2.2", node=guests.lan))
    assert [entry["lladdr"] for entry in entries] == [HOST_MAC]


# --- what it set up on the host -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "source"), [("192.0.2.12", "192.0.2.2"), ("2001:db8::12", "2001:db8::2")])
def test_route_and_neighbour_entry(guests: KvmHost, address: str, source: str) -> None:
    route = json.loads(guests.sh(f"ip -j route get {address}"))[0]
    assert (route["dev"], route["prefsrc"]) == (SHIM, source)
    entry = guests.sh(f"ip neigh show to {address} dev {SHIM}").split()
    assert entry == [address, "lladdr", mac_of(guests, "beta"), "PERMANENT", "proto", "109"]


def test_the_shim(guests: KvmHost) -> None:
    (shim,) = json.loads(guests.sh(f"ip -d -j address show dev {SHIM}"))
    assert (shim["linkinfo"]["info_data"]["mode"], shim["ifalias"]) == ("bridge", "macvm:shim:eth0")
    assert shim["addr_info"] == []  # no address of its own, not even a link-local one
    assert guests.sh(f"sysctl -n net.ipv4.conf.{SHIM}.arp_filter net.ipv6.conf.{SHIM}.proxy_ndp").split() == ["1", "1"]
    assert guests.sh(f"ip neigh show proxy dev {SHIM}").split()[0] == "2001:db8::2"


def test_the_hosts_side_of_a_nic(guests: KvmHost) -> None:
    mac = mac_of(guests, "beta")
    device = f"mt-{mac.replace(':', '')}"
    (link,) = json.loads(guests.sh(f"ip -d -j address show dev {device}"))
    assert {"ALLMULTI", "UP"} <= set(link["flags"])
    assert (link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]) == ("macvtap", "bridge")
    assert link["addr_info"] == []
    assert guests.sh(f"sysctl -n net.ipv6.conf.{device}.disable_ipv6").strip() == "1"


def test_the_mtu_is_the_macvtaps_and_the_guests(guests: KvmHost) -> None:
    assert json.loads(guests.sh(f"ip -j link show dev {device_of(guests, 'beta')}"))[0]["mtu"] == 1400
    assert guests.page("192.0.2.12", "mtu").strip() == "1400"


def test_qemu_is_not_root_and_nobody_else_reads_the_seed(guests: KvmHost) -> None:
    owners = guests.sh("ps -o user:20= -C qemu-system-x86_64").split()
    assert set(owners) == {"libvirt-qemu"}
    seed = f"{STATE}/machines/{guests.show('gamma')['uuid']}/seed.iso"
    assert guests.sh(f"stat -c '%a %U' {seed}").split() == ["600", "libvirt-qemu"]
    read = guests.node.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", seed])
    assert (read.returncode, read.stdout) == (1, "")
    assert "open sesame" not in guests.sh(f"strings {seed}; cat {STATE}/macvm.db*; virsh dumpxml gamma")


def test_the_base_image_is_never_written_to(guests: KvmHost) -> None:
    (image,) = guests.json("image", "list", "--local")
    path = f"{STATE}/images/{image['digest']}.qcow2"
    assert guests.sh(f"stat -c '%a %u' {path}").split() == ["444", "0"]
    assert guests.sh(f"sha256sum {path}").split()[0] == image["digest"]


def test_the_password_opens_the_console(guests: KvmHost) -> None:
    steps = [
        ("Escape character", "\n"),
        ("gamma login:", "cirros\n"),
        ("Password:", "open sesame\n"),
        ("$ ", "echo in as $(id -u)\n"),
        ("in as 1000", "exit\n"),
        ("gamma login:", "\x1d"),
    ]
    done = guests.terminal(["macvm", "console", "gamma"], steps)
    assert done.returncode == 0, done.stdout


# --- other kinds of guests ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_guests(guests: KvmHost) -> Iterator[dict[str, str]]:
    """Guests of other kinds, which boot side by side: name to what create said."""
    host = guests
    host.sh("ip link add eth1 type veth peer name far1; ip link add eth2 type veth peer name far2")
    host.sh("for l in eth1 far1 eth2 far2; do ip link set $l up; done; ip address add 198.51.100.9/24 dev far1")
    host.sh("ip address add 203.0.113.9/24 dev eth2")
    tiny = host.sh(f"ls {STATE}/images/*.vmlinuz {STATE}/images/*.initrd").split()
    kernel = ["--kernel", tiny[1], "--initrd", tiny[0]] if tiny[0].endswith("initrd") else ["--kernel", *tiny]
    if len(kernel) == 3:
        kernel = ["--kernel", tiny[0], "--initrd", tiny[1]]
    said = {}
    host.sh(f"cat > /run/i440fx.xml <<'END'\n{I440FX}END")
    for name, words in {
        "direct": [*kernel, "--cmdline", "console=ttyS0 quiet no_timer_check extra=words", "--ip", "192.0.2.21/24"],
        "old": ["--template", "/run/i440fx.xml", "--ip", "192.0.2.22/24"],
        "mirror": ["--mode", "vepa", "--ip", "192.0.2.23/24"],
        "hermit": ["--mode", "private", "--ip", "192.0.2.24/24"],
        "owner": ["--mode", "passthrough", "--parent", "eth1", "--ip", "198.51.100.25/24"],
        "twofold": ["--nic", "ip=192.0.2.26/24", "--nic", "parent=eth2,mode=bridge,ip=203.0.113.26/24"],
    }.items():
        said[name] = host.create(name, *words).stderr
    yield said
    host.clear(keep=("alpha", "beta", "gamma"))
    host.sh("ip link delete eth1; ip link delete eth2; rm /run/i440fx.xml")


@pytest.mark.usefixtures("odd_guests")
class TestOddGuests:
    def test_direct_boot(self, host: KvmHost) -> None:
        assert host.page("192.0.2.21", seconds=120).startswith("direct\n")
        xml = host.sh("virsh dumpxml direct")
        assert "extra=words</cmdline>" in xml
        assert "disk.qcow2" not in xml

    def test_a_template_of_ones_own(self, host: KvmHost) -> None:
        assert host.page("192.0.2.22", seconds=120) == "old\n192.0.2.22/24 eth0\n"
        xml = host.sh("virsh dumpxml old")
        assert "pc-i440fx" in xml
        assert "i6300esb" in xml
        assert not re.search("of-old|/nowhere|elsewhere", xml)
        host.macvm("stop", "old")  # it has ACPI after all

    def test_vepa_reaches_the_host_where_the_switch_reflects(self, host: KvmHost) -> None:
        assert host.page("192.0.2.23", node=host.lan, seconds=120).startswith("mirror\n")
        ping = ["ping", "-c1", "-W1", "192.0.2.23"]
        assert host.node.run(ping).returncode == 1
        assert "192.0.2.23" not in host.sh("ip route")
        host.nodes.hairpin(True)
        try:
            # Whatever changes on that parent has the switch asked again.
            host.macvm("endpoint", "create", "next", "--ip", "192.0.2.29/24")
            assert host.page("192.0.2.23").startswith("mirror\n")
        finally:
            host.nodes.hairpin(False)
            host.macvm("endpoint", "delete", "next")

    def test_private_reaches_the_lan_but_not_the_host_and_says_so(
        self, host: KvmHost, odd_guests: dict[str, str]
    ) -> None:
        assert host.page("192.0.2.24", node=host.lan, seconds=120).startswith("hermit\n")
        assert host.node.run(["ping", "-c1", "-W1", "192.0.2.24"]).returncode == 1
        assert re.search(r"^note: the host cannot reach .* mode private", odd_guests["hermit"], re.MULTILINE)
        assert not re.search("cannot reach", odd_guests["old"])

    def test_passthrough_takes_an_expendable_parent(self, host: KvmHost, odd_guests: dict[str, str]) -> None:
        assert host.page("198.51.100.25", seconds=120).startswith("owner\n")
        assert "mode passthrough" in odd_guests["owner"]
        (nic,) = host.show("owner")["nics"]
        assert (nic["mode"], nic["kernel_mode"]) == ("passthrough", "passthrough")
        done = host.create("second", "--parent", "eth1", status=4)
        assert "passthrough shares its parent with nobody" in complaints(done.stderr)[0][0]

    def test_two_nics_on_two_parents(self, host: KvmHost) -> None:
        pages = {address: host.page(address, seconds=120, lines=3) for address in ("192.0.2.26", "203.0.113.26")}
        assert set(pages.values()) == {"twofold\n192.0.2.26/24 eth0\n203.0.113.26/24 eth1\n"}
        assert [nic["parent"] for nic in host.show("twofold")["nics"]] == ["eth0", "eth2"]
        assert "src 203.0.113.9" in host.sh("ip route get 203.0.113.26")


def test_passthrough_never_takes_what_the_host_lives_on(host: KvmHost) -> None:
    host.clear()
    with host.unchanged():
        done = host.create("greedy", "--mode", "passthrough", "--parent", "eth0", status=5)
        ((error, hint),) = complaints(done.stderr)
        assert "192.0.2.2/24" in error
        assert "--take-parent" in hint
        assert complaints(host.create("greedy", "--mode", "passthrough", status=2).stderr)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean(host: KvmHost) -> Iterator[KvmHost]:
    """A host without machines; those that a test makes are deleted, and all is as it was."""
    host.clear()
    with host.unchanged():
        yield host
        host.clear()


def test_name_parent_mode_image_and_address_have_defaults(clean: KvmHost) -> None:
    for expected in ("vm1", "vm2"):
        assert clean.macvm("create", "--no-start", "-o", "name").stdout == f"{expected}\n"
    machine = clean.show("vm1")
    (nic,) = machine["nics"]
    assert (machine["image"], nic["parent"], nic["mode"], nic["addresses"]) == ("tiny", "eth0", "bridge", [])
    xml = clean.sh("virsh dumpxml vm1")
    assert "<memory unit='KiB'>524288</memory>" in xml
    assert re.search("<vcpu[^>]*>1<", xml)
    assert "<graphics" not in xml


def test_memory_cpus_disk_and_autostart(clean: KvmHost) -> None:
    words = ["--memory", "2G", "--vcpus", "3", "--disk", "3G", "--autostart", "--no-start", "--vnc"]
    clean.macvm("create", "big", *words)
    xml = clean.sh("virsh dumpxml big")
    assert "<memory unit='KiB'>2097152</memory>" in xml
    assert re.search("<vcpu[^>]*>3<", xml)
    assert re.search("<graphics type='vnc'[^>]* listen='127.0.0.1'", xml)
    info = json.loads(clean.sh(f"qemu-img info --output=json {STATE}/machines/*/disk.qcow2"))
    assert info["virtual-size"] == 3 << 30
    assert re.search(r"Autostart: +enable", clean.sh("virsh dominfo big"))


def test_labs_and_labels_select(clean: KvmHost) -> None:
    clean.create("red", "--no-start", "--lab", "one", "--label", "role=web", "--label", "tier=1")
    clean.create("blue", "--no-start", "--lab", "two", "--label", "role=web")

    def names(*words: str) -> list[str]:
        return clean.macvm("list", "-o", "name", *words).stdout.split()

    assert names("--lab", "one") == ["red"]
    assert sorted(names("-l", "role=web")) == ["blue", "red"]
    assert names("-l", "role=web", "-l", "tier=1") == ["red"]
    assert names("b*") == ["blue"]
    assert clean.show("red")["labels"] == {"role": "web", "tier": "1"}


def test_count_makes_consecutive_addresses(clean: KvmHost) -> None:
    made = clean.macvm("create", "w", "--count", "3", "--ip", "192.0.2.31/24", "--no-start", "-o", "json")
    found = [(machine["name"], machine["nics"][0]["addresses"][0]["address"]) for machine in json.loads(made.stdout)]
    assert found == [("w-1", "192.0.2.31"), ("w-2", "192.0.2.32"), ("w-3", "192.0.2.33")]
    assert "192.0.2.32" in clean.create("late", "--ip", "192.0.2.32/24", "--no-start", status=4).stderr


def test_no_start_makes_no_link_and_start_makes_them(clean: KvmHost) -> None:
    clean.create("later", "--ip", "192.0.2.41/24", "--no-start")
    assert clean.show("later")["state"] == "off"
    assert "192.0.2.41" not in clean.sh("ip route")
    clean.macvm("start", "later")
    assert clean.show("later")["state"] == "running"
    assert "dev mv-eth0" in clean.sh("ip route get 192.0.2.41")


def test_no_shim_leaves_the_hosts_side_alone(clean: KvmHost) -> None:
    clean.create("apart", "--ip", "192.0.2.42/24", "--no-shim")
    assert "mv-eth0" not in clean.sh("ip link; ip route get 192.0.2.42")
    assert "192.0.2.42" in clean.create("other", "--ip", "192.0.2.42/24", "--no-start", status=4).stderr


def test_a_dry_run_changes_nothing_and_shows_steps_and_domain(host: KvmHost) -> None:
    host.clear()
    with host.unchanged():
        said = host.create("paper", "--ip", "192.0.2.43/24", "--autostart", "--dry-run").stdout
    for line in ("qemu-img create", "virsh define", "virsh start --paused paper", "neigh replace 192.0.2.43",
                 "src 192.0.2.2 proto 109", "arp_filter=1", "virsh autostart paper"):  # fmt: skip
        assert line in said
    assert re.search(r"<source dev=.eth0. mode=.bridge.", said)


def test_kvm_where_it_cannot_run_guests(clean: KvmHost) -> None:
    flags = Path("/proc/cpuinfo").read_text()
    if re.search(r"\b(vmx|svm)\b", flags):
        assert clean.create("fast", "--virt-type", "kvm", "--no-start").returncode == 0
        return
    ((error, hint),) = complaints(clean.create("fast", "--virt-type", "kvm", status=5).stderr)
    assert "KVM cannot run guests here" in error
    assert "qemu" in hint
    assert "QEMU emulates" in clean.create("slow", "--no-start").stderr  # auto says what it took


def test_a_nic_on_a_libvirt_network(clean: KvmHost) -> None:
    ((error, _),) = complaints(clean.create("lost", "--nic", "libvirt=nowhere", status=3).stderr)
    assert "nowhere" in error
    ((error, hint),) = complaints(clean.create("lost", "--nic", "libvirt=default", status=5).stderr)
    assert (error, hint) == ("the libvirt network default is not active", "virsh net-start default")
    clean.sh("virsh net-define /dev/stdin <<< '<network><name>inner</name><bridge name=\"inner0\"/></network>'")
    clean.sh("virsh net-start inner")
    try:
        clean.create("both", "--nic", "ip=192.0.2.44/24", "--nic", "libvirt=inner")
        nics: list[dict[str, Any]] = clean.show("both")["nics"]
        assert [(nic["parent"], nic["network"]) for nic in nics] == [("eth0", None), (None, "inner")]
        assert nics[1]["device"] in clean.sh("ip link show master inner0")
        clean.clear()
    finally:
        clean.sh("virsh net-destroy inner; virsh net-undefine inner; rm -r /run/libvirt/network/inner")


def test_secrets_do_not_show_in_a_dry_run(host: KvmHost) -> None:
    said = host.create("paper", "--password", "open sesame", "--dry-run")
    assert "open sesame" not in said.stdout + said.stderr
    assert "$6$" not in said.stdout
    assert "user-data" in said.stdout  # it did print what it would have been in
