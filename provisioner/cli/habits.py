"""What hands that know virsh, virt-install and docker type: words that work here too, and words that get a hint.

The tables are looked at only where a word is unknown, so they cost nothing otherwise; neither --help nor completion
shows them. That a mode may be said as the kernel has it, `passthru`, is the model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

import click

from provisioner.cli.base import Hinted
from provisioner.model.names import printable

Path = tuple[str, ...]

#: On every noun, and at the top: the first of these commands that is there.
NOUN_WORDS: dict[str, Path] = {
    "ls": ("list", "status"),
    "ps": ("list", "status"),
    "rm": ("delete", "detach", "down"),
    "remove": ("delete", "detach", "down"),
    "inspect": ("show", "status"),
}

#: Words of a noun alone, or of none, and the command behind that noun.
WORDS: dict[Path, Path] = {
    ("domiflist",): ("nic", "list"),
    ("domifaddr",): ("ip",),
    ("attach-interface",): ("nic", "attach"),
    ("detach-interface",): ("nic", "detach"),
    ("dominfo",): ("show",),
    ("shutdown",): ("stop",),
    ("reboot",): ("restart",),
    ("nic", "inspect"): ("list",),
}

#: Words that mean something else elsewhere, or nothing here, and what to type: `{0}` and `{1}` are the names behind it.
FOREIGN: dict[Path, str] = {
    ("destroy",): "macvm stop --force {0}",
    ("undefine",): "macvm delete {0}",
    ("run",): "macvm create NAME",
    ("exec",): "macvm ssh {0} -- COMMAND",
    ("prune",): "macvm gc",
    ("network", "connect"): "macvm nic attach {1} --network {0}",
    ("network", "disconnect"): "macvm nic detach {1} {0}",
    ("network", "prune"): "macvm network delete NAME",
    ("endpoint", "prune"): "macvm gc",
    ("image", "prune"): "macvm image delete NAME",
    ("image", "inspect"): "macvm image list",
    ("endpoint", "inspect"): "macvm endpoint list",
}
_PLACES: dict[Path, Path] = {("network", "connect"): ("NET", "NAME"), ("network", "disconnect"): ("NET", "NAME")}


def command(path: Path, args: Sequence[str], commands: Collection[str]) -> list[str] | None:
    """The words that are meant by those behind a noun, which has these commands; None where nobody knows.

    Raises Hinted for a word that is no command of macvm's, and whose like is.
    """
    word, *rest = args
    known = WORDS.get((*path, word)) or tuple(name for name in NOUN_WORDS.get(word, ()) if name in commands)[:1]
    if known:
        return [*known, *rest]
    if (*path, word) in FOREIGN:
        names = [name for name in rest if re.fullmatch(r"\w[\w.:@+-]*", name, re.ASCII)]
        places = _PLACES.get((*path, word), ("NAME",))
        filled = [*names[: len(places)], *places[len(names) :]]
        raise Hinted(f"macvm has no `{' '.join((*path, word))}`", FOREIGN[*path, word].format(*filled))
    return None


#: What becomes of an option and its value: other words. Raises Hinted.
Rule = Callable[[str], list[str]]


def _renamed(ours: str) -> Rule:
    return lambda value: [ours, value]


def _positional(value: str) -> list[str]:
    return [value]


def _dropped(_: str) -> list[str]:
    return []


def _only(option: str, meant: str, hint: str) -> Rule:
    """An option with which others say what macvm does anyway."""

    def rule(value: str) -> list[str]:
        if value != meant:
            raise Hinted(f"{option} {value} is not what macvm does", hint)
        return []

    return rule


def _network_words(value: str) -> list[str]:
    """virt-install's `--network type=direct,source=eth0,source.mode=bridge`; a name of macvm's own stays."""
    if "=" not in value:
        return ["--network", value]
    given = {key: text for key, _, text in (part.strip().partition("=") for part in value.split(","))}
    kind = given.pop("type", "network" if "network" in given else "bridge" if "bridge" in given else "direct")
    if kind == "network":
        found = [("libvirt", given.pop("network", "") or given.pop("source", ""))]
    elif kind == "direct":
        found = [(ours, given.pop(theirs)) for theirs, ours in _DIRECT_KEYS.items() if theirs in given]
    else:
        raise Hinted(f"--network {value} is a bridge of the host's, not macvtap", "macvm create NAME --parent DEV")
    model = given.pop("model", "") or given.pop("model.type", "")
    if given or model not in ("", "virtio"):
        left = [*given, *([f"model={model}"] if model not in ("", "virtio") else [])]
        raise Hinted(f"--network {value}: {', '.join(left)} is not understood", "macvm create --nic help")
    return ["--nic", ",".join(f"{key}={text}" for key, text in found)]


_DIRECT_KEYS = {
    "source": "parent",
    "source.mode": "mode",
    "source_mode": "mode",
    "mac": "mac",
    "mac.address": "mac",
    "mtu": "mtu",
    "mtu.size": "mtu",
}


def _driver_option(value: str) -> list[str]:
    """docker's and podman's `-o parent=eth0`; macvm's own `-o json` stays."""
    key, sign, text = value.partition("=")
    ours = {"parent": "--parent", "macvlan_mode": "--mode", "mode": "--mode", "mtu": "--mtu"}
    ours["com.docker.network.driver.mtu"] = "--mtu"
    if not sign:
        return ["-o", value]
    if key == "ipvlan_mode":
        raise _ipvlan()
    if key not in ours:
        raise Hinted(f"-o {value} is not understood", "macvm network create --help")
    return [ours[key], text]


def _driver(value: str) -> list[str]:
    if value == "ipvlan":
        raise _ipvlan()
    return _only("-d", "macvlan", "macvm network create --help")(value)


def _ipvlan() -> Hinted:
    return Hinted("ipvlan is for endpoints: a VM's NIC cannot be one", "macvm endpoint create NAME --ipvlan l2")


def _disk(value: str) -> list[str]:
    """virt-install's `--disk FILE`, `path=FILE`, `size=GiB`; a size as macvm has it stays."""
    given = {key: text for key, sign, text in (part.partition("=") for part in value.split(",")) if sign}
    file = given.get("path") or ("" if given else value)
    if file and not file[:1].isdigit():
        path = file if file.isprintable() else "FILE"
        raise Hinted(
            f"--disk is a size here, and {printable(file)} is none",
            f"macvm create NAME --image {path}, which is copied",
        )
    return ["--disk", f"{given['size']}G" if "size" in given else value]


def _graphics(value: str) -> list[str]:
    if value in ("none", "vnc"):
        return ["--vnc"] if value == "vnc" else []
    raise Hinted(f"--graphics {printable(value)} is not understood", "--vnc, or leave it out: macvm console NAME")


_DOMAIN: dict[str, Rule] = {"--domain": _positional}
_PARENT: dict[str, Rule] = {"--source": _renamed("--parent"), "--source-mode": _renamed("--mode")}
_DIRECT: dict[str, Rule] = {"--type": _only("--type", "direct", "virsh attach-interface makes others than macvtap")}
_ACPI: dict[str, Rule] = {"--mode": _only("--mode", "acpi", "leave it out: macvm asks through ACPI; or say --force")}

#: Options of others by command. All take a value, but those of `FLAGS`.
OPTIONS: dict[Path, dict[str, Rule]] = {
    ("create",): {
        **_PARENT,
        "--name": _positional,
        "--ram": _renamed("--memory"),
        "--network": _network_words,
        "--disk": _disk,
        "--graphics": _graphics,
        # What macvm does anyway, and what it has no use for.
        **dict.fromkeys(("--import", "--noautoconsole", "--os-variant", "--osinfo"), _dropped),
    },
    ("list",): dict.fromkeys(("--all", "-a"), _dropped),
    ("show",): _DOMAIN,
    ("stop",): _DOMAIN | _ACPI,
    ("restart",): _DOMAIN | _ACPI,
    ("ip",): {**_DOMAIN, "--source": _dropped},
    ("nic", "list"): _DOMAIN,
    ("start",): _DOMAIN,
    ("console",): _DOMAIN,
    ("nic", "attach"): _DOMAIN | _DIRECT | _PARENT,
    ("nic", "detach"): _DOMAIN | _DIRECT | {"--mac": _positional},
    ("nic", "set"): _PARENT,
    ("network", "create"): {
        **_PARENT,
        "--name": _positional,
        **dict.fromkeys(("-d", "--driver"), _driver),
        **dict.fromkeys(("-o", "--opt"), _driver_option),
        "--ipv6": _dropped,
    },
    ("endpoint", "create"): {**_PARENT, "--name": _positional},
}
FLAGS = {"--ipv6", "--import", "--noautoconsole", "--all", "-a"}

#: Words without an option that virsh wants behind the machine, and the options that they stand for.
_BEHIND: dict[Path, tuple[str, ...]] = {("nic", "attach"): ("--type", "--source"), ("nic", "detach"): ("--type",)}


def options(path: Path, args: Sequence[str], command: click.Command) -> list[str]:
    """The words of a command as macvm has them; the same where no habit is among them. Raises Hinted."""
    rules = OPTIONS.get(path, {})
    words: list[str] = []
    last: list[str] = []
    behind = iter([place for place in _BEHIND.get(path, ()) if place not in args])
    seen_name = any(word.startswith("--domain") for word in args)
    for option, value, given in _split(args, rules, command):
        if (*path, option) == ("nic", "detach", "--mac") and value:
            # Behind the machine, wherever that stands.
            last.append(value)
        elif option in rules and value is not None:
            words += rules[option](value)
        elif option or not seen_name:
            words += given
            seen_name = seen_name or not option
        else:
            # `attach-interface web1 direct eth0`; what is left over is said as of any command.
            place = next(behind, "")
            is_type = place != "--type" or given[0] in ("direct", "network", "bridge")
            words += rules[place](given[0]) if place and is_type else given
    return words + last


def _split(
    args: Sequence[str], rules: dict[str, Rule], command: click.Command
) -> Iterator[tuple[str, str | None, list[str]]]:
    """Each option, its value and the words of both; an argument as `("", None, [word])`."""
    ours = [one for one in command.params if isinstance(one, click.Option)]
    valued = {name for one in ours if not one.is_flag and not one.count for name in one.opts} | rules.keys()
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield "--", None, [word, *rest]
            return
        option, sign, value = word.partition("=")
        if not word.startswith("--") and word[:2] in valued:
            option, sign, value = word[:2], word[2:], word[2:]
        if sign and option in valued:
            yield option, value, [word]
        elif option in FLAGS:
            yield option, "", [word]
        elif option in valued and rest:
            value = rest.pop(0)
            yield option, value, [word, value]
        else:
            yield (word if word.startswith("-") else ""), None, [word]
