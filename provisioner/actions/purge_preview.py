"""What a purge would do: in a few lines for the question, and in those of `ip`, `virsh` and `rm` that amount to it."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from provisioner.actions import endpoint_preview, install, passthrough, shims
from provisioner.actions.purge_links import Stray
from provisioner.actions.purge_survey import Traces
from provisioner.actions.removal import LOG_DIR
from provisioner.context import Context
from provisioner.host import hosts_file, links, netns
from provisioner.model import hosts
from provisioner.model.sizes import human_size


def summary(context: Context, traces: Traces) -> Iterator[str]:
    """A line for each kind of thing that goes, with names and counts."""
    machines = [one.name + ("" if not one.runs else " (its power is cut)") for one in traces.machines]
    endpoints = [*traces.endpoints, *(stray.name for stray in traces.strays)]
    yield from _line("VM", machines)
    yield from _line("endpoint", endpoints)
    yield from _line("link", [link.name for link in (*traces.links, *traces.vlans)])
    yield from _line("route", [address for _, found in traces.routes for address in _addresses(found.routes)])
    yield from _line("systemd unit", [path.name for path in traces.units if path.suffix == ".service"])
    if traces.hosts_block:
        yield f"macvm's block in {hosts_file.PATH}"
    machines_left = {one.uuid for one in traces.machines}
    lonely = [path for path in traces.files if path.name == "disk.qcow2" and path.parent.name not in machines_left]
    yield from _line("disk of no VM", [str(path) for path in lonely], "disks of no VM")
    files = [path for path in (*traces.files, *traces.store) if path.exists()]
    if files:
        count = f"{len(files)} file{'s' * (len(files) > 1)}"
        yield f"{count} of {context.state_dir} and {LOG_DIR}, {_size(files)} in all"
    yield from traces.stays


def _line(kind: str, names: Sequence[str], many: str = "") -> Iterator[str]:
    if names:
        yield f"{len(names)} {kind if len(names) == 1 else many or f'{kind}s'}: {', '.join(names)}"


def _size(files: Sequence[Path]) -> str:
    return human_size(sum(path.lstat().st_blocks * 512 for path in files))


def _addresses(packed: dict[bytes, bytes]) -> list[str]:
    return [str(ipaddress.ip_address(one)) for one in packed]


def lines(context: Context, traces: Traces) -> Iterator[str]:
    """In the order in which it would be done, each once: the last endpoint takes the shim with it."""
    return iter(dict.fromkeys(_lines(context, traces)))


def _lines(context: Context, traces: Traces) -> Iterator[str]:
    if traces.units:
        yield from install.uninstall_lines()
    if traces.hosts_block:
        yield f"sed -i '/^{hosts.BEGIN}$/,/^{hosts.END}$/d' {hosts_file.PATH}"
    for machine in traces.machines:
        yield from [] if not machine.runs else [f"virsh destroy {machine.name}"]
        # A machine that is not saved is gone with its power.
        if context.hypervisor.is_persistent(machine.uuid):
            flags = "--managed-save --snapshots-metadata --checkpoints-metadata --nvram"
            yield f"virsh undefine {machine.name} {flags}"
        yield from passthrough.giving_back_lines(context, machine.uuid)
    yield from endpoint_preview.delete(context, traces.endpoints)
    for stray in traces.strays:
        yield from _stray_lines(stray)
    yield from (f"{word} {netns.FOLDER}" for word in ("umount", "rmdir") if traces.names_folder)
    yield from (line for link in traces.links for line in shims.removing_lines(link.name))
    for link, found in traces.routes:
        yield from (f"ip route del {one} dev {link.name} proto {links.PROTOCOL}" for one in _addresses(found.routes))
        yield from (f"ip neigh del {one} dev {link.name}" for one in _addresses(found.neighbours))
    for owner in traces.owners:
        if owner not in {machine.uuid for machine in traces.machines}:
            yield from passthrough.giving_back_lines(context, owner)
    yield from (f"ip link del {link.name}" for link in traces.vlans)
    for path in (*traces.known_hosts, *traces.files, *traces.store):
        yield shlex.join(["rm", "-r" if path.is_dir() else "-f", str(path)])
    yield from (shlex.join(["rmdir", str(folder)]) for folder in traces.folders)
    if traces.known_hosts:
        folder = traces.known_hosts[0].parent
        yield shlex.join(["rmdir", "--ignore-fail-on-non-empty", str(folder), str(folder.parent)])
    if traces.untrue:
        count = "1 entry of the store goes" if traces.untrue == 1 else f"{traces.untrue} entries of the store go"
        yield f"# {count}: endpoints, shims, networks that no VM is on"
    yield from (f"# {line}" for line in traces.stays)
    yield from (f"# {problem.message}" for problem in traces.remains)


def _stray_lines(stray: Stray) -> Iterator[str]:
    inside = f"nsenter --net=/proc/{stray.where}/ns/net ip" if stray.where.isdigit() else f"ip -n {stray.where}"
    yield f"{inside} link del {stray.link.name}"
    if stray.own:
        yield f"ip netns delete {stray.where}"
