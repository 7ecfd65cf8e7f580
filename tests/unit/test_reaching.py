"""Which of a machine's addresses it is reached by, from values alone."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import pytest

from provisioner.actions import reaching, ssh
from provisioner.actions.reaching import Tables
from provisioner.actions.views import AddressView, MachineView, NicView
from provisioner.cli import reaching as commands
from provisioner.context import Context
from provisioner.errors import Unable
from provisioner.host import caller
from provisioner.host.leases import now
from provisioner.host.netlink import Link, Neighbour, Route
from tests.conftest import Ran

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
ETH0, SHIM, INNER, WAN = 2, 3, 4, 5
REACHABLE, STALE, PERMANENT = 0x02, 0x04, 0x80


def link(index: int, name: str) -> Link:
    return Link(index, name, "", 1500, "", True, True, 1, 0, 0, "", "")


def route(destination: str, device: int) -> Route:
    return Route(ipaddress.ip_network(destination), device, None, None, 0)


def neighbour(address: str, mac: str = MAC, state: int = STALE) -> Neighbour:
    return Neighbour(ipaddress.ip_address(address), SHIM, mac, state, False)


LINKS = (link(ETH0, "eth0"), link(SHIM, "mv-eth0"), link(INNER, "inner0"), link(WAN, "wan"))
ROUTES = (
    route("192.0.2.0/24", ETH0),
    route("192.0.2.11/32", SHIM),
    route("198.51.100.0/24", INNER),
    route("2001:db8::/64", ETH0),
    route("2001:db8::11/128", SHIM),
)


class Libvirt:
    """What libvirt and a guest's agent answer."""

    def __init__(self, leases: tuple[tuple[str, str], ...] = (), says: str | None = None) -> None:
        self._leases, self._says = list(leases), says
        self.asked = 0

    def network_leases(self, uuid: str) -> list[tuple[str, str]]:
        return self._leases

    def agent(self, uuid: str, command: str, timeout: int) -> str | None:
        self.asked += 1
        assert timeout <= 1
        return self._says


class Settings:
    reading_store = None

    def __init__(self, libvirt: Libvirt) -> None:
        self.hypervisor = libvirt


def context(libvirt: Libvirt) -> Context:
    return cast(Context, Settings(libvirt))


def nic(*addresses: str, mac: str = MAC, parent: str | None = "eth0") -> NicView:
    leases = tuple(AddressView(address, "lease", "2026-01-01T00:00:00Z") for address in addresses)
    return NicView(mac, "bridge", "bridge", parent, None, "mt", "virtio", "up", True, leases)


def machine(*nics: NicView, state: str = "running") -> MachineView:
    return MachineView("web", "uuid", state, None, {}, None, nics, True)


def reached(
    *nics: NicView, neighbours: tuple[Neighbour, ...] = (), state: str = "running", **libvirt: Any
) -> reaching.Reached:
    return reaching.reach(context(Libvirt(**libvirt)), machine(*nics, state=state), Tables(LINKS, ROUTES, neighbours))


def says(*addresses: str, mac: str = MAC) -> str:
    entries = [{"ip-address": address, "ip-address-type": "ipv4", "prefix": 24} for address in addresses]
    return json.dumps({"return": [{"name": "lo"}, {"name": "eth0", "hardware-address": mac, "ip-addresses": entries}]})


def test_one_that_the_host_reaches_comes_first() -> None:
    found = reached(nic("192.0.2.12", "192.0.2.11"), nic("198.51.100.7", mac=OTHER, parent=None))
    assert found.address == "192.0.2.11"
    assert [(one.address, one.reachable) for one in found.addresses] == [
        ("192.0.2.11", True),
        ("198.51.100.7", True),
        ("192.0.2.12", False),
    ]


def test_a_passthrough_guest_is_reached_by_its_second_nic() -> None:
    assert reached(nic("192.0.2.12"), nic("198.51.100.7", mac=OTHER, parent=None)).address == "198.51.100.7"


def test_one_that_it_cannot_reach_is_better_than_none() -> None:
    assert reached(nic("192.0.2.12")).address == "192.0.2.12"


def test_ipv6_alone_will_do_but_link_local_never() -> None:
    assert reached(nic("2001:db8::11")).address == "2001:db8::11"
    alone = reached(nic(), neighbours=(neighbour("fe80::1"),))
    assert (alone.address, [one.address for one in alone.addresses]) == (None, ["fe80::1"])
    assert reached(nic(), neighbours=(neighbour("fe80::1"), neighbour("192.0.2.12"))).address == "192.0.2.12"


def test_every_source_is_named_and_an_address_is_there_once() -> None:
    found = reached(
        nic("192.0.2.11"),
        nic(mac=OTHER, parent=None),
        leases=((OTHER, "198.51.100.7"),),
        says=says("192.0.2.11", "192.0.2.13"),
        neighbours=(neighbour("192.0.2.13"), neighbour("192.0.2.14")),
    )
    assert {(one.address, one.source, one.mac) for one in found.addresses} == {
        ("192.0.2.11", "lease", MAC),
        ("198.51.100.7", "lease", OTHER),
        ("192.0.2.13", "agent", MAC),
        ("192.0.2.14", "neighbour", MAC),
    }


def test_a_neighbour_was_seen_when_it_was_last_there() -> None:
    one = neighbour("192.0.2.13")
    tables = Tables(LINKS, ROUTES, (one,), {(one.device, one.address): 7200.0})
    (found,) = reaching.reach(context(Libvirt()), machine(nic()), tables).addresses
    assert now(ago=7205) <= found.seen <= now(ago=7199)


def test_what_somebody_set_by_hand_or_nobody_answered_is_no_address() -> None:
    entries = (neighbour("192.0.2.13", state=PERMANENT), neighbour("192.0.2.14", mac=""), neighbour("::1", mac=OTHER))
    assert reached(nic(), neighbours=entries) == ("web", None, ())


def test_a_machine_that_is_off_has_its_leases_alone() -> None:
    libvirt = Libvirt(says=says("192.0.2.13"))
    tables = Tables(LINKS, ROUTES, (neighbour("192.0.2.14"),))
    found = reaching.reach(context(libvirt), machine(nic("192.0.2.11"), state="off"), tables)
    assert [one.address for one in found.addresses] == ["192.0.2.11"]
    assert libvirt.asked == 0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "{}",
        '{"return": 7}',
        '{"return": [7]}',
        '{"return": [{"hardware-address": null, "ip-addresses": 3}]}',
        '{"return": [{"hardware-address": "x", "ip-addresses": [{"ip-address": "192.0.2.999"}]}]}',
        says("127.0.0.1", "0.0.0.0", "224.0.0.1", "::1"),
        "[" * 100_000,
    ],
)
def test_an_agent_that_says_anything_else_is_no_trouble(answer: str) -> None:
    assert reaching.parse_agent(answer) == []


def test_an_agent_has_its_say_within_bounds() -> None:
    assert len(reaching.parse_agent(says(*(f"10.0.{n // 250}.{n % 250 + 1}" for n in range(1000))))) == 64
    (found,) = reaching.parse_agent(says("fe80::1%5", mac=MAC.upper()))
    assert found == (MAC, ipaddress.ip_address("fe80::1"))


@pytest.mark.parametrize(
    ("nics", "state", "said", "hint"),
    [
        ((), "running", "it has no NIC", "macvm nic attach web"),
        ((nic(),), "off", "it is off", "macvm start web"),
        ((nic(),), "running", "yet: its guest takes it", "--wait"),
        ((nic()._replace(kernel_mode="private"),), "running", "in mode private a guest cannot be asked", "--wait"),
        ((nic()._replace(kernel_mode="private"), nic()), "running", "yet: its guest takes it", "--wait"),
    ],
)
def test_why_none_is_known(nics: tuple[NicView, ...], state: str, said: str, hint: str) -> None:
    one = machine(*nics, state=state)
    ctx = context(Libvirt())
    why, what = reaching.why_none(ctx, one, reaching.reach(ctx, one, Tables(LINKS, ROUTES, ())))
    assert said in why
    assert hint in what


# --- ssh --------------------------------------------------------------------------------------------------------------

TO = ssh.Target("web", "2001:db8::11", "cirros", "the-uuid", Path("/var/lib/macvm/known_hosts"), ())


def as_ssh_reads(*words: str) -> dict[str, str]:
    """What ssh itself makes of options: of a name that comes several times, the first."""
    done = subprocess.run(["ssh", "-G", *words], capture_output=True, text=True, check=True)
    read: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        read.setdefault(name, value)
    return read


@pytest.mark.parametrize(
    "path", ["/var/lib/macvm/machines/x/known_hosts", "/home/j doe/known hosts", "/srv/50%/k~ '#x'"]
)
def test_ssh_understands_the_block_and_the_options_alike(tmp_path: Path, path: str) -> None:
    to = TO._replace(known_hosts=Path(path), identities=(Path(path), Path("/second")))
    file = tmp_path / "config"
    file.write_text(ssh.block(TO._replace(name="other", address="192.0.2.1")) + "\n" + ssh.block(to))
    words = ssh.argv(to, ["-v", "ls"])
    for read in (as_ssh_reads("-F", str(file), "web"), as_ssh_reads("-F", "/dev/null", *words[1:])):
        assert (read["hostname"], read["user"], read["hostkeyalias"]) == ("2001:db8::11", "cirros", "the-uuid")
        assert (read["stricthostkeychecking"], read["checkhostip"]) == ("accept-new", "no")
        # What stands in there is expanded only when ssh connects.
        assert read["userknownhostsfile"].replace("%%", "%") == path
        assert read["identityfile"].replace("%%", "%") == path


@pytest.mark.parametrize("path", ['/a"b', "/a\nHost *", "/a\\b", "/${HOME}/x"])
def test_a_path_that_ssh_cannot_be_told_of(path: str) -> None:
    with pytest.raises(Unable, match="cannot be told"):
        ssh.block(TO._replace(known_hosts=Path(path)))


def test_a_commands_words_are_never_sshs_options() -> None:
    words = ssh.argv(TO._replace(user=None), ["-oProxyCommand=x", "a b"])
    assert words[0] == "ssh"
    assert words[-4:] == ["--", "2001:db8::11", "-oProxyCommand=x", "a b"]
    assert "-l" not in words


# --- who calls --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(as_root: None) -> Iterator[Path]:
    """Below a folder that others may pass through, as pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        made = Path(folder, "home")
        made.mkdir()
        os.chown(made, 12345, 12345)
        yield made


def test_the_caller_is_who_sudo_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the caller's rights: a folder of root's in their home stays closed to them."""
    (home / ".ssh").mkdir()
    for name in ("id_a", "id_a.pub", "id_b.pub"):
        (home / ".ssh" / name).touch()
    monkeypatch.setattr(caller, "invoking_home", lambda: home)
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "12346")
    assert caller.private_keys() == [home / ".ssh/id_a"]
    folder = caller.state_folder("known_hosts")
    assert folder == home / ".local/state/macvm/known_hosts"
    assert (folder.stat().st_uid, folder.stat().st_gid, folder.stat().st_mode & 0o777) == (12345, 12346, 0o700)
    assert (os.geteuid(), os.getegid()) == (0, 0)
    os.chown(folder.parent, 0, 0)
    with pytest.raises(Unable, match="cannot be made"):
        caller.state_folder("other")
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_without_sudo_xdg_has_its_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert caller.state_folder("known_hosts") == tmp_path / "macvm/known_hosts"
    assert caller.private_keys() == []


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["ip web", "ssh web", "ssh-config", "ssh-config web", "hosts", "hosts --write", "capture web"]
)
@pytest.mark.parametrize("uri", ["qemu+ssh://root@far.example/system", "qemu:///session"])
def test_another_hosts_vms_are_not_reached_from_here(macvm: Callable[..., Ran], words: str, uri: str) -> None:
    ran = macvm(*words.split(), "--connect", uri)
    assert (ran.status, ran.out) == (5, "")
    assert ran.lines[-1] == ("hint: ssh root@far.example sudo macvm …" if "ssh" in uri else "hint: use qemu:///system")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ip"], "Missing argument 'NAME'"),
        (["ip", "web", "--wait", "soon"], "is no time"),
        (["ip", "web", "--timeout", "x"], "is no time"),
        (["ssh"], "Missing argument '[USER@]NAME'"),
        (["ssh", "@web"], "names no user"),
        (["ssh", "web", "-i", "/proc/none"], "/proc/none"),
        (["ssh", "web", "ls", "-l"], "No such option"),
        (["capture"], "NAME"),
    ],
)
def test_what_cannot_be_meant_is_status_2(macvm: Callable[..., Ran], words: list[str], said: str) -> None:
    ran = macvm(*words)
    assert (ran.status, ran.out, len(ran.lines)) == (2, "", 2)
    assert said in ran.err


def test_names_complete_behind_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACVM_CONNECT", "test:///default")
    ctx = click.Context(commands.ssh)
    for typed, offered in (("te", ["test"]), ("joe@", ["joe@test"]), ("joe@x", [])):
        (target,) = (one for one in commands.ssh.params if one.name == "target")
        assert [item.value for item in target.shell_complete(ctx, typed)] == offered
