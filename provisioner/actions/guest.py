"""Telling a guest what a NIC's address is: at once through the guest agent, and through the seed for the next boot."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path

from provisioner.context import Context
from provisioner.errors import NotFound
from provisioner.host import seeds
from provisioner.model.found import FoundMachine
from provisioner.model.nic import Interface, Nic
from provisioner.model.seed_network import network_files

#: Seconds for the guest to notice a new NIC, and for the commands in it to end.
_PATIENCE = 5.0


def seed_of(context: Context, machine: FoundMachine) -> Path | None:
    """The machine's seed, where macvm made it."""
    return next((path for path in context.store.files_of(machine.uuid) if path.suffix == ".iso"), None)


def read_ahead(context: Context, machine: FoundMachine) -> seeds.SeedReader | None:
    """Begins to read the seed that `rewrite_seed` is about to change, where there is one."""
    path = seed_of(context, machine)
    return seeds.SeedReader(path) if path else None


def rewrite_seed(context: Context, machine: FoundMachine, reader: seeds.SeedReader | None = None) -> bool:
    """Has the seed name the NICs of the saved definition, in its order. False where there is no seed to do so."""
    path = seed_of(context, machine)
    if path is None:
        return False
    told = {mac: Nic.from_json(text) for mac, text in context.store.told_of(machine.uuid).items() if text}
    # A NIC that macvm knows nothing of asks DHCP, as it would without a seed.
    nics = tuple(told.get(nic.mac) or Nic(nic.mac) for nic in context.hypervisor.saved(machine.uuid).nics)
    try:
        files = reader.files() if reader else seeds.read_seed(path)
    except NotFound:
        return False
    # Of a running machine, the seed is QEMU's user's already; libvirt's capabilities take 5 ms to ask for.
    found = path.stat()
    owner = (found.st_uid, found.st_gid) if found.st_uid else context.hypervisor.qemu_user()
    seeds.replace_seed(path, files | network_files(nics), owner)
    return True


def apply_now(context: Context, machine: FoundMachine, nic: Nic, old: Sequence[Interface] = ()) -> str:
    """Gives a running guest the NIC's static addresses through its agent, in place of `old` ones. Returns why not; ""
    when it was done."""
    if not nic.addressing.static:
        return "" if nic.addressing.dhcp else "no address was asked for"
    if context.hypervisor.agent(machine.uuid, '{"execute": "guest-ping"}') is None:
        return "no guest agent answers"
    name = _guest_interface(context, machine, nic)
    if not name:
        return "the guest agent does not see the NIC"
    # First, for the kernel removes with a subnet's first address all others of that subnet.
    gone = [f"ip address del {interface} dev {name}" for interface in old if interface not in nic.addressing.static]
    commands = [f"ip link set {name} up"]
    commands += [f"ip address replace {interface} dev {name}" for interface in nic.addressing.static]
    for command in [*gone, *commands]:
        failure = _run_in_guest(context, machine, command)
        # A guest may have had another address all along.
        if failure and command not in gone:
            return f"in the guest, `{command}` failed: {failure}"
    return ""


def _guest_interface(context: Context, machine: FoundMachine, nic: Nic) -> str:
    deadline = time.monotonic() + _PATIENCE
    while True:
        answer = context.hypervisor.agent(machine.uuid, '{"execute": "guest-network-get-interfaces"}')
        for interface in json.loads(answer)["return"] if answer else ():
            if interface.get("hardware-address", "").lower() == nic.mac:
                return str(interface["name"])
        if time.monotonic() >= deadline:
            return ""
        time.sleep(0.2)


def _run_in_guest(context: Context, machine: FoundMachine, command: str) -> str:
    """Why it failed; "" when it did not."""
    program, *words = command.split()
    ask = {"execute": "guest-exec", "arguments": {"path": program, "arg": words, "capture-output": True}}
    answer = context.hypervisor.agent(machine.uuid, json.dumps(ask))
    if answer is None:
        return "the guest agent refused to run it"
    pid = json.loads(answer)["return"]["pid"]
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        ask = {"execute": "guest-exec-status", "arguments": {"pid": pid}}
        answer = context.hypervisor.agent(machine.uuid, json.dumps(ask))
        state = json.loads(answer)["return"] if answer else {}
        if state.get("exited"):
            if state.get("exitcode") == 0:
                return ""
            said = base64.b64decode(state.get("err-data", "")).decode(errors="replace").strip()
            return said or f"status {state.get('exitcode')}"
        time.sleep(0.1)
    return "it did not end"
