"""Machines after their creation: list, power, console, delete, and a libvirt that hangs, ends or is elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Sandbox
from tests.sandbox.kvm_host import KvmHost, assert_same, complaints

pytestmark = pytest.mark.xdist_group("lifecycle")

#: Firmware with nothing to boot: what somebody else's machine is here, and what no ACPI stops.
DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>
<interface type='direct'><mac address='{mac}'/><source dev='eth0' mode='bridge'/><target dev='{device}'/></interface>
</devices></domain>"""


@pytest.fixture(scope="module")
def web(host: KvmHost) -> Iterator[str]:
    """A guest that has booted. Tests leave it running."""
    host.create("web", "--ip", "192.0.2.81/24", "--ip", "2001:db8::81/64", "--wait")
    yield "192.0.2.81"
    host.clear()


@pytest.fixture
def clean(host: KvmHost) -> Iterator[KvmHost]:
    """A host on which what a test makes is deleted, and all is as it was."""
    with host.unchanged():
        yield host
        host.clear(keep=("web",))


def device(host: KvmHost, name: str) -> str:
    return str(host.show(name)["nics"][0]["device"])


# --- a guest that has booted ----------------------------------------------------------------------------------------


def test_list_show_and_nic_list_say_what_is(host: KvmHost, web: str) -> None:
    shown = host.show("web")
    for text in (host.macvm("list").stdout, host.macvm("show", "web").stdout, host.macvm("nic", "list", "web").stdout):
        for piece in ("web", "bridge", "eth0", shown["nics"][0]["mac"], device(host, "web"), f"{web} (lease)"):
            assert piece in text
    (nic,) = host.json("nic", "list", "web")
    assert (nic["kernel_mode"], nic["model"], nic["link"]) == ("bridge", "virtio", "up")
    assert [address["address"] for address in nic["addresses"]] == [web, "2001:db8::81"]


def test_a_live_change_of_mode_is_shown_beside_libvirts(host: KvmHost, web: str) -> None:
    host.sh(f"ip link set {device(host, 'web')} type macvtap mode private")
    try:
        (nic,) = host.json("nic", "list", "web")
        assert (nic["mode"], nic["kernel_mode"]) == ("bridge", "private")
        assert "private (libvirt: bridge)" in host.macvm("list").stdout
    finally:
        host.sh(f"ip link set {device(host, 'web')} type macvtap mode bridge")


def test_the_console_says_the_login_and_reaches_the_guest(host: KvmHost, web: str) -> None:
    steps = [
        ("login: cirros, password: gocubsgo", ""),
        ("Escape character", "\n"),
        ("web login:", "cirros\n"),
        ("Password:", "gocubsgo\n"),
        ("$ ", "echo here is $(hostname)\n"),
        ("here is web", "exit\n"),
        ("web login:", "\x1d"),
    ]
    done = host.terminal(["macvm", "console", "web"], steps)
    assert done.returncode == 0, done.stdout


def test_stop_start_and_restart(host: KvmHost, web: str) -> None:
    before = host.state()
    host.macvm("stop", "web", "--timeout", "60s")
    assert host.show("web")["state"] == "off"
    assert device(host, "web") not in host.sh("ip link")
    host.macvm("stop", "web")  # off already is fine
    host.macvm("start", "web")
    assert "running already" in host.macvm("start", "web").stderr
    host.macvm("wait", "web", "--timeout", "2m")
    boot = host.sh("pgrep -f guest=web")
    host.macvm("restart", "web", "--timeout", "1m")
    host.macvm("wait", "web", "--for", "ping", "--timeout", "2m")
    assert host.sh("pgrep -f guest=web") != boot
    now = host.state()
    for kind in ("addresses", "routes", "rows", "sysctls"):
        assert now[kind] == before[kind]


def test_start_puts_the_hosts_side_back_after_virsh_destroy(host: KvmHost, web: str) -> None:
    host.sh("virsh destroy web; ip route del 192.0.2.81; ip neigh del 192.0.2.81 dev mv-eth0")
    host.macvm("start", "web")
    (link,) = json.loads(host.sh(f"ip -j link show dev {device(host, 'web')}"))
    assert "ALLMULTI" in link["flags"]
    assert host.sh(f"sysctl -n net.ipv6.conf.{device(host, 'web')}.disable_ipv6").strip() == "1"
    assert "dev mv-eth0" in host.sh("ip route get 192.0.2.81")
    assert "PERMANENT" in host.sh("ip neigh show to 192.0.2.81 dev mv-eth0")
    host.macvm("wait", "web", "--timeout", "2m")


# --- delete ---------------------------------------------------------------------------------------------------------


def test_delete_leaves_nothing(fresh_box: Sandbox) -> None:
    """On a host where nothing was made before; compared with what it had once its image was built."""
    host = KvmHost(fresh_box)
    host.macvm("image", "build", "tiny")
    host.macvm("create", "first", "--no-start")
    host.macvm("delete", "-y", "first")
    with host.unchanged():
        words = ["--ip", "192.0.2.82/24", "--ip", "2001:db8::82/64", "--autostart", "--password", "x", "--lab", "l"]
        host.create("gone", *words)
        host.create("off", "--no-start", "--ip", "192.0.2.83/24")
        assert host.state()["taps"]
        host.macvm("delete", "--yes", "gone", "off")
    assert "gone" not in host.sh("ls /var/log/libvirt/qemu | grep serial; ls /var/lib/macvm/machines; true")


def test_a_second_machine_keeps_its_route_and_the_shim(clean: KvmHost, web: str) -> None:
    with clean.unchanged():
        clean.create("beside", "--ip", "192.0.2.84/24")
        clean.macvm("delete", "--yes", "beside")
    assert clean.page(web).startswith("web\n")


def test_delete_keeps_disks_where_asked(clean: KvmHost) -> None:
    clean.create("saver", "--no-start")
    uuid = clean.show("saver")["uuid"]
    said = clean.macvm("delete", "--yes", "--keep-disks", "saver")
    disk = f"/var/lib/macvm/machines/{uuid}/disk.qcow2"
    assert f"kept: {disk}" in said.stderr
    assert clean.sh(f"ls {disk.removesuffix('disk.qcow2')}") == "disk.qcow2\n"
    clean.sh(f"rm {disk}; rmdir {disk.removesuffix('/disk.qcow2')}")


def test_delete_after_virsh_undefine_clears_the_rest(clean: KvmHost) -> None:
    clean.create("lost", "--ip", "192.0.2.85/24")
    clean.sh("virsh destroy lost; virsh undefine lost")
    assert "192.0.2.85" in clean.sh("ip route")
    # Its disk may be wanted: gc names it, and takes only the address.
    settled = clean.macvm("gc").stderr.splitlines()
    assert settled == [
        "released: 192.0.2.85 of lost, which is gone from libvirt",
        "kept: the files of lost, which is gone from libvirt: macvm delete lost",
    ]
    assert "192.0.2.85" not in clean.sh("ip route; ip neigh")
    clean.macvm("delete", "--yes", "lost")


def test_a_delete_of_several_names_what_is_missing_and_deletes_none(clean: KvmHost) -> None:
    clean.create("kept", "--no-start")
    with clean.unchanged():
        ((error, _),) = complaints(clean.macvm("delete", "--yes", "kept", "nobody", status=3).stderr)
    assert "nobody" in error


def test_delete_takes_no_file_that_it_did_not_make(clean: KvmHost) -> None:
    clean.create("holder", "--no-start")
    folder = f"/var/lib/macvm/machines/{clean.show('holder')['uuid']}"
    clean.sh(f"echo mine > {folder}/notes; rm {folder}/disk.qcow2; echo precious > /run/precious")
    clean.sh(f"ln -s /run/precious {folder}/disk.qcow2")
    ((error, _),) = complaints(clean.macvm("delete", "--yes", "holder", status=7).stderr)
    assert "disk.qcow2" in error
    clean.sh(f"rm {folder}/disk.qcow2")
    clean.macvm("gc")
    assert clean.sh(f"cat /run/precious {folder}/notes") == "precious\nmine\n"
    clean.sh(f"rm -r {folder} /run/precious")


# --- machines of others ---------------------------------------------------------------------------------------------


def test_a_machine_of_others_is_listed_started_and_never_deleted(clean: KvmHost) -> None:
    clean.sh("virt-install --name theirs --memory 16 --import --disk none --osinfo none --graphics none --virt-type qemu"
             " --network type=direct,source=eth0,source.mode=vepa,model=virtio --noautoconsole")  # fmt: skip
    try:
        (machine,) = [machine for machine in clean.json("list") if machine["name"] == "theirs"]
        assert (machine["state"], machine["made_by_macvm"], machine["nics"][0]["mode"]) == ("running", False, "vepa")
        for words in (("delete", "--yes", "theirs"), ("delete", "--dry-run", "theirs")):
            ((error, hint),) = complaints(clean.macvm(*words, status=5).stderr)
            assert "not made by macvm" in error
            assert "virsh undefine theirs" in hint
        clean.macvm("autostart", "on", "theirs")
        clean.macvm("autostart", "off", "theirs")
        # It runs no system that would hear the power button.
        ((error, hint),) = complaints(clean.macvm("stop", "theirs", "--timeout", "1s", status=9).stderr)
        assert "theirs: still running" in error
        assert "--force" in hint
        clean.macvm("stop", "--force", "theirs")
        clean.macvm("start", "theirs")
        assert clean.show("theirs")["state"] == "running"
    finally:
        clean.sh("virsh destroy theirs; virsh undefine theirs")


def test_gc_releases_what_a_foreign_machine_held(clean: KvmHost) -> None:
    define = (
        "virt-install --name theirs --memory 16 --import --disk none --osinfo none --graphics none --virt-type qemu"
    )
    clean.sh(f"{define} --network none --noautoconsole --print-xml > /run/theirs.xml; virsh define /run/theirs.xml")
    with clean.unchanged():
        clean.sh("virsh undefine theirs; virsh define /run/theirs.xml")
        clean.macvm("nic", "attach", "theirs", "--ip", "192.0.2.87/24")
        assert "nothing was left unfinished" in clean.macvm("gc").stderr
        clean.sh("virsh undefine theirs")
        assert "released: 192.0.2.87 of theirs, which is gone from libvirt" in clean.macvm("gc").stderr
        clean.sh("virsh define /run/theirs.xml")
    clean.sh("virsh undefine theirs; rm /run/theirs.xml")


def test_a_paused_guest_does_not_hear_the_power_button(clean: KvmHost) -> None:
    clean.create("frozen", "--ip", "192.0.2.86/24")
    clean.sh("virsh suspend frozen")
    started = time.monotonic()
    complaints(clean.macvm("stop", "frozen", "--timeout", "1", status=9).stderr)
    assert 1 <= time.monotonic() - started < 10
    assert clean.show("frozen")["state"] == "paused"
    clean.macvm("start", "frozen")  # goes on
    assert clean.show("frozen")["state"] == "running"
    clean.macvm("stop", "frozen", "--force")
    assert clean.show("frozen")["state"] == "off"


def test_two_machines_that_claim_one_host_device(clean: KvmHost, web: str) -> None:
    """libvirt's clean-up of the second's failed start would delete the first's running NIC."""
    clean.create("second", "--no-start")
    claimed = device(clean, "web")
    edit = f"virsh dumpxml second | sed s/{device(clean, 'second')}/{claimed}/ > /run/second.xml"
    clean.sh(f"{edit}; virsh define /run/second.xml; rm /run/second.xml")
    with clean.unchanged():
        found = complaints(clean.macvm("start", "second", status=4).stderr)
    assert claimed in found[0][0]
    assert "web" in found[0][0]
    assert clean.page(web).startswith("web\n")


def test_a_machine_of_others_that_claims_a_host_device(clean: KvmHost, web: str) -> None:
    """The same from the other side: a name is refused while any domain has it, running or not."""
    clean.create("own", "--no-start")
    claimed = device(clean, "own")
    theirs = DOMAIN.format(name="squatter", mac="52:54:00:bb:00:01", device=claimed)
    clean.node.run(["virsh", "create", "/dev/stdin"], input=theirs, check=True)
    try:
        assert "squatter" in complaints(clean.macvm("start", "own", status=4).stderr)[0][0]
        assert claimed in clean.sh("ip link")
    finally:
        clean.sh("virsh destroy squatter")


def test_wait_ends_when_its_time_is_up(clean: KvmHost) -> None:
    clean.create("mute", "--ip", "192.0.2.87/24", "--no-start")
    started = time.monotonic()
    ((error, hint),) = complaints(clean.macvm("wait", "mute", "--timeout", "1s", status=9).stderr)
    assert 0.9 < time.monotonic() - started < 5
    assert "192.0.2.87" in error
    assert hint == "it is off: macvm start mute"


# --- libvirt hangs, ends, or is elsewhere ---------------------------------------------------------------------------

LAB = "lab: one\nvms: {one: {image: tiny, start: false}}\n"


def test_a_libvirtd_that_hangs(clean: KvmHost, web: str, tmp_path: Path) -> None:
    lab = tmp_path / "macvm.yaml"
    lab.write_text(LAB)
    clean.sh("kill -STOP $(pgrep -x libvirtd)")
    try:
        started = time.monotonic()
        with clean.node.start(["macvm", "lab", "plan", str(lab)]) as plan:
            done = clean.macvm("list", "-o", "json", status=6)
            # Who looked ahead does not wait a second time.
            assert plan.wait(12) == 6
            ((error, _),) = complaints(plan.stderr)
            assert "does not answer" in error
        assert time.monotonic() - started < 12
    finally:
        clean.sh("kill -CONT $(pgrep -x libvirtd)")
    (machine,) = json.loads(done.stdout)
    assert (machine["name"], machine["state"]) == ("web", "unknown")
    assert web in [address["address"] for nic in machine["nics"] for address in nic["addresses"]]
    assert len(complaints(done.stderr)) == 1


def test_a_libvirtd_that_is_gone(fresh_box: Sandbox, tmp_path: Path) -> None:
    lab = tmp_path / "macvm.yaml"
    lab.write_text(LAB)
    host = KvmHost(fresh_box)
    host.sh("kill -KILL $(pgrep -x libvirtd); while pgrep -x libvirtd; do sleep 0.01; done")
    for words in (("list",), ("show", "web"), ("create", "web"), ("delete", "-y", "web"), ("start", "web")):
        ((error, hint),) = complaints(host.macvm(*words, status=6).stderr)
        assert "libvirt" in error
        assert "systemctl" in hint
    for word in ("plan", "up", "status"):
        ((error, hint),) = complaints(host.macvm("lab", word, lab, status=6).stderr)
        assert "libvirt" in error
        assert "systemctl" in hint


def test_a_libvirt_on_another_host(host: KvmHost) -> None:
    remote = ["--connect", "qemu+ssh://root@nosuch.example/system"]
    with host.unchanged():
        done = host.macvm(*remote, "list", status=6)
        notes = done.stderr.splitlines()
        assert "another host" in notes[0]
        complaints("\n".join(notes[1:]))
        for words in (("create", "x"), ("delete", "-y", "x"), ("image", "build", "tiny"), ("gc",)):
            done = host.macvm(*words, *remote, "--quiet", status=5)
            ((error, hint),) = complaints(done.stderr.removeprefix(notes[0] + "\n"))
            assert "nosuch.example" in error
            assert hint.startswith("ssh root@nosuch.example sudo macvm")


def test_the_session_libvirt(host: KvmHost) -> None:
    ((error, hint),) = complaints(host.macvm("create", "x", "--connect", "qemu:///session", status=5).stderr)
    assert "qemu:///session" in error
    assert "qemu:///system" in hint


# --- switches -------------------------------------------------------------------------------------------------------


def test_autostart(clean: KvmHost) -> None:
    clean.create("early", "--no-start")
    for switch, shown in (("on", "enable"), ("off", "disable")):
        clean.macvm("autostart", switch, "early")
        assert f"Autostart:      {shown}" in clean.sh("virsh dominfo early")


@pytest.mark.parametrize(
    "words", [("start",), ("stop",), ("stop", "--force"), ("restart",), ("autostart", "on"), ("delete",)]
)
def test_dry_runs_say_the_lines_and_do_nothing(clean: KvmHost, web: str, words: tuple[str, ...]) -> None:
    before = clean.state()
    said = clean.macvm(*words, "web", "--dry-run").stdout
    assert "virsh " in said
    assert "web" in said
    assert_same(before, clean.state())


def test_global_options_stand_before_and_after(clean: KvmHost, web: str) -> None:
    before, after = clean.macvm("-o", "name", "list"), clean.macvm("list", "-o", "name")
    assert before.stdout == after.stdout == "web\n"
    assert clean.macvm("--state-dir", "/run/elsewhere", "list", "-o", "name").stdout == "web\n"
    assert "elsewhere" not in clean.sh("ls /run")
