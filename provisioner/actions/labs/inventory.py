"""Machines as Ansible's inventory has them: how each is reached, and in which groups it is."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import reaching, ssh
from provisioner.actions.ssh import Target
from provisioner.actions.views import MachineView
from provisioner.context import Context
from provisioner.errors import NotFound, Unable
from provisioner.model.names import printable

#: What Ansible takes no group's name from (ansible/constants.py, INVALID_VARIABLE_NAMES), and the names that it has.
_INVALID = re.compile(r"\W", re.ASCII)
_OWN_GROUPS = ("all", "ungrouped")

#: What its templates begin with: it looks for them in the values of variables.
_TEMPLATE = re.compile(r"\{[{%#]")


class Inventory(NamedTuple):
    """`hosts` are the variables of each; `groups` have the names of theirs. `notes` say who is left out, and why."""

    hosts: dict[str, dict[str, str]]
    groups: dict[str, list[str]]
    notes: tuple[str, ...]

    def listed(self) -> dict[str, object]:
        """What an inventory script answers to `--list` (docs.ansible.com, Developing dynamic inventory)."""
        grouped = {name for names in self.groups.values() for name in names}
        groups = {**self.groups, "ungrouped": [name for name in self.hosts if name not in grouped]}
        listed: dict[str, object] = {"_meta": {"hostvars": self.hosts}, "all": {"children": list(groups)}}
        return listed | {group: {"hosts": names} for group, names in groups.items()}

    def yaml(self) -> str:
        """For a file, or Ansible's `-i <(…)`. Every word is a JSON string, which is YAML's too."""
        lines = ["all:", "  hosts:" + ("" if self.hosts else " {}")]
        for name, variables in self.hosts.items():
            lines.append(f"    {_quoted(name)}:")
            lines += [f"      {key}: {_quoted(value)}" for key, value in variables.items()]
        lines.append("  children:" + ("" if self.groups else " {}"))
        for group, names in self.groups.items():
            lines += [f"    {group}:", "      hosts:", *(f"        {_quoted(name)}: {{}}" for name in names)]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text)


def look(context: Context, lab: str | None, key: Path | None) -> Inventory:
    """Of the machines that run, all or a lab's. Raises NotFound for a lab of which there is no machine, Unable."""
    found = [pair for pair in reaching.look_at_all(context) if pair[0].kind == "machine"]
    if lab is not None:
        found = [pair for pair in found if pair[0].lab == lab]
        if not found:
            raise NotFound(f"no VM is of a lab {printable(lab, 70)}", "`macvm lab list` shows all there are")
    notes = [f"left out: {machine.name} is {machine.state}" for machine, _ in found if not machine.runs]
    config = ssh.config_of(context, [pair for pair in found if pair[0].runs], key)
    machines = {machine.name: machine for machine, _ in found}
    hosts = {to.name: _variables(to) for to in config.targets}
    return Inventory(hosts, _groups([machines[name] for name in hosts]), (*notes, *config.notes))


def host(found: Inventory, name: str) -> dict[str, str]:
    """What an inventory script answers to `--host NAME`. Raises NotFound."""
    if name not in found.hosts:
        raise NotFound(f"{printable(name, 70)} is not in the inventory", "`macvm inventory` shows who is, and why not")
    return found.hosts[name]


def _variables(to: Target) -> dict[str, str]:
    words = shlex.join(ssh.option_words(to))
    if _TEMPLATE.search(words):
        hint = "name another, without braces"
        raise Unable(f"Ansible would take a part of {printable(words, 200)} for a template", hint)
    user = {"ansible_user": to.user} if to.user else {}
    return {"ansible_host": to.address, **user, "ansible_ssh_common_args": words}


def _groups(machines: Sequence[MachineView]) -> dict[str, list[str]]:
    """`lab_LAB`, and `KEY_VALUE` of each label."""
    taken = {*_OWN_GROUPS, *(machine.name for machine in machines)}
    groups: dict[str, list[str]] = {}
    for machine in machines:
        labels = [f"lab_{machine.lab}"] if machine.lab else []
        labels += [f"{key}_{value}" if value else key for key, value in machine.labels.items()]
        for name in dict.fromkeys(_group_name(label, taken) for label in labels):
            groups.setdefault(name, []).append(machine.name)
    return dict(sorted(groups.items()))


def _group_name(label: str, taken: Iterable[str]) -> str:
    """A name that is valid as a variable's too. Ansible warns of a group that has a host's name."""
    name = _INVALID.sub("_", label)
    name = f"_{name}" if name[0].isdigit() else name
    return f"{name}_" if name in taken else name
