"""Learning a guest's addresses from its macvtap: a kernel's own stack stands behind a real macvtap, as a guest's does."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import itertools
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from provisioner.errors import Unable
from provisioner.host import hearing, namespaces, wire
from provisioner.host.dissecting import Heard
from provisioner.host.hearing import LinkGone, Listener
from tests.conftest import Require
from tests.netns.conftest import ip
from tests.netns.test_wire import Elsewhere, other_namespace
from tests.unit.test_wire import arp

pytestmark = pytest.mark.usefixtures("lan")

MAC, OTHER, SHIM, PEER = (f"52:54:00:00:00:{end}" for end in ("77", "78", "01", "99"))
TUNSETIFF, IFF_TAP_NO_PI = 0x400454CA, 0x1002
ETH_P_ALL, OUTGOING = 3, 4
LOCAL6 = ipaddress.ip_address("fe80::5054:ff:fe00:77")
NET4, NET6 = IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/64")


def address(word: str) -> hearing.Address:
    return ipaddress.ip_address(word)


class Guest(Elsewhere):
    """A namespace whose `nic` is the other end of a macvtap: a thread carries frames between the two, as QEMU does."""

    def __init__(self, device: str, mac: str, tap: int) -> None:
        super().__init__()
        self.device, self.mac, self._tap = device, mac, tap
        with self.inside():
            self._nic = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self._nic, TUNSETIFF, struct.pack("16sH22x", b"nic", IFF_TAP_NO_PI))
            ip("link set nic address", mac)
        #: Which of the frames for it do not come through.
        self.drops: Callable[[bytes], bool] = lambda frame: False
        self._ours, told = socket.socketpair()
        self._thread = threading.Thread(target=self._carry, args=(told,))
        self._thread.start()

    def _carry(self, told: socket.socket) -> None:
        across = {self._tap: self._nic, self._nic: self._tap}
        poll = select.poll()
        for fd in (*across, told.fileno()):
            poll.register(fd, select.POLLIN)
        with told:
            while True:
                for fd, event in poll.poll():
                    if fd == told.fileno():
                        return
                    if event & (select.POLLERR | select.POLLHUP):
                        poll.unregister(fd)
                        continue
                    with contextlib.suppress(OSError):
                        frame = os.read(fd, 65536)
                        if fd == self._nic or not self.drops(frame):
                            os.write(across[fd], frame)

    def up(self, *addresses: str) -> None:
        with self.inside():
            ip("link set nic up")
        self.have(*addresses)

    def have(self, *addresses: str) -> None:
        with self.inside():
            for word in addresses:
                ip("addr add", word, "dev nic", *(["nodad"] if ":" in word else []))

    def sysctl(self, *settings: str) -> None:
        with self.inside():
            subprocess.run(["sysctl", "-qw", *settings], check=True)

    def send(self, *frames: bytes) -> None:
        """As if the guest's own stack had sent them."""
        for frame in frames:
            os.write(self._tap, frame)

    def close(self) -> None:
        self._ours.close()
        self._thread.join()
        for fd in (self._nic, self._tap, self.fd):
            os.close(fd)


Make = Callable[..., Guest]


@pytest.fixture
def boot(lan: None, run: None, tmp_path: Path) -> Iterator[Make]:
    """Makes guests on `eth0`, beside which there is a `shim` as macvm makes it."""
    # The sysfs of this network namespace, and a place for device nodes: /dev is the whole machine's.
    (tmp_path / "sys").mkdir()
    namespaces.mount("sysfs", str(tmp_path / "sys"), "sysfs")
    ip("link set far address", PEER)
    ip("link add shim link eth0 address", SHIM, "type macvlan mode bridge")
    settings = ("addr_gen_mode=1", "autoconf=0", "accept_ra=0", "forwarding=1", "proxy_ndp=1")
    subprocess.run(["sysctl", "-qw", *(f"net.ipv6.conf.shim.{word}" for word in settings)], check=True)
    ip("link set shim up")
    made: list[Guest] = []

    def make(mac: str = MAC, device: str = "mt-guest", mode: str = "bridge", up: bool = True) -> Guest:
        ip("link add", device, "link eth0 address", mac, "type macvtap mode", mode)
        subprocess.run(["sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1"], check=True)
        if up:
            ip("link set", device, "allmulticast on up")
        index = socket.if_nametoindex(device)
        major, minor = (tmp_path / f"sys/class/net/{device}/tap{index}/dev").read_text().split(":")
        node = Path(f"/run/tap{index}")
        os.mknod(node, 0o20600, os.makedev(int(major), int(minor)))
        tap = os.open(node, os.O_RDWR | os.O_NONBLOCK)
        node.unlink()
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP_NO_PI))
        made.append(Guest(device, mac, tap))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def guest(boot: Make) -> Guest:
    return boot()


def heard(listener: Listener, seconds: float = 0.0) -> list[Heard]:
    """All that is heard until nothing was for a while; the first within 10 s."""
    found: list[Heard] = []
    wait = seconds or 10.0
    while select.select([listener], [], [], wait)[0]:
        found += listener.read()
        wait = 0.2 if found or seconds else 10.0
    return found


def heard_until(listener: Listener, last: Heard) -> list[Heard]:
    """All that is heard until this is, within 10 s."""
    found: list[Heard] = []
    while last not in found and select.select([listener], [], [], 10)[0]:
        found += listener.read()
    assert found[-1:] == [last], found
    return found


def ping(guest: Elsewhere, to: str) -> None:
    with guest.inside():
        subprocess.run(["ping", "-c1", "-W1", to], capture_output=True, check=False)


@pytest.fixture
def peer(boot: Make) -> Iterator[Elsewhere]:
    """Another host of the LAN, 192.0.2.10 and 2001:db8::10 on its `far`."""
    for made in other_namespace():
        made.take("far", "192.0.2.10/24", "2001:db8::10/64")
        yield made


# --- listening


def test_what_a_guest_asks_for_tells_its_addresses(guest: Guest, peer: Elsewhere) -> None:
    with Listener(guest.device, MAC) as listener:
        guest.up("192.0.2.77/24", "2001:db8::77/64")
        ping(guest, "192.0.2.10")
        ping(guest, "2001:db8::10")
        told = heard(listener)
    assert Heard(MAC, address("192.0.2.77"), "arp") in told
    assert Heard(MAC, address("2001:db8::77"), "nd") in told
    assert {said.address for said in told} <= {address("192.0.2.77"), address("2001:db8::77"), LOCAL6}


def test_what_a_guest_answers_tells_its_addresses(guest: Guest, peer: Elsewhere) -> None:
    guest.up("192.0.2.77/24", "2001:db8::77/64")
    with Listener(guest.device, MAC) as listener:
        ping(peer, "192.0.2.77")
        ping(peer, "2001:db8::77")
        told = {(said.address, said.how) for said in heard(listener)}
    assert told >= {(address("192.0.2.77"), "arp"), (address("2001:db8::77"), "nd")}


def test_it_is_told_of_a_guest_that_was_told_to_say_so(guest: Guest) -> None:
    guest.sysctl("net.ipv4.conf.nic.arp_notify=1")
    with Listener(guest.device, MAC) as listener:
        guest.have("192.0.2.77/24")
        guest.up()
        assert heard(listener)[0] == Heard(MAC, address("192.0.2.77"), "arp")


def test_a_probe_and_duplicate_address_detection_tell_nothing(guest: Guest, peer: Elsewhere) -> None:
    """The guest tries for an address that the LAN peer has."""
    with Listener(guest.device, MAC) as listener:
        guest.up()
        with guest.inside():
            ip("addr add 2001:db8::10/64 dev nic")
        with guest.inside():
            assert wire.probe("nic", [address("192.0.2.10")]) == {address("192.0.2.10"): PEER}
        assert {said.address for said in heard(listener, 1.5)} <= {LOCAL6}


def test_guests_are_never_mixed_up(boot: Make, peer: Elsewhere) -> None:
    one, other = boot(), boot(OTHER, "mt-other")
    with Listener(one.device, MAC) as at_one, Listener(other.device, OTHER) as at_other:
        one.up("192.0.2.77/24")
        other.up("192.0.2.78/24")
        # One speaks in the other's name, and to the other.
        stolen = arp(bytes.fromhex(OTHER.replace(":", "")), address("192.0.2.66").packed, operation=1)
        one.send(b"\xff" * 6 + stolen[6:], bytes.fromhex(OTHER.replace(":", "")) + stolen[6:])
        ping(one, "192.0.2.78")
        first, second = heard(at_one), heard(at_other)
    assert {said.address for said in first if said.how == "arp"} == {address("192.0.2.77")}
    assert {said.address for said in second if said.how == "arp"} == {address("192.0.2.78")}
    assert {said.mac for said in first} == {MAC}
    assert {said.mac for said in second} == {OTHER}


def test_a_guest_that_answers_for_others_by_proxy(guest: Guest, peer: Elsewhere) -> None:
    """Of IPv6 the kernel's answer shows it; of ARP a question to the guest alone does."""
    guest.up("192.0.2.77/24", "2001:db8::77/64")
    guest.sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.nic.proxy_arp=1", "net.ipv4.neigh.nic.proxy_delay=0")
    guest.sysctl("net.ipv6.conf.nic.forwarding=1", "net.ipv6.conf.nic.proxy_ndp=1", "net.ipv6.neigh.nic.proxy_delay=0")
    with guest.inside():
        ip("link add inner type veth peer name innermost")
        ip("link set inner up")
        ip("route add 192.0.2.50/32 dev inner")
        ip("neigh add proxy 2001:db8::50 dev nic")
    with Listener(guest.device, MAC) as listener:
        ping(peer, "2001:db8::50")
        ping(peer, "192.0.2.50")
        told = heard(listener)
    assert address("2001:db8::50") not in {said.address for said in told}
    with peer.inside():
        entries = {entry["dst"]: entry.get("lladdr") for entry in ip("neigh show dev far")}
    assert entries["2001:db8::50"] == entries["192.0.2.50"] == MAC, "it did answer"
    assert hearing.ask("shim", MAC, [NET4]) == {address("192.0.2.77")}


def test_it_hears_from_before_the_link_is_up_and_after_it_was_down(boot: Make) -> None:
    guest = boot(up=False)
    with Listener(guest.device, MAC) as listener:
        guest.sysctl("net.ipv4.conf.nic.arp_notify=1")
        guest.have("192.0.2.77/24")
        for _ in range(2):
            ip("link set", guest.device, "up")
            guest.up()
            assert Heard(MAC, address("192.0.2.77"), "arp") in heard(listener)
            with guest.inside():
                ip("link set nic down")
            ip("link set", guest.device, "down")
            assert heard(listener, 0.3) == []
        ip("link set", guest.device, "name renamed up")
        guest.up()
        assert Heard(MAC, address("192.0.2.77"), "arp") in heard(listener)


def test_it_says_when_the_link_is_gone(guest: Guest) -> None:
    with Listener(guest.device, MAC) as listener:
        assert listener.read() == []
        ip("link del", guest.device)
        assert select.select([listener], [], [], 10)[0]
        for _ in range(2):
            with pytest.raises(LinkGone, match="no link mt-guest"):
                listener.read()
    with pytest.raises(LinkGone):
        Listener(guest.device, MAC)


def test_no_ethernet(guest: Guest) -> None:
    ip("tuntap add tunnel mode tun")
    with pytest.raises(Unable, match="no Ethernet"):
        Listener("tunnel", MAC)


def test_the_kernel_keeps_back_what_tells_nothing(guest: Guest, peer: Elsewhere) -> None:
    guest.up("192.0.2.77/24", "2001:db8::77/64")
    ping(guest, "192.0.2.10")
    with Listener(guest.device, MAC) as listener, peer.wire("far") as far:
        heard(listener, 2.5)
        own = bytes.fromhex(MAC.replace(":", ""))
        theirs = arp(bytes.fromhex(PEER.replace(":", "")), address("192.0.2.10").packed, operation=1)
        for to in (b"\xff" * 6, own):
            far.send(to + theirs[6:])
        with guest.inside():
            subprocess.run(["ping", "-c3", "-i.05", "192.0.2.10"], check=True, capture_output=True)
        ours = arp(own, address("192.0.2.76").packed, operation=1)
        guest.send(ours[:12] + b"\x81\x00\x00\x32" + ours[12:])
        assert not select.select([listener], [], [], 0.3)[0]
        guest.send(ours)
        assert heard(listener) == [Heard(MAC, address("192.0.2.76"), "arp")]


def test_a_flood_does_not_hold_up_reading(guest: Guest) -> None:
    flood = arp(bytes.fromhex(MAC.replace(":", "")), address("192.0.2.76").packed, operation=1)
    with Listener(guest.device, MAC) as listener:
        guest.send(*[flood] * 200)
        first = listener.read()
        assert 0 < len(first) < 200
        assert len(first) + len(heard(listener)) == 200


def test_on_a_shim_too_a_guest_is_heard(guest: Guest) -> None:
    with Listener("shim", MAC) as listener:
        guest.up("192.0.2.77/24")
        ping(guest, "192.0.2.99")
        assert Heard(MAC, address("192.0.2.77"), "arp") in heard(listener)


# --- waiting


def test_waiting_ends_with_the_first_that_tells(guest: Guest, peer: Elsewhere) -> None:
    def speak() -> None:
        guest.up("192.0.2.77/24", "2001:db8::77/64")
        ping(guest, "192.0.2.10")
        ping(guest, "2001:db8::10")

    for family, told in ((None, "192.0.2.77"), (6, "2001:db8::77")):
        speaks = threading.Timer(0.2, speak if family is None else lambda: ping(guest, "2001:db8::10"))
        if family == 6:
            with guest.inside():
                ip("-6 neigh flush dev nic")
        speaks.start()
        try:
            found = hearing.wait_for(guest.device, MAC, 10, family)
            assert found is not None
            assert found.address == address(told)
        finally:
            speaks.join()


def test_a_link_local_address_is_second_best(guest: Guest) -> None:
    guest.sysctl("net.ipv6.conf.nic.accept_dad=0")
    guest.up("192.0.2.77/24")

    def speak(more: bool) -> None:
        assert hearing.ask_v6("shim", MAC) == {LOCAL6}
        if more:
            ping(guest, "192.0.2.99")

    for seconds, told in ((0.7, Heard(MAC, LOCAL6, "nd")), (10, Heard(MAC, address("192.0.2.77"), "arp"))):
        speaks = threading.Timer(0.1, speak, [seconds == 10])
        speaks.start()
        try:
            assert hearing.wait_for(guest.device, MAC, seconds) == told
        finally:
            speaks.join()


def test_waiting_outlasts_a_guest_that_is_started_anew(boot: Make) -> None:
    first = boot()
    restarted: list[Guest] = []

    def restart() -> None:
        ip("link del", first.device)
        time.sleep(0.1)
        again = boot()
        restarted.append(again)
        again.sysctl("net.ipv4.conf.nic.arp_notify=1")
        again.have("192.0.2.77/24")
        time.sleep(0.2)
        again.up()

    result: list[Heard | None] = []

    def wait() -> None:
        result.append(hearing.wait_for(first.device, MAC, 20))

    waits = threading.Thread(target=wait)
    waits.start()
    time.sleep(0.1)
    restart()
    waits.join()
    assert result == [Heard(MAC, address("192.0.2.77"), "arp")]
    with pytest.raises(LinkGone):
        hearing.wait_for("mt-none", MAC, 5)


# --- asking


@contextlib.contextmanager
def overheard(*wires: tuple[Elsewhere | None, str]) -> Iterator[list[bytes]]:
    """What comes in on links meanwhile."""
    found: list[bytes] = []
    opened = []
    for space, link in wires:
        with space.inside() if space else contextlib.nullcontext():
            opened.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            opened[-1].bind((link, ETH_P_ALL))
    yield found
    time.sleep(0.05)
    for ear in opened:
        with ear, contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, direction, *_) = ear.recvfrom(2048, socket.MSG_DONTWAIT)
                if direction != OUTGOING:
                    found.append(frame)


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private"])
def test_a_silent_guest_answers_in_bridge_mode(boot: Make, mode: str) -> None:
    guest = boot(mode=mode)
    guest.up("192.0.2.77/24", "192.0.2.254/24", "198.51.100.3/25")
    asked = [NET4, IPv4Network("198.51.100.0/25"), IPv4Network("10.0.0.0/8")]
    answers = {address("192.0.2.77"), address("192.0.2.254"), address("198.51.100.3")}
    assert hearing.ask("shim", MAC.upper(), asked) == (answers if mode == "bridge" else set())


def test_all_of_a_22_and_nothing_of_larger_ones(guest: Guest) -> None:
    guest.up("198.18.3.254/22", "198.18.0.1/22", "203.0.113.1/32")
    answers = {address("198.18.3.254"), address("198.18.0.1")}
    assert hearing.ask("shim", MAC, [IPv4Network("198.18.0.0/22")]) == answers
    assert hearing.ask("shim", MAC, [IPv4Network("198.18.0.0/21")]) == set()
    assert hearing.ask("shim", MAC, [IPv4Network("203.0.113.1/32"), IPv4Network("192.0.2.0/31")]) == {
        address("203.0.113.1")
    }


def test_a_question_is_heard_by_the_guest_alone_and_teaches_nobody(boot: Make, peer: Elsewhere) -> None:
    guest, other = boot(), boot(OTHER, "mt-other")
    guest.up("192.0.2.77/24")
    other.up("192.0.2.78/24")
    with overheard((None, "mt-other"), (peer, "far")) as found:
        assert hearing.ask("shim", MAC, [NET4]) == {address("192.0.2.77")}
    assert not [frame for frame in found if frame[12:14] == b"\x08\x06"]
    for space in (guest, other, peer):
        with space.inside():
            assert ip("-4 neigh show") == []
    assert ip("-4 neigh show") == []


def test_addresses_of_the_same_subnet_elsewhere_are_not_the_guests(boot: Make, peer: Elsewhere) -> None:
    guest, other = boot(), boot(OTHER, "mt-other")
    guest.up("192.0.2.77/24")
    other.up("192.0.2.78/24")
    assert hearing.ask("shim", OTHER, [NET4]) == {address("192.0.2.78")}
    assert hearing.ask("shim", "52:54:00:00:00:55", [NET4]) == set()


def test_a_guest_that_drops_what_it_cannot_take_is_asked_again(boot: Make) -> None:
    guest = boot()
    guest.up("192.0.2.77/24", "192.0.2.199/24")
    seen: set[bytes] = set()

    def first_time(frame: bytes) -> bool:
        again = frame in seen
        seen.add(frame)
        return not again

    guest.drops = first_time
    assert hearing.ask("shim", MAC, [NET4]) == {address("192.0.2.77"), address("192.0.2.199")}


def settled(guest: Guest, *addresses: str) -> None:
    guest.sysctl("net.ipv6.conf.nic.accept_dad=0", "net.ipv6.conf.nic.router_solicitations=0")
    guest.up(*addresses)


def test_ipv6_by_made_up_sources(guest: Guest) -> None:
    settled(guest, "2001:db8::77/64", "2001:db8:5:0:1:0:0:77/96")
    asked = [NET6, IPv6Network("2001:db8:5:0:1::/96"), IPv6Network("2001:db8:6::/64")]
    answers = {address("2001:db8::77"), address("2001:db8:5:0:1:0:0:77"), LOCAL6}
    assert hearing.ask_v6("shim", MAC, asked) == answers
    assert hearing.ask_v6("shim", MAC) == {LOCAL6}
    assert hearing.ask_v6("shim", OTHER, asked) == set()


def test_ipv6_of_the_mac_beside_the_one_preferred(guest: Guest) -> None:
    made = "2001:db8::5054:ff:fe00:77"
    settled(guest, f"{made}/64")
    guest.have("2001:db8::77/64")
    assert hearing.ask_v6("shim", MAC, [NET6]) >= {address(made), LOCAL6}


def test_ipv6_of_a_guest_that_answers_no_echo(guest: Guest) -> None:
    settled(guest, "2001:db8::77/64")
    guest.sysctl("net.ipv6.icmp.echo_ignore_all=1")
    assert hearing.ask_v6("shim", MAC, [NET6]) == {address("2001:db8::77"), LOCAL6}


def test_ipv6_questions_go_to_the_guest_alone_and_leave_the_host_silent(boot: Make, peer: Elsewhere) -> None:
    guest, other = boot(), boot(OTHER, "mt-other")
    settled(guest, "2001:db8::77/64")
    settled(other)
    time.sleep(0.3)
    with overheard((None, "mt-other"), (peer, "far"), (guest, "nic")) as found:
        hearing.ask_v6("shim", MAC, [NET6])
        time.sleep(0.3)
    shim, own = (bytes.fromhex(word.replace(":", "")) for word in (SHIM, MAC))
    found = [frame for frame in found if frame[20] != 0]  # what a kernel says of its groups
    # To others there came only the guest's own question for who asked it, and never an answer of the host's kernel.
    assert {(frame[:6], frame[54]) for frame in found if frame[6:12] == own} == {(b"\x33\x33\xff" + shim[3:], 135)}
    assert {frame[:6] for frame in found if frame[6:12] == shim} == {own}
    host = bytes.fromhex(ip("link show eth0")[0]["address"].replace(":", ""))
    errors = [frame for frame in found if frame[54] < 128]
    looking = [frame for frame in found if frame[6:12] == host and frame[54] == 135 and any(frame[22:38])]
    assert (errors, looking) == ([], [])
    with guest.inside():
        assert not [entry for entry in ip("-6 neigh show") if "lladdr" in entry]


def test_a_shim_that_is_down_or_missing(guest: Guest) -> None:
    ip("link set shim down")
    with pytest.raises(Unable, match="shim is down"):
        hearing.ask("shim", MAC, [NET4])
    with pytest.raises(Unable, match="shim is down"):
        hearing.ask_v6("shim", MAC)
    for ask in (lambda: hearing.ask("none", MAC, [NET4]), lambda: hearing.ask_v6("none", MAC)):
        with pytest.raises(LinkGone):
            ask()


# --- DHCP


@pytest.fixture
def dhcp(peer: Elsewhere, require: Require, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Starts, or starts anew, a DHCP server on the LAN with this range."""
    require(shutil.which("dnsmasq"), "dnsmasq is not installed")
    running: list[subprocess.Popen[bytes]] = []

    def stop() -> None:
        for server in running:
            server.terminate()
            server.wait()
        running.clear()

    def serve(span: str) -> None:
        stop()
        (tmp_path / "leases").unlink(missing_ok=True)
        words = [
            "dnsmasq",
            "-k",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=far",
            "--bind-interfaces",
            "-u",
            "root",
        ]
        words += [
            f"--dhcp-leasefile={tmp_path}/leases",
            f"--pid-file={tmp_path}/pid",
            "--no-ping",
            "--dhcp-authoritative",
        ]
        words += [f"--dhcp-range={span}", "--dhcp-range=2001:db8::600,2001:db8::6ff,64,2m"]
        with peer.inside():
            running.append(subprocess.Popen(words, stderr=subprocess.DEVNULL))
            for _ in range(200):
                if ":67 " in subprocess.run(["ss", "-lun"], capture_output=True, text=True, check=True).stdout:
                    break
                time.sleep(0.02)

    yield serve
    stop()


#: What busybox's client tells of a lease, as its script.
TAKE = """#!/bin/sh
case "$1" in
deconfig) ip address flush dev nic scope global ;;
renew|bound) ip address replace "$ip/24" dev nic ;;
esac
"""


@pytest.fixture
def client(guest: Guest, tmp_path: Path, require: Require) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a DHCP client in the guest."""
    require(shutil.which("busybox"), "busybox is not installed")
    script = tmp_path / "take"
    script.write_text(TAKE)
    script.chmod(0o755)
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        with guest.inside():
            argv = ["busybox", "udhcpc", "-f", "-i", "nic", "-s", str(script), "-t", "20", "-T", "1", *words]
            running.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@contextlib.contextmanager
def again_and_again(act: Callable[[], object]) -> Iterator[None]:
    """Each second meanwhile: the client takes no order in the middle of something else."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(1):
            act()

    repeating = threading.Thread(target=repeat)
    repeating.start()
    try:
        yield
    finally:
        done.set()
        repeating.join()


def test_dhcp_gives_an_address_another_one_and_takes_it_back(
    guest: Guest, dhcp: Callable[[str], None], client: Callable[..., subprocess.Popen[bytes]]
) -> None:
    guest.sysctl("net.ipv6.conf.nic.disable_ipv6=1")
    guest.up()
    with Listener(guest.device, MAC) as listener:
        dhcp("192.0.2.150,192.0.2.150,2m")
        running = client("-R")
        first, second = (Heard(MAC, address(word), "dhcp") for word in ("192.0.2.150", "192.0.2.160"))
        heard_until(listener, first)
        with again_and_again(lambda: running.send_signal(signal.SIGUSR1)):  # renew
            heard_until(listener, first)
            dhcp("192.0.2.160,192.0.2.160,2m")
            told = [said for said in heard_until(listener, second) if said.how == "dhcp" and said != first]
        assert told[0] == Heard(MAC, address("0.0.0.0"), "dhcp", lost=True)
        # One order to renew too many has it ask anew, and what it does not have yet it cannot give back.
        orders = itertools.cycle((signal.SIGUSR2, signal.SIGUSR1))  # give back, ask again
        with again_and_again(lambda: running.send_signal(next(orders))):
            heard_until(listener, second._replace(lost=True))


def test_waiting_for_a_dhcp_guest(
    guest: Guest, dhcp: Callable[[str], None], client: Callable[..., subprocess.Popen[bytes]]
) -> None:
    guest.up()
    dhcp("192.0.2.150,192.0.2.150,2m")
    threading.Timer(0.2, client).start()
    assert hearing.wait_for(guest.device, MAC, 10, 4) == Heard(MAC, address("192.0.2.150"), "dhcp")
