"""What macvm has in the kernel, found by its marks alone: links, those of endpoints elsewhere, VLANs, routes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import vlans
from provisioner.errors import MacvmError, NotFound, PartlyDone, Unable
from provisioner.host import links, netlink, netns
from provisioner.host.netlink import Link
from provisioner.host.routing import HostRoutes
from provisioner.model.endpoint import NAMESPACE_PREFIX
from provisioner.model.names import packed_mac
from provisioner.model.shim import ShimSet

_ENDPOINT = f"{links.MARK}endpoint:"


class Stray(NamedTuple):
    """The link of an endpoint that no store knows of, in the network namespace of a name or a process; `own` where
    that is the endpoint's alone."""

    name: str
    where: str
    link: Link
    own: bool


class Vlans(NamedTuple):
    """The links of VLANs that macvm made: those that go, those that VMs need, in words, and those in the way of which
    something else is."""

    gone: tuple[Link, ...] = ()
    needed: tuple[str, ...] = ()
    in_use: tuple[MacvmError, ...] = ()


def is_marked(link: Link) -> bool:
    return link.alias.startswith(links.MARK)


def own_links(there: Iterable[Link]) -> Iterator[Link]:
    """Shims, and what a killed macvm left of questions and endpoints; no VLANs."""
    return (link for link in there if is_marked(link) and not vlans.is_ours(link))


def strays(there: Sequence[Link], known: Collection[str]) -> Iterator[Stray]:
    """`known` are the names of the store's endpoints. One whose link is down, in a namespace without a name, leaves no
    trace."""
    seen = set[tuple[int, int]]()
    here = netns.own()
    seen.add(netns.identity(here))
    os.close(here)
    for name in netns.names():
        yield from _strays_in(name, name, known, seen, None)
    # A process's may be of another host altogether, a sandbox's say: here is what sits on a link of this one.
    behind = {mac for link in there for mac in netlink.macs_behind(link.index)} - {link.mac for link in there}
    if not behind:
        return
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        yield from _strays_in(path.parts[2], "", known, seen, behind)


def _strays_in(
    where: str, name: str, known: Collection[str], seen: set[tuple[int, int]], macs: Collection[str] | None
) -> Iterator[Stray]:
    """`name` is the namespace's, where it has one; `macs` those that count, None for all."""
    with suppress(NotFound, Unable):
        fd = netns.open_namespace(where)
        try:
            if netns.identity(fd) in seen:
                return
            seen.add(netns.identity(fd))
            found = netns.run_inside(fd, netlink.links)
        finally:
            os.close(fd)
        for link in found:
            endpoint = link.alias.removeprefix(_ENDPOINT)
            if link.alias.startswith(_ENDPOINT) and endpoint not in known and (macs is None or link.mac in macs):
                yield Stray(endpoint, where, link, name == NAMESPACE_PREFIX + endpoint)


def remove_stray(stray: Stray) -> None:
    """Gone already is fine."""
    with suppress(NotFound):
        fd = netns.open_namespace(stray.where)
        try:
            netns.run_inside(fd, lambda: links.remove(stray.link))
        finally:
            os.close(fd)
    if stray.own:
        netns.remove(stray.where)


def routes(there: Sequence[Link]) -> Iterator[tuple[Link, ShimSet]]:
    """Routes and neighbour entries of macvm's protocol through links that are not macvm's: with a shim go its own."""
    neighbours: dict[int, dict[bytes, bytes]] = {}
    for one in netlink.neighbours():
        if one.protocol == links.PROTOCOL:
            neighbours.setdefault(one.device, {})[one.address.packed] = packed_mac(one.mac)
    ours = HostRoutes.read().ours
    for link in there:
        found = ShimSet(ours.get(link.index, {}), neighbours.get(link.index, {}))
        if found and not is_marked(link):
            yield link, found


def look_at_vlans(needed_by: Mapping[str, Collection[str]] | None, doomed: Collection[str]) -> Vlans:
    """`needed_by` are the VMs that stay, by their NICs' parents; None where nobody can tell. `doomed` are the MACs of
    what goes before."""
    there, gone, needed, in_use = netlink.links(), list[Link](), list[str](), list[MacvmError]()
    for link in there:
        if not vlans.is_ours(link):
            continue
        users = users_of(link, there, doomed)
        if needed_by is None:
            reason = f"{link.name} stays: libvirt cannot be asked whether VMs are on it"
            in_use.append(PartlyDone(reason, f"ip link del {link.name}, where none are"))
        elif needed_by.get(link.name):
            names = ", ".join(needed_by[link.name])
            needed.append(f"{link.name} stays, for {names}; nothing makes it again after a reboot")
        elif users:
            in_use.append(PartlyDone(f"{link.name} stays: {', '.join(users)} is on it", f"ip link del {link.name}"))
        else:
            gone.append(link)
    return Vlans(tuple(gone), tuple(needed), tuple(in_use))


def users_of(link: Link, there: Sequence[Link], doomed: Collection[str] = ()) -> list[str]:
    """What the kernel would delete or cut off without a word."""
    on_it = [one for one in there if one.lower == link.index]
    elsewhere = netlink.macs_behind(link.index) - {one.mac for one in on_it}
    users = [one.name for one in on_it if not is_marked(one) and one.mac not in doomed]
    users += [one.name for one in there if one.index == link.enslaved_to]
    return users + sorted(elsewhere - set(doomed))
