"""`lab export` and the way back, `lab status`, what a program does with a lab, and VMs chosen by lab, label and glob.

No guest is waited for: what is looked at is libvirt's, the kernel's and the store's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from provisioner.resources import resource
from tests.sandbox.kvm_host import KvmHost
from tests.sandbox.test_json import valid

pytestmark = pytest.mark.xdist_group("lab export")

FILE = "/run/exported/macvm.yaml"
INNER = "<network><name>inner</name><bridge name='inner0'/></network>"


@pytest.fixture(scope="module", autouse=True)
def zoo(host: KvmHost) -> Iterator[None]:
    """Machines, networks and endpoints of all sorts, made one by one."""
    host.clear()
    host.sh(f'mkdir /run/exported; virsh net-define /dev/stdin <<< "{INNER}"; virsh net-start inner')
    host.macvm("network", "create", "lan", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.40-192.0.2.50", "--subnet",
               "2001:db8::/64", "--gateway", "2001:db8::1", "--dns", "192.0.2.53", "--aux-address", "printer=192.0.2.41",
               "--mtu", "1400")  # fmt: skip
    host.macvm("network", "create", "quiet", "--subnet", "198.51.100.0/24", "--mode", "private", "--no-shim")
    host.create("web", "--network", "lan", "--nic", "libvirt=inner", "--lab", "zoo", "--label", "role=web", "--label",
                "on=5 $HOME: {'", "--nic", "mode=vepa,ip=none,mtu=1300")  # fmt: skip
    off = ("--no-start", "--lab", "zoo")
    host.macvm("create", "db", "--ip", "192.0.2.60/24", "--gateway", "192.0.2.9", "--dns", "192.0.2.8", "--ip",
               "2001:db8::60/64", "--vcpus", "2", "--disk", "3G", "--autostart", "--label", "role=db", *off)  # fmt: skip
    host.macvm("create", "no", "--nic", "network=lan,ip=192.0.2.45", "--nic", "network=quiet", "--firmware", "uefi",
               "--memory", "100M", *off)  # fmt: skip
    host.create("asks", "--no-shim", *off)
    host.create("alone", "--no-start", "--ip", "192.0.2.64/24")
    for words in ("pool --network lan", "one --network lan --ip 192.0.2.49", "none --parent eth0 --mode private",
                  "sources --parent eth0 --mode source --allow-source 52:54:00:00:00:01 --ip 192.0.2.65/24"):  # fmt: skip
        host.macvm("endpoint", "create", *words.split())
    yield
    host.macvm("lab", "down", "zoo", "--yes")
    host.clear()
    host.macvm("endpoint", "delete", "pool", "one", "none", "sources")
    host.macvm("network", "delete", "lan", "quiet")
    host.sh("virsh net-destroy inner; virsh net-undefine inner; rm -rf /run/libvirt/network/inner /run/exported")


def export(host: KvmHost, *words: str) -> tuple[str, str]:
    done = host.macvm("lab", "export", *words)
    host.node.run(["tee", FILE], input=done.stdout, check=True)
    return done.stdout, done.stderr


def shape(host: KvmHost) -> Any:
    """The machines, without what each one anew has another of."""
    machines = [one for one in host.json("list") if one["kind"] == "machine"]
    for machine in machines:
        machine.pop("uuid")
        for nic in machine["nics"]:
            for key in ("mac", "device", "carrier"):
                nic.pop(key)
            nic["addresses"] = [one["address"] for one in nic["addresses"]]
    return machines


# --- export -----------------------------------------------------------------------------------------------------------


def test_a_plan_of_what_was_exported_is_empty(host: KvmHost) -> None:
    file, notes = export(host, "--lab", "zoo")
    assert notes == ""
    assert "  web:\n" in file
    assert "alone" not in file
    plan = host.macvm("lab", "plan", FILE, "--exit-code")
    assert plan.stdout == "zoo: nothing to change\n"


def test_and_when_all_is_gone_it_makes_the_same_again(host: KvmHost) -> None:
    file, _ = export(host, "--lab", "zoo")
    before = shape(host)
    host.macvm("delete", "--yes", "--lab", "zoo")
    host.macvm("lab", "up", FILE)
    assert shape(host) == before
    assert export(host, "--lab", "zoo") == (file, "")
    assert host.macvm("lab", "plan", FILE, "--exit-code").stdout == "zoo: nothing to change\n"


def test_endpoints_and_vms_of_no_lab(host: KvmHost) -> None:
    file, notes = export(host, "alone", "pool", "one", "none", "sources")
    assert "these VMs are of no lab" in notes
    host.macvm("delete", "--yes", "alone")
    host.macvm("lab", "up", FILE)
    assert host.macvm("lab", "plan", FILE, "--exit-code").stdout == "exported: nothing to change\n"
    # The endpoints were there before: what the lab made is the VM.
    host.macvm("lab", "down", "exported", "--yes")
    assert len(host.json("endpoint", "list")) == 4
    host.create("alone", "--no-start", "--ip", "192.0.2.64/24")
    assert export(host, "alone", "pool", "one", "none", "sources") == (file, notes)


def test_kernels_and_screens_are_in_it_and_of_a_template_is_said_that_it_is_not(host: KvmHost) -> None:
    host.sh("touch /run/exported/k /run/exported/i")
    booted = ("--kernel", "/run/exported/k", "--initrd", "/run/exported/i", "--cmdline", "root=$x: y")
    try:
        host.create("boots", "--no-start", "--lab", "own", "--vnc=127.0.0.1:5907", *booted)
        host.create("seen", "--no-start", "--lab", "own", "--vnc")
        file, notes = export(host, "--lab", "own")
        assert notes == ""
        for line in ('kernel: "/run/exported/k"', 'initrd: "/run/exported/i"', 'cmdline: "root=$$x: y"',
                     'vnc: "127.0.0.1:5907"', "vnc: true"):  # fmt: skip
            assert f"    {line}\n" in file
        assert host.macvm("lab", "plan", FILE, "--exit-code").stdout == "own: nothing to change\n"
        # What somebody made of it since is drift.
        host.sh("virsh dumpxml boots | sed s,exported/k,exported/i, | virsh define /dev/stdin")
        drift = (
            "own: 0 to add, 1 to change, 0 to remove\n~ vm boots: definition  (kernel, initrd or cmdline is another)\n"
        )
        assert host.macvm("lab", "plan", FILE, "--exit-code", status=8).stdout == drift
        host.create("shaped", "--no-start", "--template", resource("templates", "q35.xml"))
        assert "note: vm shaped is not as the file has it: template is not in it\n" in export(host, "shaped")[1]
    finally:
        host.macvm("delete", "--yes", "boots", "seen", "shaped")
        host.sh("rm /run/exported/k /run/exported/i")


def test_what_it_cannot_say_is_said(host: KvmHost) -> None:
    _, notes = export(host, "db", "--lab", "zoo")
    assert "note: vm web is not in the file: `lab up` of it would remove that\n" in notes
    found = valid(host.json("lab", "export", "--lab", "zoo"), "lab-export.json")
    assert found["lab"] == "zoo"
    assert host.macvm("lab", "export", "--lab", "zoo", "-o", "name").stdout == "asks\ndb\nno\nweb\n"
    several = host.macvm("lab", "export", status=2).stderr
    assert several.startswith("error: these VMs are of several labs: none, zoo\n")
    assert "has no VM" in host.macvm("lab", "export", "--lab", "other", status=3).stderr


# --- status -----------------------------------------------------------------------------------------------------------


def things(host: KvmHost, *words: str) -> dict[str, Any]:
    found = valid(json.loads(host.macvm("lab", "status", *words, "-o", "json").stdout), "lab-status.json")
    return {one["name"]: one for one in found["things"]}


def test_status_shows_what_somebody_changed(host: KvmHost) -> None:
    export(host, "--lab", "zoo")
    assert {name: one["differs"] for name, one in things(host, FILE).items() if one["differs"]} == {}
    web = things(host, FILE)["web"]
    assert web["wanted"] == web["real"] == "running, bridge on lan, libvirt network inner, vepa on eth0"
    assert web["addresses"][0] == host.json("ip", "web")["address"]
    host.sh("virsh destroy web; virsh setvcpus db 1 --config --maximum; virsh setvcpus db 1 --config")
    host.macvm("delete", "--yes", "asks")
    found = things(host, FILE)
    assert found["web"]["differs"] == ["it is off"]
    assert found["db"]["differs"] == ["vcpus 1 → 2"]
    assert (found["asks"]["real"], found["asks"]["differs"]) == (None, ["there is none"])
    assert set(things(host, FILE, "web", "no")) == {"web", "no"}
    table = host.macvm("lab", "status", FILE).stdout
    assert table.startswith("KIND     NAME   WANTED")
    host.macvm("lab", "up", FILE)
    assert {name: one["differs"] for name, one in things(host, FILE).items() if one["differs"]} == {}
    host.macvm("lab", "status", FILE, "nobody", status=3)


def test_status_of_a_lab_whose_file_is_gone(host: KvmHost) -> None:
    host.sh(f"rm {FILE}")
    found = things(host, "zoo")
    assert set(found) == {"asks", "db", "no", "web"}
    assert {one["wanted"] for one in found.values()} == {None}
    assert "the lab's file is gone" in host.macvm("lab", "status", "zoo").stderr


# --- from Python ------------------------------------------------------------------------------------------------------

PROGRAM = """
import json, sys
from provisioner import Lab

lab = Lab.load(sys.argv[1])
planned = lab.plan()
events = []
up = lab.up(watch=events.append)
status = lab.status()
again = lab.plan()
smaller = lab._replace(machines=lab.machines[:1])
try:
    smaller.up()
except Exception as error:
    refused = str(error)
left = smaller.up(destroy=True)
down = lab.down()
print(json.dumps({
    "planned": [(change.what, change.kind, change.name) for change in planned.changes],
    "whole": up.is_whole, "done": sorted(up.done), "events": sorted({event.name for event in events if event.state == "done"}),
    "real": {one.name: one.real for one in status.things},
    "again": len(again.changes), "refused": refused, "left": left.done, "down": sorted(down.done),
}))
"""


def test_a_lab_is_an_api(host: KvmHost) -> None:
    file = "lab: api\nvms: {api: {count: 2, image: tiny, memory: 128M, start: false, nics: [{network: net}]}}\n"
    file += "networks: {net: {subnets: [{subnet: 192.0.2.0/24, range: 192.0.2.80/29}]}}\n"
    host.node.run(["tee", "/run/exported/api.yaml"], input=file, check=True)
    before = host.json("list"), host.json("network", "list"), host.json("lab", "list")
    done = host.node.run([sys.executable, "-c", PROGRAM, "/run/exported/api.yaml"], check=True, timeout=150)
    assert (host.json("list"), host.json("network", "list"), host.json("lab", "list")) == before
    assert json.loads(done.stdout) == {
        "planned": [["+", "network", "net"], ["+", "vm", "api-1"], ["+", "vm", "api-2"]],
        "whole": True,
        "done": ["api-1", "api-2", "net"],
        "events": ["api-1", "api-2"],
        "real": {"net": "bridge on eth0, 192.0.2.0/24", "api-1": "off, bridge on net", "api-2": "off, bridge on net"},
        "again": 0,
        "refused": "the lab api has api-2 no more, whose disks would be lost",
        "left": ["api-2"],
        "down": ["api-1", "net"],
    }


# --- VMs by lab, label and glob ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--lab zoo", "asks db no web"),
        ("--lab zoo -l role=db", "db"),
        ("w?b [d]b", "db web"),
        ("a* --lab zoo", "asks"),
        ("web db", "web db"),
    ],
)
def test_vms_are_chosen(host: KvmHost, words: str, names: str) -> None:
    assert host.macvm("autostart", "off", *words.split(), "-o", "name").stdout.split() == names.split()


def test_delete_asks_naming_those_that_are_meant(host: KvmHost) -> None:
    refused = host.macvm("delete", "a*", "-l", "role=web", status=3)
    assert refused.stderr.startswith("error: no VM is meant by a* -l role=web\n")
    asked = host.macvm("delete", "--lab", "zoo", status=2)
    assert asked.stderr.startswith("error: Delete asks, db, no, web with their disks?")
    assert host.macvm("start", status=2).stderr.startswith("error: no VM is named\n")
    host.macvm("stop", "nobody", "--lab", "zoo", status=3)
    done = host.macvm("stop", "--force", "-l", "role=web", "--lab", "zoo", "-o", "name")
    assert done.stdout == "web\n"
    assert "virsh undefine" in host.macvm("delete", "w*", "--dry-run").stdout
    assert host.macvm("delete", "--yes", "--lab", "zoo", "-o", "name").stdout == "asks\ndb\nno\nweb\n"
