"""One NIC inside a domain's XML: only what is asked for changes in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from provisioner.model.domain_xml import nics
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Nic

MAC = Mac("52:54:00:00:00:21")
ADDRESS = "<address type='pci' domain='0x0000' bus='{bus}' slot='{slot}' function='0x0'/>"

#: As libvirt shows a running one, with what macvm knows nothing of.
LIVE = f"""<interface type='direct' trustGuestRxFilters='yes'>
  <mac address='{MAC}'/><source dev='eth0' mode='vepa'/><target dev='macvtap0'/><model type='e1000e'/>
  <backend type='passt'/><mtu size='1400'/><link state='down'/><alias name='net1'/>
  <rom bar='off'/>{ADDRESS.format(bus="0x06", slot="0x00")}
</interface>"""


def domain(machine: str, *devices: str) -> str:
    return f"<domain><os><type machine='{machine}'>hvm</type></os><devices>{''.join(devices)}</devices></domain>"


def port(index: int) -> str:
    return f"<controller type='pci' index='{index}' model='pcie-root-port'>{ADDRESS.format(bus='0x00', slot='0x01')}</controller>"


def tags(text: str) -> dict[str, dict[str, str]]:
    return {child.tag: child.attrib for child in ET.fromstring(text)}


@pytest.mark.parametrize("mode", MacvtapMode)
def test_the_mode_is_always_said(mode: MacvtapMode) -> None:
    made = tags(nics.nic_xml(Nic(MAC, mode, "eth0")))
    assert made["source"] == {"dev": "eth0", "mode": mode.value}
    assert made["target"] == {"dev": "mt-525400000021"}
    assert (made["model"], made["link"]) == ({"type": "virtio"}, {"state": "up"})


def test_filters_are_trusted_only_when_asked() -> None:
    plain, trusting = (ET.fromstring(nics.nic_xml(Nic(MAC), trust=trust)) for trust in (False, True))
    assert (plain.get("trustGuestRxFilters"), trusting.get("trustGuestRxFilters")) == ("no", "yes")


def test_the_slot_of_another_is_taken_over() -> None:
    assert tags(nics.nic_xml(Nic(MAC), address_from=LIVE))["address"]["bus"] == "0x06"
    assert "address" not in tags(nics.nic_xml(Nic(MAC), address_from="<interface/>"))


def test_where_a_nic_is_wired_to_is_read_from_it() -> None:
    assert nics.source_of(nics.nic_xml(Nic(MAC, MacvtapMode.PASSTHROUGH, "eth1"))) == ("eth1", MacvtapMode.PASSTHROUGH)
    assert nics.source_of("<interface type='direct'><source dev='eth0'/></interface>") == ("eth0", MacvtapMode.VEPA)
    assert nics.source_of("<interface type='network'><source network='default'/></interface>") == ("", None)


def test_a_nic_is_found_by_its_mac_however_that_is_written() -> None:
    text = domain("q35", "<interface/>", LIVE.replace(MAC, MAC.upper()))
    assert nics.alias_of(nics.find_nic_xml(text, MAC) or "") == "net1"
    assert nics.find_nic_xml(text, Mac("52:54:00:00:00:22")) is None


@pytest.mark.parametrize("state", ["up", "down"])
def test_the_link_is_all_that_changes(state: str) -> None:
    changed = nics.with_link(LIVE, state)
    assert nics.link_of(changed) == state
    assert {**tags(changed), "link": {}} == {**tags(LIVE), "link": {}}


def test_a_link_that_is_not_said_is_up() -> None:
    assert nics.link_of("<interface/>") == nics.link_of("<interface><link/></interface>") == "up"


def test_another_parent_keeps_all_but_what_libvirt_fills_in() -> None:
    moved = tags(nics.with_source(LIVE, "eth1", MacvtapMode.PASSTHROUGH))
    assert moved["source"] == {"dev": "eth1", "mode": "passthrough"}
    assert moved == {tag: moved.get(tag, {}) for tag in tags(LIVE) if tag not in ("alias", "backend")}
    assert moved["rom"] == {"bar": "off"}
    assert moved["address"] == tags(LIVE)["address"]


def test_wired_alike() -> None:
    assert nics.same_source(LIVE, nics.without_alias(LIVE))
    assert not nics.same_source(LIVE, nics.with_source(LIVE, "eth0", MacvtapMode.BRIDGE))
    assert not nics.same_source(LIVE, "<interface/>")
    assert "alias" not in tags(nics.without_alias(LIVE))


def test_whether_a_slot_is_free() -> None:
    other = f"<rng>{ADDRESS.format(bus='0x06', slot='0x00')}</rng>"
    assert nics.address_is_free(domain("q35"), LIVE)
    assert not nics.address_is_free(domain("q35", other), LIVE)
    assert not nics.address_is_free(domain("q35"), "<interface/>")


@pytest.mark.parametrize(
    ("machine", "devices", "slots"),
    [
        ("pc-q35-7.2", [port(1), port(6), port(7), LIVE], ("q35", 3, 1)),
        ("q35", [], ("q35", 0, 0)),
        # The board's own slots are none to plug into, and one slot with two functions is one.
        ("pc-i440fx-7.2", [f"<rng>{ADDRESS.format(bus='0x00', slot=slot)}</rng>" for slot in ("0x01", "0x02", "0x02", "0x1f")],
         ("i440fx", 30, 2)),
    ],
)  # fmt: skip
def test_slots_are_counted(machine: str, devices: list[str], slots: tuple[str, int, int]) -> None:
    counted = nics.count_slots(domain(machine, *devices))
    assert (counted.machine_type, counted.slots, counted.taken) == slots
