"""The command line's contract: two-line errors, statuses, options wherever they stand. Nothing here needs libvirt."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner import context
from provisioner.actions.request import CreateRequest, numbered
from provisioner.cli.main import COMMANDS, cli
from provisioner.errors import Usage
from tests.conftest import Ran

Run = Callable[..., Ran]

NOWHERE = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"


@pytest.fixture
def run(macvm: Run, tmp_path: Path) -> Run:
    """`macvm` on a state directory of its own, with no libvirt to be reached."""

    def go(*words: str) -> Ran:
        return macvm("--connect", NOWHERE, "--state-dir", str(tmp_path / "state"), *words)

    return go


@pytest.fixture
def run_test_driver(macvm: Run, tmp_path: Path) -> Run:
    """`macvm` on libvirt's own test driver, which has one running domain, `test`."""

    def go(*words: str) -> Ran:
        return macvm("--connect", "test:///default", "--state-dir", str(tmp_path / "state"), *words)

    return go


def complains(ran: Ran, status: int, *words: str) -> None:
    """Two lines for each error, of which one says `words`; nothing on standard output."""
    errors = [line for line in ran.lines if not line.startswith("note:")]
    assert ran.status == status, ran
    assert ran.out == "", ran
    assert errors, ran
    assert [line.split(":")[0] for line in errors] == ["error", "hint"] * (len(errors) // 2), ran.err
    assert "Traceback" not in ran.err
    assert all(line.isprintable() for line in errors), ran.err
    assert all(len(line) > len("hint: ") for line in errors), ran.err
    for word in words:
        assert word in ran.err, ran.err


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from every_command(found, (*path, name))


@pytest.mark.parametrize("path", list(every_command(cli)), ids=" ".join)
def test_every_command_has_its_help(macvm: Run, path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        ran = macvm(*path, option)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.startswith(f"Usage: {' '.join(('macvm', *path))}")
    assert "--state-dir" in ran.out


def test_each_line_of_help_is_the_one_of_its_command() -> None:
    for module, attribute, line in COMMANDS.values():
        command = getattr(importlib.import_module(module), attribute)
        assert command.get_short_help_str(200).split()[0] == line.split()[0]


def test_the_version(macvm: Run) -> None:
    assert macvm("--version").out.startswith("macvm ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing command"),
        (["image"], "Missing command"),
        (["lst"], "did you mean `macvm list`"),
        (["crate", "web1"], "did you mean `macvm create`"),
        (["nic", "lsit"], "did you mean `macvm nic list`"),
        (["xyzzy"], "macvm --help"),
        (["$(id)"], "no such command"),
        (["--no-such-option", "list"], "No such option"),
        (["list", "--no-such-option"], "No such option"),
        (["-o", "xml", "list"], "xml"),
        (["show"], "NAME"),
        (["show", "a", "b"], "b"),
        (["autostart", "maybe", "web1"], "maybe"),
        (["create", "web1", "--memory"], "requires an argument"),
        (["create", "web1", "--memory", "lots"], "'lots' is no amount of memory"),
        (["create", "web1", "--memory", "1Z"], "'1Z' is no amount of memory"),
        (["create", "web1", "--vcpus", "many"], "many"),
        (["create", "web1", "--mode", "brigde"], "one of bridge, vepa, private, passthrough"),
        (["create", "web1", "--mode", "source"], "libvirt has no word for it"),
        (["create", "web1", "--mac", "01:00:5e:00:00:01"], "multicast"),
        (["create", "web1", "--mac", "12345"], "is no MAC address"),
        (["create", "web1", "--ip", "auto"], "needs a network"),
        (["create", "web1", "--ip", "192.0.2.0/24"], "network address"),
        (["create", "web1", "--ip", "dhcp", "--ip", "192.0.2.11"], "exclude one another"),
        (["create", "web1", "--gateway", "router"], "is no gateway"),
        (["create", "web1", "--mtu", "1"], "is no MTU"),
        (["create", "web1", "--nic", "colour=red"], "keys: network, parent, mode"),
        (["create", "web1", "--vnc=0.0.0.0"], "--vnc-exposed"),
        (["create", "web1", "--vnc=[::]:5901"], "--vnc-exposed"),
        (["create", "web1", "--vnc=here"], "is no address to listen on"),
        (["create", "web1", "--label", "key"], "is no label"),
        (["create", "web1", "--initrd", "/boot/initrd"], "--kernel"),
        (["create", "web1", "--count", "0"], "--count"),
        (["create", "web1", "--count", "2", "--mac", "525400000001"], "--mac and --count"),
        (["create", "web1", "--count", "2", "--console"], "--console and --count"),
        (["create", "web1", "--count", "9", "--ip", "192.0.2.250/24"], "192.0.2."),
        (["create", "web1", "--wait=soon"], "--wait=soon is not known"),
        (["create", "web1", "--wait=ip", "--no-start"], "--no-start"),
        (["create", "web1", "--wait", "--ip", "none"], "--wait needs an address"),
        (["create", "web1", "--wait", "--no-start", "--ip", "192.0.2.11/24"], "--no-start"),
        (["create", "web1", "--user-data", "/nonexistent"], "cannot be read"),
        (["create", "web1", "--ssh-key", "/nonexistent"], "cannot be read"),
        (["create", "web1", "--virt-type", "xen"], "xen"),
        (["create", "a" * 62, "--count", "2"], "cannot be a name"),
        (["create", "web1", "--network", "a", "--network", "b"], "--network is given more than once"),
        (["create", "web1", "--network", "a", "--ip", "auto", "--ip", "dhcp"], "exclude one another"),
        (["create", "web1", "--network", "a", "--probe=twice"], "--probe=rfc"),
        (["create", "web1", "--network", "a", "--probe", "--no-probe"], "--probe and --no-probe"),
        (["create", "web1", "--nic", "network=a,network=b"], "network is given twice"),
        (["nic", "attach", "web1", "--network", "a", "--network", "b"], "--network is given more than once"),
        (["nic", "set", "web1", "--gateway", "192.0.2.1"], "describe --ip"),
        (["network"], "Missing command"),
        (["network", "create"], "NAME"),
        (["network", "crate", "lan"], "did you mean `macvm network create`"),
        (["network", "delete"], "NAME"),
        (["network", "create", "lan", "--subnet", "lan"], "'lan' is no subnet"),
        (["network", "create", "lan", "--subnet", "192.0.2.1/24"], "did you mean 192.0.2.0/24"),
        (["network", "create", "lan", "--subnet", "fe80::/64"], "no guest can live"),
        (["network", "create", "lan", "--gateway", "router"], "is no gateway"),
        (["network", "create", "lan", "--ip-range", "192.0.2.5"], "is no range"),
        (["network", "create", "lan", "--aux-address", "192.0.2.5"], "NAME=ADDRESS"),
        (["network", "create", "lan", "--mtu", "0"], "is no MTU"),
        (["stop", "web1", "--timeout", "soon"], "is no time"),
        (["image", "build", "huge"], "huge"),
        (["image", "import", "/nonexistent", "x", "--checksum", "md5:00"], "--checksum md5:00"),
        (["image", "import", "/nonexistent", "x", "--checksum", "sha256:00"], "--checksum sha256:00"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_status_2(run: Run, words: list[str], said: str, tmp_path: Path) -> None:
    complains(run(*words), 2, said)
    assert not (tmp_path / "state").exists()


def test_a_private_key_is_never_taken_for_a_public_one(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "id"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecretsecret\n")
    ran = run("create", "web1", "--ssh-key", str(key))
    complains(ran, 2, "is a private key")
    assert "secretsecret" not in ran.err


@pytest.mark.parametrize("words", [["delete", "web1"], ["delete", "web1", "web2"], ["image", "delete", "tiny"]])
def test_what_destroys_asks_and_without_a_terminal_wants_yes(
    run: Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    complains(run(*words), 2, "no terminal", "--yes")
    assert run(*words, "--yes").status != 2
    assert run("-y", *words).status != 2


@pytest.mark.parametrize("words", [["list"], ["show", "lan"], ["create", "lan"], ["delete", "lan"], ["up"]])
def test_networks_are_of_this_host(macvm: Run, words: list[str], tmp_path: Path) -> None:
    ran = macvm("network", *words, "--connect", "qemu+ssh://far/system", "--state-dir", str(tmp_path / "state"), "-q")
    complains(ran, 5, "qemu+ssh://far/system", "ssh far sudo macvm")


def test_the_keys_of_nic(macvm: Run) -> None:
    ran = macvm("create", "--nic", "help")
    assert ran.status == 0
    assert all(f"\n{key}" in f"\n{ran.out}" for key in ("parent", "mode", "ip", "mac", "mtu", "libvirt"))


# where options stand


@pytest.mark.parametrize(
    "words", [("-o", "json", "network", "list"), ("network", "-o", "json", "list"), ("network", "list", "-o", "json")]
)
def test_global_options_stand_before_and_after(run: Run, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert (ran.status, json.loads(ran.out)) == (0, [])


def test_the_option_nearest_the_end_wins(macvm: Run, tmp_path: Path) -> None:
    ran = macvm(
        "--state-dir", "/nonexistent", "-o", "name", "network", "list", "-o", "json", "--state-dir", str(tmp_path)
    )
    assert ran.out == "[]\n"


def test_settings_come_from_the_environment_too(macvm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACVM_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")
    assert macvm("list", "-o", "name").out == "test\n"
    monkeypatch.setenv("MACVM_CONNECT", NOWHERE)
    complains_of_nothing_reachable = macvm("list", "-o", "name")
    assert complains_of_nothing_reachable.status == 6
    assert macvm("list", "-o", "name", "--connect", "test:///default").out == "test\n"


# libvirt


@pytest.mark.parametrize(
    "words",
    [
        ["list"], ["list", "-o", "json"], ["show", "web1"], ["nic", "list"], ["start", "web1"], ["stop", "web1"],
        ["delete", "web1", "--yes"], ["wait", "web1"], ["console", "web1"], ["create"], ["create", "web1"],
        ["create", "web1", "--dry-run"], ["restart", "web1"], ["autostart", "on", "web1"],
        ["reset", "web1", "--yes"], ["reset", "web1", "--dry-run"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_without_libvirt_it_is_status_6(run: Run, words: list[str], as_root: None) -> None:
    ran = run(*words)
    complains(Ran(ran.status, "", ran.err), 6, "not reachable", "systemctl start libvirtd")
    assert ran.out in ("", "[]\n") or ran.out.startswith("NAME")


def test_the_test_driver_lists_and_shows(run_test_driver: Run) -> None:
    ran = run_test_driver("list", "-o", "json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert [(machine["name"], machine["state"]) for machine in found] == [("test", "running")]
    assert {"name", "uuid", "state", "lab", "labels", "image", "nics"} <= set(found[0])
    shown = json.loads(run_test_driver("show", "test", "-o", "json").out)
    assert shown["uuid"] == found[0]["uuid"]
    assert run_test_driver("list", "no*", "-o", "json").out == "[]\n"
    assert run_test_driver("list", "t*", "-o", "name").out == "test\n"
    assert run_test_driver("-q", "list").out.startswith("NAME")


def test_looking_makes_nothing(run_test_driver: Run, tmp_path: Path) -> None:
    for words in (["list"], ["show", "test"], ["nic", "list"], ["image", "list"], ["gc", "--dry-run"]):
        assert run_test_driver(*words).status == 0
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("name", ["nobody", "../x", "a b", "\u202ex", "a" * 300, "<b>", "\udcff"], ids=ascii)
def test_no_such_machine_is_status_3(run_test_driver: Run, name: str, as_root: None) -> None:
    for words in (["show", name], ["start", name], ["stop", name], ["delete", "--yes", name], ["wait", name]):
        complains(run_test_driver(*words), 3, "no machine is named")


def test_a_machine_that_macvm_did_not_make_is_not_deleted(run_test_driver: Run, as_root: None) -> None:
    complains(run_test_driver("delete", "test", "--yes"), 5, "was not made by macvm", "virsh undefine test")
    complains(run_test_driver("reset", "test", "--yes"), 5, "was not made by macvm", "virsh")
    assert run_test_driver("list", "-o", "name").out == "test\n"


@pytest.mark.parametrize("named", [["web1"], []])
@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("qemu:///session", "qemu:///system"),
        ("qemu+ssh://root@kvm7.example/system", "ssh root@kvm7.example sudo macvm"),
        ("qemu+tls://kvm7.example/system", "ssh kvm7.example sudo macvm"),
    ],
)
def test_only_this_hosts_own_libvirt_can_create(
    macvm: Run, tmp_path: Path, uri: str, hint: str, named: list[str]
) -> None:
    for dry in ([], ["--dry-run"]):
        ran = macvm("--connect", uri, "--state-dir", str(tmp_path), "create", *named, *dry)
        assert ran.status == 5, ran
        assert hint in ran.err
        assert ran.lines[-2].startswith("error:")


@pytest.mark.parametrize(
    "words",
    [
        ["create", "web1"], ["create"], ["delete", "web1", "--yes"], ["reset", "web1", "--yes"], ["gc"], ["image", "build", "tiny"],
        ["image", "import", "/etc/hostname", "x"], ["image", "delete", "x", "--yes"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_without_root_it_is_status_5(
    run_test_driver: Run, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    complains(run_test_driver(*words), 5, "needs root", "sudo macvm")
    assert not (tmp_path / "state").exists()


def test_a_damaged_store_is_said(run_test_driver: Run, tmp_path: Path, as_root: None) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "macvm.db").write_bytes(b"rubbish" * 999)
    for words in (["create", "web1"], ["delete", "test", "--yes"], ["gc"]):
        complains(run_test_driver(*words), 1, "is damaged", "move it away")


def test_a_configuration_file_that_is_wrong_is_said(
    macvm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from provisioner import context

    config = tmp_path / "config.toml"
    for text in ("parent = 3", "no toml at all", "colour = 'red'"):
        config.write_text(text)
        monkeypatch.setattr(context.load_settings, "__defaults__", (config,))
        complains(macvm("list"), 2, str(config))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["create", "show", "list", "start", "delete", "image delete", "image import", "nic list", "wait"]),
    st.lists(st.text(st.characters(exclude_characters="\0"), max_size=30), max_size=3),
)
def test_no_words_end_in_a_traceback(run_test_driver: Run, command: str, words: list[str]) -> None:
    ran = run_test_driver(*command.split(), *words, "--yes", "--state-dir", "/nonexistent/state")
    assert ran.status in (0, 2, 3, 4, 5), ran
    if ran.status and "--dry-run" not in words:
        assert [line.split(":")[0] for line in ran.lines][-2:] == ["error", "hint"], ran.err


# several machines at once


def test_numbered_machines_have_consecutive_addresses() -> None:
    from provisioner.cli.parameters import parse_nic

    request = CreateRequest("web", (parse_nic("ip=192.0.2.11/24,ip=2001:db8::ffff/64"), parse_nic("ip=dhcp")))
    made = numbered(request, 3)
    assert [one.name for one in made] == ["web-1", "web-2", "web-3"]
    assert [str(one.nics[0].addressing) for one in made] == [
        "192.0.2.11/24, 2001:db8::ffff/64",
        "192.0.2.12/24, 2001:db8::1:0/64",
        "192.0.2.13/24, 2001:db8::1:1/64",
    ]
    assert made[2].nics[1].addressing.dhcp


@pytest.mark.parametrize("first", ["192.0.2.253/24", "255.255.255.253", "192.0.2.2/30"])
def test_addresses_do_not_run_out_of_their_subnet(first: str) -> None:
    from provisioner.cli.parameters import parse_nic

    with pytest.raises(Usage, match=r"broadcast|ends before|may have"):
        numbered(CreateRequest("web", (parse_nic(f"ip={first}"),)), 4)


#: A machine with two NICs, as libvirt's test driver takes it.
TWO_NICS = """
<node><domain type='test'><name>two</name><memory>8192</memory><os><type>hvm</type></os><devices>
<interface type='direct'><mac address='52:54:00:00:00:0a'/><source dev='eth0' mode='vepa'/></interface>
<interface type='network'><mac address='52:54:00:00:00:0b'/><source network='default'/></interface>
</devices></domain>
<network><name>default</name><bridge name='virbr0'/><ip address='192.168.122.1' netmask='255.255.255.0'/></network>
</node>
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("macvm nic detach ", ["two", "running"]),
        ("macvm show t", ["two", "running"]),
        ("macvm start two ", []),
        ("macvm show x", []),
        ("macvm nic set two ", ["testnet0", "vepa on eth0", "testnet1", "network default"]),
        (
            "macvm nic detach --live two 52:",
            ["52:54:00:00:00:0a", "vepa on eth0", "52:54:00:00:00:0b", "network default"],
        ),
        ("macvm nic set two 52-", ["52-54-00-00-00-0a", "vepa on eth0", "52-54-00-00-00-0b", "network default"]),
        ("macvm nic detach two e", ["eth0", "vepa on eth0"]),
        ("macvm nic detach nobody ", []),
    ],
)
def test_the_shell_completes_machines_and_nics(
    macvm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, offered: list[str]
) -> None:
    driver = tmp_path / "driver.xml"
    driver.write_text(TWO_NICS)
    assert completed(macvm, monkeypatch, f"test://{driver}", tmp_path, typed) == offered


@pytest.mark.parametrize("uri", [NOWHERE, "qemu+ssh://192.0.2.99/system", "no\tURI"])
def test_completion_is_quiet_where_libvirt_cannot_be_asked(
    macvm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str
) -> None:
    assert completed(macvm, monkeypatch, uri, tmp_path, "macvm nic detach ") == []


def completed(macvm: Run, monkeypatch: pytest.MonkeyPatch, uri: str, state: Path, typed: str) -> list[str]:
    """Each name that is offered, and its help."""
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - (not typed.endswith(" "))))
    monkeypatch.setenv("_MACVM_COMPLETE", "zsh_complete")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", uri)
    monkeypatch.setattr("provisioner.context.DEFAULTS", {**context.DEFAULTS, "state_dir": str(state / "state")})
    ran = macvm()
    assert (ran.status, ran.err) == (0, "")
    return [line.replace("\\:", ":") for line in ran.out.splitlines() if line not in ("", "plain")]


@pytest.mark.parametrize("command", ["network list", "image list", "endpoint list", "lab schema", "--help"])
def test_who_asks_libvirt_nothing_does_not_load_it(command: str, tmp_path: Path) -> None:
    code = "import sys\nfrom provisioner.cli.main import cli\n"
    code += "cli.main(sys.argv[1:], standalone_mode=False)\nprint('libvirt' in sys.modules, file=sys.stderr)"
    argv = [sys.executable, "-c", code, "--state-dir", str(tmp_path), *command.split()]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.stderr == "False\n"
