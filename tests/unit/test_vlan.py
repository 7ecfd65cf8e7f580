"""VLANs by the names that users give them."""

from __future__ import annotations

import pytest

from provisioner.errors import Usage
from provisioner.model.vlan import VlanParent, double_tag, vlan_parent


@pytest.mark.parametrize(
    ("text", "base", "vid"),
    [
        ("eth0.50", "eth0", 50),
        ("eth0.1", "eth0", 1),
        ("eth0.4094", "eth0", 4094),
        ("bond0.7", "bond0", 7),
        ("wan.office.7", "wan.office", 7),
        ("eth0.50.60", "eth0.50", 60),
    ],
)
def test_a_vlan_by_its_name(text: str, base: str, vid: int) -> None:
    found = vlan_parent(text)
    assert found == VlanParent(base, vid)
    assert str(found) == text


@pytest.mark.parametrize(
    "text", ["eth0", "eth0.", ".50", "eth0.x", "eth0.50x", "eth0.-5", "eth0.+5", "eth0.\u0665", "", "50"]
)
def test_what_names_no_vlan(text: str) -> None:
    assert vlan_parent(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("eth0.0", "priority"),
        ("eth0.00", "priority"),
        ("eth0.4095", "reserves 4095"),
        ("eth0.4096", "12 bits"),
        ("eth0.65586", "12 bits"),
        ("eth0." + "9" * 5000, "12 bits"),
        ("eth0.050", "leading zeros"),
    ],
)
def test_a_number_that_no_vlan_has(text: str, why: str) -> None:
    with pytest.raises(Usage, match=why) as caught:
        vlan_parent(text)
    assert caught.value.hint


def test_the_links_name_is_the_users_where_it_fits() -> None:
    assert VlanParent("eth0", 50).link == "eth0.50"
    assert VlanParent("enp0s31f6x", 4094).link == "enp0s31f6x.4094", "15 characters"


@pytest.mark.parametrize("vid", [1, 50, 4094])
def test_a_name_without_room_is_hashed_and_still_tells_the_vlan(vid: int) -> None:
    long, other = VlanParent("enx0123456789ab", vid), VlanParent("enx0123456789ac", vid)
    assert len(long.link) <= 15
    assert long.link.startswith("vl-")
    assert long.link.endswith(f".{vid}")
    assert long.link == VlanParent("enx0123456789ab", vid).link
    assert long.link != other.link


def test_a_vlan_in_a_vlan_is_told_by_its_name_and_said() -> None:
    assert VlanParent("eth0.50", 60).doubly_tagged
    assert not VlanParent("eth0", 60).doubly_tagged
    error = double_tag(VlanParent("eth0.50", 60))
    assert "QinQ" in error.message
    assert "ip link add link eth0.50 name q60 type vlan id 60" in error.hint
