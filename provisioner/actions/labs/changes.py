"""What is to become of a lab: the changes for people to read, and the work that they are."""

from __future__ import annotations

from typing import NamedTuple

from provisioner.actions.labs.nic_plan import NicStep
from provisioner.actions.labs.real import RealMachine
from provisioner.actions.labs.wanted import WantedEndpoint, WantedMachine
from provisioner.actions.labs.wishes import ShimWish
from provisioner.host.labs import Thing
from provisioner.model.names import Mac
from provisioner.model.network import Network


class Change(NamedTuple):
    """`what` is `+`, `~` or `-`; `kind` network, shim, vm, nic or endpoint; `machine` that of a NIC. `how`: `live`,
    `restart` (the guest is to be shut down for it), `recreate` (with a fresh disk), `destroys`."""

    what: str
    kind: str
    name: str
    words: str
    reason: str
    how: str = "live"
    machine: str = ""


class Leave(NamedTuple):
    """What the user lets a machine go through."""

    restart: bool = False
    recreate: bool = False


class MachineWork(NamedTuple):
    """Everything that is to be done to one machine. `wanted` is None for one that goes, `real` for one that comes.

    `macs` are those that the NICs keep of one that is made anew. `recreate`, `redefine`, `resize` say why, "" for not
    at all; `save` is for one that runs on without a definition; `power` is `on`, `off` or "" for as it is.
    """

    name: str
    wanted: WantedMachine | None
    real: RealMachine | None
    nics: tuple[NicStep, ...] = ()
    macs: tuple[Mac | None, ...] = ()
    recreate: str = ""
    redefine: str = ""
    save: bool = False
    resize: str = ""
    labels: bool = False
    autostart: bool = False
    power: str = ""

    @property
    def wants_restart(self) -> bool:
        """Whether it can be done only to a machine that is off, and this one runs."""
        halts = bool(self.redefine or self.resize or self.power == "off")
        return bool(self.real and self.real.runs and self.wanted and halts and not self.recreate)


class Plan(NamedTuple):
    """`changes` are for people to read, in the order in which they are made; the rest is how. `unserved` are parents
    whose shim, or routes on it, guests that run lack."""

    lab: str
    changes: tuple[Change, ...] = ()
    networks_new: tuple[Network, ...] = ()
    networks_changed: tuple[Network, ...] = ()
    networks_gone: tuple[str, ...] = ()
    shims_up: tuple[ShimWish, ...] = ()
    shims_gone: tuple[Thing, ...] = ()
    unserved: tuple[str, ...] = ()
    machines: tuple[MachineWork, ...] = ()
    endpoints_gone: tuple[str, ...] = ()
    endpoints_new: tuple[WantedEndpoint, ...] = ()

    @property
    def destroys(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.how == "destroys")
