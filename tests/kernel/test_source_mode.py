"""macvlan in source mode: it receives from the MACs in its list alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.lan import Lan, Space, frames

LISTED, OTHER = "02:00:00:00:00:11", "02:00:00:00:00:12"


@pytest.fixture
def senders(lan: Lan, make_space: Callable[[], Space]) -> dict[str, Space]:
    """Two stations on the peer's side, by their MACs: 192.0.2.11 and .12."""
    made = {}
    for mac in (LISTED, OTHER):
        made[mac] = space = make_space()
        lan.peer.ip(
            f"link add end0 link eth0 address {mac} type macvlan mode bridge",
            f"link set end0 netns {space.path} name eth0",
        )
        space.ip(f"addr add 192.0.2.{int(mac[-2:])}/24 dev eth0", "link set eth0 up")
    return made


def test_only_the_listed_macs_get_through(lan: Lan, senders: dict[str, Space], make_space: Callable[[], Space]) -> None:
    station = make_space()
    lan.host.ip("link add end0 link eth0 type macvlan mode source")
    lan.host.ip(f"link set end0 type macvlan macaddr add {LISTED}", f"link set end0 netns {station.path} name eth0")
    station.ip("addr add 192.0.2.60/24 dev eth0", "link set eth0 up")
    with frames(station, "eth0") as seen:
        senders[OTHER].run("ping -c 1 -W 1 192.0.2.60", status=1)
        assert senders[LISTED].pings("192.0.2.60")
        assert {frame.source for frame in seen.now()} == {LISTED}
