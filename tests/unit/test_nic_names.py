"""Which NIC a word means."""

from __future__ import annotations

import pytest

from provisioner.actions.nic_names import choose_nic
from provisioner.errors import NotFound, Usage
from provisioner.model.found import FoundMachine, FoundNic
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac

ONE, TWO, THREE, FOUR = (f"52:54:00:00:{last}" for last in ("0a:11", "0b:11", "0c:12", "0d:13"))
NICS = (
    FoundNic(Mac(ONE), "direct", MacvtapMode.BRIDGE, parent="eth0", device="macvtap0"),
    FoundNic(Mac(TWO), "direct", MacvtapMode.VEPA, parent="eth0", device="mt-525400000b11"),
    FoundNic(Mac(THREE), "direct", MacvtapMode.PASSTHROUGH, parent="br-lan"),
    FoundNic(Mac(FOUR), "network", network="default", device="vnet0"),
)
MACHINE = FoundMachine("web1", "", NICS)


@pytest.mark.parametrize(
    ("word", "mac"),
    [
        (ONE, ONE),
        (ONE.upper(), ONE),
        (ONE.replace(":", "-"), ONE),
        (f" {ONE} ", ONE),
        ("0a:11", ONE),
        ("0A-11", ONE),
        ("0b11", TWO),
        ("12", THREE),
        ("macvtap0", ONE),
        ("mt-525400000b11", TWO),
        ("br-lan", THREE),
        ("default", FOUR),
        ("vnet0", FOUR),
    ],
)
def test_a_nic_is_named(word: str, mac: str) -> None:
    assert choose_nic(MACHINE, NICS, word).mac == mac


def test_the_only_one_needs_no_name() -> None:
    assert choose_nic(MACHINE, NICS[:1], None) is NICS[0]


@pytest.mark.parametrize(("word", "meant"), [("11", NICS[:2]), ("eth0", NICS[:2]), (None, NICS)])
def test_an_ambiguous_word_is_answered_with_the_candidates(word: str | None, meant: tuple[FoundNic, ...]) -> None:
    with pytest.raises(Usage, match=f"web1 has {len(meant)} NICs: say which NIC") as refused:
        choose_nic(MACHINE, NICS, word)
    assert all(nic.mac in refused.value.hint for nic in meant)
    assert not any(nic.mac in refused.value.hint for nic in NICS if nic not in meant)


@pytest.mark.parametrize("word", ["", " ", "2", ":", "eth", "macvtap1", "52:54:00:00:0a", "x\n\x1b[2J", "direct"])
def test_a_word_for_none_is_answered_with_all_there_are(word: str) -> None:
    with pytest.raises(NotFound, match="web1 does not have a NIC") as refused:
        choose_nic(MACHINE, NICS, word)
    assert refused.value.message.isprintable()
    assert f"{ONE} (bridge on eth0); {TWO} (vepa on eth0)" in refused.value.hint
    assert f"{FOUR} (network default)" in refused.value.hint


def test_a_machine_without_nics() -> None:
    with pytest.raises(NotFound, match="web1 does not have a NIC"):
        choose_nic(MACHINE, (), None)
