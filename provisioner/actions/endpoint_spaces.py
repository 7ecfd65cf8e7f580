"""Where an endpoint's link lives: put into its network namespace, found there again, and taken away."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from provisioner.context import Context
from provisioner.errors import NotFound, Taken
from provisioner.host import links, netlink, netns
from provisioner.host.netlink import Link
from provisioner.model.endpoint import Endpoint, IpvlanMode
from provisioner.model.nic import Address

_FOLDER = "endpoints"

#: What has the kernel tell the LAN of addresses as the link comes up (Documentation/networking/ip-sysctl): whoever
#: knew another NIC at one of them would go on sending there for half a minute.
_ANNOUNCED = ("net/ipv4/conf/{}/arp_notify", "net/ipv6/conf/{}/ndisc_notify")


def alias_of(endpoint: Endpoint) -> str:
    """What the link is known by: a namespace's owner may rename it, and an identity may be another's later."""
    return f"{links.MARK}endpoint:{endpoint.name}"


@contextlib.contextmanager
def opened(endpoint: Endpoint) -> Iterator[int | None]:
    """A descriptor of an endpoint's namespace during the block; None where that is gone. Raises Unable."""
    fd = _open(endpoint)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _open(endpoint: Endpoint) -> int | None:
    for where in _places(endpoint):
        try:
            fd = netns.open_namespace(where)
        except NotFound:
            continue
        if endpoint.own or netns.identity(fd) == endpoint.identity:
            return fd
        os.close(fd)
    return None


def _places(endpoint: Endpoint) -> Iterator[str]:
    yield endpoint.namespace
    if endpoint.own:
        return
    # The process that it was named by may have ended, while others live on in it.
    for path in itertools.chain(netns.FOLDER.glob("*"), Path("/proc").glob("[0-9]*/ns/net")):
        with contextlib.suppress(OSError):
            found = path.stat()
            if (found.st_dev, found.st_ino) == endpoint.identity:
                yield str(path)
                return


def find_link(endpoint: Endpoint, fd: int) -> Link | None:
    """The endpoint's link in the namespace of a descriptor. Raises Unable without the right to go there."""
    there = netns.run_inside(fd, netlink.links)
    return next((link for link in there if link.alias == alias_of(endpoint)), None)


def is_there(endpoint: Endpoint) -> bool:
    with opened(endpoint) as fd:
        return fd is not None and find_link(endpoint, fd) is not None


def make_link(endpoint: Endpoint, fd: int) -> Link:
    """Made beside its parent, since the kernel looks for that in the namespace it is asked in, and then moved. The link
    is down. Raises what the kernel refuses; `remove_link` takes away what was made by then."""
    parent, alias = netlink.get_link(endpoint.nic.parent), alias_of(endpoint)
    if isinstance(endpoint.mode, IpvlanMode):
        made = links.add_ipvlan(endpoint.link, parent, endpoint.mode.value, alias)
    else:
        mac = parent.mac if endpoint.mode.value == "passthrough" else endpoint.nic.mac
        made = links.add_macvlan(endpoint.link, parent, mac, alias, endpoint.mode.value, endpoint.sources)
    taken = {link.name for link in netns.run_inside(fd, netlink.links)}
    for number in itertools.count():
        if f"eth{number}" in taken:
            continue
        # Between a look and a move somebody else may have taken the name.
        with contextlib.suppress(Taken):
            return links.move(made, fd, f"eth{number}")
    raise AssertionError("numbers do not end")


def furnish(endpoint: Endpoint, fd: int, link: Link) -> list[str]:
    """Brings an endpoint's link up with its addresses and gateways. Returns what was left as it is."""
    return netns.run_inside(fd, lambda: _furnish(endpoint, link))


def _furnish(endpoint: Endpoint, link: Link) -> list[str]:
    told = endpoint.nic.addressing
    if endpoint.own:
        links.set_up(netlink.get_link("lo"))
    if endpoint.nic.mtu:
        links.set_mtu(link, endpoint.nic.mtu)
    for key in _ANNOUNCED:
        links.sysctl(key.format(link.name), "1")
    for interface in told.static:
        links.add_address(interface, link)
    links.set_up(link)
    # A container keeps the way out that it has.
    has = {route.destination.version for route in netlink.routes() if route.destination.prefixlen == 0}
    notes = []
    for gateway in first_of_each_family(told.gateways):
        if gateway.version in has:
            where = f"the network namespace {endpoint.namespace}"
            notes.append(f"{where} has a default route already, which stays: {gateway} is not used")
        else:
            links.add_default_route(gateway, link)
    return notes


def first_of_each_family(gateways: tuple[Address, ...]) -> list[Address]:
    return list({gateway.version: gateway for gateway in reversed(gateways)}.values())


def remove_link(endpoint: Endpoint) -> None:
    """Wherever it is. Gone already is fine, and so is a namespace that is gone."""
    left = netlink.find_link(endpoint.link)
    if left:
        # Killed before it was marked: the name was made up for this link alone.
        links.remove(left._replace(alias=alias_of(endpoint)))
    with opened(endpoint) as fd:
        link = find_link(endpoint, fd) if fd is not None else None
        if fd is not None and link:
            netns.run_inside(fd, lambda: links.remove(link))


def resolv_conf(context: Context, endpoint: Endpoint) -> Path:
    """What programs in the endpoint see as /etc/resolv.conf, where it has name servers."""
    return context.state_dir / _FOLDER / endpoint.name / "resolv.conf"


def write_files(context: Context, endpoint: Endpoint) -> None:
    path = resolv_conf(context, endpoint)
    context.store.own_file(path, endpoint.owner)
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)  # whatever the umask
    path.write_text("".join(f"nameserver {server}\n" for server in endpoint.nic.addressing.dns))
    path.chmod(0o644)


def remove_files(context: Context, endpoint: Endpoint) -> None:
    """Those that the store has as made for it, and the folders once they are empty."""
    from provisioner.host import disks

    for path in context.store.files_of(endpoint.owner):
        disks.remove_file(path, context.state_dir)
        context.store.disown_file(path)
    folder = resolv_conf(context, endpoint).parent
    for empty in (folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()
