"""What a NIC sends and hears, wherever its host device is today, and over restarts of its machine."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

from provisioner.actions.nic_names import choose_nic, describe
from provisioner.context import Context
from provisioner.errors import HypervisorFailed, NotFound
from provisioner.host import netlink, tcpdump
from provisioner.host.tcpdump import Interrupt, Sink, Stream
from provisioner.model.found import FoundMachine, FoundNic
from provisioner.model.names import Mac

#: A MAC address or a part of one, which alone is no filter.
_IN_PAIRS = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){1,5}[:-]?", re.IGNORECASE)

#: Seconds between two looks for a device: far less than a guest takes from its start to its first frame.
_TURN = 0.1


class Wanted(NamedTuple):
    """A machine's NIC, and tcpdump's filter."""

    machine: FoundMachine
    nic: FoundNic
    words: tuple[str, ...]


class _Gone(Exception):
    """The machine is deleted: there is nothing to wait for."""


def choose(context: Context, name: str, words: Sequence[str]) -> Wanted:
    """The first word names a NIC if any NIC is called so, or if it can be nothing else; otherwise it is the filter's.

    Raises NotFound, Usage.
    """
    machine, networks = context.hypervisor.get(name), context.networks_by_mac()
    if words:
        try:
            return Wanted(machine, choose_nic(machine, machine.nics, words[0], networks), tuple(words[1:]))
        except NotFound:
            if _IN_PAIRS.fullmatch(words[0]):
                raise
    return Wanted(machine, choose_nic(machine, machine.nics, None, networks), tuple(words))


def capture(context: Context, wanted: Wanted, sink: Sink | None, verbose: int = 0) -> None:
    """Until a signal ends it, or the machine is deleted. With `sink`, which is given one pcap file's bytes; without,
    tcpdump prints what it sees.

    Raises Unable, ToolFailed.
    """
    stream = Stream(sink) if sink else None
    with tcpdump.interruptible() as interrupt:
        while not interrupt.asked:
            try:
                device = _wait_for_device(context, wanted, interrupt)
            except _Gone:
                context.say(f"{wanted.machine.name} is deleted")
                return
            if device is None:
                return
            command = tcpdump.argv(device, wanted.words, raw=sink is not None, verbose=verbose)
            if not tcpdump.run(command, interrupt, stream, context.say):
                return


def _wait_for_device(context: Context, wanted: Wanted, interrupt: Interrupt) -> str | None:
    """The NIC's host device, once it is there and up; None when a signal came first. Raises _Gone."""
    told = False
    while not interrupt.asked:
        device = _find_device(context, wanted.machine.uuid, wanted.nic.mac)
        link = netlink.find_link(device) if device else None
        if link and link.up:
            return device
        if not told:
            context.say(f"waiting for {wanted.machine.name}'s NIC {describe(wanted.nic)}: its host device is not up")
            told = True
        time.sleep(_TURN)
    return None


def _find_device(context: Context, uuid: str, mac: Mac) -> str:
    """What it is called now; "" where there is none. libvirt's own restart is waited for too."""
    try:
        machine = context.hypervisor.find(uuid)
    except HypervisorFailed:
        context.hypervisor.close()
        return ""
    if machine is None:
        raise _Gone
    if not machine.runs:
        return ""
    return next((nic.device for nic in machine.nics if nic.mac == mac), "")
