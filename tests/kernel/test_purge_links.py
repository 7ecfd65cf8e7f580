"""Which VLAN links a purge takes: real ones, that other kernels lack."""

from __future__ import annotations

from collections.abc import Callable

from provisioner.actions import vlans
from provisioner.actions.purge_links import look_at_vlans
from provisioner.context import Context
from provisioner.host import links, netlink
from tests.kernel.lan import Lan, Space
from tests.kernel.test_vlan_links import MAC, endpoint, here
from tests.netns.conftest import ip

__all__ = ["here"]


def test_what_macvm_made_and_nobody_is_on(here: Context, lan: Lan, make_space: Callable[[], Space]) -> None:
    vlans.ensure(here, "eth0.50")
    ip("link add link eth0 name eth0.51 type vlan id 51")
    assert [link.name for link in look_at_vlans({}, ()).gone] == ["eth0.50"]
    needed = look_at_vlans({"eth0.50": ["web"]}, ())
    assert (needed.gone, needed.needed[0].startswith("eth0.50 stays, for web")) == ((), True)
    assert [error.message.split(":")[0] for error in look_at_vlans(None, ()).in_use] == ["eth0.50 stays"]

    # In another namespace it shows by its MAC alone.
    endpoint("eth0.50", make_space())
    assert [error.message for error in look_at_vlans({}, ()).in_use] == [f"eth0.50 stays: {MAC} is on it"]
    assert [link.name for link in look_at_vlans({}, {MAC}).gone] == ["eth0.50"]
    links.remove(netlink.get_link("eth0.50"))
    assert look_at_vlans({}, ()).gone == ()
