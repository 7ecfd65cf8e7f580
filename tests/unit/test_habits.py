"""The table of habits, walked: each alias is its command to the letter, each hint names a command that exists."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from provisioner.cli import habits
from provisioner.cli.main import cli
from tests.conftest import Ran

Run = Callable[..., Ran]
Told = tuple[str, dict[str, Any]]


def nouns() -> Iterator[tuple[tuple[str, ...], click.Group]]:
    """The main command, and every group below it."""
    yield (), cli
    context = click.Context(cli)
    for name in cli.list_commands(context):
        found = cli.get_command(context, name)
        if isinstance(found, click.Group):
            yield (name,), found


def command_of(words: list[str] | tuple[str, ...]) -> click.Command | None:
    """The command that words begin with, as `macvm` has it; None where the first is none."""
    found: click.Command = cli
    for word in words:
        below = found.get_command(click.Context(found), word) if isinstance(found, click.Group) else None
        if below is None:
            break
        found = below
    return None if found is cli or isinstance(found, click.Group) else found


def needed(command: click.Command) -> list[str]:
    """A word for each argument that must be there."""
    words = []
    for argument in command.params:
        if isinstance(argument, click.Argument) and argument.required:
            choices = argument.type.choices if isinstance(argument.type, click.Choice) else ["192.0.2.9"]
            words += [str(choices[0])] * max(argument.nargs, 1)
    return words


@pytest.fixture
def told(macvm: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """What a command line tells which command, which is not run."""

    def parse(*words: str) -> Told:
        heard: list[Told] = []

        def invoke(self: click.Command, ctx: click.Context) -> None:
            if not isinstance(self, click.Group):
                options = ctx.find_root().obj
                heard.append((ctx.command_path, {**ctx.params, "global": options and vars(options)}))

        monkeypatch.setattr(click.Command, "invoke", invoke)
        ran = macvm(*words)
        assert (ran.status, ran.err) == (0, ""), (words, ran)
        (one,) = heard
        return one

    return parse


#: What is typed, and what it is.
ALIASES = [
    (
        "create --name web1 --ram 1024 --vcpus 2 --network type=direct,source=eth1,source.mode=vepa,model=virtio",
        "create web1 --memory 1024 --vcpus 2 --nic parent=eth1,mode=vepa",
    ),
    (
        "create --name=web1 --network=type=direct,source=eth1,source_mode=passthru,mac=52:54:00:00:00:0a --network network=default",
        "create web1 --nic parent=eth1,mode=passthru,mac=52:54:00:00:00:0a --nic libvirt=default",
    ),
    (
        "create --name web1 --ram 512 --import --disk 2G --osinfo linux2022 --graphics none --noautoconsole --source eth1",
        "create web1 --memory 512 --disk 2G --parent eth1",
    ),
    ("create web1 --os-variant=generic --disk size=2 --graphics vnc", "create web1 --disk 2G --vnc"),
    ("list --all", "list"),
    ("ls -a", "list"),
    ("start --domain web1", "start web1"),
    ("console --domain web1", "console web1"),
    ("create web1 --network type=network,source=default", "create web1 --nic libvirt=default"),
    ("create web1 --source eth1 --source-mode private", "create web1 --parent eth1 --mode private"),
    ("create web1 --mode passthru", "create web1 --mode passthrough"),
    ("create web1 --network lan --ram 2G", "create web1 --network lan --memory 2G"),
    ("network create --name lan -o parent=eth1 -o json", "network create lan --parent eth1 -o json"),
    (
        "network create -d macvlan --subnet 192.0.2.0/24 --gateway 192.0.2.1 -o parent=eth0 -o macvlan_mode=vepa lan",
        "network create --subnet 192.0.2.0/24 --gateway 192.0.2.1 --parent eth0 --mode vepa lan",
    ),
    (
        "network create --driver=macvlan --ipv6 --opt parent=eth0 --opt=mode=passthru -ocom.docker.network.driver.mtu=1400 lan",
        "network create --parent eth0 --mode passthrough --mtu 1400 lan",
    ),
    ("network create lan -dmacvlan --source eth1 -o mtu=1400", "network create lan --parent eth1 --mtu 1400"),
    ("network create lan --source-mode vepa --mode passthru", "network create lan --mode passthrough"),
    ("endpoint create --name box --source eth1 --source-mode vepa", "endpoint create box --parent eth1 --mode vepa"),
    ("endpoint create box --mode passthru", "endpoint create box --mode passthrough"),
    (
        "attach-interface --domain web1 --type direct --source eth1 --model virtio --mac 52:54:00:00:00:0a --live",
        "nic attach web1 --parent eth1 --model virtio --mac 52:54:00:00:00:0a --live",
    ),
    (
        "attach-interface web1 direct eth1 --config --source-mode vepa",
        "nic attach web1 --parent eth1 --config --mode vepa",
    ),
    ("attach-interface web1 --type direct eth1 --persistent", "nic attach web1 --parent eth1 --persistent"),
    ("attach-interface --domain=web1 direct eth1", "nic attach web1 --parent eth1"),
    ("detach-interface web1 direct --mac 52:54:00:00:00:0a", "nic detach web1 52:54:00:00:00:0a"),
    ("detach-interface --mac 0a --type direct --domain web1 --live", "nic detach web1 0a --live"),
    ("nic set web1 0a --source eth1 --source-mode passthru", "nic set web1 0a --parent eth1 --mode passthrough"),
    ("domiflist --domain web1", "nic list web1"),
    ("domifaddr web1 --source lease -o json", "ip web1 -o json"),
    ("domifaddr --domain web1", "ip web1"),
    ("dominfo --domain web1", "show web1"),
    ("shutdown --domain web1 --mode acpi", "stop web1"),
    ("reboot --domain web1 --mode acpi", "restart web1"),
    ("-v ls -o json", "list -v -o json"),
    ("ps", "list"),
    ("rm web1", "delete web1"),
    ("remove web1", "delete web1"),
    ("inspect web1", "show web1"),
    ("network ls", "network list"),
    ("network rm lan", "network delete lan"),
    ("network inspect lan", "network show lan"),
    ("nic rm web1 0a", "nic detach web1 0a"),
    ("nic inspect web1", "nic list web1"),
    ("shim inspect eth0", "shim status eth0"),
    ("shim rm eth0", "shim down eth0"),
    ("image remove tiny", "image delete tiny"),
    ("endpoint ps", "endpoint list"),
]


@pytest.mark.parametrize(("typed", "real"), ALIASES)
def test_what_is_typed_is_the_real_command_to_the_letter(told: Callable[..., Told], typed: str, real: str) -> None:
    assert told(*typed.split()) == told(*real.split())


def test_every_option_of_the_table_is_among_those() -> None:
    for path, rules in habits.OPTIONS.items():
        lines = [f" {typed} " for typed, real in ALIASES if tuple(real.split()[: len(path)]) == path]
        for option in rules:
            said = (f" {option} ", f" {option}=", f" {option}m")
            assert [line for line in lines if any(one in line for one in said)], (path, option)


def aliases() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    for path, noun in nouns():
        there = noun.list_commands(click.Context(noun))
        for word, meant in habits.NOUN_WORDS.items():
            found = [one for one in meant if one in there]
            if found and (*path, word) not in {**habits.WORDS, **habits.FOREIGN}:
                yield (*path, word), (*path, found[0])
    for path, behind in habits.WORDS.items():
        yield path, (*path[:-1], *behind)


@pytest.mark.parametrize(("alias", "real"), list(aliases()), ids=" ".join)
def test_every_alias_is_its_command(
    told: Callable[..., Told], macvm: Run, alias: tuple[str, ...], real: tuple[str, ...]
) -> None:
    command = command_of(real)
    assert command is not None, real
    words = needed(command)
    assert told(*alias, *words) == told(*real, *words)
    for wrong in (["--bogus"], ["a", "b", "c", "--timeout"], ["-o", "xml"]):
        assert macvm(*alias, *wrong) == macvm(*real, *wrong)
    assert macvm(*alias, "--help") == macvm(*real, "--help")


def test_ls_rm_inspect_ps_and_remove_are_answered_on_every_noun(macvm: Run) -> None:
    known = {alias for alias, _ in aliases()} | habits.FOREIGN.keys()
    for path, _ in nouns():
        if path != ("sandbox",):  # which is none of them
            assert [word for word in habits.NOUN_WORDS if (*path, word) not in known] == [], path


#: Words behind which other words of others stand, and the hint.
HINTED = {
    "destroy web1": "macvm stop --force web1",
    "undefine --nvram web1": "macvm delete web1",
    "run -it web1": "macvm create NAME",
    "exec web1 ls": "macvm ssh web1 -- COMMAND",
    "exec": "macvm ssh NAME -- COMMAND",
    "prune": "macvm gc",
    "network connect lan web1": "macvm nic attach web1 --network lan",
    "network connect": "macvm nic attach NAME --network NET",
    "network create -d ipvlan -o parent=eth0 lan": "macvm endpoint create NAME --ipvlan l2",
    "network create -o ipvlan_mode=l3 lan": "macvm endpoint create NAME --ipvlan l2",
    "network create -d bridge lan": "macvm network create --help",
    "network create lan -o colour=red": "macvm network create --help",
    "create --network bridge=br0": "macvm create NAME --parent DEV",
    "create --name web2 --import --disk cirros.img --graphics none": "macvm create NAME --image cirros.img",
    "create web2 --import --disk path=/srv/web2.qcow2,size=10": "macvm create NAME --image /srv/web2.qcow2",
    "create web2 --graphics spice": "--vnc",
    "create --network type=direct,source=eth0,link.state=up": "macvm create --nic help",
    "create --network type=direct,source=eth0,model=e1000": "macvm create --nic help",
    "create --network network=default,mtu.size=1400": "macvm create --nic help",
    "create --network a=b": "macvm create --nic help",
    "attach-interface web1 bridge br0": "virsh attach-interface",
    "attach-interface web1 --type network": "virsh attach-interface",
    "shutdown web1 --mode agent": "--force",
}


def complains(ran: Ran) -> str:
    """The hint of the one error."""
    assert ran.status == 2, ran
    assert [line.split(":")[0] for line in ran.lines] == ["error", "hint"], ran
    return ran.lines[1].removeprefix("hint: ")


@pytest.mark.parametrize(("typed", "hint"), HINTED.items())
def test_what_means_something_else_gets_a_hint(macvm: Run, typed: str, hint: str) -> None:
    assert hint in complains(macvm(*typed.split()))


@pytest.mark.parametrize("word", habits.FOREIGN, ids=" ".join)
def test_every_hint_names_a_command_that_exists(macvm: Run, word: tuple[str, ...]) -> None:
    for names in ([], ["a", "b"], ["$(id)", "\x1b[2J"]):
        hint = complains(macvm(*word, *names))
        macvm_word, *words = hint.split()
        assert macvm_word == "macvm"
        command = command_of(words)
        assert command is not None, hint
        said = {option for one in command.params if isinstance(one, click.Option) for option in one.opts}
        before_command = words[: words.index("--")] if "--" in words else words
        assert {one for one in before_command if one.startswith("-")} <= said, hint
        assert hint.isprintable()
        assert "id)" not in hint


def test_no_foreign_word_hides_a_command() -> None:
    for path in (*habits.FOREIGN, *habits.WORDS):
        command = command_of(path)
        assert command is None or command.name != path[-1], path


def test_help_and_completion_show_none(macvm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {alias for alias, _ in aliases()} | habits.FOREIGN.keys()
    for path, _ in nouns():
        words = {one[-1] for one in foreign if one[:-1] == path}
        shown = {line.split()[0] for line in macvm(*path, "--help").out.splitlines() if line.startswith("  ")}
        assert not words & shown
        assert not words & set(completed(macvm, monkeypatch, " ".join(("macvm", *path, ""))))
        monkeypatch.delenv("_MACVM_COMPLETE")


def completed(macvm: Run, monkeypatch: pytest.MonkeyPatch, typed: str) -> list[str]:
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    monkeypatch.setenv("_MACVM_COMPLETE", "bash_complete")
    ran = macvm()
    assert (ran.status, ran.err) == (0, "")
    return [line.partition(",")[2] for line in ran.out.splitlines()]


def test_behind_an_alias_the_shell_completes_as_behind_its_command(macvm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")
    for alias in ("rm", "domiflist", "inspect", "nic rm"):
        assert completed(macvm, monkeypatch, f"macvm {alias} ") == ["test"]
    for foreign in ("destroy", "network connect"):
        completed(macvm, monkeypatch, f"macvm {foreign} ")


def test_whoever_types_macvms_own_words_never_loads_the_table(
    macvm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "provisioner.cli.habits")
    monkeypatch.delattr("provisioner.cli.habits")
    for words in (["--help"], ["list"], ["network", "list"], ["nic", "attach", "--help"]):
        macvm("--connect", "test:///default", "--state-dir", str(tmp_path), *words)
    assert "provisioner.cli.habits" not in sys.modules
    macvm("ls")
    assert "provisioner.cli.habits" in sys.modules


@pytest.mark.parametrize(
    ("word", "meant"), [("attach", "nic attach"), ("pull", "image pull"), ("lsit", "list"), ("strat", "start")]
)
def test_an_unknown_word_gets_the_command_that_may_be_meant(macvm: Run, word: str, meant: str) -> None:
    assert complains(macvm(word)) == f"did you mean `macvm {meant}`?"
