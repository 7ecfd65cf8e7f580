"""A lab as the text of its file, which `file` reads back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from provisioner.actions.labs.wishes import Lab, ShimWish
from provisioner.actions.request import CreateRequest, EndpointRequest, NicRequest
from provisioner.model.machine import DirectBoot, Vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.network import Network
from provisioner.model.nic import Addressing
from provisioner.model.shim import To

#: What every reader of YAML takes for the text that it is: words but for those that are truths or nothing to some,
#: IPv4 addresses with or without a length, and sizes.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*|[0-9]+(\.[0-9]+){3}(/[0-9]+)?|[0-9]+[KMG]")
_TRUTHS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}

#: Smallest first.
_UNITS = ((30, "G"), (20, "M"), (10, "K"))


def text(lab: Lab) -> str:
    """Of what `create`, `network create` and `endpoint create` are asked for as words; files' content is in no word."""
    sections: dict[str, Any] = {
        "networks": {one.name: _network(one) for one in lab.networks},
        "vms": {one.name: _machine(one) for one in lab.machines},
        "endpoints": {one.name: _endpoint(one) for one in lab.endpoints},
        "shims": [_shim(one) for one in lab.shims],
    }
    lines = [f"lab: {_scalar(lab.name)}"]
    for name, section in sections.items():
        if section:
            lines += ["", *_lines({name: section})]
    return "\n".join(lines) + "\n"


def _said(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value not in (None, "", [], {})}


def _network(network: Network) -> dict[str, Any]:
    return _said(
        {
            "parent": network.parent,
            "mode": "" if network.mode is MacvtapMode.BRIDGE else network.mode.value,
            "subnets": [
                _said(
                    {
                        "subnet": str(one.subnet),
                        "gateway": str(one.gateway or ""),
                        "range": f"{one.range.first}-{one.range.last}" if one.range else "",
                    }
                )
                for one in network.subnets
            ],
            "reserved": {name: str(address) for name, address in network.reserved},
            "dns": [str(server) for server in network.dns],
            "mtu": network.mtu,
            "shim": None if network.shim else False,
        }
    )


def _machine(request: CreateRequest) -> dict[str, Any]:
    return _said(
        {
            "image": request.image,
            "memory": _size(request.memory),
            "vcpus": request.vcpus if request.vcpus > 1 else None,
            "disk": _size(request.disk_size),
            "virt_type": request.virt_type,
            "firmware": request.firmware,
            **_boot(request.boot),
            **_vnc(request.vnc),
            "start": None if request.start else False,
            "shim": None if request.shim else False,
            "autostart": True if request.autostart else None,
            "labels": dict(request.labels),
            "nics": [_nic(nic) for nic in request.nics],
        }
    )


def _boot(boot: DirectBoot | None) -> dict[str, Any]:
    return {tag: str(one or "") for tag, one in boot._asdict().items()} if boot else {}


def _vnc(vnc: Vnc | None) -> dict[str, Any]:
    if vnc is None or vnc == Vnc():
        return {"vnc": True if vnc else None}
    host = f"[{vnc.listen}]" if ":" in vnc.listen else vnc.listen
    exposed = vnc.listen not in ("127.0.0.1", "::1")
    return {"vnc": f"{host}:{vnc.port}" if vnc.port else host, "vnc_exposed": True if exposed else None}


def _nic(nic: NicRequest) -> dict[str, Any]:
    if nic.libvirt_network:
        return {"libvirt": nic.libvirt_network}
    mode = nic.mode.value if nic.mode and nic.mode is not MacvtapMode.BRIDGE else ""
    wiring = {"network": nic.network, "parent": nic.parent, "mode": mode, "mtu": nic.mtu}
    return _said({**wiring, **_addressing(nic.addressing, "auto" if nic.network else "dhcp")})


def _endpoint(request: EndpointRequest) -> dict[str, Any]:
    return _said(
        {
            "network": request.network,
            "parent": request.parent,
            "mode": request.mode.value if request.mode else "",
            "ipvlan": request.ipvlan.value if request.ipvlan else "",
            "mtu": request.mtu,
            "allow_source": list(request.sources),
            "netns": request.netns,
            "shim": None if request.shim else False,
            **_addressing(request.addressing, "auto" if request.network else "none"),
        }
    )


def _addressing(told: Addressing, usual: str) -> dict[str, Any]:
    """`usual` is what a file means that says nothing."""
    ip: list[str] = [str(interface) for interface in told.static]
    ip = ip or ["auto" if told.auto else "dhcp" if told.dhcp else "none"]
    return {
        "ip": "" if ip == [usual] else ip[0] if len(ip) == 1 else ip,
        "gateway": [str(one) for one in told.gateways],
        "dns": [str(one) for one in told.dns],
    }


def _shim(wish: ShimWish) -> dict[str, Any]:
    return _said({"parent": wish.parent, "to": [_to(one) for one in wish.to]})


def _to(one: To) -> str:
    return str(one.block) if one.block else ",".join(filter(None, (str(one.address), one.mac)))


def _size(size: int | None) -> str:
    if size is None:
        return ""
    # libvirt counts memory in KiB; a disk of an odd size is none of macvm's.
    return next((f"{size >> shift}{unit}" for shift, unit in _UNITS if size % (1 << shift) == 0), f"{size >> 10}K")


# YAML


def _lines(mapping: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A line for each key, and one for each NIC, subnet or shim."""
    for key, value in mapping.items():
        name = f"{indent}{_scalar(key)}:"
        if isinstance(value, dict) and value and indent != "    ":
            yield name
            yield from _lines(value, f"{indent}  ")
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            yield name
            yield from (f"{indent}  - {_flow(one)}" for one in value)
        else:
            yield f"{name} {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool | int):
        return str(value).lower()
    return _scalar(value)


def _scalar(text: str) -> str:
    # In a lab file `$` begins a variable, and `$$` is one.
    if _PLAIN.fullmatch(text) and text.lower() not in _TRUTHS:
        return text
    return json.dumps(text, ensure_ascii=False).replace("$", "$$")
