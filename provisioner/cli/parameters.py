"""Option types and the words of `--nic`: text to the model's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.completion import network_names
from provisioner.cli.words import Words
from provisioner.errors import Usage
from provisioner.model.machine import Vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, printable
from provisioner.model.nic import parse_address, parse_addressing
from provisioner.model.sizes import parse_size
from provisioner.model.ssh_key import is_public_key, key_lines

if TYPE_CHECKING:
    from provisioner.actions.request import NicRequest

NIC_KEYS = {
    "network": "a network of macvm's, which decides parent, mode and addresses",
    "parent": "host link to sit on (default: the default route's)",
    "mode": "bridge, vepa, private or passthrough (default: bridge)",
    "ip": "ADDRESS/LENGTH, auto, dhcp or none; may be repeated (default: auto on a network, else dhcp)",
    "gateway": "the guest's router; may be repeated, once a family",
    "dns": "a name server; may be repeated",
    "mac": "six bytes (default: macvm chooses)",
    "mtu": "in bytes, at most the parent's",
    "libvirt": "a libvirt network, such as default, in place of parent and mode",
}


MODE = Words("mode", MacvtapMode.parse)
MAC = Words("mac", Mac.parse)
MEMORY = Words("size", lambda text: parse_size(text, what="amount of memory"))
DISK = Words("size", lambda text: parse_size(text, plain_unit="g", what="disk size"))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _mtu(text: str) -> int:
    # RFC 791 and RFC 8200: an IPv4 host takes 68 bytes, IPv6 wants 1280; an interface's own limit is 65535.
    if not _is_number(text) or not 68 <= int(text) <= 65535:
        raise Usage(f"{printable(text)} is no MTU", "a number of bytes from 68 to 65535")
    return int(text)


MTU = Words("bytes", _mtu)


def _vnc(text: str) -> Vnc:
    if not text:
        return Vnc()
    host, sign, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not sign:
        host, port = text, ""
    if port and (not _is_number(port) or not 5900 <= int(port) <= 65535):
        raise Usage(f"{printable(port)} is no VNC port", "a number from 5900 to 65535")
    address = parse_address(host.strip("[]") or "127.0.0.1", "address to listen on")
    return Vnc(str(address), int(port) if port else None)


VNC = Words("address[:port]", _vnc)


def parse_nic(text: str) -> NicRequest:
    """`parent=eth1,mode=vepa,ip=192.0.2.11/24` as a request. Raises Usage."""
    given: dict[str, list[str]] = {}
    for part in text.split(","):
        key, sign, value = part.strip().partition("=")
        if key not in NIC_KEYS or not sign or not value:
            raise Usage(f"--nic {printable(text)}: {printable(part)} is not understood", f"keys: {', '.join(NIC_KEYS)}")
        given.setdefault(key, []).append(value)
    for key, values in given.items():
        if len(values) > 1 and key not in ("ip", "gateway", "dns"):
            raise Usage(f"--nic {printable(text)}: {key} is given twice", f"give {key} once")
    if "libvirt" in given and len(given) > 1:
        others = ", ".join(key for key in given if key != "libvirt")
        raise Usage(f"--nic libvirt={given['libvirt'][0]} takes no {others}", "the libvirt network decides those")

    def one(key: str) -> str:
        return given.get(key, [""])[0]

    from provisioner.actions.request import NicRequest

    return NicRequest(
        mode=MacvtapMode.parse(one("mode")) if one("mode") else None,
        parent=one("parent"),
        libvirt_network=one("libvirt"),
        mac=Mac.parse(one("mac")) if one("mac") else None,
        mtu=_mtu(one("mtu")) if one("mtu") else None,
        addressing=parse_addressing(
            given.get("ip", ()), given.get("gateway", ()), given.get("dns", ()), network="network" in given
        ),
        network=one("network"),
    )


def first_nic(
    mode: MacvtapMode | None,
    parent: str | None,
    ip: Sequence[str],
    gateway: Sequence[str],
    dns: Sequence[str],
    mac: Mac | None,
    mtu: int | None,
    network: str | None = None,
) -> NicRequest | None:
    """The NIC that the plain options describe; None where none of them is given."""
    if network == "" or parent == "":
        raise Usage(f"--{'network' if network == '' else 'parent'} is empty", "name one, or leave the option out")
    if not (mode or parent or ip or gateway or dns or mac or mtu or network):
        return None
    from provisioner.actions.request import NicRequest

    addressing = parse_addressing(ip, gateway, dns, network=bool(network))
    return NicRequest(mode, parent or "", "", mac, mtu, addressing, network or "")


def _one_network(_: click.Context, __: click.Parameter, given: Sequence[str]) -> str | None:
    """Who says two means two NICs, as elsewhere: the first would be dropped without a word."""
    if len(given) > 1:
        shown = " and ".join(map(printable, given[:3]))
        raise Usage(f"--network is given more than once: {shown}", "one NIC is on one network: nic attach adds another")
    return given[0] if given else None


def network_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--network`, once."""
    return click.option(
        "--network",
        multiple=True,
        metavar="NET",
        callback=_one_network,
        shell_complete=network_names,
        help=help_text,
    )


def _pace(text: str) -> str:
    if text not in ("fast", "rfc"):
        raise Usage(f"--probe={printable(text)} is not known", "--probe=fast (the default), --probe=rfc, or --no-probe")
    return text


PACE = Words("pace", _pace)


def probe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--probe` and `--no-probe`; `one_pace` makes one word of them."""
    no = click.option("--no-probe", is_flag=True, help="Do not ask the LAN whether a network's address is in use.")
    pace = click.option(
        "--probe",
        type=PACE,
        is_flag=False,
        flag_value="fast",
        metavar="[=rfc]",
        help="How to ask: 0.3 s, or RFC 5227's 7 s.",
    )
    return pace(no(function))


def one_pace(probe: str | None, no_probe: bool) -> str:
    """Raises Usage for both of them."""
    if probe and no_probe:
        raise Usage("--probe and --no-probe exclude one another", "say one of them")
    return "no" if no_probe else probe or "fast"


def read_user_data(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """What stands in the files; an empty one says nothing. Raises Usage."""
    found = []
    for path in paths:
        try:
            found.append(path.read_bytes())
        except OSError as error:
            raise Usage(f"the user-data {path} cannot be read: {error.strerror}", "check --user-data") from error
    return tuple(filter(None, found))


def read_keys(paths: Sequence[Path]) -> tuple[str, ...]:
    """Lines of public key files. Raises Usage, for a private key too: it would end in the guest."""
    keys: list[str] = []
    for path in paths:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Usage(
                f"the key {path} cannot be read: {error}", "name a public key, such as ~/.ssh/id_ed25519.pub"
            ) from error
        if "PRIVATE KEY" in text:
            raise Usage(f"{path} is a private key", f"the public one goes into guests: {path}.pub")
        lines = key_lines(text)
        for line in lines:
            if not is_public_key(line):
                hint = "a line for each: ssh-ed25519 AAAA… and a comment, as ssh-keygen writes it"
                raise Usage(f"{path} has a line that is no public key: {printable(line)}", hint)
        if not lines:
            raise Usage(f"{path} has no public key", "name a public key, such as ~/.ssh/id_ed25519.pub")
        keys += lines
    return tuple(keys)
