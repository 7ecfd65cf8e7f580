"""CirrOS's two ways to a network, run as it runs them: the tiny image's root, with busybox's `ifup` as in 0.3 to 0.5, and
with Debian's dhcpcd as in 0.6. NICs are matched by name, and told of by the seed's `files/` tree alone."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.host import seeds
from provisioner.host.tiny import Entry, initrd_entries, newest_kernel
from provisioner.model.names import Mac
from provisioner.model.nic import Addressing, Nic, parse_addressing
from provisioner.model.seed import SeedRequest, seed_files
from tests.conftest import Require

#: S40network of each generation, as its scripts have it.
WAYS = {"ifup": "ifup -a", "dhcpcd": "ifup lo; dhcpcd --noipv4ll -w -t 180"}

#: What DHCP leases, what a router's announcement makes of eth1's MAC, and the name server that DHCP names.
LEASED, ANNOUNCED, OFFERED = "198.51.100.100/24", "2001:db8:1:0:5054:ff:fe00:1/64", "198.51.100.53"

#: The LAN's end of each NIC's cable: no DHCP on the first, DHCP and router advertisements on the second.
LAN = """
ip link set lo up
for number in $(seq 0 {last}); do
    ip link add lan$number type veth peer name eth$number address 52:54:00:00:00:0$number netns {guest}
    ip link set lan$number address 52:54:00:00:01:0$number up
done
ip address add 192.0.2.1/24 dev lan0
for address in 2001:db8::1 fe80::1; do ip address add $address/64 dev lan0 nodad; done
if [ {last} = 0 ]; then exec sleep infinity; fi
ip address add 198.51.100.1/24 dev lan1
for address in 2001:db8:1::1 fe80::1; do ip address add $address/64 dev lan1 nodad; done
mkdir -p {folder}/served
cd {folder}/served
exec dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --user= --interface=lan1 --bind-interfaces --no-ping \
    --dhcp-leasefile={folder}/served/leases --pid-file --dhcp-authoritative --enable-ra \
    --dhcp-range=198.51.100.100,198.51.100.100,255.255.255.0 --dhcp-option=option:dns-server,198.51.100.53 \
    --dhcp-range=2001:db8:1::,ra-only
"""

#: What the first process of a guest does before its network starts; then it waits for commands of `nsenter`.
BOOT = """
mount --make-rprivate /
mount -t tmpfs -o mode=755 dev {root}/dev
for node in null zero random urandom; do touch {root}/dev/$node; mount --bind /dev/$node {root}/dev/$node; done
mount -t proc proc {root}/proc
mount -t sysfs sysfs {root}/sys
echo ready
exec sh -c "while :; do sleep 3600 & wait; done"
"""


def nics(*told: Addressing, mtu: int | None = None) -> tuple[Nic, ...]:
    """A NIC for each, the last one with an MTU."""
    last = len(told) - 1
    return tuple(
        Nic(Mac(f"52:54:00:00:00:0{number}"), parent="eth0", mtu=mtu if number == last else None, addressing=one)
        for number, one in enumerate(told)
    )


DUAL = parse_addressing(
    ["192.0.2.11/24", "2001:db8::11/64"], ["192.0.2.1", "2001:db8::1"], ["192.0.2.53", "2001:db8::53"]
)
SEVERAL = parse_addressing(
    ["192.0.2.11/24", "192.0.2.12/24", "203.0.113.5/28", "2001:db8::11/64", "2001:db8::12/64", "2001:db8:9::5/56"],
    ["192.0.2.1", "fe80::1"],
)
SIX = parse_addressing(["2001:db8::16/64"], ["2001:db8::1"], ["2001:db8::53"])
NONE, DHCP = parse_addressing(["none"]), parse_addressing(["dhcp"])
DHCP_AND_MORE = parse_addressing(["dhcp"], [], ["198.51.100.54"])
SECOND = parse_addressing(["198.51.100.12/24", "2001:db8:1::12/64"], ["198.51.100.1", "2001:db8:1::1"], ["192.0.2.54"])

CASES = {
    "dual-stack": nics(DUAL),
    "several-of-each-family": nics(SEVERAL, mtu=1400),
    "two-gateways": nics(DUAL, SECOND, mtu=1300),
    "six-alone": nics(SIX),
    "none-before-static": nics(NONE, SECOND, mtu=1400),
    "dhcp-beside-static": nics(DUAL, DHCP, mtu=1400),
    "dhcp-with-own-dns": nics(NONE, DHCP_AND_MORE),
}


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


class CirrosGuest:
    """A root and namespaces in which the tools of one generation run."""

    def __init__(self, root: Path, folder: Path, last: int) -> None:
        self.root = root
        unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        self._first = subprocess.Popen(
            [*unshare, "sh", "-ec", BOOT.format(root=root)], stdout=subprocess.PIPE, text=True
        )
        assert self._first.stdout
        assert self._first.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text()
        self.pid = int(children.split()[0])
        self._lan = subprocess.Popen(
            ["unshare", "--net", "sh", "-ec", LAN.format(guest=self.pid, folder=folder, last=last)],
            stderr=(folder / "lan.log").open("w"),
        )
        until(lambda: len(self.ip("link show")) > last + 1)

    def run(self, script: str, timeout: float = 60) -> str:
        """What a script says, in the guest's root."""
        enter = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "chroot", str(self.root)]
        clean = ["env", "-i", "PATH=/sbin:/usr/sbin:/bin:/usr/bin", "sh", "-c", script]
        done = subprocess.run(
            [*enter, *clean], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def ip(self, words: str) -> Any:
        """`ip -j …`, the host's."""
        argv = ["nsenter", "-t", str(self.pid), "-n", "ip", "-j", *words.split()]
        return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout or "[]")

    def addresses(self, name: str) -> set[str]:
        """Those of a NIC that are not link-local."""
        found = [
            one for link in self.ip(f"address show dev {name} scope global") for one in link.get("addr_info", ()) if one
        ]
        return {f"{one['local']}/{one['prefixlen']}" for one in found}

    def gateways(self, version: int) -> list[tuple[str, str]]:
        """Those of the default routes with their NICs, in the order in which the kernel takes them."""
        routes = self.ip(f"-{version} route show default")
        in_order = sorted(routes, key=lambda route: route.get("metric", 0))
        return [(route["gateway"], route["dev"]) for route in in_order if "gateway" in route]

    def name_servers(self) -> set[str]:
        lines = self.run("cat /etc/resolv.conf 2> /dev/null || true").splitlines()
        return {line.split()[1] for line in lines if line.startswith("nameserver ")}

    def end(self) -> None:
        for process in (self._lan, self._first):
            process.kill()
            process.wait()


def unpack(entries: list[Entry], root: Path) -> None:
    for entry in entries:
        path = root / entry.name
        if stat.S_ISDIR(entry.mode):
            path.mkdir(parents=True, exist_ok=True)
        elif stat.S_ISLNK(entry.mode):
            path.symlink_to(os.fsdecode(entry.data))
        elif stat.S_ISREG(entry.mode) and not entry.name.startswith("lib/modules/"):
            path.write_bytes(entry.data)
            path.chmod(stat.S_IMODE(entry.mode))


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory: pytest.TempPathFactory, require: Require, as_root: None) -> Path:
    """The tiny image's root, with dhcpcd and what it loads put in."""
    require(shutil.which("dhcpcd"), "dhcpcd is not installed (dhcpcd-base)")
    found = newest_kernel(Path("/boot"), Path("/lib/modules"))
    require(found, "no kernel in /boot (linux-image-amd64)")
    assert found
    root = tmp_path_factory.mktemp("cirros") / "root"
    unpack(initrd_entries(Path("/lib/modules", found[0])), root)
    listed = subprocess.run(["dpkg", "-L", "dhcpcd-base"], check=True, capture_output=True, text=True).stdout
    loaded = subprocess.run(["ldd", "/usr/sbin/dhcpcd"], check=True, capture_output=True, text=True).stdout
    files = [*listed.split(), *(word for word in loaded.split() if word.startswith("/"))]
    for file in map(Path, files):
        if file.is_file() and "share/doc" not in str(file) and "share/man" not in str(file):
            target = root / str(file).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    with (root / "etc/passwd").open("a") as users:
        users.write("dhcpcd:x:100:65534::/usr/lib/dhcpcd:/bin/false\n")
    for folder in ("var/lib/dhcpcd", "var/run", "run", "etc/udhcpc"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    # Where Debian's busybox looks for it.
    (root / "etc/udhcpc/default.script").symlink_to("/usr/share/udhcpc/default.script")
    return root


@pytest.fixture
def boot(tiny_root: Path, tmp_path: Path) -> Iterator[Any]:
    """Boots a guest of one generation with a seed of these NICs, until its network script is through."""
    guests = []

    def make(way: str, told: tuple[Nic, ...]) -> CirrosGuest:
        root = tmp_path / "root"
        shutil.copytree(tiny_root, root, symlinks=True)
        iso = tmp_path / "seed.iso"
        seeds.write_seed(iso, seed_files(SeedRequest("web1", "id", told)), (0, 0))
        for name, content in seeds.read_seed(iso).items():
            if name.startswith("files/"):
                path = root / name.removeprefix("files/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        guest = CirrosGuest(root, tmp_path, len(told) - 1)
        guests.append(guest)
        # The tiny image's DHCP script keeps its notes there.
        guest.run("mkdir -p /run/nic/eth0 /run/nic/eth1")
        print(guest.run(f"{{ {WAYS[way]}; }} 2>&1", timeout=100))
        return guest

    yield make
    for guest in guests:
        guest.end()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_nic_is_as_it_was_asked_for(
    boot: Callable[[str, tuple[Nic, ...]], CirrosGuest], way: str, case: str
) -> None:
    told = CASES[case]
    guest = boot(way, told)
    for index, nic in enumerate(told):
        wanted = {str(interface) for interface in nic.addressing.static} | ({LEASED} if nic.addressing.dhcp else set())
        # What routers announce a NIC takes up beside its static addresses too.
        until(lambda name=f"eth{index}", wanted=wanted: guest.addresses(name) - {ANNOUNCED} == wanted)
        if nic.addressing.dhcp:
            until(lambda name=f"eth{index}": ANNOUNCED in guest.addresses(name))
        assert [link["mtu"] for link in guest.ip(f"link show dev eth{index}")] == [nic.mtu or 1500]
    for version in (4, 6):
        asked = [(str(gateway), f"eth{index}") for index, nic in enumerate(told) for gateway in nic.addressing.gateways
                 if gateway.version == version]  # fmt: skip
        until(lambda asked=asked, version=version: set(asked) <= set(guest.gateways(version)))
        # The first NIC's comes first.
        assert guest.gateways(version)[: len(asked)] == asked
        for gateway, name in asked:
            # The first ones are lost while the kernel looks whether somebody else has the address.
            guest.run(f"for turn in $(seq 100); do ping -c 1 -W 1 -I {name} {gateway} && exit; sleep 0.1; done; exit 1")
    servers = {str(server) for nic in told for server in nic.addressing.dns}
    # Beside those that DHCP names, which dhcpcd leaves out for a NIC that has its own.
    until(lambda: servers <= guest.name_servers() <= servers | {OFFERED})
    if DHCP in [nic.addressing for nic in told]:
        until(lambda: OFFERED in guest.name_servers())
