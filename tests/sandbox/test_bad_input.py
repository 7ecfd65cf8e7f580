"""Bad input: for each a clear error with a hint, the right status, nothing left behind and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.sandbox.kvm_host import NOBODY, STATE, KvmHost, assert_same, complaints

pytestmark = pytest.mark.xdist_group("bad input")

TAKEN_MAC, VIRSH_MAC = "52:54:00:aa:00:01", "52:54:00:aa:00:02"
FILES = "/run/bad-input"

#: A machine by virsh with a MAC, and links that are no parents.
SETTING = f"""
mkdir {FILES}; cd {FILES}
virsh define /dev/stdin <<'END'
<domain type='qemu'><name>foreign</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><interface type='direct'><mac address='{VIRSH_MAC}'/><source dev='eth0' mode='bridge'/></interface></devices>
</domain>
END
ip link add trunk type bridge
ip link add port0 type veth peer name port1
ip link set port0 master trunk
ip tuntap add mode tap name tap0
ip tuntap add mode tun name tun0
printf 'not an image' > text.qcow2
: > empty.img
head -c 3000 {STATE}/images/*.qcow2 > header.qcow2
head -c 9000000 {STATE}/images/*.qcow2 > cut.qcow2
qemu-img create -q -f qcow2 other.qcow2 1M
qemu-img create -q -f qcow2 -b /etc/shadow -F raw overlay.qcow2 1M
qemu-img create -q -f qcow2 huge.qcow2 60T
echo 'no xml <at all' > broken.xml
echo '<network><name>n</name></network>' > network.xml
(echo '<!DOCTYPE domain [<!ENTITY a "lol">'
 for i in 1 2 3 4 5 6 7 8 9; do echo "<!ENTITY a$i \\"&a$((i-1));&a$((i-1));\\">"; done | sed 's/a0/a/g'
 echo ']><domain><title>&a9;</title></domain>') > bomb.xml
echo '<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/shadow">]><domain><title>&x;</title></domain>' > external.xml
echo "<domain type='kvm'><os><type machine='q35'>hvm</type></os><nonsense/></domain>" > unknown.xml
printf '#cloud-config\\nhostname: x\\n' > cloud.yaml
printf '#!/bin/sh\\n' > script
gzip -k script
printf '#!/bin/sh\\nMIME-Version: 1.0\\n' > odd
echo 'PRIVATE KEY' > id_key
echo 'ssh-ed25519 AAAA me' > short.pub
"""


@pytest.fixture(scope="module", autouse=True)
def setting(host: KvmHost) -> Iterator[None]:
    """A host where names, MACs and addresses are taken, with links and files that are fit for nothing."""
    host.clear()
    host.sh(SETTING)
    host.create("holder", "--ip", "192.0.2.61/24", "--mac", TAKEN_MAC, "--no-start", "--no-shim")
    host.macvm("network", "create", "taken", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.200-192.0.2.203",
               "--aux-address", "printer=192.0.2.201")  # fmt: skip
    host.create("keeper", "--network", "taken", "--no-start", "--no-probe", "--no-shim")
    yield
    host.clear(keep=["holder", "keeper"])
    host.macvm("delete", "--yes", "holder", "keeper")
    host.macvm("network", "delete", "taken")
    host.sh(f"virsh undefine foreign; ip link delete trunk; ip link delete port0; rm -r {FILES}")
    host.sh("ip link delete tap0; ip link delete tun0")


@dataclass(frozen=True)
class Bad:
    """Words after `macvm create`, the status, and a piece of the first error; `hint` of the hint below it."""

    words: str
    status: int
    error: str
    hint: str = ""
    command: str = "create"
    problems: int = 1


LONG = "a" * 300

TABLE = [
    # names
    Bad("../x", 2, "'../x' cannot be a name", "a-z, 0-9"),
    Bad("a|b", 2, "'a|b' cannot be a name"),
    Bad("", 2, "'' cannot be a name"),
    Bad(LONG, 2, "cannot be a name", "1 to 63"),
    Bad("<b>", 2, "'<b>' cannot be a name"),
    Bad("Web1", 2, "'Web1' cannot be a name"),
    Bad("$(id)", 2, "'$(id)' cannot be a name"),
    Bad("x\u202ey", 2, r"'x\u202ey' cannot be a name"),
    Bad("x\x1b[31m", 2, r"x\x1b[31m"),
    Bad("foreign", 4, "foreign exists already"),
    # modes and parents
    Bad("x --mode brigde", 2, "'brigde' is no macvtap mode", "bridge, vepa, private, passthrough"),
    Bad("x --mode source", 2, "mode source is not possible", "private"),
    Bad("x --parent eth7", 3, "no link 'eth7'", "eth0"),
    Bad("x --parent port0", 5, "port0 is a port of trunk", "--parent trunk"),
    Bad("x --parent lo", 5, "lo is no Ethernet link", ""),
    Bad("x --parent tun0", 5, "tun0 is no Ethernet link", ""),
    Bad("x --parent tap0", 5, "tap0 is no Ethernet link", ""),
    Bad("x --mtu 9000", 5, "MTU 9000 is above that of eth0, 1500", "1500"),
    Bad("x --mtu 12", 2, "'12' is no MTU"),
    # MACs
    Bad("x --mac 52:54:00", 2, "'52:54:00' is no MAC address", "52:54:00:12:34:56"),
    Bad("x --mac 53:54:00:00:00:01", 2, "multicast"),
    Bad("x --mac ff:ff:ff:ff:ff:ff", 2, "multicast"),
    Bad("x --mac 00:00:00:00:00:00", 2, "00:00:00:00:00:00 is no address"),
    Bad("x --mac 02:00:c0:00:02:02", 4, "in use by the link eth0"),
    Bad(f"x --mac {TAKEN_MAC}", 4, "in use by machine holder"),
    Bad(f"x --mac {VIRSH_MAC.upper()}", 4, "in use by machine foreign"),
    Bad("x --nic mac=52:54:00:00:00:09 --nic mac=52:54:00:00:00:09", 4, "another NIC of this machine"),
    Bad("x --mac 52:54:00:00:00:09 --count 2", 2, "--mac and --count"),
    # addresses
    Bad("x --ip 192.0.2.2/24", 4, "192.0.2.2 is this host's own, on eth0"),
    Bad("x --ip 192.0.2.1/24", 4, "192.0.2.1 is that of a router of this host's"),
    Bad("x --ip 192.0.2.61/24", 4, "192.0.2.61 is held by machine holder"),
    Bad("x --ip 192.0.2.0/24", 2, "network address of 192.0.2.0/24"),
    Bad("x --ip 192.0.2.255", 2, "broadcast address of 192.0.2.0/24"),
    Bad("x --ip 224.0.0.1/24", 2, "224.0.0.1 is no address that a guest may have"),
    Bad("x --ip 192.0.2.256/24", 2, "'192.0.2.256/24' is no address"),
    Bad("x --ip 203.0.113.7", 2, "203.0.113.7 has no length", "203.0.113.7/24"),
    Bad("x --ip auto", 2, "--ip auto needs a network"),
    Bad("x --ip 192.0.2.62/24 --gateway 198.51.100.1", 2, "gateway 198.51.100.1 is in no subnet"),
    Bad("x --nic ip=192.0.2.62/24 --nic ip=192.0.2.62/24", 2, "192.0.2.62 is given to two NICs"),
    Bad("x --count 3 --ip 192.0.2.253/24", 2, "192.0.2.255 is the broadcast address"),
    Bad("x --nic color=red", 2, "'color=red' is not understood", "parent, mode, ip"),
    # sizes
    Bad("x --memory 1K", 2, "1.0 KiB of memory boots no guest", "--memory"),
    Bad("x --memory 1P", 5, "1.0 PiB of memory is more than this host has"),
    Bad("x --memory lots", 2, "'lots' is no amount of memory", "512M"),
    Bad("x --vcpus 0", 2, "0 virtual CPUs"),
    Bad("x --vcpus many", 2, "many"),
    Bad("x --disk 1M", 2, "smaller than the image tiny"),
    # files
    Bad("x --image nothere", 3, "no image 'nothere'", "images here: tiny"),
    Bad(f"x --template {FILES}/none.xml", 3, "no template"),
    Bad(f"x --template {FILES}/broken.xml", 2, "is no XML"),
    Bad(f"x --template {FILES}/network.xml", 2, "its root element is <network>"),
    Bad(f"x --template {FILES}/bomb.xml", 2, "document type declaration"),
    Bad(f"x --template {FILES}/external.xml", 2, "document type declaration"),
    Bad(f"x --template {FILES}/unknown.xml", 6, "nonsense"),
    Bad(f"x --kernel {FILES}/none", 3, "there is no kernel"),
    Bad(f"x --kernel {FILES}/cloud.yaml --initrd {FILES}/none", 3, "there is no initrd"),
    Bad("x --cmdline quiet", 2, "need --kernel"),
    Bad(f"x --user-data {FILES}/cloud.yaml", 2, "guests of tiny run user-data only", "script"),
    Bad(f"x --user-data {FILES}/script.gz", 2, "this is packed with gzip", "script"),
    Bad(f"x --user-data {FILES}/script --user-data {FILES}/odd", 2, "guests of tiny run one script", "one"),
    Bad(f"x --user-data {FILES}/script --password x", 2, "exclude one another for guests of tiny", "chpasswd -e"),
    Bad(f"x --ssh-key {FILES}/short.pub", 2, "a line that is no public key", "ssh-keygen"),
    Bad(f"x --user-data {FILES}/none", 2, "cannot be read"),
    Bad(f"x --ssh-key {FILES}/id_key", 2, "is a private key", ".pub"),
    Bad("x --vnc=0.0.0.0", 2, "would show the guest's screen", "--vnc-exposed"),
    # the command line itself
    Bad("x --nope", 2, "--nope", "--help"),
    Bad("", 2, "no such command: crate", "macvm create", command="crate"),
    Bad("x --no-start --wait --ip 192.0.2.62/24", 2, "--no-start leaves nothing to wait for"),
    Bad("nobody", 3, "nobody", "macvm list", command="start"),
    Bad("nobody --yes", 3, "nobody", "macvm list", command="delete"),
    Bad("foreign --yes", 5, "was not made by macvm", "virsh undefine foreign", command="delete"),
    Bad("holder", 2, "no terminal", "--yes", command="delete"),
    # images
    Bad(f"{FILES}/none.img new", 3, "there is no file", command="image import"),
    Bad(f"{FILES} new", 2, "is no file", command="image import"),
    Bad(f"{FILES}/text.qcow2 new", 2, "is no disk image", command="image import"),
    Bad(f"{FILES}/empty.img new", 2, "is no disk image", command="image import"),
    Bad(f"{FILES}/header.qcow2 new", 2, "cut off", command="image import"),
    Bad(f"{FILES}/cut.qcow2 new", 2, "cut off", command="image import"),
    Bad(f"{FILES}/overlay.qcow2 new", 2, "an overlay that names another file", command="image import"),
    Bad(f"{FILES}/huge.qcow2 new", 2, "60 TiB", "8.0 TiB", command="image import"),
    Bad(f"{FILES}/text.qcow2 ../new", 2, "cannot be a", command="image import"),
    Bad(f"{FILES}/other.qcow2 tiny", 4, "another image tiny already", "tiny:2", command="image import"),
    Bad(
        f"{FILES}/text.qcow2 new --checksum sha256:{'0' * 64}", 2, "checksum", "expected sha256", command="image import"
    ),
    Bad(f"{FILES}/text.qcow2 new --checksum md5:1", 2, "not understood", "sha256", command="image import"),
    Bad("nothere --yes", 3, "no image 'nothere'", command="image delete"),
    # networks
    Bad("Net --subnet 203.0.113.0/24", 2, "'Net' cannot be a network's name", command="network create"),
    Bad("taken --subnet 203.0.113.0/24", 4, "a network taken already", "network show taken", command="network create"),
    Bad("new", 2, "192.0.2.0/24 is eth0's own subnet", "--ip-range 192.0.2.", command="network create"),
    Bad("new --parent port1", 2, "port1 has no address to tell a subnet by", "--subnet", command="network create"),
    Bad("new --parent eth7 --subnet 203.0.113.0/24", 3, "no link 'eth7'", "eth0", command="network create"),
    Bad("new --parent port0 --subnet 203.0.113.0/24", 5, "port0 is a port of trunk", command="network create"),
    Bad("new --parent eth0.4095 --subnet 203.0.113.0/24", 2, "4095", command="network create"),
    Bad("new --mode passthrough --subnet 203.0.113.0/24", 2, "wants a --parent", command="network create"),
    Bad("new --mode source --subnet 203.0.113.0/24", 2, "mode source is not possible", command="network create"),
    Bad("new --subnet 203.0.113.7/24", 2, "not a subnet", "did you mean 203.0.113.0/24", command="network create"),
    Bad("new --subnet 203.0.113.0", 2, "203.0.113.0 has no length", "203.0.113.0/24", command="network create"),
    Bad("new --subnet 127.0.0.0/8", 2, "no guest can live in 127.0.0.0/8", command="network create"),
    Bad("new --subnet 2001:db8::/64%eth0", 2, "is no subnet", command="network create"),
    Bad("new --subnet 203.0.113.0/24 --gateway 192.0.2.1", 2, "in no subnet of the network", command="network create"),
    Bad("new --subnet 203.0.113.0/24 --gateway 203.0.113.0", 2, "the network address", command="network create"),
    Bad(
        "new --subnet 203.0.113.0/24 --gateway 203.0.113.1 --gateway 203.0.113.2",
        2,
        "two gateways",
        "give it one",
        command="network create",
    ),
    Bad("new --subnet 203.0.113.0/24 --subnet 203.0.113.128/25", 2, "overlap", command="network create"),
    Bad(
        "new --subnet 203.0.113.0/24 --ip-range 203.0.113.9-203.0.113.1",
        2,
        "ends before it begins",
        command="network create",
    ),
    Bad(
        "new --subnet 203.0.113.0/24 --ip-range 203.0.113.250-203.0.114.1",
        2,
        "reaches beyond 203.0.113.0/24",
        command="network create",
    ),
    Bad(
        "new --subnet 203.0.113.0/24 --aux-address 203.0.113.9",
        2,
        "is no name and address",
        "NAME=ADDRESS",
        command="network create",
    ),
    Bad("new --subnet 203.0.113.0/24 --aux-address Router=203.0.113.9", 2, "'Router'", command="network create"),
    Bad("new --subnet 203.0.113.0/24 --aux-address a=192.0.2.9", 2, "in no subnet", command="network create"),
    Bad("new --subnet 203.0.113.0/24 --dns resolver", 2, "'resolver' is no DNS server", command="network create"),
    Bad("new --subnet 2001:db8:9::/64 --mtu 1279", 2, "MTU 1279 is too small", "1280", command="network create"),
    Bad("x --ip 2001:db8::61/64 --mtu 1279", 2, "MTU 1279 is too small for 2001:db8::61", "1280"),
    Bad("new --subnet 203.0.113.0/24 --mtu 9000", 5, "MTU 9000 is above that of eth0, 1500", command="network create"),
    Bad(
        "new --subnet 203.0.113.0/30 --gateway 203.0.113.1 --aux-address a=203.0.113.2",
        2,
        "no address left for a guest",
        command="network create",
    ),
    Bad(
        "new --subnet 192.0.2.0/24",
        4,
        "overlaps 192.0.2.0/24 of the network taken",
        "--ip-range",
        command="network create",
    ),
    Bad("nothere", 3, "no network 'nothere'", "there are taken", command="network show"),
    Bad("nothere", 3, "no network 'nothere'", "there are taken", command="network delete"),
    Bad("taken", 4, "the network taken is in use by keeper", "network show taken", command="network delete"),
    Bad("x --network nothere", 3, "no network 'nothere'", "there are taken"),
    Bad("x --network taken --network taken", 2, "--network is given more than once"),
    Bad("x --network taken --mode vepa", 2, "--mode is decided by the network taken: bridge", "leave --mode out"),
    Bad("x --network taken --parent port0", 2, "--parent is decided by the network taken: eth0"),
    Bad("x --network taken --ip 192.0.2.9", 2, "192.0.2.9 is outside the range 192.0.2.200/30"),
    Bad("x --network taken --ip 203.0.113.9", 2, "203.0.113.9 is in no subnet of the network taken (192.0.2.0/24)"),
    Bad("x --network taken --ip 192.0.2.202/25", 2, "does not fit 192.0.2.0/24", "leave the length out"),
    Bad("x --network taken --ip 192.0.2.201", 4, "192.0.2.201 is kept for printer", "--ip auto"),
    Bad("x --network taken --ip 192.0.2.200", 4, "192.0.2.200 is held by machine keeper"),
    Bad("x --network taken --ip auto --ip 192.0.2.202", 2, "exclude one another"),
    Bad("x --network taken --probe=slow", 2, "--probe='slow' is not known", "--probe=rfc"),
    Bad("x --network taken --probe=rfc --no-probe", 2, "exclude one another"),
    Bad("x --network taken --count 3", 4, "the pool of the network taken is exhausted: 3 addresses", "network show"),
    Bad("x --nic network=taken,libvirt=default", 2, "takes no network"),
    Bad("foreign --network nothere", 3, "no network 'nothere'", "there are taken", command="nic attach"),
    Bad("keeper --network nothere", 3, "no network 'nothere'", "there are taken", command="nic set"),
    Bad("keeper --ip 192.0.2.201", 4, "192.0.2.201 is kept for printer", command="nic set"),
    Bad("holder --ip auto", 2, "--ip auto needs a network", "--network", command="nic set"),
    # all at once
    Bad("Bad! --memory 1K --vcpus 0 --image no --parent eth7 --ip 192.0.2.61/24", 2, "'Bad!'", problems=4),
    Bad("holder --ip 192.0.2.61/24 --image no --template /nowhere", 4, "holder exists", problems=4),
]


@pytest.mark.parametrize(
    "bad", TABLE, ids=lambda bad: f"{bad.command} {bad.words[-60:]!r}".encode("ascii", "replace").decode()
)
def test_bad_input(host: KvmHost, bad: Bad) -> None:
    before = host.state()
    # `|` stands for a blank inside a word; an empty word is the empty name.
    words = [word.replace("|", " ") for word in bad.words.split(" ")]
    done = host.macvm(*bad.command.split(), *words, status=bad.status)
    found = complaints(done.stderr)
    assert len(found) == bad.problems, done.stderr
    error, hint = found[0]
    assert bad.error.replace("|", " ") in error
    assert bad.hint in hint
    assert len(error) < 400
    assert done.stdout == ""
    assert done.stderr.isascii() or "…" in done.stderr
    assert_same(before, host.state())


def test_wifi_is_refused_as_a_parent(host: KvmHost) -> None:
    """The kernel says "wireless" by a directory below the link's own: a host whose /sys has one stands for it."""
    host.sh("ip link add wlan0 type veth peer name radio")
    fake = (
        "d=$(realpath /sys/class/net/wlan0); cp -r $d /run/wlan 2>/dev/null; mkdir -p /run/wlan/wireless /run/wlan/phy80211;"
        "mount --bind /run/wlan $d; macvm create x --parent wlan0; status=$?; umount $d; rm -r /run/wlan; exit $status"
    )
    done = host.node.run(["unshare", "--mount", "bash", "-c", fake])
    host.sh("ip link delete wlan0")
    assert done.returncode == 5, done.stderr
    ((error, hint),) = complaints(done.stderr)
    assert "wlan0 is Wi-Fi" in error
    assert "libvirt=default" in hint


@pytest.mark.parametrize("words", [("create", "x"), ("delete", "--yes", "holder"), ("image", "build", "tiny"), ("gc",)])
def test_without_rights(host: KvmHost, words: tuple[str, ...]) -> None:
    with host.unchanged():
        done = host.node.run([*NOBODY, "macvm", *words])
        assert done.returncode == 5, done.stderr
        ((_, hint),) = complaints(done.stderr)
        assert "root" in hint or "sudo" in hint


def test_two_creates_of_one_name_at_once(host: KvmHost) -> None:
    before = host.state()
    create = ["macvm", "create", "twin", "--memory", "128", "--ip"]
    with host.node.start([*create, "192.0.2.71/24"]) as one, host.node.start([*create, "192.0.2.72/24"]) as other:
        ended = {one.wait(60): one, other.wait(60): other}
        assert set(ended) == {0, 4}, one.stderr + other.stderr
        assert "Traceback" not in ended[4].stderr
        complaints(ended[4].stderr)
    winner = "192.0.2.71" if ended[0] is one else "192.0.2.72"
    assert host.page(winner).startswith("twin\n")
    assert [address["address"] for nic in host.show("twin")["nics"] for address in nic["addresses"]] == [winner]
    host.macvm("delete", "--yes", "twin")
    assert_same(before, host.state())


def test_libvirt_not_running(host: KvmHost) -> None:
    before = host.state()
    done = host.macvm("--connect", "qemu+unix:///system?socket=/run/no-such-socket", "create", "x", status=6)
    ((error, hint),) = complaints(done.stderr)
    assert "no-such-socket" in error
    assert "systemctl" in hint
    assert_same(before, host.state())
