"""The 802.1Q links of parents such as `eth0.50`: made where they are missing, removed where macvm made them.

The callers hold the lock of the parent.
"""

from __future__ import annotations

from provisioner.actions import shims
from provisioner.actions.parents import Links
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound, Taken, Unable
from provisioner.host import links, netlink
from provisioner.host.netlink import Link
from provisioner.host.store import Store
from provisioner.model.names import printable
from provisioner.model.vlan import VlanParent, double_tag, vlan_parent

_ALIAS = f"{links.MARK}vlan:"

#: What a VLAN's link is set to before it comes up, below /proc/sys/net: the host takes no address of its own on it.
#: An address that somebody gives it stays possible.
_SYSCTLS = (("ipv6/conf/{}/addr_gen_mode", "1"), ("ipv6/conf/{}/autoconf", "0"), ("ipv6/conf/{}/accept_ra", "0"))


def lock_name(parent: str) -> str:
    """Of the lock that is held while a parent's link and the networks on it change."""
    return f"parent {parent}"


def check(host: Links, vlan: VlanParent) -> Link:
    """The link that a VLAN's link can be made on. Changes nothing.

    Raises NotFound for a missing base, Unable for a base that is a VLAN itself or down, Taken where the VLAN has a
    link of another name.
    """
    base = host.find(vlan.base)
    if base is None and vlan.doubly_tagged:
        raise double_tag(vlan)
    if base is None:
        vlans = ", ".join(link.name for link in host.all if link.vlan)
        hint = f"VLAN links here: {vlans}" if vlans else "`ip link` shows all there are"
        raise NotFound(f"there is no link {printable(vlan.base)} on this host for VLAN {vlan.vid} to be on", hint)
    if base.kind == "vlan":
        raise double_tag(vlan)
    other = links.find_vlan(base, vlan.vid)
    if other:
        raise Taken(f"VLAN {vlan.vid} of {base.name} has a link already: {other.name}", f"use --parent {other.name}")
    if not base.up:
        # Not macvm's to change: it may be down on purpose, and an address or a route of its would come back wrong.
        raise Unable(f"{base.name} is down, and so no VLAN of it can be up", f"ip link set {base.name} up")
    return base


def _resolve(host: Links, parent: str) -> VlanParent | None:
    """What a name stands for where no link bears it: also one that is a hash, as a network keeps it over a reboot."""
    vlan = vlan_parent(parent)
    if vlan is None or host.find(vlan.base):
        return vlan
    meant = (VlanParent(link.name, vlan.vid) for link in host.all)
    return next((one for one in meant if one.link == parent), vlan)


def ensure(context: Context, parent: str) -> bool:
    """Makes the VLAN's link that a parent names and that is missing, and brings it up; any number of times.

    A link of that name is used and left as it is, whoever made it, but one of macvm's is brought up. Returns whether
    it had to be made. Raises NotFound for a parent that is missing and no VLAN, and what `check` raises.
    """
    host = Links.read()
    there = host.find(parent)
    if there is None:
        vlan = _resolve(host, parent)
        if vlan is None:
            raise NotFound(f"there is no link {printable(parent)} on this host", "`ip link` shows all there are")
        there = host.find(vlan.link)
        if there is None:
            _make(vlan, check(host, vlan))
            return True
        base = host.find(vlan.base)
        if base is None or links.find_vlan(base, vlan.vid) != there:
            raise Taken(
                f"there is a link {there.name}, and it is not VLAN {vlan.vid} of {vlan.base}", "rename that link"
            )
    if not there.up and is_ours(there):
        links.set_up(there)
    return False


def _make(vlan: VlanParent, base: Link) -> None:
    made = links.add_vlan(vlan.link, base, vlan.vid, f"{_ALIAS}{vlan}")
    try:
        for key, value in _SYSCTLS:
            links.sysctl("net/" + key.format(made.name), value)
        links.set_up(made)
    except MacvmError:
        links.remove(made)
        raise


def making_lines(parent: str) -> list[str]:
    """The `ip` and `sysctl` lines that amount to `ensure`; none where the link is there. Raises what `ensure` does."""
    host = Links.read()
    vlan = None if host.find(parent) else _resolve(host, parent)
    if vlan is None or host.find(vlan.link):
        return []
    base, name = check(host, vlan), vlan.link
    return [
        f"ip link add link {base.name} name {name} type vlan id {vlan.vid}",
        f"ip link set {name} alias {_ALIAS}{vlan}",
        # With slashes: a dot in the name would part it.
        *(f"sysctl -w net/{key.format(name)}={value}" for key, value in _SYSCTLS),
        f"ip link set {name} up",
    ]


def is_ours(link: Link) -> bool:
    """Whether macvm made a VLAN's link."""
    return link.alias.startswith(_ALIAS)


def release(context: Context, parent: str) -> bool:
    """Removes a VLAN's link that macvm made, with macvm's shim on it, once nothing else is on it.

    Returns whether it is gone; gone already is. For when no network uses it any more.
    """
    link = _find(Links.read(), parent)
    if link is None:
        return True
    if not _is_ours_alone(context, link):
        return False
    shim = shims.find_shim(link)
    if shim:
        shims.remove(shim)
    links.remove(link)
    context.store.others.let_go(link.name)
    return True


def removing_lines(context: Context, parent: str) -> list[str]:
    """The `ip` line that amounts to `release`; none where it would leave the link."""
    link = _find(Links.read(), parent)
    return [f"ip link del {link.name}"] if link and _is_ours_alone(context, link) else []


def clear(context: Context) -> list[str]:
    """Removes the links that macvm made and no network is on: of a macvm that was killed. Returns their names."""
    gone = []
    for link in [link for link in netlink.links() if is_ours(link)]:
        # Looked at under the lock: `network create` makes the row first and the link then.
        with context.lock(lock_name(link.name)):
            wanted = any(network.parent == link.name for network in context.store.networks.all())
            if not wanted and release(context, link.name):
                gone.append(link.name)
    return gone


def _find(host: Links, parent: str) -> Link | None:
    vlan = None if host.find(parent) else _resolve(host, parent)
    return host.find(vlan.link if vlan else parent)


def _is_ours_alone(context: Context, link: Link) -> bool:
    return is_ours(link) and not _is_used(context, Links.read(), link)


def _is_used(context: Context, host: Links, link: Link) -> bool:
    """What the kernel would delete or cut off without a word."""
    shim = shims.find_shim(link)
    on_it = [one for one in host.all if one.lower == link.index]
    others = [one for one in on_it if shim is None or one.index != shim.index]
    elsewhere = netlink.macs_behind(link.index) - {one.mac for one in on_it}
    store = context.reading_store
    leases = store.leases(parent=link.name) if store else []
    return bool(others or elsewhere or leases or link.enslaved_to or _has_endpoint(store, link.name))


def _has_endpoint(store: Store | None, parent: str) -> bool:
    """An ipvlan leaves no trace on this side."""
    if store is None or not store.has_endpoint():
        return False
    from provisioner.host.endpoints import Endpoints

    return bool(Endpoints(store).on(parent))
