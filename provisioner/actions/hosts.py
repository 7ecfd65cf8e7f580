"""Machines and endpoints as lines of /etc/hosts."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from provisioner.actions import reaching
from provisioner.actions.reaching import Reached
from provisioner.context import Context
from provisioner.host import hosts_file
from provisioner.model import hosts
from provisioner.model.names import printable


class Host(NamedTuple):
    name: str
    address: str

    def __str__(self) -> str:
        return f"{self.address} {self.name}"


class Hosts(NamedTuple):
    """`notes` say which names are left out, and why."""

    hosts: tuple[Host, ...]
    notes: tuple[str, ...]


class Written(NamedTuple):
    """A hosts file that has them now, or would have; `old` and `new` are its whole text."""

    file: str
    changed: bool
    hosts: tuple[Host, ...]
    notes: tuple[str, ...]
    old: str
    new: str


def look(context: Context) -> Hosts:
    """Every machine and endpoint of which an address is known that would do: the preferred one of each family."""
    found: dict[str, list[Host]] = {}
    notes = []
    for machine, reached in reaching.look_at_all(context):
        name = machine.name
        if reached.address is None:
            continue
        if not hosts.is_host_name(name):
            notes.append(f"left out: {printable(name, 70)} is no host's name")
        elif name.lower() in found:
            notes.append(f"left out: the {machine.kind} {name}, for there is another of that name")
        else:
            found[name.lower()] = [Host(name, address) for address in _one_of_each_family(reached)]
    return Hosts(tuple(host for both in found.values() for host in both), tuple(notes))


def _one_of_each_family(reached: Reached) -> list[str]:
    """Beside one that this host reaches, none of the other family that it does not: programs would try that too."""
    best = reached.addresses[0]
    chosen = {best.ip.version: best}
    for one in reached.addresses:
        if not one.ip.is_link_local and one.reachable == best.reachable:
            chosen.setdefault(one.ip.version, one)
    return [one.address for one in chosen.values()]


def write(context: Context, *, dry_run: bool) -> Written:
    """Puts them into macvm's block of /etc/hosts, or looks at what that would change. Raises Unable; Usage where the
    block's marks are spoilt."""
    found = look(context)
    lines = [str(host) for host in found.hosts]
    if dry_run:
        old = hosts_file.read()
        edited = hosts_file.Edited(old, hosts.with_block(old, lines))
    else:
        edited = hosts_file.edit(lambda text: hosts.with_block(text, lines))
    elsewhere = hosts.names_elsewhere(edited.new)
    notes = [
        f"{name} stands at {elsewhere[name.lower()]} in another line, which is not macvm's and may win"
        for name in dict.fromkeys(host.name for host in found.hosts)
        if name.lower() in elsewhere
    ]
    return Written(str(hosts_file.PATH), edited.new != edited.old, found.hosts, (*found.notes, *notes), *edited)


def writing_lines(written: Written) -> list[str]:
    """What amounts to it for a shell, and how the file differs then."""
    if not written.changed:
        return []
    import difflib

    sides = (written.old.splitlines(), written.new.splitlines())
    lines = [
        # The file may have bytes that are no text.
        "# " + line.encode(errors="surrogateescape").decode(errors="replace")
        for line in difflib.unified_diff(*sides, written.file, written.file, n=0, lineterm="")
    ]
    block = [hosts.BEGIN, *map(str, written.hosts), hosts.END] if written.hosts else []
    if hosts.BEGIN not in written.old:
        return [*lines, f"printf '%s\\n' {shlex.join(block)} >> {written.file}"]
    change = "c\\" + "\\n".join(block) if block else "d"
    return [*lines, f"sed -i {shlex.quote(f'/^{hosts.BEGIN}$/,/^{hosts.END}$/{change}')} {written.file}"]
