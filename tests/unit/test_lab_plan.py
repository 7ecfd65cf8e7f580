"""The plan of a lab: what is wanted and what there is, put side by side."""

from __future__ import annotations

import ipaddress

import pytest

from provisioner.actions.addresses import Segment
from provisioner.actions.labs.changes import Change, Plan
from provisioner.actions.labs.digests import differences, digests
from provisioner.actions.labs.host_side import Unserved
from provisioner.actions.labs.nic_plan import Ask
from provisioner.actions.labs.plan import plan
from provisioner.actions.labs.real import Real, RealEndpoint, RealMachine, RealNic
from provisioner.actions.labs.wanted import Wanted, WantedEndpoint, WantedMachine, WantedNic
from provisioner.actions.labs.wishes import ShimWish
from provisioner.actions.request import CreateRequest, EndpointRequest, NicRequest
from provisioner.errors import NotFound, Problems
from provisioner.host.labs import Thing
from provisioner.model.endpoint import Endpoint, MacvlanMode
from provisioner.model.found import FoundMachine, Marks
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.network import Network, Subnet
from provisioner.model.nic import Addressing, Nic
from provisioner.model.shim import To

KEY = b"k" * 32
MEMORY = 512 << 20
LAN = Network("lan", "eth0", subnets=(Subnet(ipaddress.ip_network("192.0.2.0/24")),))
MACS = [Mac(f"52:54:00:00:00:{number:02x}") for number in range(16)]


def static(*addresses: str) -> Addressing:
    return Addressing(static=tuple(map(ipaddress.ip_interface, addresses)))


def wish(
    network: Network | None = LAN, addressing: Addressing | None = None, mac: Mac | None = None, **more: object
) -> WantedNic:
    """A NIC on a network, or in bridge mode on eth0."""
    if network is None:
        told = addressing or Addressing(dhcp=True)
        wanted = WantedNic(NicRequest(mac=mac, addressing=told), parent="eth0", addressing=told)
    else:
        asked = NicRequest(mac=mac, network=network.name, addressing=addressing or Addressing(auto=True))
        wanted = WantedNic(asked, network.mode, network.parent, addressing=asked.addressing, segment=Segment(network))
    return wanted._replace(**more)  # type: ignore[arg-type]


def there(number: int, network: Network | None = LAN, told: Addressing | None = None, **more: object) -> RealNic:
    """A NIC as macvm made it, whose network gave it an address by its number."""
    held = told or (static(f"192.0.2.{10 + number}/24") if network else Addressing(dhcp=True))
    mode = network.mode if network else MacvtapMode.BRIDGE
    nic = Nic(MACS[number], mode, "eth0", addressing=held, network=network.name if network else "")
    return RealNic(nic.mac, "direct", "eth0", "", mode, mode, "up", True, True, nic)._replace(**more)  # type: ignore[arg-type]


def asked(name: str, *nics: WantedNic, **more: object) -> WantedMachine:
    request = CreateRequest(name, tuple(nic.asked for nic in nics), lab="classic")._replace(**more)  # type: ignore[arg-type]
    return WantedMachine(request, nics, "qemu", digests(KEY, request))


def made(name: str, *nics: RealNic, state: str = "running", **more: object) -> RealMachine:
    marks = Marks(lab="classic")
    found = FoundMachine(name, f"uuid-{name}", marks=marks, state=state, memory=MEMORY, vcpus=1, virt_type="qemu")
    return RealMachine(found, found, nics)._replace(**more)  # type: ignore[arg-type]


def real(*machines: RealMachine, networks: tuple[Network, ...] = (LAN,), ours: bool = True, **more: object) -> Real:
    made_by = {Thing("network", one.name): "classic" for one in networks} if ours else {}
    found = Real({one.now.name: one for one in machines}, networks={one.name: one for one in networks}, made=made_by)
    return found._replace(**more)  # type: ignore[arg-type]


def wanted(*machines: WantedMachine, networks: tuple[Network, ...] = (LAN,), **more: object) -> Wanted:
    return Wanted("classic", networks, machines=machines)._replace(**more)  # type: ignore[arg-type]


def shown(found: Plan) -> list[str]:
    return [" ".join(filter(None, (one.what, one.kind, one.machine or one.name, one.how))) for one in found.changes]


def the(found: Plan) -> Change:
    (change,) = found.changes
    return change


def asks(found: Plan) -> list[Ask]:
    return [step.ask for work in found.machines for step in work.nics]


def test_what_is_as_it_is_wanted_is_left_alone() -> None:
    found = plan(wanted(asked("web", wish())), real(made("web", there(1))))
    assert found == Plan("classic")


def test_from_nothing_all_is_made() -> None:
    nothing = Real()
    found = plan(wanted(asked("web", wish()), shims=(ShimWish("eth0"),)), nothing)
    assert shown(found) == ["+ network lan live", "+ shim eth0 live", "+ vm web live"]


def test_what_the_file_no_longer_names_goes() -> None:
    has = real(made("web"), shims={"eth0": True})
    has = has._replace(made={**has.made, Thing("shim", "eth0"): "classic", Thing("shim", "eth1"): "other"})
    found = plan(wanted(networks=()), has)
    assert shown(found) == ["- network lan live", "- shim eth0 live", "- vm web destroys"]
    assert [one.name for one in found.destroys] == ["web"]


def test_what_another_made_is_used_and_stays() -> None:
    assert plan(wanted(), real(ours=False)) == Plan("classic")
    assert plan(wanted(networks=()), real(ours=False)) == Plan("classic")


def test_what_another_made_is_not_changed() -> None:
    with pytest.raises(Problems) as raised:
        plan(wanted(networks=(LAN._replace(mtu=1400),)), real(ours=False))
    assert "there is a network lan already, which this lab did not make: MTU of the parent → 1400" in str(raised.value)


def test_a_name_of_a_machine_of_others_is_taken() -> None:
    with pytest.raises(Problems, match="there is a VM web already"):
        plan(wanted(asked("web")), real(strangers=frozenset({"web"})))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"memory": 1 << 30}, "memory 512 MiB → 1.0 GiB"),
        ({"vcpus": 2}, "vcpus 1 → 2"),
        ({"firmware": "uefi"}, "firmware is another"),
    ],
)
def test_what_needs_a_restart_of_one_that_runs(more: dict[str, object], reason: str) -> None:
    request = wanted(asked("web", **more), networks=())
    running = plan(request, real(made("web"), networks=()))
    assert (the(running).reason, the(running).how) == (reason, "restart")
    assert running.machines[0].wants_restart
    off = plan(request, real(made("web", state="off"), networks=()))
    assert [change.how for change in off.changes] == ["live", "live"], "redefined, and started"


def test_a_definition_changed_behind_macvm_shows() -> None:
    web = made("web")
    changed = web._replace(saved=web.saved._replace(memory=MEMORY // 2))
    assert the(plan(wanted(asked("web"), networks=()), real(changed, networks=()))).reason == "memory 256 MiB → 512 MiB"


@pytest.mark.parametrize("part", [{"image": "debian:12"}, {"password": "x"}, {"ssh_keys": ()}, {"user_data": (b"#!",)}])
def test_what_only_a_first_boot_takes_in_wants_a_fresh_disk(part: dict[str, object]) -> None:
    found = plan(wanted(asked("web", wish(), **part)), real(made("web", there(1))))
    assert the(found).how == "recreate"
    assert found.machines[0].macs == (MACS[1],), "it keeps its MAC"


def test_without_the_key_what_guests_are_told_is_not_compared() -> None:
    machine = asked("web", password="x")._replace(wish=None)
    assert plan(wanted(machine, networks=()), real(made("web"), networks=())) == Plan("classic")


def test_a_smaller_disk_is_a_fresh_one_and_a_larger_one_grows() -> None:
    has = real(made("web", disk_size=2 << 30, base_size=1 << 30), networks=())
    assert the(plan(wanted(asked("web", disk_size=3 << 30), networks=()), has)).how == "restart"
    assert the(plan(wanted(asked("web", disk_size=1 << 30), networks=()), has)).how == "recreate"
    assert plan(wanted(asked("web", disk_size=2 << 30), networks=()), has) == Plan("classic")


def test_power_autostart_and_labels() -> None:
    machine = asked("web", labels=(("role", "web"),), autostart=True)
    found = plan(wanted(machine, networks=()), real(made("web", state="off"), networks=()))
    assert [change.words for change in found.changes] == ["labels", "autostart", "start"]
    idle = plan(wanted(asked("web", start=False), networks=()), real(made("web"), networks=()))
    assert (the(idle).words, the(idle).how) == ("stop", "restart")


def test_a_mode_changes_where_the_nic_is() -> None:
    private = LAN._replace(mode=MacvtapMode.PRIVATE)
    found = plan(wanted(asked("web", wish(private)), networks=(private,)), real(made("web", there(1))))
    assert found.networks_changed == (private,)
    assert asks(found) == [Ask.SET]
    assert found.changes[1].reason == "mode bridge → private"


def test_a_link_that_is_down_and_a_kernel_mode_are_drift() -> None:
    down = plan(wanted(asked("web", wish())), real(made("web", there(1, link="down"))))
    assert (asks(down), the(down).reason) == ([Ask.SET], "the link is down")
    mode = plan(wanted(asked("web", wish())), real(made("web", there(1, mode=MacvtapMode.VEPA))))
    assert (asks(mode), the(mode).reason) == ([Ask.SET], "mode vepa → bridge")


def test_a_link_that_the_host_lost_is_plugged_in_again() -> None:
    found = plan(wanted(asked("web", wish())), real(made("web", there(1, link="gone"))))
    assert (the(found).reason, asks(found)) == ("its link is gone from the host", [Ask.MOVE])


def test_what_the_host_lacks_to_reach_a_guest_is_drift() -> None:
    lacks = {
        "web": (Unserved("eth0", True, ipaddress.ip_address("192.0.2.11")),),
        "db": (Unserved("eth1", False, ipaddress.ip_address("192.0.2.12")),),
    }
    has = real(made("web", there(1)), made("db", there(2)), unserved=lacks)
    machines = (asked("web", wish()), asked("db", wish()))
    found = plan(wanted(*machines), has)
    reasons = [(one.name, one.reason) for one in found.changes]
    assert reasons == [("eth0", "no route to 192.0.2.11"), ("eth1", "it is gone")]
    assert found.unserved == ("eth0", "eth1")
    assert plan(wanted(*machines), has, ["web"]).unserved == ("eth0",)
    # A shim that is to come has all of it.
    assert plan(wanted(*machines, shims=(ShimWish("eth0"), ShimWish("eth1"))), has).unserved == ()


def test_a_machine_that_runs_on_without_a_definition_gets_one() -> None:
    has = made("web", there(1))
    found = plan(wanted(asked("web", wish())), real(has._replace(now=has.now._replace(defined=False))))
    assert (the(found).words, the(found).reason, the(found).how) == ("definition", "libvirt has none any more", "live")


def test_nics_come_and_go() -> None:
    more = plan(wanted(asked("web", wish(), wish(None))), real(made("web", there(1))))
    assert asks(more) == [Ask.ATTACH]
    fewer = plan(wanted(asked("web", wish(None))), real(made("web", there(1), there(2, None))))
    assert asks(fewer) == [Ask.DETACH]
    foreign = plan(wanted(asked("web")), real(made("web", there(1, told=None)._replace(told=None))))
    assert the(foreign).reason == "not in the file: attached by another program"


def test_a_nic_that_only_one_half_has_is_plugged_in_again() -> None:
    found = plan(wanted(asked("web", wish())), real(made("web", there(1, saved=False, saved_mode=None))))
    assert (asks(found), the(found).reason) == ([Ask.MOVE], "the definition does not have it")


def test_of_two_nics_each_is_the_one_that_takes_least() -> None:
    has = made("web", there(1, told=static("192.0.2.5/24")), there(2))
    found = plan(wanted(asked("web", wish(), wish(addressing=static("192.0.2.5/32")))), real(has))
    assert found == Plan("classic")


def test_an_address_changes_where_the_nic_is() -> None:
    found = plan(wanted(asked("web", wish(addressing=static("192.0.2.77/32")))), real(made("web", there(1))))
    assert (asks(found), the(found).reason) == ([Ask.SET], "address 192.0.2.11 → 192.0.2.77")


def test_two_that_change_addresses_both_let_go_first() -> None:
    one, two = static("192.0.2.5/24"), static("192.0.2.6/24")
    has = real(made("a", there(1, told=one)), made("b", there(2, told=two)))
    found = plan(wanted(asked("a", wish(addressing=two)), asked("b", wish(addressing=one))), has)
    assert asks(found) == [Ask.MOVE, Ask.MOVE]


def test_an_address_that_a_network_gave_is_let_go_for_one_who_names_it() -> None:
    has = real(made("a", there(1)))
    found = plan(wanted(asked("a", wish()), asked("b", wish(addressing=static("192.0.2.11/32")))), has)
    assert asks(found) == [Ask.MOVE]


def test_a_mac_that_another_names_is_let_go() -> None:
    has = real(made("a", there(1)))
    found = plan(wanted(asked("a", wish()), asked("b", wish(mac=MACS[1]))), has)
    assert asks(found) == [Ask.DETACH, Ask.ATTACH]


def test_a_network_elsewhere_takes_all_its_nics_with_it() -> None:
    moved = LAN._replace(parent="eth1")
    machine = asked("web", wish(moved), wish(None))
    found = plan(wanted(machine, networks=(moved,)), real(made("web", there(1), there(2, None))))
    assert (found.networks_gone, found.networks_new) == (("lan",), (moved,))
    assert asks(found) == [Ask.MOVE]


def test_a_network_that_others_are_on_stays_where_it_is() -> None:
    has = real(holders={"lan": frozenset({"web", "stranger"})})
    with pytest.raises(Problems, match="in use by stranger, web, and is to change"):
        plan(wanted(networks=(LAN._replace(parent="eth1"),)), has)


def test_only_one_machine_with_the_networks_it_needs() -> None:
    lans = (LAN, LAN._replace(name="other", parent="eth1"))
    found = plan(wanted(asked("a", wish()), asked("b"), networks=lans), real(made("old"), networks=()), ["a"])
    assert shown(found) == ["+ network lan live", "+ vm a live"]
    with pytest.raises(NotFound, match="classic has no c"):
        plan(wanted(asked("a")), Real(), ["c"])


def test_an_address_that_a_shim_does_not_serve_yet() -> None:
    one = ipaddress.ip_address("192.0.2.9")
    wants = wanted(networks=(), shims=(ShimWish("eth0", (To(one),)),))
    assert plan(wants, Real(shims={"eth0": True}, to=frozenset({("eth0", "192.0.2.9")}))) == Plan("classic")
    assert the(plan(wants, Real(shims={"eth0": True}))).reason == "an address is not served"
    assert the(plan(wants, Real(shims={"eth0": False}))).reason == "it is gone"


def endpoint(**more: object) -> tuple[WantedEndpoint, RealEndpoint]:
    request = EndpointRequest("probe", network="lan", addressing=Addressing(auto=True))
    is_there = more.pop("is_there", True)
    nic = there(3).told
    assert nic
    one = Endpoint("probe", MacvlanMode.BRIDGE, nic, "macvm-probe", "me-1")._replace(**more)  # type: ignore[arg-type]
    return WantedEndpoint(request, MacvlanMode.BRIDGE, wish()), RealEndpoint(one, bool(is_there))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, ""),
        ({"is_there": False}, "its namespace or its link is gone"),
        ({"mode": MacvlanMode.VEPA}, "mode vepa → bridge"),
        ({"nic": Nic(MACS[3], parent="eth0", addressing=static("192.0.2.13/24"))}, "network none → lan"),
    ],
)
def test_an_endpoint_that_differs_is_made_again(more: dict[str, object], reason: str) -> None:
    wants, has = endpoint(**more)
    there_is = real(endpoints={"probe": has})
    there_is = there_is._replace(made={**there_is.made, Thing("endpoint", "probe"): "classic"})
    found = plan(wanted(endpoints=(wants,)), there_is)
    assert [change.reason for change in found.changes] == ([reason] if reason else [])
    assert bool(found.endpoints_gone) is bool(found.endpoints_new) is bool(reason)


def test_digests_tell_which_part_is_another_and_nothing_more() -> None:
    before = digests(KEY, CreateRequest("web", (), password="secret", image="tiny"))
    after = digests(KEY, CreateRequest("web", (), password="other", image="tiny", ssh_keys=()))
    assert differences(before, after) == ["password", "ssh_keys"]
    assert differences(before, before) == []
    assert "secret" not in before
    assert digests(b"another key", CreateRequest("web", (), password="secret", image="tiny")) != before
