"""An endpoint: a macvlan or ipvlan of macvm's own in a network namespace, as a container's would be."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import NamedTuple

from provisioner.errors import Usage
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, check_name, printable
from provisioner.model.nic import Nic

NAMESPACE_PREFIX = "macvm-"
OWNER_PREFIX = "endpoint/"

#: Of the link while it is still in the host's namespace.
LINK_PREFIX = "me-"


class MacvlanMode(enum.Enum):
    """The five modes of a macvlan, in libvirt's spelling where it has one."""

    BRIDGE = "bridge"
    VEPA = "vepa"
    PRIVATE = "private"
    PASSTHROUGH = "passthrough"
    SOURCE = "source"

    @classmethod
    def parse(cls, text: str) -> MacvlanMode:
        """Takes `passthru` too. Raises Usage."""
        word = text.strip().lower()
        try:
            return cls({"passthru": "passthrough"}.get(word, word))
        except ValueError:
            modes = ", ".join(mode.value for mode in cls)
            raise Usage(f"{printable(text)} is no macvlan mode", f"one of {modes}; or --ipvlan l2|l3") from None


class IpvlanMode(enum.Enum):
    """`l3s` needs nothing that macvm could give it."""

    L2 = "l2"
    L3 = "l3"


Mode = MacvlanMode | IpvlanMode


def stands_for(mode: Mode) -> MacvtapMode:
    """The mode whose rules for reaching the host a NIC of this one has.

    A source macvlan's are private's, also where its list has the shim's MAC and the switch sends frames back: what it
    asks by broadcast comes back to it alone (macvlan_multicast_rx; measured). An ipvlan and its parent do not talk at
    all (Documentation/networking/ipvlan.rst).
    """
    return MacvtapMode(mode.value) if mode.value in {one.value for one in MacvtapMode} else MacvtapMode.PRIVATE


class Endpoint(NamedTuple):
    """`nic` is how it sits on the LAN, with the mode that it `stands_for`; its MAC is what the store knows it by: where
    an endpoint shares its parent's, that is `KIND:NAME`.

    `sources` are the MACs that one in mode source takes frames from. `namespace` is the name of its namespace, which is
    macvm's own where `own`, otherwise as the user named it: a name, a process or a path. `identity` tells that one from
    another of the same name later (st_dev, st_ino). `link` is the name that the link has before it is moved there.
    """

    name: str
    mode: Mode
    nic: Nic
    namespace: str
    link: str
    own: bool = True
    identity: tuple[int, int] = (0, 0)
    sources: tuple[Mac, ...] = ()

    @property
    def owner(self) -> str:
        """What its leases, its MAC and its files belong to in the store."""
        return OWNER_PREFIX + self.name

    @property
    def kind(self) -> str:
        return "ipvlan" if isinstance(self.mode, IpvlanMode) else "macvlan"

    @property
    def shares_mac(self) -> bool:
        """Whether it has its parent's MAC."""
        return isinstance(self.mode, IpvlanMode) or self.mode is MacvlanMode.PASSTHROUGH

    def to_json(self) -> str:
        """For the store: what `from_json` makes an endpoint of again."""
        facts = {
            **self._asdict(),
            "kind": self.kind,
            "mode": self.mode.value,
            "nic": self.nic.to_json(),
        }
        return json.dumps(facts)

    @classmethod
    def from_json(cls, text: str) -> Endpoint:
        facts = json.loads(text)
        kinds: dict[str, type[Mode]] = {"macvlan": MacvlanMode, "ipvlan": IpvlanMode}
        facts["mode"] = kinds[facts.pop("kind")](facts["mode"])
        facts["nic"] = Nic.from_json(facts["nic"])
        facts["identity"] = tuple(facts["identity"])
        facts["sources"] = tuple(map(Mac, facts["sources"]))
        return cls(**facts)


def store_key(name: str, mode: Mode, mac: Mac) -> Mac:
    """What the store knows an endpoint's NIC by: its MAC, unless it shares that with its parent."""
    if isinstance(mode, IpvlanMode):
        return Mac(f"ipvlan:{name}")
    # VLAN links share their base's: passthrough on two of them at once is two endpoints with one MAC.
    return Mac(f"passthrough:{name}") if mode is MacvlanMode.PASSTHROUGH else mac


def namespace_name(name: str) -> str:
    """Of an endpoint's own namespace, which `ip netns exec` takes too. Raises Usage for a name that is none, or too
    long for it."""
    check_name(name, "an endpoint's name")
    return check_name(NAMESPACE_PREFIX + name, "the name of an endpoint's namespace")


def check_mode(mode: MacvlanMode | None, ipvlan: IpvlanMode | None, sources: Sequence[Mac]) -> None:
    """Raises Usage for what cannot be said together."""
    if mode and ipvlan:
        raise Usage("--mode and --ipvlan exclude one another", "an ipvlan has no macvlan mode: leave --mode out")
    if sources and mode is not MacvlanMode.SOURCE:
        raise Usage("--allow-source is the list of --mode source, and of no other", "add --mode source")
    if mode is MacvlanMode.SOURCE and not sources:
        hint = "say whose frames may come in: --allow-source MAC, any number of times"
        raise Usage("--mode source without a MAC would let nothing through at all", hint)
