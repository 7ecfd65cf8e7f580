"""VMs by name: their addresses from every source, ssh's options, /etc/hosts, and captures over a restart.

The guests are shared by the tests of this module: `web` has a shim route and a NIC on libvirt's network `inner`; `talk` is
private, so that the host reaches it on `inner` alone, and has a guest agent; `mute` was given no address.
"""

from __future__ import annotations

import json
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from provisioner.actions.sandbox import Process
from tests.sandbox.kvm_host import STATE, KvmHost, complaints
from tests.sandbox.test_json import valid

pytestmark = pytest.mark.xdist_group("reaching")

#: As much of qemu-ga as tells addresses: one of a NIC's, one of nobody's.
AGENT = r"""#!/bin/sh
(
port=$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name); port=${port%/name}
exec 3<> /dev/${port##*/}
while :; do
    read -r line <&3 || { sleep 0.2; continue; }
    case $line in
        *'"guest-sync'*) id=${line##*'"id":'}; answer=${id%%[!0-9]*} ;;
        *'"guest-network-get-interfaces"'*)
            answer="[{\"name\":\"eth0\",\"hardware-address\":\"$(cat /sys/class/net/eth0/address)\",
                \"ip-addresses\":[{\"ip-address\":\"203.0.113.7\",\"prefix\":24},{\"ip-address\":\"127.0.0.2\",\"prefix\":8}]},
                {\"name\":\"x\",\"hardware-address\":\"52:54:00:ff:ff:ff\",\"ip-addresses\":[{\"ip-address\":\"203.0.113.8\"}]}]"
            answer=$(echo "$answer" | tr -d '\n') ;;
        *) answer='{}' ;;
    esac
    echo "{\"return\":$answer}" >&3
done
) &
"""

INNER = """<network><name>inner</name><bridge name='inner0'/><ip address='198.51.100.1' netmask='255.255.255.0'>
<dhcp><range start='198.51.100.10' end='198.51.100.99'/></dhcp></ip></network>"""

#: Stands in for ssh: says what it is called with, and writes where it was told that host keys go.
SSH = r"""#!/bin/sh
for word; do
    echo "$word"
    case $word in UserKnownHostsFile=*) file=${word#*=\"}; echo key > "${file%\"}" ;; esac
done
exit ${STATUS:-0}
"""

HERE = ["env", "HOME=/run/home", "XDG_STATE_HOME=/run/home/state"]


@pytest.fixture(scope="module", autouse=True)
def setting(host: KvmHost) -> Iterator[None]:
    host.clear()
    host.sh(f'virsh net-define /dev/stdin <<< "{INNER}" && virsh net-start inner')
    host.sh(f"mkdir -p /run/home /run/stand-in; cat > /run/agent <<'END'\n{AGENT}\nEND\n"
            f"cat > /run/stand-in/ssh <<'END'\n{SSH}\nEND\nchmod +x /run/stand-in/ssh")  # fmt: skip
    host.macvm("create", "web", "--memory", "192", "--ip", "192.0.2.81/24", "--ip", "2001:db8::81/64",
               "--nic", "libvirt=inner")  # fmt: skip
    host.macvm("create", "talk", "--memory", "192", "--mode", "private", "--ip", "192.0.2.82/24", "--nic", "libvirt=inner",
               "--user-data", "/run/agent")  # fmt: skip
    host.create("mute", "--ip", "none")
    yield
    host.clear()
    host.sh("virsh net-destroy inner; virsh net-undefine inner; rm -r /run/libvirt/network/inner; macvm hosts --write")
    # Without any machine no block is left.
    assert "macvm" not in host.sh("cat /etc/hosts")


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def known(host: KvmHost, name: str) -> dict[str, Any]:
    """Address to what is known of it."""
    found = valid(host.json("ip", name), "ip.json")
    assert found["name"] == name
    assert found["address"] == found["addresses"][0]["address"]
    return {one["address"]: one for one in found["addresses"]}


def leased(host: KvmHost, name: str) -> str:
    """The address that libvirt's own DHCP gave to its NIC on `inner`, once it has."""

    def look() -> str:
        found = known(host, name).items()
        return next((ip for ip, one in found if ip.startswith("198.51.100.") and one["source"] == "lease"), "")

    return str(until(look))


# --- ip ---------------------------------------------------------------------------------------------------------------


def test_ip_prints_the_preferred_address_alone(host: KvmHost) -> None:
    for words in (["web"], ["web", "-o", "name"], ["web", "--wait"], ["--wait", "web"], ["web", "--wait=5", "-q"]):
        assert host.macvm("ip", *words).stdout == "192.0.2.81\n"
    uuid = host.show("web")["uuid"]
    assert host.macvm("ip", uuid).stdout == "192.0.2.81\n"


def test_each_address_says_where_it_is_known_from(host: KvmHost) -> None:
    inner = leased(host, "web")
    direct, networked = (nic["mac"] for nic in host.show("web")["nics"])
    host.sh(f"ip neigh replace 198.51.100.200 lladdr {networked} dev inner0 nud stale")
    found = known(host, "web")
    host.sh("ip neigh del 198.51.100.200 dev inner0")
    told = {address: (one["source"], one["mac"], one["reachable"]) for address, one in found.items()}
    assert told["192.0.2.81"] == ("lease", direct, True)
    assert told["2001:db8::81"] == ("lease", direct, True)
    assert told[inner] == ("lease", networked, True)
    assert told["198.51.100.200"] == ("neighbour", networked, True)
    # Link-local ones, which the kernel hears of by itself, are shown but never before others.
    assert [one for one in found if one.startswith("fe80:")] == list(found)[
        len([o for o in found if o[:5] != "fe80:"]) :
    ]


def test_a_guest_out_of_the_shims_reach_is_reached_on_its_other_nic(host: KvmHost) -> None:
    inner = leased(host, "talk")
    assert host.macvm("ip", "talk").stdout == f"{inner}\n"
    assert known(host, "talk")["192.0.2.82"]["reachable"] is False
    assert host.page(inner).startswith("talk\n")


def test_what_the_guest_agent_says_counts_for_its_own_nics(host: KvmHost) -> None:
    found = until(lambda: {a: one for a, one in known(host, "talk").items() if one["source"] == "agent"})
    (said,) = found.values()
    assert (said["address"], said["mac"]) == ("203.0.113.7", host.show("talk")["nics"][0]["mac"])


def test_an_agent_that_hangs_is_waited_for_a_second_at_most(host: KvmHost) -> None:
    until(lambda: "agent" in {one["source"] for one in known(host, "talk").values()})
    host.sh("virsh suspend talk")
    try:
        # Paused, it is not asked at all.
        assert "203.0.113.7" not in known(host, "talk")
    finally:
        host.sh("virsh resume talk")


def test_why_no_address_is_known(host: KvmHost) -> None:
    ((said, hint),) = complaints(host.macvm("ip", "mute", status=1).stderr)
    assert "no address of mute is known: it was told none" in said
    assert hint.startswith("macvm nic set mute --ip ")
    host.create("later", "--no-start")
    ((said, hint),) = complaints(host.macvm("ip", "later", status=1).stderr)
    assert "it is off" in said
    assert hint.startswith("macvm start later")
    host.macvm("delete", "-y", "later")
    assert complaints(host.macvm("ip", "nobody", status=3).stderr)[0][0] == "no machine is named 'nobody'"


def test_time_that_runs_out_is_status_9(host: KvmHost) -> None:
    for words in (["--wait", "0.3"], ["--wait", "--timeout", "0.3s"], ["--wait=0.3"]):
        ended = host.macvm("ip", "mute", *words, status=9)
        assert ended.stdout == ""
        assert "after 0.3 s no address of mute is known" in complaints(ended.stderr)[0][0]


def test_wait_ends_once_an_address_is_known(host: KvmHost) -> None:
    host.create("inside", "--nic", "libvirt=inner")
    try:
        host.macvm("ip", "inside", status=1)
        assert host.macvm("ip", "inside", "--wait").stdout.startswith("198.51.100.")
    finally:
        host.macvm("delete", "-y", "inside")


def test_a_passthrough_guest_is_reached_by_its_second_nic(host: KvmHost) -> None:
    host.sh("ip link add far type veth peer name near; ip link set near up; ip link set far up")
    try:
        host.macvm("create", "alone", "--memory", "192", "--parent", "far", "--mode", "passthrough", "--ip", "none",
                   "--nic", "libvirt=inner")  # fmt: skip
        (one,) = host.json("shim", "status", "far")[0]["unreached"]
        assert (one["owner"], one["mode"]) == ("alone", "passthrough")
        assert "--nic libvirt=" in one["reason"], "the way out is named"
        (answered,) = host.json("wait", "alone", "--for", "ping")
        assert answered["address"] == leased(host, "alone")
        assert host.macvm("ip", "alone").stdout == leased(host, "alone") + "\n"
        words, _ = ssh(host, "alone", "--", "true")
        assert words[-3:] == ["--", leased(host, "alone"), "true"]
    finally:
        host.macvm("delete", "-y", "alone")
        host.sh("ip link del far")


# --- ssh --------------------------------------------------------------------------------------------------------------


def ssh(host: KvmHost, *words: str, ends: int = 0) -> tuple[list[str], str]:
    path = "PATH=/run/stand-in:$PATH"
    done = host.node.run([*HERE, f"STATUS={ends}", "sh", "-c", f'{path} exec macvm ssh "$@"', "sh", *words])
    assert done.returncode == ends, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_ssh_is_told_user_address_and_a_file_of_host_keys_that_delete_removes(host: KvmHost) -> None:
    host.create("fleeting", "--no-shim", "--ip", "192.0.2.84/24")
    uuid = host.show("fleeting")["uuid"]
    keys = f"{STATE}/machines/{uuid}/known_hosts"
    words, _ = ssh(host, "fleeting", "--", "ls", "-l", "a b")
    assert words[-5:] == ["--", "192.0.2.84", "ls", "-l", "a b"]
    assert words[-7:-5] == ["-l", "cirros"]
    options = [words[place + 1] for place, word in enumerate(words) if word == "-o"]
    assert options[:3] == [f"HostKeyAlias={uuid}", f'UserKnownHostsFile="{keys}"', "StrictHostKeyChecking=accept-new"]
    assert host.sh(f"cat {keys}") == "key\n"
    words, _ = ssh(host, "joe@fleeting", "-i", "/etc/hostname", "id")
    assert words[words.index("-l") + 1] == "joe"
    assert 'IdentityFile="/etc/hostname"' in words
    assert words[-2:] == ["192.0.2.84", "id"]
    host.macvm("delete", "-y", "fleeting")
    assert host.sh(f"ls {STATE}/machines/{uuid} 2>/dev/null; sqlite3 {STATE}/macvm.db \"SELECT path FROM files WHERE owner = '{uuid}'\"") == ""  # fmt: skip


@pytest.mark.parametrize("status", [0, 7, 255])
def test_sshs_status_is_passed_through(host: KvmHost, status: int) -> None:
    ssh(host, "web", "true", ends=status)


def test_macvms_own_failures_have_a_status_of_their_own(host: KvmHost) -> None:
    for name, said in (("mute", "no address of mute is known"), ("nobody", "no machine is named")):
        assert said in complaints(host.macvm("ssh", name, status=125).stderr)[0][0]
    host.create("later", "--no-start", "--ip", "192.0.2.85/24")
    assert complaints(host.macvm("ssh", "later", status=125).stderr) == [("later is off", "macvm start later")]
    host.macvm("delete", "-y", "later")
    host.macvm("endpoint", "create", "box", "--ip", "192.0.2.86/24")
    assert "macvm endpoint exec box" in complaints(host.macvm("ssh", "box", status=125).stderr)[0][1]
    assert host.macvm("ip", "box").stdout == "192.0.2.86\n"
    host.macvm("endpoint", "delete", "box")
    assert "macvm ssh NAME -- ls -l" in host.macvm("ssh", "web", "ls", "-l", status=2).stderr
    whole = host.sh("command -v macvm").strip()
    done = host.node.run(["env", "PATH=/nonexistent", whole, "ssh", "web"])
    assert done.returncode == 127
    assert complaints(done.stderr) == [("ssh is not installed on this host", "apt install openssh-client")]


def as_ssh_reads(host: KvmHost, name: str) -> dict[str, str]:
    lines = host.sh(f"ssh -G -F /run/ssh-config {name}").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def test_ssh_takes_the_configuration(host: KvmHost) -> None:
    inner = leased(host, "talk")
    done = host.node.run([*HERE, "sh", "-c", "macvm ssh-config -i /etc/hostname > /run/ssh-config"])
    # A running guest without an address is left out, and said.
    assert done.stderr.startswith("note: left out: no address of mute is known")
    for name, address in (("web", "192.0.2.81"), ("talk", inner)):
        uuid = host.show(name)["uuid"]
        read = as_ssh_reads(host, name)
        assert (read["hostname"], read["user"], read["hostkeyalias"]) == (address, "cirros", uuid)
        assert read["userknownhostsfile"] == f"{STATE}/machines/{uuid}/known_hosts"
        assert (read["stricthostkeychecking"], read["identityfile"]) == ("accept-new", "/etc/hostname")
    assert as_ssh_reads(host, "mute")["hostname"] == "mute"
    shown = valid(host.json("ssh-config", "web"), "ssh-config.json")
    assert [(one["name"], one["user"], one["identities"]) for one in shown] == [("web", "cirros", [])]
    assert host.macvm("ssh-config", "-q", "-o", "name").stdout == "talk\nweb\n"
    host.macvm("ssh-config", "mute", status=1)


def test_machines_of_others_have_their_host_keys_among_the_callers_files(host: KvmHost) -> None:
    """And a name that would be a pattern, or several, gets no block."""
    for name in ("theirs", "all *"):
        host.sh(f"virsh dumpxml web | sed -e '/<uuid>/d; /<mac /d; /<target dev=.m[tv]/d; /<metadata>/,/<.metadata>/d; /<disk/,/<.disk>/d; s|<name>web<|<name>{name}<|; /<serial/,/<.serial>/d; /<console/,/<.console>/d; /<backing/d' > /run/theirs.xml; virsh define /run/theirs.xml; virsh start '{name}' --paused")  # fmt: skip
    try:
        uuid, mac = (host.sh(f"virsh {ask} theirs").split() for ask in ("domuuid", "domiflist"))
        found = next(word for word in mac if word.startswith("52:54:"))
        host.sh(f"ip neigh replace 198.51.100.201 lladdr {found} dev inner0 nud stale")
        done = host.node.run([*HERE, "macvm", "ssh-config", "theirs", "-o", "json"], check=True)
        (one,) = valid(json.loads(done.stdout), "ssh-config.json")
        assert (one["address"], one["user"]) == ("198.51.100.201", None)
        assert one["known_hosts"] == f"/run/home/state/macvm/known_hosts/{uuid[0]}"
        everyone = host.node.run([*HERE, "macvm", "ssh-config"], check=True)
        assert "left out: 'all *' is no name for a Host line" in everyone.stderr
        assert "all *" not in everyone.stdout
        host.macvm("ssh-config", "all *", status=2)
    finally:
        host.sh("ip neigh del 198.51.100.201 dev inner0; for one in theirs 'all *'; do virsh destroy \"$one\"; virsh undefine \"$one\"; done")  # fmt: skip


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_hosts_keep_a_block_of_etc_hosts(host: KvmHost) -> None:
    inner = leased(host, "talk")
    before = host.sh("cat /etc/hosts; stat -c '%a %u %g' /etc/hosts")
    shown = ["192.0.2.81 web", "2001:db8::81 web", f"{inner} talk"]
    assert sorted(host.macvm("hosts").stdout.splitlines()) == sorted(shown)
    assert {(one["name"], one["address"]) for one in valid(host.json("hosts"), "hosts.json")} == {
        (name, address) for address, name in map(str.split, shown)
    }
    dry = host.macvm("hosts", "--write", "--dry-run").stdout
    assert "+# macvm begin\n" in dry
    assert "+192.0.2.81 web\n" in dry
    assert host.sh("cat /etc/hosts; stat -c '%a %u %g' /etc/hosts") == before
    written = valid(host.json("hosts", "--write"), "hosts-write.json")
    assert written["changed"] is True
    assert "192.0.2.81" in host.sh("getent ahostsv4 web")
    assert host.macvm("hosts", "--write").stderr == "unchanged: /etc/hosts\n"
    host.sh("sed -i '1i 192.0.2.99 Web' /etc/hosts")
    assert "note: web stands at 192.0.2.99 in another line" in host.macvm("hosts", "--write").stderr
    host.sh("sed -i -e 1d -e '/^# macvm begin/,/^# macvm end/d' /etc/hosts")
    assert host.sh("cat /etc/hosts; stat -c '%a %u %g' /etc/hosts") == before
    host.macvm("hosts", "--write")  # for `setting` to see it go


def test_hosts_without_the_rights(host: KvmHost) -> None:
    from tests.sandbox.kvm_host import NOBODY

    done = host.node.run([*NOBODY, "macvm", "hosts", "--write"])
    assert done.returncode == 5
    assert complaints(done.stderr)[-1][1].startswith("run as root: sudo macvm ")


# --- capture ----------------------------------------------------------------------------------------------------------


def said(process: Process, text: str, times: int = 1) -> None:
    until(lambda: process.stderr.count(text) >= times, 20)


def echoes(host: KvmHost, pcap: str) -> list[str]:
    """Sequence numbers of the echo requests in a file, and all that tcpdump has to complain of."""
    text = host.sh(f"tcpdump -n -r {pcap} 2>/run/complaints; grep -v '^reading from' /run/complaints; :")
    return [line.split("seq ")[1].split(",")[0] for line in text.splitlines() if "echo request" in line]


def test_a_capture_goes_on_over_restarts_in_one_file(host: KvmHost) -> None:
    words = ["macvm", "capture", "web"]
    with (
        host.node.start([*words, "eth0", "-w", "/run/one.pcap", "icmp"]) as kept,
        host.node.start([*words, "inner", "icmp"]) as printed,
        host.node.start(["sh", "-c", "exec macvm capture web eth0 -q -w - icmp > /run/piped.pcap"]) as piped,
    ):
        for one in (kept, printed):
            said(one, "listening on")
        device = host.show("web")["nics"][1]["device"]
        assert f"listening on {device}," in printed.stderr
        until(lambda: host.sh("pgrep -c tcpdump") == "3\n", 20)
        host.sh("until ping -c 1 -W 1 192.0.2.81; do :; done; ping -c 2 -i 0.2 192.0.2.81; virsh destroy web")
        for one in (kept, printed):
            said(one, "waiting for web's NIC")
        host.macvm("start", "web")
        for one in (kept, printed):
            said(one, "listening on", 2)
        host.macvm("wait", "web")
        host.sh(f"ping -c 3 -i 0.2 192.0.2.81; until ping -c 1 -W 1 {leased(host, 'web')}; do :; done")
        until(lambda: "echo reply" in printed.stdout)
        for one in (kept, printed, piped):
            one.signal(signal.SIGINT)
            assert one.wait(10) == 0, one.stderr
        assert piped.stderr == ""
    for pcap in ("/run/one.pcap", "/run/piped.pcap"):
        found = echoes(host, pcap)
        # The two just before the device went, `wait`'s own, and the three.
        assert found[found.index("2") - 1] == "1"
        assert found[-3:] == ["1", "2", "3"]
        assert found.count("2") == 2
        assert host.sh("grep -v '^reading from' /run/complaints; :") == ""
    assert host.sh("pgrep tcpdump; :") == ""


def test_a_capture_ends_with_its_machine(host: KvmHost) -> None:
    host.create("brief", "--no-start")
    with host.node.start(["macvm", "capture", "brief", "-w", "/run/none.pcap"]) as process:
        said(process, "waiting for brief's NIC")
        host.macvm("delete", "-y", "brief")
        assert process.wait(10) == 0
        assert process.stderr.endswith("brief is deleted\n")
    host.sh("test ! -e /run/none.pcap")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["web"], 2, "web has 2 NICs"),
        (["web", "icmp"], 2, "web has 2 NICs"),
        (["mute", "bad", "filter", "-w", "/run/bad.pcap"], 1, "syntax error"),
        (["mute", "--", "--version"], 1, "syntax error"),
        (["mute", "52:54"], 3, "mute does not have"),
        (["nobody"], 3, "no machine is named"),
        (["mute", "-w", "/proc/none/x"], 1, "/proc/none/x"),
    ],
)
def test_captures_that_cannot_be(host: KvmHost, words: list[str], status: int, text: str) -> None:
    done = host.macvm("capture", "-q", *words, status=status)
    assert text in complaints(done.stderr)[0][0]
    host.sh("test ! -e /run/bad.pcap")


def test_a_header_is_one_of_pcaps(host: KvmHost) -> None:
    with host.node.start(["macvm", "capture", "mute", "-w", "/run/head.pcap"]) as process:
        until(lambda: host.sh("stat -c %s /run/head.pcap 2>/dev/null; :") not in ("", "0\n"))
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 0
    words = host.sh("od -A n -t u4 -N 4 /run/head.pcap").split()
    assert struct.pack("=I", int(words[0])) == struct.pack("=I", 0xA1B2C3D4)
