"""Which namespace is an endpoint's: by its name or process, and by what tells it from a later one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provisioner.actions import endpoint_spaces as spaces
from provisioner.host import links, netlink, netns
from provisioner.model.endpoint import Endpoint, MacvlanMode
from provisioner.model.names import Mac
from provisioner.model.nic import Nic
from tests.netns.conftest import ip

pytestmark = pytest.mark.usefixtures("lan", "run")

MAC = Mac("52:54:00:00:00:41")


def identity(name: str) -> tuple[int, int]:
    fd = netns.open_namespace(name)
    try:
        return netns.identity(fd)
    finally:
        os.close(fd)


def endpoint(where: str, who: tuple[int, int]) -> Endpoint:
    nic = Nic(MAC, parent="eth0")
    return Endpoint("alice", MacvlanMode.BRIDGE, nic, where, "me-000000000001", own=False, identity=who)


def test_another_namespace_of_that_name_is_not_it() -> None:
    """Even one with a link of the endpoint's own mark."""
    netns.create("theirs")
    there = identity("theirs")
    ip("-n theirs link add eth0 type veth peer name eth1")
    ip("-n theirs link set eth0 alias", spaces.alias_of(endpoint("theirs", there)))
    assert spaces.is_there(endpoint("theirs", there))
    other = endpoint("theirs", (there[0], there[1] + 1_000_000))
    assert not spaces.is_there(other)
    spaces.remove_link(other)
    assert spaces.is_there(endpoint("theirs", there))
    spaces.remove_link(endpoint("theirs", there))
    assert not spaces.is_there(endpoint("theirs", there))


def test_one_that_was_renamed_is_found() -> None:
    netns.create("theirs")
    mine = endpoint("theirs", identity("theirs"))
    fd = netns.open_namespace("theirs")
    try:
        made = spaces.make_link(mine, fd)
        assert made.name == "eth0"
        Path("/run/netns/ours").touch()
        # Bound to another name, and the first one is gone.
        bind(f"/proc/self/fd/{fd}", "/run/netns/ours")
        netns.remove("theirs")
        assert spaces.is_there(mine)
        spaces.remove_link(mine)
        assert not spaces.is_there(mine)
    finally:
        os.close(fd)
        netns.remove("ours")


def bind(source: str, target: str) -> None:
    from provisioner.host.namespaces import MS_BIND, mount

    mount(source, target, flags=MS_BIND)


def test_the_first_name_that_is_free() -> None:
    netns.create("theirs")
    ip("-n theirs link add eth0 type veth peer name eth2")
    mine = endpoint("theirs", identity("theirs"))
    fd = netns.open_namespace("theirs")
    try:
        assert spaces.make_link(mine, fd).name == "eth1"
        assert netlink.find_link(mine.link) is None
        spaces.remove_link(mine)
        assert {link.name for link in netns.run_inside(fd, netlink.links)} >= {"eth0", "eth2"}
    finally:
        os.close(fd)
        netns.remove("theirs")


def test_what_was_never_moved_or_marked_goes() -> None:
    netns.create("theirs")
    mine = endpoint("theirs", identity("theirs"))
    links.add_macvlan(mine.link, netlink.get_link("eth0"), MAC, spaces.alias_of(mine))
    spaces.remove_link(mine)
    ip("link add", mine.link, "link eth0 type macvlan")
    spaces.remove_link(mine)
    assert netlink.find_link(mine.link) is None
    netns.remove("theirs")
