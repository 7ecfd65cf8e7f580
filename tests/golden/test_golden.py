"""Domain XML and seed texts against golden files; each domain also against libvirt's own schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lxml import etree  # noqa: TID251 - reads libvirt's schema

from provisioner.errors import Usage
from provisioner.model.domain_xml.reading import found_machine
from provisioner.model.domain_xml.writing import SPARE_ROOT_PORTS, domain_xml
from provisioner.model.found import Marks
from provisioner.model.machine import DirectBoot, Machine, Vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Nic, parse_addressing
from provisioner.model.seed import SeedRequest, seed_files
from provisioner.resources import resource
from tests.conftest import Require

HERE = Path(__file__).parent
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
FOLDER = Path("/var/lib/macvm/machines/0d6f2b7e-4b6f-4a8e-9c58-2f1f0a3c7b11")


def mac(last: int) -> Mac:
    return Mac.parse(f"52:54:00:00:00:{last:02x}")


PLAIN = Machine(
    name="web1",
    uuid="0d6f2b7e-4b6f-4a8e-9c58-2f1f0a3c7b11",
    memory=512 << 20,
    vcpus=1,
    virt_type="qemu",
    nics=(Nic(mac(1), parent="eth0", addressing=parse_addressing(["192.0.2.11/24"], ["192.0.2.1"], ["192.0.2.53"])),),
    disk=FOLDER / "disk.qcow2",
    base=Path("/var/lib/macvm/images/ab12.qcow2"),
    seed=FOLDER / "seed.iso",
    serial_log=Path("/var/log/libvirt/qemu/web1-serial.log"),
    marks=Marks(image="cirros:0.6.2", base="ab12", login="cirros", lab="blue", labels=(("tier", '<web> & "more"'),)),
)

ONE_OF_EACH = tuple(
    Nic(mac(number), mode=mode, parent=f"eth{number}", mtu=1400 if number == 2 else None, addressing=parse_addressing([word]))
    for number, (mode, word) in enumerate(zip(MacvtapMode, ("192.0.2.11/24", "dhcp", "none", "2001:db8::4/64"), strict=True))
)  # fmt: skip

DUAL = Nic(
    mac(5),
    parent="eth0.50",
    addressing=parse_addressing(
        ["192.0.2.11/24", "2001:db8::11/64"], ["192.0.2.1", "2001:db8::1"], ["192.0.2.53", "2001:db8::53"]
    ),
)

SEVERAL = DUAL._replace(
    addressing=parse_addressing(
        ["192.0.2.11/24", "192.0.2.12/24", "2001:db8::11/64", "2001:db8::12/64"], ["192.0.2.1", "fe80::1"]
    )
)

MACHINES = {
    "one-static-nic": PLAIN,
    "dual-stack": PLAIN._replace(nics=(DUAL,)),
    "every-mode": PLAIN._replace(nics=ONE_OF_EACH),
    "libvirt-network": PLAIN._replace(nics=(Nic(mac(6), libvirt_network="default", addressing=parse_addressing([])),)),
    "direct-boot": PLAIN._replace(
        disk=None,
        base=None,
        boot=DirectBoot(Path("/boot/vmlinuz"), Path("/boot/initrd"), "console=ttyS0 a='<&>'"),
    ),
    "vnc": PLAIN._replace(vnc=Vnc()),
    "vnc-exposed": PLAIN._replace(vnc=Vnc("::", 5901)),
    "kvm": PLAIN._replace(virt_type="kvm", vcpus=4, memory=2 << 30),
    "no-disk": PLAIN._replace(disk=None, base=None, seed=None, serial_log=None, marks=Marks()),
    "uefi": PLAIN._replace(firmware="uefi", nvram=FOLDER / "nvram.fd"),
    "own-template": PLAIN._replace(virt_type="kvm", firmware="uefi", nvram=FOLDER / "nvram.fd"),
}

#: The machines with a template other than macvm's own.
TEMPLATES = {"own-template": HERE / "templates" / "i440fx.xml"}


def written(name: str) -> str:
    template = TEMPLATES.get(name) or resource("templates", "q35.xml")
    return domain_xml(MACHINES[name], template.read_bytes())


def compare(text: str, name: str, config: pytest.Config) -> None:
    path = HERE / "expected" / name
    if config.getoption("--regenerate-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), (
        f"{path.name} differs; where that is right: pytest tests/golden --regenerate-golden"
    )


@pytest.mark.parametrize("name", MACHINES)
def test_domain_xml_is_as_its_golden_file(name: str, pytestconfig: pytest.Config) -> None:
    compare(written(name), f"{name}.xml", pytestconfig)


@pytest.fixture(scope="module")
def schema(require: Require) -> etree.RelaxNG:
    require(SCHEMA.exists(), f"libvirt's schema {SCHEMA} is not installed (libvirt0 or libvirt-daemon brings it)")
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.mark.parametrize("name", MACHINES)
def test_domain_xml_follows_libvirts_schema(name: str, schema: etree.RelaxNG) -> None:
    schema.assertValid(etree.fromstring(written(name)))


def test_the_schema_finds_what_is_wrong(schema: etree.RelaxNG) -> None:
    assert not schema.validate(etree.fromstring(written("vnc").replace('mode="bridge"', 'mode="passthru"')))


@pytest.mark.parametrize("name", MACHINES)
def test_a_written_domain_is_found_again(name: str) -> None:
    machine = MACHINES[name]
    found = found_machine(written(name))
    assert (found.name, found.uuid, found.marks) == (machine.name, machine.uuid, machine.marks)
    assert [(nic.mac, nic.parent, nic.network, nic.device) for nic in found.nics] == [
        (nic.mac, nic.parent, nic.libvirt_network, nic.device) for nic in machine.nics
    ]
    assert [nic.mode for nic in found.nics if nic.kind == "direct"] == [nic.mode for nic in machine.nics if nic.direct]
    assert set(found.files) == {path for path in (machine.disk, machine.base, machine.seed) if path}


def test_every_direct_nic_says_its_mode_and_its_device() -> None:
    for name in MACHINES:
        for element in etree.fromstring(written(name)).iterfind(".//interface[@type='direct']"):
            assert element.find("source").get("mode")
            assert element.find("target").get("dev").startswith("mt-")
            assert element.get("trustGuestRxFilters") == "no"
            assert element.find("model").get("type") == "virtio"


def test_a_template_of_ones_own_keeps_what_macvm_has_no_word_for() -> None:
    text = written("own-template")
    kept = [
        "shop:order",
        "42 &amp; more",
        "<title>kept",
        "hugepages",
        "Skylake-Client",
        "tpm-crb",
        "i6300esb",
        "hyperv",
    ]
    kept += ["qemu-mine", "-no-hpet", "pc-i440fx-7.2", "<acpi"]
    assert [word for word in kept if word not in text] == []
    gone = ["theirs", "br0", "11111111-", "currentMemory", "GiB", "pcie-root-port", "_VARS.fd<", "current=", "topology"]
    assert [word for word in gone if word in text] == []


@pytest.mark.parametrize(
    ("system", "firmware"),
    [
        ("<os firmware='efi'/>", "uefi"),
        ("<os firmware='bios'/>", "bios"),
        ("<os><loader type='pflash'>/x/CODE.fd</loader><nvram>/x/theirs_VARS.fd</nvram></os>", "uefi"),
        ("<os><loader type='pflash' stateless='yes'>/x/CODE.fd</loader></os>", "uefi"),
        ("<os><loader type='rom'>/x/some.bin</loader></os>", ""),
    ],
)
def test_a_templates_own_firmware_stays(system: str, firmware: str) -> None:
    text = domain_xml(MACHINES["uefi"], f"<domain type='qemu'>{system}</domain>")
    assert found_machine(text).firmware == firmware
    assert "secure-boot" not in text
    assert "theirs" not in text
    assert ("<nvram>" in text) == ("stateless" not in system)


def test_a_machine_without_a_word_on_firmware_has_bios() -> None:
    assert {name for name in MACHINES if found_machine(written(name)).firmware == "uefi"} == {"uefi", "own-template"}
    assert found_machine(written("one-static-nic")).firmware == "bios"


def test_a_template_that_was_filled_can_be_filled_again() -> None:
    once = written("every-mode")
    assert domain_xml(MACHINES["every-mode"], once) == once


def test_q35_has_room_for_nics_to_come() -> None:
    root = etree.fromstring(written("every-mode"))
    ports = root.findall(".//controller[@model='pcie-root-port']")
    needed = len(root.findall(".//interface")) + len(root.findall(".//disk/target[@bus='virtio']"))
    assert len(ports) >= needed + SPARE_ROOT_PORTS


BOMB = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {name} "{f"&{inner};" * 10}">' for inner, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "no XML"),
        ("hello", "no XML"),
        ("<domain>", "no XML"),
        ("\0", "no XML"),
        ("<domain/><domain/>", "no XML"),
        ("<domain>&undefined;</domain>", "no XML"),
        ("<network/>", "root element is <network>"),
        ('<domain xmlns="urn:other"/>', "no libvirt domain"),
        ("<!DOCTYPE domain><domain/>", "document type"),
        (BOMB + "]><domain><name>&i;</name></domain>", "document type|no XML"),
        ('<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain><name>&x;</name></domain>', "document type"),
        ('<!DOCTYPE domain SYSTEM "http://192.0.2.1/evil.dtd"><domain/>', "document type"),
        ('<!DOCTYPE d [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]><domain/>', "document type|no XML"),
        ('<?xml version="1.0" encoding="utf-16"?><domain/>', "no XML"),
        ("<domain>" + "<a>" * 300 + "</a>" * 300 + "</domain>", "no XML"),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_template_that_is_none_is_refused(template: str, why: str) -> None:
    with pytest.raises(Usage, match=why) as refused:
        domain_xml(PLAIN, template, "the template x.xml")
    assert "root:" not in refused.value.message
    assert refused.value.hint
    assert "aaaa" * 100 not in refused.value.message


def test_control_characters_are_no_traceback() -> None:
    with pytest.raises(Usage, match="cannot be written as XML"):
        domain_xml(PLAIN._replace(marks=Marks(lab="a\x01")), resource("templates", "q35.xml").read_bytes())


SEEDS = {
    name: SeedRequest("web1", PLAIN.uuid, MACHINES[name].nics)
    for name in ("one-static-nic", "dual-stack", "every-mode", "libvirt-network")
} | {
    "keys-and-password": SeedRequest(
        "web1", PLAIN.uuid, PLAIN.nics, ('ssh-ed25519 AAAA me@"here"',), (), "cirros", "$6$salt$hash"
    ),
    "own-user-data": SeedRequest("web1", PLAIN.uuid, (), (), (b"#!/bin/sh\ntrue\n",)),
    "several-user-data": SeedRequest(
        "web1", PLAIN.uuid, (), (), (b"#!/bin/sh\ntrue\n", b"#cloud-config\npackages: [jq]\n"), "debian", "$6$salt$hash"
    ),
    "several-addresses": SeedRequest("web1", PLAIN.uuid, (SEVERAL, DUAL._replace(mac=mac(7)))),
    "small-mtu": SeedRequest("web1", PLAIN.uuid, (DUAL._replace(mtu=1400),)),
}


@pytest.mark.parametrize("name", SEEDS)
def test_seed_texts_are_as_their_golden_file(name: str, pytestconfig: pytest.Config) -> None:
    files = seed_files(SEEDS[name])
    text = "".join(f"=== {path}\n{content.decode()}" for path, content in files.items())
    compare(text, f"seed-{name}.txt", pytestconfig)
    assert json.loads(files["meta-data"])["local-hostname"] == "web1"


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}.xml" for name in MACHINES} | {f"seed-{name}.txt" for name in SEEDS}
    assert {path.name for path in (HERE / "expected").iterdir() if not path.name.startswith("lab-")} == expected
