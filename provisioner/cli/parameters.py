"""Option types and the words of `--nic`: text to the model's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.completion import network_names
from provisioner.cli.words import SECONDS, WAIT_FOR, Words
from provisioner.errors import Usage
from provisioner.model.machine import parse_vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, printable
from provisioner.model.nic import parse_addressing, parse_mtu
from provisioner.model.sizes import parse_size

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
MTU = Words("bytes", parse_mtu)
VNC = Words("address[:port]", parse_vnc)


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
        mtu=parse_mtu(one("mtu")) if one("mtu") else None,
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
    if given and "=" in given[0]:
        raise Usage(f"--network {printable(given[0])} is no network's name", "--nic takes such words")
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


def nic_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of one NIC, `--mode` to `--mtu`, which `first_nic` takes."""
    options = (
        click.option("--mode", type=MODE, help="bridge (default), vepa, private or passthrough."),
        click.option("--parent", metavar="DEV", help="Host link to sit on; default: the default route's."),
        network_option("Parent, mode and address from it."),
        click.option(
            "--ip", multiple=True, metavar="ADDRESS[/LEN]|auto|dhcp|none", help="Default: auto on a network, else dhcp."
        ),
        click.option(
            "--gateway", multiple=True, metavar="ADDRESS", help="The guest's router; default: the host's own."
        ),
        click.option("--dns", multiple=True, metavar="ADDRESS", help="A name server; default: the host's own."),
        click.option("--mac", type=MAC, help="The NIC's MAC; default: macvm chooses."),
        click.option("--mtu", type=MTU, help="The NIC's MTU, at most the parent's."),
    )
    for option in reversed(options):
        function = option(function)
    return function


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


def wait_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--wait` as `wait_for`, None unless it is said and "" where it is said alone; and `--timeout`, in seconds."""
    timeout = click.option("--timeout", type=SECONDS, default="120", help="How long --wait waits.  [120s]")
    wait = click.option(
        "--wait",
        "wait_for",
        is_flag=False,
        flag_value="",
        callback=_known_wait,
        metavar="[=ip|ping|ssh]",
        help="Until it has an address or answers; alone: ping, but ip for DHCP.",
    )
    return wait(timeout(function))


def _known_wait(_context: click.Context, _option: click.Parameter, said: str | None) -> str | None:
    if said and said not in WAIT_FOR:
        raise Usage(f"--wait={said} is not known", "--wait, --wait=ip, --wait=ping or --wait=ssh")
    return said


def one_pace(probe: str | None, no_probe: bool) -> str:
    """Raises Usage for both of them."""
    if probe and no_probe:
        raise Usage("--probe and --no-probe exclude one another", "say one of them")
    return "no" if no_probe else probe or "fast"
