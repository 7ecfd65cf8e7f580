"""The lines of a dry run, run on one host, make of it what macvm makes of another from the same words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost, assert_same
from tests.sandbox.test_install import etc

#: Of each domain, as it runs and as it is saved.
_DOMAINS = r"""
asked=$(virsh list --all --name | sed -nE 's/(.+)/echo "# \1"; domstate \1; dominfo \1; dumpxml \1; dumpxml --inactive \1;/p')
[ -z "$asked" ] || virsh "$asked"
"""
#: What libvirt numbers, or names after those numbers, and of `dominfo` all but whether it starts by itself.
_NUMBERS = re.compile(
    r"(?m) id='[0-9]+'|(?<=/dev/pts/)[0-9]+|(?<=domain-)[0-9]+(?=-)| index='[0-9]+'|^(?!Autostart)[A-Z][^<\n]*: .*$"
)
_MAC = re.compile(r"(?<=mac address=.)52(?::[0-9a-f]{2}){5}")
_SEEDS = r"""
for seed in $(find /var/lib/macvm/machines -name seed.iso); do
    xorriso -osirrox on -indev "$seed" -extract / /run/seed 2> /dev/null
    grep -r . /run/seed; stat -c '%s %a %u:%g' "$seed"; rm -rf /run/seed
done
"""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: libvirt's own bridge, and what is on it.
_THEIRS = re.compile(r"\b(inner0|vnet[0-9]+)\b")

LAB = """\
lab: two
networks:
  lan: {parent: eth0, subnets: [{subnet: 192.0.2.0/24, range: 192.0.2.64/29}]}
vms:
  web: {image: tiny, memory: 128M, nics: [{network: lan, mac: "52:54:00:00:00:0a"}]}
  off: {image: tiny, memory: 128M, start: false, autostart: true, nics: [{network: lan, mac: "52:54:00:00:00:0b", ip: none}]}
endpoints:
  box: {network: lan, mac: "52:54:00:00:00:0e"}
  held: {network: lan, ip: 192.0.2.70, mac: "52:54:00:00:00:0f"}
shims:
- {parent: eth0, to: ["192.0.2.77,52:54:00:00:00:77"]}
"""

WEB = ("web", "--memory", "128", "--mac", "52:54:00:00:00:0a")


class Pair(NamedTuple):
    """Two hosts alike: macvm changes the first, and the second follows by the lines of its dry runs."""

    first: KvmHost
    second: KvmHost
    anew: set[str]

    def follow(self, *words: str) -> str:
        """Changes both. Returns the lines."""
        told = self.first.macvm(*words, "--dry-run").stdout
        before = [domains_of(host) for host in self[:2]]
        uuids, macs = [uuids_of(domains) for domains in before], macs_of(before[0])
        self.first.macvm("--yes", *words)
        lines = "\n".join(line for line in told.splitlines() if not line.startswith("#"))
        for name, uuid in uuids[0].items():
            lines = lines.replace(uuid, uuids[1][name])
        chosen = [mac for mac in macs_of(domains_of(self.first)) if mac not in (*macs, *words)]
        foreseen = [mac for mac in dict.fromkeys(_MAC.findall(lines)) if mac not in (*macs, *words)]
        said = {*foreseen} & {*chosen}
        pairs = ([mac for mac in found if mac not in said] for found in (foreseen, chosen))
        for one, other in zip(*pairs, strict=False):
            # The link's name has it too.
            lines = lines.replace(one, other).replace(one.replace(":", ""), other.replace(":", ""))
        done = self.second.node.run(["bash", "-ex"], input=lines, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        # One that macvm writes anew for a NIC, which is told to hold no line, differs from then on.
        self.anew.update(name for name in [*uuids[0], words[1]] if f"the seed of {name} is written anew" in told)
        self.assert_alike()
        return told

    def assert_alike(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            states = list(pool.map(state_of, self[:2]))
        for state in states:
            state["seeds"] = [] if self.anew else state["seeds"]
        assert_same(*states)


def domains_of(host: KvmHost) -> dict[str, str]:
    """What libvirt says of each, by its name."""
    sections = re.split(r"(?m)^# (.+)\n", host.sh(_DOMAINS))
    return dict(sorted(zip(sections[1::2], sections[2::2], strict=True)))


def macs_of(domains: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(mac for text in domains.values() for mac in _MAC.findall(text)))


def uuids_of(domains: dict[str, str]) -> dict[str, str]:
    return {name: text.split("<uuid>")[1].split("</uuid>")[0] for name, text in domains.items()}


def state_of(host: KvmHost) -> dict[str, list[str]]:
    """What `KvmHost.state` has, but for the store, which no line writes to, and for libvirt's and the kernel's numbers."""
    domains = {name: _NUMBERS.sub("", text).splitlines() for name, text in domains_of(host).items()}
    found = {**host.state(), "domains": [f"{name} {line}" for name, lines in domains.items() for line in lines]}
    del found["rows"], found["taps"]
    # With which a host tells whether a lab's file says something else than before.
    found["files"] = [line for line in found["files"] if "/labs.key " not in line]
    found["domains"] = [line for line in found["domains"] if "<macvm:wish>" not in line]
    found["etc"] = [line for line in etc(host) if "/etc/libvirt/" not in line]
    found["spaces"] = host.sh(
        "for one in $(ls /run/netns 2> /dev/null); do ip -n $one -d -o link; ip -n $one -o addr; ip -n $one route; done"
        " | grep -v fe80:: | sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/if[0-9]+//; s/ state [A-Z]+//'"
    ).splitlines()
    found["seeds"] = host.sh(_SEEDS).splitlines()
    return {
        kind: sorted(_UUID.sub("UUID", line) for line in lines if kind == "domains" or not _THEIRS.search(line))
        for kind, lines in found.items()
    }


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with make_sandbox() as one, make_sandbox() as other:
        made = Pair(KvmHost(one), KvmHost(other), set())
        for host in made[:2]:
            host.macvm("image", "build", "tiny")
            host.sh(
                "ip link add eth1 address 02:00:00:00:01:01 type veth peer name far1 address 02:00:00:00:01:02; ip link set far1 addrgenmode none up; ip link set eth1 addrgenmode none up"
            )
            host.sh("virsh net-define /dev/stdin <<< '<network><name>inner</name><bridge name=\"inner0\"/>"
                    "<mac address=\"52:54:00:00:00:99\"/></network>'; virsh net-start inner")  # fmt: skip
        yield made


def test_create_and_delete(pair: Pair) -> None:
    told = pair.follow("create", *WEB, "--ip", "192.0.2.11/24", "--ip", "2001:db8::11/64", "--autostart")
    assert "ip -6 neigh add proxy 2001:db8::2 dev mv-eth0" in told
    vepa = ("--mac", "52:54:00:00:00:0b", "--ip", "192.0.2.12/24", "--mode", "vepa", "--disk", "64M")
    pair.follow("create", "second", "--memory", "128", *vepa)
    nics = ("--nic", "mac=52:54:00:00:00:0c,ip=192.0.2.13/24", "--nic", "libvirt=inner")
    pair.follow("create", "third", "--memory", "128", "--no-start", *nics)
    pair.follow("start", "third")
    pair.follow("delete", "web")
    pair.follow("delete", "--keep-disks", "second", "third")
    for host in pair[:2]:
        host.sh("rm -r /var/lib/macvm/machines/*")


def test_power(pair: Pair) -> None:
    pair.follow("create", *WEB, "--ip", "192.0.2.11/24")
    for host in pair[:2]:
        host.page("192.0.2.11")
    pair.follow("restart", "web")
    pair.follow("stop", "--force", "web")
    pair.follow("autostart", "on", "web")
    pair.follow("start", "web")
    pair.follow("autostart", "off", "web")
    pair.follow("restart", "--force", "web")
    pair.follow("reset", "web")
    pair.follow("stop", "--force", "web")
    pair.follow("reset", "web")
    pair.follow("delete", "web")


def test_nics(pair: Pair) -> None:
    pair.follow("create", *WEB, "--ip", "192.0.2.11/24")
    for host in pair[:2]:
        host.page("192.0.2.11")
    first, second, third = (f"52:54:00:00:00:0{digit}" for digit in "abc")
    addresses = ("--ip", "192.0.2.12/24", "--ip", "2001:db8::12/64")
    pair.follow("nic", "attach", "web", "--mac", second, *addresses, "--mtu", "1400", "--model", "e1000e")
    pair.follow("nic", "attach", "web", "--mac", third, "--parent", "eth1", "--mode", "passthrough", "--ip", "none")
    pair.follow("nic", "set", "web", first, "--mode", "private", "--link", "down")
    pair.follow("nic", "set", "web", first, "--mode", "bridge", "--config")
    pair.follow("nic", "set", "web", first, "--link", "up", "--replug", "--mode", "bridge")
    pair.follow("nic", "set", "web", second, "--ip", "192.0.2.14/24")
    pair.follow("nic", "detach", "web", third)
    pair.follow("nic", "set", "web", second, "--parent", "eth1", "--replug")
    pair.follow("nic", "detach", "web", second, "--live")
    pair.follow("nic", "detach", "web", second, "--config")
    pair.follow("delete", "web")
    pair.anew.clear()


def test_networks_and_endpoints(pair: Pair) -> None:
    subnets = ("--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.64-192.0.2.95", "--subnet", "2001:db8::/64")
    pair.follow("network", "create", "lan", "--parent", "eth0", *subnets)
    pair.follow("create", *WEB, "--network", "lan")
    mac = ("--mac", "52:54:00:00:00:0e")
    pair.follow("endpoint", "create", "box", "--network", "lan", *mac)
    pair.follow("network", "up")
    pair.follow("endpoint", "delete", "box")
    pair.follow("endpoint", "create", "box", "--mode", "source", "--allow-source", "52:54:00:00:00:0f", *mac)
    pair.follow("endpoint", "create", "wide", "--mode", "private", "--parent", "eth1", "--mac", "52:54:00:00:00:1e")
    pair.follow("endpoint", "delete", "box", "wide")
    pair.follow("delete", "web")
    pair.follow("network", "delete", "lan")


def test_several_at_once(pair: Pair) -> None:
    """What the first of them makes, the last takes away, is in the lines once."""
    pair.follow("create", *WEB[:3], "--count", "2", "--ip", "192.0.2.11/24")
    pair.follow("delete", "web-1", "web-2")
    for number in (1, 2):
        mac = ("--mac", f"52:54:00:00:00:0{number}")
        pair.follow("endpoint", "create", f"box{number}", "--ip", f"192.0.2.4{number}/24", *mac)
    pair.follow("endpoint", "delete", "box1", "box2")


def test_labs(pair: Pair) -> None:
    for host in pair[:2]:
        host.node.run(["tee", "/run/lab.yaml"], input=LAB, check=True)
    pair.follow("lab", "up", "/run/lab.yaml")
    changed = LAB.replace("autostart: true", "vcpus: 2").replace("  box: {", "  more: {").replace("00:0e", "00:1e")
    changed = changed.replace('0a"}]', '0a"}, {parent: eth1, mode: private, ip: none, mac: "52:54:00:00:00:0c"}]')
    for host in pair[:2]:
        host.node.run(["tee", "/run/lab.yaml"], input=changed, check=True)
    pair.follow("lab", "up", "/run/lab.yaml")
    pair.follow("lab", "down", "two")


def test_units(pair: Pair) -> None:
    pair.follow("shim", "up", "eth0", "--to", "192.0.2.77,52:54:00:00:00:77")
    pair.follow("shim", "install")
    pair.follow("shim", "uninstall")
    pair.follow("shim", "down")


def test_shims_hosts_and_images(pair: Pair) -> None:
    mac = "52:54:00:00:00:77"
    pair.follow("shim", "up", "eth0", "--to", f"192.0.2.77,{mac}", "--to", f"2001:db8::77,{mac}")
    pair.follow("shim", "forget", "2001:db8::77")
    pair.follow("shim", "down", "eth0")
    pair.follow("shim", "up")
    pair.follow("shim", "forget", "192.0.2.77")
    pair.follow("shim", "down")
    pair.follow("create", *WEB, "--no-start", "--ip", "192.0.2.11/24")
    pair.follow("hosts", "--write")
    pair.follow("delete", "web")
    pair.follow("hosts", "--write")
    pair.follow("image", "delete", "tiny")
