"""Stations on a cable, each in a network namespace of its own, and the frames that pass."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import NamedTuple

from provisioner.host.namespaces import CLONE_NEWNET, setns, unshare

#: The cable's two ends.
HOST, PEER = "192.0.2.2", "192.0.2.1"

# linux/if_packet.h, linux/if_ether.h
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 8, 23
_TP_STATUS_VLAN_VALID = 0x10
_AUXDATA = struct.Struct("=IIIHHHH")
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6, ETH_P_8021Q = 0x0003, 0x0800, 0x0806, 0x86DD, 0x8100

BROADCAST = "ff:ff:ff:ff:ff:ff"
#: struct virtio_net_hdr, which goes before each frame on a macvtap's device: nothing offloaded.
_VNET_HEADER = bytes(10)
_PATIENCE = 20.0


class Space:
    """A network namespace without a name: it lives as long as this object is open, or a link's other end is in use."""

    def __init__(self) -> None:
        own = _here()
        unshare(CLONE_NEWNET)
        self.fd = _here()
        setns(own, CLONE_NEWNET)
        os.close(own)
        self.ip("link set lo up")

    @property
    def path(self) -> str:
        """Where `ip … netns` and `nsenter --net=` find it while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, *words: object, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A program in there; a single argument is cut into words. With `status` None it may end as it likes."""
        argv = [str(word) for word in words] if len(words) > 1 else str(words[0]).split()
        with in_namespace(self):
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        said = f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}"
        assert status is None or done.returncode == status, said
        return done

    def ip(self, *lines: str) -> None:
        """Several lines of `ip`'s arguments by one program: each costs a tenth of a second in emulation."""
        with in_namespace(self):
            argv = ["ip", "-batch", "-"]
            done = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {lines}: {done.stderr}"

    def refusal(self, line: str) -> str:
        """What `ip` says of arguments that must be refused."""
        done = self.run(*["ip", *line.split()], status=None)
        assert done.returncode != 0, f"ip {line} was taken"
        return done.stderr.strip()

    def mac(self, device: str) -> str:
        with in_namespace(self), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as asked:
            asked.bind((device, 0))
            return bytes(asked.getsockname()[4]).hex(":")

    def pings(self, address: str) -> bool:
        """Whether an answer comes; waits long for one."""
        return self.run("ping", "-c", 1, "-W", int(_PATIENCE), address, status=None).returncode == 0

    def close(self) -> None:
        os.close(self.fd)


class Lan(NamedTuple):
    """`host` and `peer` with an `eth0` each, 192.0.2.2/24 and 192.0.2.1/24, wired to one another.

    What is made on the host's side, in namespaces or not, the peer's eth0 sees as a LAN does."""

    host: Space
    peer: Space


class Frame(NamedTuple):
    """`vlan` is the 802.1Q id, None without a tag, wherever the kernel kept it; `kind` the Ethernet type below it."""

    destination: str
    source: str
    vlan: int | None
    kind: int
    payload: bytes


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def in_namespace(space: Space) -> Iterator[None]:
    """This thread, and what it starts, is in the namespace during the block."""
    own = _here()
    setns(space.fd, CLONE_NEWNET)
    try:
        yield
    finally:
        setns(own, CLONE_NEWNET)
        os.close(own)


def make_lan(make_space: Callable[[], Space]) -> Lan:
    lan = Lan(make_space(), make_space())
    with in_namespace(lan.peer):
        argv = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", lan.host.path]
        subprocess.run(argv, check=True, capture_output=True)
    for space, address in ((lan.host, HOST), (lan.peer, PEER)):
        space.ip(f"addr add {address}/24 dev eth0", "link set eth0 up")
    return lan


class Frames:
    """What arrives at a device, the frames that it sends left out."""

    def __init__(self, opened: socket.socket, ipv6: bool) -> None:
        self._socket = opened
        self._ipv6 = ipv6

    def now(self) -> list[Frame]:
        """Those that have come since the last look."""
        return list(self._read(0))

    def wait(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The first that is wanted; those before it are dropped. Fails when it does not come."""
        end = time.monotonic() + _PATIENCE
        seen = []
        while (left := end - time.monotonic()) > 0:
            for frame in self._read(left):
                if wanted(frame):
                    return frame
                seen.append(frame)
        raise AssertionError(f"it did not come; others did: {seen}")

    def _read(self, seconds: float) -> Iterator[Frame]:
        """Waits for the first alone."""
        while select.select([self._socket], [], [], seconds)[0]:
            frame = _parse(*self._socket.recvmsg(65536, socket.CMSG_SPACE(_AUXDATA.size))[:2])
            if self._ipv6 or frame.kind != ETH_P_IPV6:
                yield frame
            seconds = 0


@contextmanager
def frames(space: Space, device: str = "eth0", *, ipv6: bool = False) -> Iterator[Frames]:
    """Listens from here on, without `ipv6` to all but that: it says much by itself when links come up."""
    with in_namespace(space):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with opened:
        opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        opened.bind((device, ETH_P_ALL))
        yield Frames(opened, ipv6)


def _parse(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> Frame:
    """The kernel takes the outermost tag out of the frame and puts it beside it (packet(7), PACKET_AUXDATA)."""
    vlan = None
    for level, kind, value in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, _ = _AUXDATA.unpack(value)
            vlan = tci & 0xFFF if status & _TP_STATUS_VLAN_VALID else None
    ethertype, rest = int.from_bytes(data[12:14]), data[14:]
    if ethertype == ETH_P_8021Q and vlan is None:
        vlan, ethertype, rest = int.from_bytes(rest[:2]) & 0xFFF, int.from_bytes(rest[2:4]), rest[4:]
    return Frame(data[:6].hex(":"), data[6:12].hex(":"), vlan, ethertype, rest)


def ethernet(frame: Frame) -> bytes:
    """An untagged frame's bytes."""
    mac = bytes.fromhex((frame.destination + frame.source).replace(":", ""))
    return mac + frame.kind.to_bytes(2) + frame.payload


def arp_request(mac: str, own: str, asked: str) -> Frame:
    """RFC 826."""
    sender = bytes.fromhex(mac.replace(":", "")) + ipaddress.ip_address(own).packed
    body = struct.pack(">HHBBH", 1, ETH_P_IP, 6, 4, 1) + sender + bytes(6) + ipaddress.ip_address(asked).packed
    return Frame(BROADCAST, mac, None, ETH_P_ARP, body)


def arp_sender(frame: Frame) -> tuple[int, str] | None:
    """Of an ARP frame: its operation, 1 to ask and 2 to answer, and the address of who sent it."""
    if frame.kind != ETH_P_ARP:
        return None
    return int.from_bytes(frame.payload[6:8]), str(IPv4Address(frame.payload[14:18]))


class Tap:
    """A macvtap's device as QEMU opens it: what a guest's NIC sends and receives."""

    def __init__(self, space: Space, device: str) -> None:
        self.mac = space.mac(device)
        with in_namespace(space):
            # devtmpfs names it after the link's number.
            self._fd = os.open(f"/dev/tap{socket.if_nametoindex(device)}", os.O_RDWR | os.O_NONBLOCK)

    def send(self, frame: Frame) -> None:
        os.write(self._fd, _VNET_HEADER + ethernet(frame))

    def wait(self, wanted: Callable[[Frame], bool]) -> Frame:
        end = time.monotonic() + _PATIENCE
        while (left := end - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                frame = _parse(os.read(self._fd, 65536)[len(_VNET_HEADER) :], [])
                if wanted(frame):
                    return frame
        raise AssertionError("it did not come")

    def asks(self, own: str, asked: str) -> str:
        """The MAC that answers for an address, asked by ARP; fails when nobody does."""
        self.send(arp_request(self.mac, own, asked))
        return self.wait(lambda frame: arp_sender(frame) == (2, asked)).source

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
