"""A lab's work as changes that people read."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner.actions.labs.changes import Change, MachineWork
from provisioner.actions.labs.nic_plan import Ask, NicStep
from provisioner.actions.labs.real import RealNic
from provisioner.actions.labs.wanted import WantedEndpoint, WantedMachine, WantedNic
from provisioner.model.endpoint import IpvlanMode
from provisioner.model.network import Network
from provisioner.model.nic import Addressing


def network_words(network: Network) -> str:
    subnets = ", ".join(str(one.subnet) for one in network.subnets)
    return f"{network.mode.value} on {network.parent}" + (f", {subnets}" if subnets else "")


def mode_words(wish: WantedEndpoint) -> str:
    return f"ipvlan {wish.mode.value}" if isinstance(wish.mode, IpvlanMode) else wish.mode.value


def changes_of(work: MachineWork) -> Iterator[Change]:
    name, real, wanted = work.name, work.real, work.wanted
    if wanted is None:
        yield Change("-", "vm", name, "", "not in the file", "destroys")
        return
    if real is None:
        yield Change("+", "vm", name, _machine_words(wanted), "there is none")
        return
    if work.recreate:
        yield Change("~", "vm", name, _machine_words(wanted), work.recreate, "recreate")
        return
    halted = "restart" if real.runs else "live"
    for words, reason in (("definition", work.redefine), ("disk", work.resize)):
        if reason:
            yield Change("~", "vm", name, words, reason, halted)
    if work.save and not work.redefine:
        yield Change("~", "vm", name, "definition", "libvirt has none any more")
    if work.labels:
        yield Change("~", "vm", name, "labels", "the file has others")
    if work.autostart:
        yield Change(
            "~",
            "vm",
            name,
            "autostart",
            f"autostart {_on(not wanted.request.autostart)} → {_on(wanted.request.autostart)}",
        )
    for step in work.nics:
        yield _nic_change(name, step)
    if work.power == "on":
        yield Change("~", "vm", name, "start", f"it is {real.now.state}")
    if work.power == "off":
        yield Change("~", "vm", name, "stop", f"it is {real.now.state}, and is not to be started", "restart")


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


def _machine_words(machine: WantedMachine) -> str:
    request = machine.request
    nics = ", ".join(_nic_words(nic) for nic in machine.nics)
    return f"{request.image or 'the default image'}, {nics or 'no NIC'}"


def _nic_words(nic: WantedNic) -> str:
    if nic.asked.libvirt_network:
        return f"libvirt network {nic.asked.libvirt_network}"
    where = nic.asked.network or nic.parent
    return f"{nic.mode.value} on {where} ({address_words(nic.asked.addressing)})"


def address_words(asked: Addressing) -> str:
    """As the file has it: the length of an address comes from the network."""
    return ", ".join(map(str, asked.addresses)) or str(asked)


def _nic_change(machine: str, step: NicStep) -> Change:
    name = step.before.mac if step.before else (step.wanted.mac or "new") if step.wanted else ""
    sign = {Ask.ATTACH: "+", Ask.DETACH: "-"}.get(step.ask, "~")
    words = _nic_words(step.wanted) if step.wanted else _was(step.before) if step.before else ""
    return Change(sign, "nic", name, words, step.reason, "live", machine)


def _was(nic: RealNic) -> str:
    mode = nic.mode.value if nic.mode else nic.kind
    return f"{mode} on {nic.parent or nic.network}"
