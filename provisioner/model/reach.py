"""What reaches what on one LAN, told from the macvtap modes, the parents and the switch's hairpin alone.

The rules are those of the kernel's drivers/net/macvlan.c, each measured with packets (tests/sandbox/test_reach.py):
- `macvlan_queue_xmit`: only between two bridge ports of one parent does the kernel carry a frame itself; all others
  go out to the switch, which sends them back in by the port they came from only with hairpin ("reflective relay");
- `macvlan_multicast_rx`: a broadcast or multicast that comes back is known by its source MAC. A VEPA port's goes to the
  VEPA and bridge ports, a bridge port's to the VEPA ports (bridge ports saw it on its way out), a private port's to
  nobody; and a private port is given none but from outside. That ends ARP and neighbour discovery, and so every ping;
- `macvlan_handle_frame` looks at the destination alone for a unicast frame: with hairpin even a private NIC gets one
  from its own parent, where the sender knows its MAC without asking. So private is no wall between neighbours;
- the parent is no port of its own macvlans: what the host says from there itself comes back with hairpin as from
  outside, and private NICs hear that too. So without a route through the shim the host reaches even a private guest,
  which learns the host's MAC from being asked; a private guest that speaks first is not answered.

The host takes part through its shim, which is a macvlan in bridge mode. NICs with different parents reach one another
as any two machines of the LAN do; passthrough always has a parent of its own.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from provisioner.model.mode import MacvtapMode


class Place(enum.Enum):
    """Who takes part without being a guest."""

    HOST = "host"
    LAN = "LAN peer"


class Station(NamedTuple):
    """A guest's NIC in its mode, the host through its shim, or a LAN peer.

    `parent` is the link that the NIC or the shim sits on; a LAN peer has none.
    """

    kind: MacvtapMode | Place
    parent: str = ""

    @property
    def mode(self) -> MacvtapMode:
        """As the kernel's macvlan sees it."""
        return self.kind if isinstance(self.kind, MacvtapMode) else MacvtapMode.BRIDGE


class Verdict(NamedTuple):
    """What gets from one station to another.

    `unicast` is a ping, which has to find its way, and back. The others go one way: `known_mac` is a frame to a MAC
    that the sender did not have to ask for, `broadcast` an ARP request, `solicitation` IPv6's, which is multicast.
    `reason` says in one sentence why something does not, and what to do; empty where everything does.
    """

    unicast: bool
    known_mac: bool
    broadcast: bool
    solicitation: bool
    reason: str = ""


_ALL = Verdict(True, True, True, True)


def _none(reason: str) -> Verdict:
    return Verdict(False, False, False, False, reason)


def expected(sender: Station, receiver: Station, hairpin: bool) -> Verdict:
    """What gets from one station to another, both on one LAN. `hairpin`: of the switch's port that the parent is on."""
    if Place.LAN in (sender.kind, receiver.kind) or sender.parent != receiver.parent:
        return _ALL
    modes = (sender.mode, receiver.mode)
    if MacvtapMode.PASSTHROUGH in modes:
        return _none(_why_passthrough(sender, receiver))
    if modes == (MacvtapMode.BRIDGE, MacvtapMode.BRIDGE):
        return _ALL
    if MacvtapMode.PRIVATE in modes:
        return Verdict(False, hairpin, False, False, _why_private(modes))
    if not hairpin:
        return _none(_why_vepa(modes))
    return _ALL


def _why_passthrough(sender: Station, receiver: Station) -> str:
    if Place.HOST in (sender.kind, receiver.kind):
        return (
            f"passthrough leaves no room for the host's shim on {sender.parent}: "
            "give the guest a second NIC on a libvirt network, such as --nic libvirt=default"
        )
    return f"passthrough shares {sender.parent} with nobody, so that the two never run at once: choose another parent"


def _why_private(modes: tuple[MacvtapMode, MacvtapMode]) -> str:
    if modes == (MacvtapMode.PRIVATE, MacvtapMode.PRIVATE):
        return "private NICs on one parent never hear one another, whatever the switch does: give both mode bridge"
    return "a private NIC never hears another on its parent, whatever the switch does: give it mode bridge"


def _why_vepa(modes: tuple[MacvtapMode, MacvtapMode]) -> str:
    which = "VEPA sends everything" if modes[0] is MacvtapMode.VEPA else "what is for a VEPA NIC goes"
    return f"{which} to the switch, which does not send it back: turn hairpin on at its port, or use mode bridge"
