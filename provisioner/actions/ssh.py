"""How ssh reaches a machine: at its address of today, with its image's user, and a file of host keys that is its own.

Host keys are kept under the machine's UUID (`HostKeyAlias`), never under its address: another machine that gets the
address later is another host, and nobody is alarmed by its key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import reaching
from provisioner.actions.catalogue import find_entry
from provisioner.actions.reaching import Reached
from provisioner.actions.views import MachineView
from provisioner.context import Context
from provisioner.errors import MacvmError, Unable, Usage
from provisioner.host import caller, disks
from provisioner.model.names import printable

KNOWN_HOSTS = "known_hosts"

#: What stands in a Host line for itself: no blank, no wildcard, no `!`, no comment.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


class Target(NamedTuple):
    """A machine as ssh is told of it. `user` is None where the image's is not known: ssh then takes the caller's."""

    name: str
    address: str
    user: str | None
    host_key_alias: str
    known_hosts: Path
    identities: tuple[Path, ...]


class Config(NamedTuple):
    """Targets, and why other machines are none."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...]


def target(context: Context, name: str, user: str | None, key: Path | None) -> Target:
    """For this process to become ssh. Raises NotFound, NoAddress, Usage for an endpoint, MacvmError for a machine that
    is off."""
    machine, reached = reaching.look(context, name)
    if machine.kind == "endpoint":
        raise Usage(f"{name} is an endpoint, which serves no ssh", f"macvm endpoint exec {name} -- COMMAND")
    if not machine.runs:
        raise MacvmError(f"{name} is {machine.state}", f"macvm start {name}")
    if reached.address is None:
        raise reaching.NoAddress(*reaching.why_none(context, machine, reached))
    keys = (key,) if key else _default_keys(context) or tuple(caller.private_keys())
    made = _target(context, machine, reached.address, _known_hosts(context, machine), keys)
    return made._replace(user=user or made.user)


def config(context: Context, names: Sequence[str], key: Path | None) -> Config:
    """Of the machines named, or of all that run. Who calls through sudo is given files of their own, since it is not
    root who will use it. Raises NotFound, NoAddress, Usage; what is not named is left out instead."""
    return config_of(context, _chosen(context, names), key, named=bool(names))


def config_of(
    context: Context, found: Iterable[tuple[MachineView, Reached]], key: Path | None, *, named: bool = False
) -> Config:
    """As `config`, of machines that somebody has looked at. `named`: none of them may be left out."""
    keys = (key,) if key else _default_keys(context)
    targets, notes = [], []
    for machine, reached in found:
        if not _PLAIN.fullmatch(machine.name):
            problem = f"{printable(machine.name, 70)} is no name for a Host line"
            if named:
                raise Usage(problem, "rename the machine: virsh domrename")
            notes.append(f"left out: {problem}")
        elif reached.address is None or machine.uuid is None:
            said, hint = reaching.why_none(context, machine, reached)
            if named:
                raise reaching.NoAddress(said, hint)
            notes.append(f"left out: {said}")
        else:
            own = caller.through_sudo()
            file = caller.state_folder(KNOWN_HOSTS) / machine.uuid if own else _known_hosts(context, machine)
            targets.append(_target(context, machine, reached.address, file, keys))
    return Config(tuple(targets), tuple(notes))


def _chosen(context: Context, names: Sequence[str]) -> list[tuple[MachineView, Reached]]:
    if names:
        return [_get(context, name) for name in dict.fromkeys(names)]
    running = [found for found in reaching.look_at_all(context) if found[0].kind == "machine"]
    return [(machine, reached) for machine, reached in running if machine.runs]


def _get(context: Context, name: str) -> tuple[MachineView, Reached]:
    machine, reached = reaching.look(context, name)
    if machine.kind == "endpoint":
        raise Usage(f"{name} is an endpoint, which serves no ssh", f"macvm endpoint exec {name} -- COMMAND")
    return machine, reached


def _target(context: Context, machine: MachineView, address: str, known_hosts: Path, keys: tuple[Path, ...]) -> Target:
    entry = find_entry((machine.image or "").partition(":")[0])
    user = entry.login if entry and entry.login else None
    return Target(machine.name, address, user, machine.uuid or machine.name, known_hosts, keys)


def _default_keys(context: Context) -> tuple[Path, ...]:
    """The setting `ssh_key` names the public half of what `create` gives to guests."""
    if not context.settings.ssh_key:
        return ()
    public = caller.expanded(context.settings.ssh_key).absolute()
    private = public.with_suffix("") if public.suffix == ".pub" else public
    # A key that only an agent holds is chosen by its public half.
    return (private if private.exists() else public,)


def _known_hosts(context: Context, machine: MachineView) -> Path:
    """Beside a machine's disk where it is macvm's and may be written there, and then `delete` removes it; else among
    the caller's own files."""
    assert machine.uuid is not None
    folder = context.machines_dir / machine.uuid
    if os.geteuid() != 0 or not machine.made_by_macvm or not folder.is_dir():
        return caller.state_folder(KNOWN_HOSTS) / machine.uuid
    path = folder / KNOWN_HOSTS
    store = context.reading_store
    if store is None or path not in store.files_of(machine.uuid):
        context.store.own_file(path, machine.uuid)
    return path


def forget_host_keys(context: Context, uuid: str) -> None:
    """For a guest that makes new ones: ssh would take it for an impostor. The caller's and macvm's own; other users'
    files are theirs."""
    caller.forget(KNOWN_HOSTS, uuid)
    path = context.machines_dir / uuid / KNOWN_HOSTS
    if path in context.store.files_of(uuid):
        disks.remove_file(path, context.state_dir)
        context.store.disown_file(path)


def _options(to: Target) -> list[tuple[str, str]]:
    return [
        ("HostKeyAlias", to.host_key_alias),
        ("UserKnownHostsFile", _quoted(to.known_hosts)),
        ("StrictHostKeyChecking", "accept-new"),
        # Addresses are what host keys are not kept by; ssh before 8.5 looked them up too.
        ("CheckHostIP", "no"),
        *(("IdentityFile", _quoted(path)) for path in to.identities),
    ]


def _quoted(path: Path) -> str:
    """As ssh_config(5) reads a path back. Raises Unable for one that it cannot."""
    text = str(path)
    if not text.isprintable() or set(text) & {'"', "\\"} or "${" in text:
        raise Unable(f"ssh cannot be told of the path {printable(text, 200)}", "name another, with plain characters")
    return '"' + text.replace("%", "%%") + '"'


def argv(to: Target, command: Sequence[str]) -> list[str]:
    """`--` ends ssh's options: without it ssh looks for more of them behind the address."""
    user = ["-l", to.user] if to.user else []
    return ["ssh", *option_words(to), *user, "--", to.address, *command]


def option_words(to: Target) -> list[str]:
    """Of any of OpenSSH's programs. Raises Unable for a path that none of them can be told of."""
    return [word for name, value in _options(to) for word in ("-o", f"{name}={value}")]


def block(to: Target) -> str:
    """What ssh_config(5) calls a Host section."""
    user = [("User", to.user)] if to.user else []
    lines = [("HostName", to.address), *user, *_options(to)]
    return "".join([f"Host {to.name}\n", *(f"    {name} {value}\n" for name, value in lines)])
