"""`macvm nic`: NICs of running guests and of definitions, of VMs that macvm made and of those that others made.

The guests are shared by the tests of this module and boot side by side: `web1` has two NICs, `talk` has a guest agent,
`byhand` is virt-install's, on i440fx. Machines that need no operating system are called `hollow`.
"""

from __future__ import annotations

import difflib
import json
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from provisioner.host.tiny import CMDLINE
from tests.conftest import Require
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import STATE, KvmHost, assert_same, complaints
from tests.sandbox.test_json import valid
from tests.sandbox.test_kill import macvm as driven

pytestmark = pytest.mark.xdist_group("nics")

SHIM = "mv-eth0"

#: Serves what the guest sees of its NICs, with as few processes as can be: an emulated CPU takes its time for each.
SEES = r"""#!/bin/sh
cat > /www/cgi-bin/nics <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
cd /sys/class/net
for nic in eth*; do
    carrier=-
    read -r mac < $nic/address; read -r carrier 2>/dev/null < $nic/carrier
    echo "nic $mac $nic $carrier"
done
ls -l
ip -o address show scope global
END
chmod +x /www/cgi-bin/nics
"""

#: As much of qemu-ga as macvm asks for. libvirt sends one JSON object a line.
AGENT = r"""
port=$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name); port=${port%/name}
exec 3<> /dev/${port##*/}
while :; do
    read -r line <&3 || { sleep 0.2; continue; }
    case $line in
        *'"guest-sync'*) id=${line##*'"id":'}; answer=${id%%[!0-9]*} ;;
        *'"guest-network-get-interfaces"'*)
            answer=
            for nic in /sys/class/net/*; do
                answer="$answer${answer:+,}{\"name\":\"${nic##*/}\",\"hardware-address\":\"$(cat $nic/address)\"}"
            done
            answer="[$answer]" ;;
        *'"guest-exec"'*)
            words=$(echo "$line" | sed 's/.*"path":"//; s/\].*//; s/"arg":\[//; s/[",]/ /g')
            said=$($words 2>&1); status=$?; answer='{"pid":7}' ;;
        *'"guest-exec-status"'*)
            answer="{\"exited\":true,\"exitcode\":$status,\"err-data\":\"$(echo "$said" | base64 | tr -d '\n')\"}" ;;
        *) answer='{}' ;;
    esac
    echo "{\"return\":$answer}" >&3
done
"""

#: Somebody's own machine, with much that macvm knows nothing of, and nothing to boot.
HOLLOW = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <!-- made by hand -->
  <name>hollow</name>
  <title>somebody's own</title>
  <metadata>
    <theirs:box xmlns:theirs='urn:theirs'><theirs:owner since='2019'>Zoë</theirs:owner><!-- kept --></theirs:box>
  </metadata>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <features><acpi/><vmport state='off'/></features>
  <devices>
    <controller type='usb' model='none'/>
    <!-- a watchdog -->
    <watchdog model='i6300esb' action='none'/>
    <serial type='pty'/>
    <memballoon model='none'/>
    {devices}
  </devices>
  <qemu:commandline><qemu:env name='THEIRS' value='1'/></qemu:commandline>
</domain>
"""

DIRECT = (
    "<interface type='direct'><mac address='{}'/><source dev='eth0' mode='bridge'/><model type='virtio'/></interface>"
)


def mac(number: int) -> str:
    return f"52:54:00:00:01:{number:02x}"


def device(number: int) -> str:
    return f"mt-{mac(number).replace(':', '')}"


class Seen(NamedTuple):
    """A NIC as its guest has it."""

    name: str
    carrier: str
    slot: str
    addresses: tuple[str, ...]


class Lab(KvmHost):
    """A host with a second link, `eth1`, at whose far end the host itself is 198.51.100.1."""

    def nic(self, *words: object, status: int = 0) -> Any:
        """The result of a `macvm nic …` that changes something."""
        done = self.macvm("nic", *words, "-o", "json", status=status)
        if status:
            assert done.stdout == ""
            return complaints(done.stderr)
        return valid(json.loads(done.stdout), "nic-change.json")

    def nics(self, name: str) -> dict[str, Any]:
        listed = valid(self.json("nic", "list", name), "nic-list.json")
        return {nic["mac"]: nic for nic in listed}

    def dump(self, name: str, *words: str) -> ET.Element:
        return ET.fromstring(self.sh(f"virsh dumpxml {name} {' '.join(words)}"))

    def live(self, name: str, which: str) -> ET.Element | None:
        return _find(self.dump(name), which)

    def saved(self, name: str, which: str) -> ET.Element | None:
        return _find(self.dump(name, "--inactive"), which)

    def halves(self, name: str, which: str) -> tuple[bool, bool]:
        """Whether the running machine has it, and whether its definition has."""
        return self.live(name, which) is not None, self.saved(name, which) is not None

    def link(self, name: str) -> Any:
        """The kernel's own word on a link."""
        return json.loads(self.sh(f"ip -d -j link show {name}"))[0]

    def routes(self) -> str:
        return self.sh(f"ip route; ip -6 route; ip neigh show dev {SHIM}; ip -6 neigh show dev {SHIM}; :")

    def seen(self, address: str, *, seconds: int = 30) -> dict[str, Seen]:
        """What a guest sees of its NICs, by MAC."""
        ask = f"until curl -sfg -m 10 -o /run/seen http://{address}/cgi-bin/nics; do sleep 0.1; done; cat /run/seen"
        text = self.sh(f"timeout {seconds} bash -c '{ask}'", timeout=seconds + 5)
        found = {}
        for which, name, carrier in re.findall(r"^nic (\S+) (\S+) (\S+)$", text, re.MULTILINE):
            (where,) = re.findall(rf" -> \S+/([0-9a-f:.]+)(?:/virtio\d+)?/net/{name}$", text, re.MULTILINE)
            addresses = re.findall(rf"^\d+: {name} +inet6? (\S+) ", text, re.MULTILINE)
            found[which] = Seen(name, carrier, where, tuple(addresses))
        return found

    def wait_for(
        self, address: str, which: str, *, carrier: str = "1", addresses: tuple[str, ...] | None = None
    ) -> None:
        """Until the guest at `address` sees the NIC so."""
        deadline = time.monotonic() + 30
        while True:
            seen = self.seen(address)
            nic = seen.get(which)
            if nic and nic.carrier == carrier and addresses in (None, nic.addresses):
                return
            assert time.monotonic() < deadline, seen

    @contextmanager
    def hollow(self, machine: str = "q35", devices: str = "", *, start: bool = True) -> Iterator[str]:
        self.sh(f"cat > /run/hollow.xml <<'END'\n{HOLLOW.format(machine=machine, devices=devices)}\nEND\n"
                f"virsh define /run/hollow.xml{' && virsh start hollow' if start else ''}")  # fmt: skip
        self.settle_addresses()
        try:
            yield "hollow"
        finally:
            # Who undefines behind macvm's back leaves what macvm knows of it to gc.
            self.sh("virsh destroy hollow; virsh undefine hollow; macvm gc")

    def xml(self, name: str) -> list[str]:
        """Both halves of a machine: NICs in the order of their MACs, without what says nothing: libvirt's names for devices,
        which it gives anew at each attach, a link that is up, and whether an agent has been heard."""
        halves = []
        for words in ("", "--inactive"):
            text = re.sub(
                r"\n *<(alias name='\w+'|link state='up')/>| state='(dis)?connected'",
                "",
                self.sh(f"virsh dumpxml {name} {words}"),
            )
            text = re.sub(r">\s*</controller>", "/>", text)
            nics = re.findall(r" *<interface .*?</interface>\n", text, re.DOTALL)
            for nic in nics:
                text = text.replace(nic, "")
            halves += [text, *sorted(nics, key=lambda nic: re.findall("<mac address='(.*)'/>", nic))]
        return "".join(halves).splitlines()

    def host_state(self) -> dict[str, list[str]]:
        """The host without the names and times that every replug gives anew."""
        state = self.state()
        rows = [re.sub(r",'[-0-9T:]+Z'\);", "", row) for row in state["rows"]]
        # A passthrough macvtap takes its allmulticast with it when it is gone, but not the parent's count of it: the kernel
        # takes that back from macvlans in other modes alone (macvlan_stop).
        links = [re.sub(r" state \w+| allmulti \d+", "", link) for link in state["links"]]
        return {**state, "links": links, "rows": rows, "taps": []}

    @contextmanager
    def same(self, name: str) -> Iterator[None]:
        """Holds what happens inside to leaving the host and both halves of a machine as they were."""
        xml, host = self.xml(name), self.host_state()
        yield
        different = list(difflib.unified_diff(xml, self.xml(name), n=0, lineterm=""))
        assert not different, "\n".join(different)
        assert_same(host, self.host_state())

    def leased(self, which: str) -> str:
        """The address that the LAN's DHCP server gave."""
        script = f"timeout 60 bash -c 'until grep {which} /run/macvm-dhcp.leases; do sleep 0.2; done'"
        return self.sh(script, node=self.lan, timeout=70).split()[2]


def _find(domain: ET.Element, which: str) -> ET.Element | None:
    return next(
        (nic for nic in domain.iterfind("devices/interface") if nic.find(f"mac[@address='{which}']") is not None), None
    )


def slot(nic: ET.Element | None) -> dict[str, str]:
    assert nic is not None
    address = nic.find("address")
    assert address is not None
    return address.attrib


def attributes(nic: ET.Element | None, tag: str) -> dict[str, str]:
    found = None if nic is None else nic.find(tag)
    return {} if found is None else found.attrib


@pytest.fixture(scope="module")
def lab(require: Require) -> Iterator[Lab]:
    with make_sandbox() as box:
        lab = Lab(box)
        require(lab.node.run(["which", "virt-install"]).returncode == 0, "virt-install is not installed (virtinst)")
        lab.sh("ip link add eth1 type veth peer far1; ip link set eth1 addrgenmode none up; ip link set far1 addrgenmode none up;"
               "ip address add 198.51.100.1/24 dev far1")  # fmt: skip
        lab.sh(f"cat > /run/sees <<'SEES'\n{SEES}\nSEES\ncat /run/sees - > /run/talks <<'TALKS'\n{AGENT}\nTALKS")
        lab.macvm("image", "build", "tiny")
        lab.macvm("create", "web1", "--memory", "192", "--ip", "192.0.2.11/24", "--nic", f"parent=eth0,ip=198.51.100.11/24,mac={mac(2)}",
                   "--user-data", "/run/sees")  # fmt: skip
        lab.macvm("create", "talk", "--memory", "192", "--ip", "192.0.2.12/24", "--user-data", "/run/talks")
        lab.sh(f"virt-install --name byhand --memory 192 --virt-type qemu --machine pc --import --disk none --noautoconsole "
               f"--boot kernel=$(ls {STATE}/images/*.vmlinuz),initrd=$(ls {STATE}/images/*.initrd),kernel_args='{CMDLINE}' "
               f"--network type=direct,source=eth0,source.mode=bridge,mac={mac(3)},model=virtio --graphics none "
               f"--osinfo detect=off,require=off", timeout=90)  # fmt: skip
        for address in ("192.0.2.11", "192.0.2.12"):
            lab.page(address, "cgi-bin/nics", seconds=120)
        yield lab


# --- attach ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plugged(lab: Lab) -> dict[str, Any]:
    """NICs of every scope, attached to the running web1."""
    return {
        "both": lab.nic("attach", "web1", "--mac", mac(0x21), "--ip", "192.0.2.21/24", "--ip", "2001:db8::21/64", "--mtu", 1400),
        "live": lab.nic("attach", "web1", "--mac", mac(0x22), "--live"),
        "config": lab.nic("attach", "web1", "--mac", mac(0x23), "--config", "--model", "e1000e", "--trust-guest-filters",
                          "--mode", "vepa", "--ip", "203.0.113.23/24"),
        "persistent": lab.nic("attach", "web1", "--mac", mac(0x24), "--persistent", "--mode", "private", "--ip", "none"),
        "current": lab.nic("attach", "web1", "--mac", mac(0x25), "--current"),
    }  # fmt: skip


def test_attach_says_what_it_did(plugged: dict[str, Any]) -> None:
    both = plugged["both"]
    assert (both["machine"], both["nic"]["mac"]) == ("web1", mac(0x21))
    assert [address["address"] for address in both["nic"]["addresses"]] == ["192.0.2.21", "2001:db8::21"]
    assert not both["applied_in_guest"]
    assert both["reason"] == "no guest agent answers; its seed has the address from the next boot on"
    where = {scope: (result["live"], result["config"]) for scope, result in plugged.items()}
    assert where == {"both": (True, True), "live": (True, False), "config": (False, True), "persistent": (True, True),
                     "current": (True, False)}  # fmt: skip


def test_attach_changes_the_halves_that_it_names(lab: Lab, plugged: dict[str, Any]) -> None:
    assert [lab.halves("web1", mac(number)) for number in range(0x21, 0x26)] == [
        (True, True), (True, False), (False, True), (True, True), (True, False)
    ]  # fmt: skip


def test_the_guest_sees_them(lab: Lab, plugged: dict[str, Any]) -> None:
    for number in (0x21, 0x22, 0x24, 0x25):
        lab.wait_for("192.0.2.11", mac(number))
    assert mac(0x23) not in lab.seen("192.0.2.11")


def test_the_definition_says_mode_model_and_filters(lab: Lab, plugged: dict[str, Any]) -> None:
    modes = {number: attributes(lab.saved("web1", mac(number)), "source") for number in (0x21, 0x23, 0x24)}
    assert modes == {
        number: {"dev": "eth0", "mode": mode} for number, mode in ((0x21, "bridge"), (0x23, "vepa"), (0x24, "private"))
    }
    assert attributes(lab.saved("web1", mac(0x23)), "model") == {"type": "e1000e"}
    assert attributes(lab.saved("web1", mac(0x21)), "model") == {"type": "virtio"}
    trust = {number: lab.saved("web1", mac(number)).get("trustGuestRxFilters") for number in (0x21, 0x23)}  # type: ignore[union-attr]
    assert trust == {0x21: "no", 0x23: "yes"}


def test_the_slot_is_the_same_live_and_saved(lab: Lab, plugged: dict[str, Any]) -> None:
    for number in (0x21, 0x24):
        assert slot(lab.live("web1", mac(number))) == slot(lab.saved("web1", mac(number)))


def host_state(lab: Lab, number: int) -> tuple[bool, str, int, str]:
    """allmulticast, disable_ipv6, MTU and mode of a NIC's host device."""
    link = lab.link(device(number))
    ipv6 = lab.sh(f"cat /proc/sys/net/ipv6/conf/{device(number)}/disable_ipv6").strip()
    return "ALLMULTI" in link["flags"], ipv6, link["mtu"], link["linkinfo"]["info_data"]["mode"]


def test_the_hosts_side_lets_multicast_in_and_takes_no_address(lab: Lab, plugged: dict[str, Any]) -> None:
    assert host_state(lab, 0x21) == (True, "1", 1400, "bridge")
    assert host_state(lab, 0x22) == (True, "1", 1500, "bridge")
    assert host_state(lab, 0x24) == (True, "1", 1500, "private")
    assert lab.sh(f"ip -6 address show dev {device(0x21)}") == ""


def test_the_shim_knows_the_new_address(lab: Lab, plugged: dict[str, Any]) -> None:
    for address in ("192.0.2.21", "2001:db8::21"):
        assert re.search(rf"^{address} dev {SHIM} proto 109 ", lab.routes(), re.MULTILINE)
        assert re.search(rf"^{address} lladdr {mac(0x21)} PERMANENT", lab.routes(), re.MULTILINE)
    assert "203.0.113.23" not in lab.routes(), "a NIC that is not running has no route yet"


@pytest.fixture(scope="module")
def restarted(lab: Lab, plugged: dict[str, Any]) -> dict[str, Seen]:
    """What web1 sees after its power was cut and macvm started it again."""
    lab.macvm("stop", "--force", "web1")
    lab.macvm("start", "web1")
    return lab.seen("192.0.2.21", seconds=120)


def test_after_a_restart_the_saved_ones_are_there_with_their_addresses(restarted: dict[str, Seen]) -> None:
    assert {which: nic.addresses for which, nic in restarted.items() if which.startswith(mac(0x20)[:-1])} == {
        mac(0x21): ("192.0.2.21/24", "2001:db8::21/64"), mac(0x23): ("203.0.113.23/24",), mac(0x24): ()
    }  # fmt: skip


def test_after_a_restart_the_host_reaches_the_new_address(lab: Lab, restarted: dict[str, Seen]) -> None:
    lab.sh("ping -c1 -W2 192.0.2.21; ping -c1 -W2 2001:db8::21")


@pytest.mark.parametrize("again", [False, True])
def test_the_hosts_side_is_set_at_every_start(lab: Lab, restarted: dict[str, Seen], again: bool) -> None:
    if again:
        lab.sh("virsh destroy web1")
        lab.macvm("start", "web1")
    assert host_state(lab, 0x21) == (True, "1", 1400, "bridge")
    assert host_state(lab, 0x23) == (True, "1", 1500, "vepa")
    assert host_state(lab, 0x24) == (True, "1", 1500, "private")
    assert lab.halves("web1", mac(0x22)) == lab.halves("web1", mac(0x25)) == (False, False)


def test_an_agent_applies_the_address_at_once(lab: Lab) -> None:
    with lab.same("talk"):
        done = lab.nic("attach", "talk", "--mac", mac(0x31), "--ip", "192.0.2.31/24", "--ip", "2001:db8::31/64")
        assert (done["applied_in_guest"], done["reason"]) == (True, "")
        assert lab.seen("192.0.2.31", seconds=5)[mac(0x31)].addresses == ("192.0.2.31/24", "2001:db8::31/64")
        changed = lab.nic("set", "talk", mac(0x31), "--ip", "192.0.2.32/24")
        assert changed["applied_in_guest"]
        assert lab.seen("192.0.2.32", seconds=5)[mac(0x31)].addresses == ("192.0.2.32/24",)
        lab.nic("detach", "talk", mac(0x31))


def test_a_machine_that_is_off_gets_it_saved(lab: Lab) -> None:
    with lab.hollow(start=False):
        done = lab.nic("attach", "hollow", "--mac", mac(0x41), "--ip", "192.0.2.41/24")
        assert (done["live"], done["config"], done["applied_in_guest"]) == (False, True, False)
        assert (
            done["reason"] == "hollow is off, and macvm has no seed to tell it by; set it in the guest: 192.0.2.41/24"
        )
        assert (
            lab.nic("attach", "hollow", "--current", "--mode", "passthru", "--parent", "eth1")["nic"]["mode"]
            == "passthrough"
        )
        assert lab.nic("attach", "hollow", "--live", status=2)[0][0] == "hollow is off: there is nothing live to change"
        assert "192.0.2.41" not in lab.routes()
        lab.macvm("start", "hollow")
        assert f"192.0.2.41 lladdr {mac(0x41)} PERMANENT" in lab.routes()
        assert host_state(lab, 0x41) == (True, "1", 1500, "bridge")
        lab.sh("virsh destroy hollow")
        lab.nic("detach", "hollow", mac(0x41))
        assert "192.0.2.41" not in lab.routes()


def test_a_transient_machine_has_nothing_to_save(lab: Lab) -> None:
    with lab.hollow():
        lab.sh("virsh undefine hollow")
        assert "is transient" in lab.nic("attach", "hollow", "--config", status=2)[0][0]
        done = lab.nic("attach", "hollow")
        assert (done["live"], done["config"]) == (True, False)


@pytest.mark.parametrize("words", [("--live", "--current"), ("--config", "--current")])
def test_scopes_that_exclude_one_another(lab: Lab, words: tuple[str, ...]) -> None:
    assert "exclude one another" in lab.nic("attach", "web1", *words, status=2)[0][0]


def test_mode_source_is_refused(lab: Lab) -> None:
    done = lab.macvm("nic", "attach", "web1", "--mode", "source", status=2)
    assert "source is not possible for a VM's NIC" in done.stderr
    assert "endpoint" in done.stderr


@pytest.mark.parametrize(
    ("machine", "filled", "said", "hint"),
    [
        ("q35", 0, "a q35 machine with {slots} slots for hot-plugged devices, {slots} taken", "pcie-root-port"),
        (
            "pc",
            24,
            "a i440fx machine with {slots} slots for hot-plugged devices, {slots} taken",
            "make the machine a q35",
        ),
    ],
)
def test_no_free_slot_is_counted(lab: Lab, machine: str, filled: int, said: str, hint: str) -> None:
    devices = "".join(DIRECT.format(mac(0x50 + number)) for number in range(filled))
    with lab.hollow(machine, devices):
        for number in range(0x80, 0x90):
            done = lab.node.run(["macvm", "nic", "attach", "hollow", "--mac", mac(number), "--live"])
            if done.returncode:
                break
        assert number > 0x80, done.stderr
        assert done.returncode == 5
        ((error, advice),) = complaints(done.stderr)
        taken = re.search(r"(\d+) taken", error)
        assert taken, error
        assert error.endswith(said.format(slots=taken[1]))
        assert hint in advice
        ports = lab.dump("hollow").findall("devices/controller[@model='pcie-root-port']")
        assert int(taken[1]) == (len(ports) if machine == "q35" else 30)
        assert not any(lab.halves("hollow", mac(number)))
        assert device(number) not in lab.sh("ip link")


def test_a_mac_in_use_is_refused_with_its_holder(lab: Lab, plugged: dict[str, Any]) -> None:
    lab.nic("attach", "talk", "--mac", mac(0x61), "--ip", "none", "--config")
    lab.sh(f"virsh detach-interface talk direct --mac {mac(0x61)} --config")
    with lab.same("talk"):
        for taken, holder in (
            (mac(3), "machine byhand"),
            (mac(0x21), "machine web1"),
            (lab.link("eth1")["address"], "the link eth1"),
            (lab.link(SHIM)["address"], f"the link {SHIM}"),
            (mac(0x61), "machine talk"),
        ):
            ((error, _),) = lab.nic("attach", "talk", "--mac", taken, status=4)
            assert error == f"MAC {taken} is in use by {holder}"
        assert (
            lab.nic("attach", "talk", "--ip", "192.0.2.11/24", status=4)[0][0]
            == "address 192.0.2.11 is held by machine web1"
        )


def test_two_at_once(lab: Lab) -> None:
    words = ["macvm", "nic", "attach", "talk", "--ip", "none", "--mac"]
    with lab.same("talk"):
        with lab.node.start([*words, mac(0x71)]) as one, lab.node.start([*words, mac(0x72)]) as other:
            ended = [(process.wait(30), process.stderr) for process in (one, other)]
        assert [status for status, _ in ended] == [0, 0], ended
        assert lab.halves("talk", mac(0x71)) == lab.halves("talk", mac(0x72)) == (True, True)
        for number in (0x71, 0x72):
            lab.nic("detach", "talk", mac(number))


@pytest.fixture
def dhcp(lab: Lab, restarted: dict[str, Seen]) -> Iterator[None]:
    """A DHCP server on the LAN, once no NIC of the other guests asks for one."""
    lab.nodes.dhcp(True)
    yield
    lab.nodes.dhcp(False)


def test_a_vm_of_virt_install_gets_one_and_answers_on_it(lab: Lab, dhcp: None) -> None:
    first = lab.leased(mac(3))
    with lab.same("byhand"):
        done = lab.nic("attach", "byhand", "--mac", mac(0x33))
        assert (done["live"], done["config"]) == (True, True)
        second = lab.leased(mac(0x33))
        assert lab.page(second, node=lab.lan).splitlines() == ["tiny", f"{first}/24 eth0", f"{second}/24 eth1"]
        assert (
            "no guest agent answers, and macvm has no seed"
            in lab.nic("attach", "byhand", "--mac", mac(0x34), "--ip", "192.0.2.34/24")["reason"]
        )
        assert "192.0.2.34" in lab.routes()
        assert [lab.nic("detach", "byhand", mac(number))["live"] for number in (0x33, 0x34)] == [True, True]
        assert "192.0.2.34" not in lab.routes()


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("start", [False, True])
def test_a_machine_of_somebody_else_loses_nothing(lab: Lab, machine: str, start: bool) -> None:
    with lab.hollow(machine, DIRECT.format(mac(0x51)), start=start), lab.same("hollow"):
        lab.nic("attach", "hollow", "--mac", mac(0x52), "--config", "--mode", "vepa", "--ip", "192.0.2.52/24")
        saved = lab.saved("hollow", mac(0x52))
        assert attributes(saved, "source") == {"dev": "eth0", "mode": "vepa"}
        lab.nic("detach", "hollow", mac(0x52), "--config")


# --- detach ---------------------------------------------------------------------------------------------------------


def test_a_nic_has_several_names(lab: Lab) -> None:
    with lab.hollow(start=False):
        for number, words in ((0x51, ()), (0x52, ()), (0x53, ("--parent", "eth1")), (0x54, ()), (0x55, ())):
            lab.nic("attach", "hollow", "--mac", mac(number), *words)
        ((error, hint),) = lab.nic("detach", "hollow", "eth0", status=2)
        assert error == "hollow has 4 NICs: say which NIC 'eth0' means"
        assert hint == "one of: " + "; ".join(f"{mac(number)} (bridge on eth0)" for number in (0x51, 0x52, 0x54, 0x55))
        assert lab.nic("detach", "hollow", "zz", status=3)[0][0] == "hollow does not have a NIC 'zz'"
        ((error, hint),) = lab.nic("detach", "hollow", mac(0x99), status=3)
        assert error == f"hollow does not have a NIC '{mac(0x99)}'"
        assert mac(0x51) in hint
        lab.macvm("nic", "detach", "hollow", status=2)
        names = (mac(0x51).upper(), "01:52", "eth1", device(0x54), "eth0")
        gone = [lab.nic("detach", "hollow", name)["mac"] for name in names]
        assert gone == [mac(0x51), mac(0x52), mac(0x53), mac(0x54), mac(0x55)]


def test_a_guest_that_does_not_let_go(lab: Lab) -> None:
    """Suspended, it cannot. All stays as it was; once it goes on, it does let go after all."""
    lab.nic("attach", "talk", "--mac", mac(0x31), "--ip", "192.0.2.31/24")
    lab.sh("virsh suspend talk")
    with lab.same("talk"):
        ((error, hint),) = lab.nic("detach", "talk", mac(0x31), "--timeout", "1s", status=7)
        assert error == f"the guest talk did not let go of {mac(0x31)} within 1 s; nothing else was changed"
        assert "driver" in hint
        assert lab.halves("talk", mac(0x31)) == (True, True)
        assert "192.0.2.31" in lab.routes()
    lab.sh("virsh resume talk")
    deadline = time.monotonic() + 20
    while lab.live("talk", mac(0x31)) is not None:
        assert time.monotonic() < deadline
    lab.nic("detach", "talk", mac(0x31))
    assert lab.halves("talk", mac(0x31)) == (False, False)
    assert "192.0.2.31" not in lab.routes()


def test_two_nics_of_one_network_are_told_apart(lab: Lab) -> None:
    with lab.same("talk"):
        for number in (0x31, 0x32):
            lab.nic("attach", "talk", "--mac", mac(number), "--ip", f"192.0.2.{number}/24")
        lab.wait_for("192.0.2.12", mac(0x32))
        lab.nic("detach", "talk", mac(0x31))
        assert lab.halves("talk", mac(0x32)) == (True, True)
        seen = lab.seen("192.0.2.12")
        assert mac(0x32) in seen
        assert mac(0x31) not in seen
        assert lab.page("192.0.2.50", "cgi-bin/nics")
        lab.nic("detach", "talk", mac(0x32))


def test_libvirtd_killed_between_attach_and_detach(lab: Lab) -> None:
    with lab.same("talk"):
        lab.nic("attach", "talk", "--mac", mac(0x31), "--ip", "192.0.2.31/24")
        lab.sh("kill -9 $(cat /run/libvirtd.pid); sleep 0.3; libvirtd --daemon --pid-file /run/libvirtd.pid;"
               "timeout 20 sh -c 'until virsh list >/dev/null 2>&1; do sleep 0.1; done'")  # fmt: skip
        lab.nic("detach", "talk", mac(0x31))
        assert device(0x31) not in lab.sh("ip link")


def test_twenty_rounds_leave_nothing_behind(lab: Lab) -> None:
    with lab.same("byhand"):
        for _ in range(20):
            lab.macvm("nic", "attach", "byhand", "--mac", mac(0x33), "--ip", "none")
            lab.macvm("nic", "detach", "byhand", mac(0x33))


# --- set ------------------------------------------------------------------------------------------------------------


def test_the_link_goes_down_and_comes_up_in_the_guest(lab: Lab) -> None:
    for state, carrier in (("down", "0"), ("up", "1")):
        lab.nic("set", "web1", mac(2), "--link", state)
        lab.wait_for("192.0.2.11", mac(2), carrier=carrier)
        assert attributes(lab.saved("web1", mac(2)), "link").get("state") == state
        assert lab.nics("web1")[mac(2)]["link"] == state


@pytest.mark.parametrize("mode", ["vepa", "private", "bridge"])
def test_the_mode_changes_where_it_runs(lab: Lab, mode: str) -> None:
    first = next(nic["mac"] for nic in lab.json("nic", "list", "web1"))
    lab.nic("set", "web1", first, "--mode", mode)
    assert lab.link(f"mt-{first.replace(':', '')}")["linkinfo"]["info_data"]["mode"] == mode
    assert attributes(lab.saved("web1", first), "source")["mode"] == mode
    listed = lab.nics("web1")[first]
    assert (listed["kernel_mode"], listed["mode"]) == (mode, "bridge"), "libvirt's live XML keeps the mode of the start"
    # The switch does not send back here what is for VEPA.
    assert ("192.0.2.11 dev" in lab.routes()) == (mode == "bridge")
    table = next(line for line in lab.macvm("nic", "list", "web1").stdout.splitlines() if first in line)
    assert (mode == "bridge") == ("libvirt" not in table), table
    if mode == "bridge":
        lab.page("192.0.2.11")


@pytest.mark.parametrize("words", [("--mode", "passthrough", "--parent", "eth1"), ("--parent", "eth1")])
def test_what_needs_unplugging_says_what_the_guest_will_see(lab: Lab, words: tuple[str, ...]) -> None:
    with lab.same("web1"):
        ((error, hint),) = lab.nic("set", "web1", mac(2), *words, status=2)
    assert "the guest sees its link gone about" in error
    assert "DHCP asks again; a static address may need setting again" in error
    assert "--replug" in hint


@pytest.mark.parametrize(
    "words", [("--parent", "eth1"), ("--mode", "passthrough", "--parent", "eth1")], ids=["parent", "passthrough"]
)
def test_a_replug_keeps_mac_slot_and_name(lab: Lab, words: tuple[str, ...]) -> None:
    with lab.same("web1"):
        before = lab.live("web1", mac(2)), lab.seen("192.0.2.11")[mac(2)]
        lab.nic("set", "web1", mac(2), *words, "--replug")
        after = lab.live("web1", mac(2))
        assert slot(after) == slot(before[0]) == slot(lab.saved("web1", mac(2)))
        assert attributes(after, "target") == {"dev": device(2)}
        assert attributes(after, "source")["dev"] == "eth1"
        assert "ALLMULTI" in lab.link(device(2))["flags"]
        # The guest finds the NIC in its seed, and answers to the host at the far end of the new parent.
        assert lab.seen("198.51.100.11")[mac(2)] == before[1]
        lab.nic("set", "web1", mac(2), "--parent", "eth0", "--mode", "bridge", "--replug")
        lab.wait_for("192.0.2.11", mac(2), addresses=("198.51.100.11/24",))
        # libvirt takes the parent down when a passthrough NIC leaves it, to give it its MAC back; macvm brings it up.
        assert "UP" in lab.link("eth1")["flags"]
        lab.sh("ip link set eth1 allmulticast off")


@pytest.mark.parametrize("point", ["set:plug:before", "set:plug:after", "set:saved:after"])
def test_a_failing_replug_puts_it_back_and_it_works(lab: Lab, point: str) -> None:
    lab.wait_for("192.0.2.11", mac(2), addresses=("198.51.100.11/24",))
    with lab.same("web1"):
        failed = driven(lab.node, "nic", "set", "web1", mac(2), "--parent", "eth1", "--replug", fail=point)
        assert (failed.returncode, complaints(failed.stderr)) == (1, [(f"made to fail at {point}", "none")])
        lab.wait_for("192.0.2.11", mac(2), addresses=("198.51.100.11/24",))
        # From the LAN, for the host has no address of that subnet on eth0.
        there = "198.51.100.2/24 dev eth0"
        lab.sh(
            f"ip address add {there}; ping -c1 -W5 198.51.100.11; s=$?; ip address del {there}; exit $s", node=lab.lan
        )


@pytest.mark.parametrize("point", ["set:plug:before", "set:plug:after", "set:saved:after"])
@pytest.mark.parametrize("way", ["fail", "kill"])
@pytest.mark.parametrize(("old", "new"), [("bridge", "passthrough"), ("passthrough", "bridge")])
def test_an_undone_replug_leaves_the_parent_as_the_old_mode_needs_it(
    lab: Lab, old: str, new: str, way: str, point: str
) -> None:
    lab.nic("attach", "web1", "--parent", "eth1", "--mode", old, "--mac", mac(0x64), "--ip", "none")
    with lab.same("web1"):
        driven(lab.node, "nic", "set", "web1", mac(0x64), "--mode", new, "--replug", **{way: point})
        lab.macvm("gc")
        assert attributes(lab.live("web1", mac(0x64)), "source") == {"dev": "eth1", "mode": old}
        assert "UP" in lab.link("eth1")["flags"]
        assert lab.sh("cat /proc/sys/net/ipv4/conf/eth1/arp_ignore").strip() == str(int(old == "passthrough"))
    lab.nic("detach", "web1", mac(0x64))
    assert lab.sh("cat /proc/sys/net/ipv4/conf/eth1/arp_ignore").strip() == "0"


@pytest.mark.parametrize("half", ["live", "config"])
def test_a_nic_that_is_in_one_half_is_changed_there(lab: Lab, half: str) -> None:
    with lab.same("web1"):
        lab.nic("attach", "web1", f"--{half}", "--mac", mac(0x65), "--ip", "none")
        changed = lab.nic("set", "web1", mac(0x65), "--parent", "eth1", "--replug")
        assert (changed["live"], changed["config"]) == (half == "live", half == "config")
        there = lab.live("web1", mac(0x65)) if half == "live" else lab.saved("web1", mac(0x65))
        assert attributes(there, "source")["dev"] == "eth1"
        assert lab.halves("web1", mac(0x65)) == (half == "live", half == "config")
        detached = lab.nic("detach", "web1", mac(0x65))
        assert (detached["live"], detached["config"]) == (half == "live", half == "config")


def test_config_changes_only_the_definition(lab: Lab) -> None:
    lab.nic("set", "web1", mac(2), "--parent", "eth1", "--mode", "vepa", "--config")
    assert attributes(lab.saved("web1", mac(2)), "source") == {"dev": "eth1", "mode": "vepa"}
    assert attributes(lab.live("web1", mac(2)), "source")["dev"] == "eth0"
    assert lab.link(device(2))["linkinfo"]["info_data"]["mode"] == "bridge"
    lab.nic("set", "web1", mac(2), "--parent", "eth0", "--mode", "bridge", "--config")


def test_a_new_address_moves_lease_route_neighbour_and_seed(lab: Lab) -> None:
    with lab.same("talk"):
        lab.nic("attach", "talk", "--mac", mac(0x31), "--ip", "192.0.2.31/24")
        lab.nic("set", "talk", mac(0x31), "--ip", "192.0.2.39/24")
        assert [found["address"] for found in lab.nics("talk")[mac(0x31)]["addresses"]] == ["192.0.2.39"]
        assert "192.0.2.31" not in lab.routes()
        assert f"192.0.2.39 lladdr {mac(0x31)} PERMANENT" in lab.routes()
        code = "import sys; from provisioner.host.seeds import read_seed; from pathlib import Path; "
        code += "print(*(read_seed(Path(path))['network-config'].decode() for path in sys.argv[1:]))"
        seed = lab.sh(f'python3 -c "{code}" {STATE}/machines/*/seed.iso')
        assert "192.0.2.39/24" in seed
        assert "192.0.2.31/24" not in seed
        lab.nic("detach", "talk", mac(0x31))


# --- list, and looking without touching -----------------------------------------------------------------------------

COUNTING = """
import collections, contextlib, libvirt
from provisioner.host import netlink
from provisioner.cli.main import main
calls = collections.Counter()
def counted(name, function):
    def call(*words, **named):
        calls[name] += 1
        return function(*words, **named)
    return call
libvirt.virDomain.XMLDesc = counted('xml', libvirt.virDomain.XMLDesc)
netlink.links = counted('links', netlink.links)
with contextlib.suppress(SystemExit):
    main(['nic', 'list', '--all', '-o', 'json'])
import sys; print(calls['xml'], calls['links'], file=sys.stderr)
"""


def test_list_asks_once_for_each_domain_and_once_for_all_links(lab: Lab) -> None:
    done = lab.node.run(["python3", "-c", COUNTING], check=True)
    assert len({nic["machine"] for nic in json.loads(done.stdout)}) == 3
    assert done.stderr.split()[-2:] == ["3", "1"]


def test_list_shows_carrier_and_machines_of_others(lab: Lab) -> None:
    listed = {nic["mac"]: nic for nic in lab.json("nic", "list", "--all")}
    assert listed[mac(3)]["machine"] == "byhand"
    assert listed[mac(3)]["carrier"] is True
    names = lab.macvm("nic", "list", "byhand", "-o", "name").stdout.split()
    assert names == [mac(3)]


@pytest.mark.parametrize(
    "words",
    [
        ("attach", "web1", "--ip", "192.0.2.99/24"),
        ("attach", "web1", "--mode", "passthrough", "--parent", "eth1"),
        ("detach", "web1", mac(2)),
        ("set", "web1", mac(2), "--link", "down"),
        ("set", "web1", mac(2), "--mode", "private"),
        ("set", "web1", mac(2), "--parent", "eth1", "--replug"),
        ("set", "web1", mac(2), "--ip", "192.0.2.99/24"),
    ],
    ids=" ".join,
)
def test_a_dry_run_changes_nothing(lab: Lab, words: tuple[str, ...]) -> None:
    with lab.same("web1"):
        told = lab.macvm("nic", *words, "--dry-run").stdout
    assert re.search(r"^(virsh|ip) ", told, re.MULTILINE), told


def test_a_macvtap_that_somebody_deleted_is_seen_and_plugged_in_again(lab: Lab) -> None:
    first = next(nic["mac"] for nic in lab.json("nic", "list", "web1"))
    lab.sh(f"ip link delete mt-{first.replace(':', '')}")
    assert lab.nics("web1")[first]["link"] == "gone"
    ((error, hint),) = lab.nic("set", "web1", first, "--mode", "vepa", status=3)
    assert "there is no link" in error
    assert "--replug" in hint
    assert "nothing was left unfinished" in lab.macvm("gc").stderr
    lab.nic("set", "web1", first, "--replug")
    assert lab.nics("web1")[first]["link"] == "up"
    lab.page("192.0.2.11")
