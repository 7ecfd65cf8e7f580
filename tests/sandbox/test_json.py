"""`-o json` of every command against its schema, and `-o name`. Standard output has nothing else in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from referencing import Registry, Resource

from tests.sandbox.kvm_host import STATE, KvmHost

pytestmark = pytest.mark.xdist_group("json")

SCHEMAS = {
    path.name: json.loads(path.read_text()) for path in Path(__file__).parents[1].joinpath("schemas").glob("*.json")
}
REGISTRY: Registry[Any] = Registry().with_resources((name, Resource.from_contents(s)) for name, s in SCHEMAS.items())


def valid(found: Any, schema: str) -> Any:
    Draft202012Validator(SCHEMAS[schema], registry=REGISTRY, format_checker=FormatChecker()).validate(found)
    return found


@pytest.fixture(scope="module", autouse=True)
def setting(host: KvmHost) -> Iterator[None]:
    """A machine with all there is: two NICs, one on a libvirt network, two families, a lab, labels; one without NICs'
    addresses; one of somebody else's."""
    host.clear()
    host.sh("virsh net-define /dev/stdin <<< '<network><name>inner</name><bridge name=\"inner0\"/></network>'")
    host.sh("virsh net-start inner")
    host.create("full", "--nic", "ip=192.0.2.71/24,ip=2001:db8::71/64", "--nic", "libvirt=inner", "--lab", "l",
                "--label", "role=web", "--wait")  # fmt: skip
    host.create("bare", "--no-start")
    host.sh("virsh define /dev/stdin <<< '<domain type=\"qemu\"><name>theirs</name><memory unit=\"MiB\">16</memory>"
            "<os><type arch=\"x86_64\" machine=\"pc\">hvm</type></os></domain>'")  # fmt: skip
    yield
    host.clear()
    host.sh(
        "virsh undefine theirs; virsh net-destroy inner; virsh net-undefine inner; rm -r /run/libvirt/network/inner"
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])


def test_a_schema_notices_a_missing_key(host: KvmHost) -> None:
    machine = host.show("full")
    del machine["nics"][0]["addresses"][0]["seen"]
    with pytest.raises(ValidationError, match="'seen' is a required property"):
        valid(machine, "show.json")


@pytest.mark.parametrize(
    ("words", "schema", "names"),
    [
        ("list", "list.json", "bare full theirs"),
        ("list --lab l", "list.json", "full"),
        ("list -l role=db", "list.json", ""),
        ("show full", "show.json", "full"),
        ("nic list", "nic-list.json", None),
        ("nic list full", "nic-list.json", None),
        ("wait full", "wait.json", "full"),
        ("start bare", "start.json", "bare"),
        ("stop --force bare", "stop.json", "bare"),
        ("restart --force bare full", "restart.json", "bare full"),
        ("autostart on bare", "autostart.json", "bare"),
        ("autostart off bare", "autostart.json", "bare"),
        ("image list --local", "image-list.json", "tiny"),
        ("image verify", "image-verify.json", "tiny"),
        ("image build tiny", "image-build.json", "tiny"),
        ("gc", "gc.json", ""),
    ],
)
def test_json_and_names(host: KvmHost, words: str, schema: str, names: str | None) -> None:
    found = valid(json.loads(host.macvm(*words.split(), "-o", "json").stdout), schema)
    said = host.macvm("-o", "name", *words.split()).stdout.split()
    if names is not None:
        assert said == names.split()
    else:
        assert said == [nic["mac"] for nic in found]


def test_what_a_full_machine_shows(host: KvmHost) -> None:
    machine = valid(host.json("show", "full"), "show.json")
    direct, networked = machine["nics"]
    assert (machine["lab"], machine["labels"], machine["image"]) == ("l", {"role": "web"}, "tiny")
    assert [(address["address"], address["source"]) for address in direct["addresses"]] == [
        ("192.0.2.71", "lease"),
        ("2001:db8::71", "lease"),
    ]
    assert (direct["mode"], direct["parent"], direct["network"]) == ("bridge", "eth0", None)
    assert (networked["mode"], networked["parent"], networked["network"]) == (None, None, "inner")


def test_create_and_delete(host: KvmHost) -> None:
    made = host.create("one", "--no-start", "-o", "json")
    assert valid(json.loads(made.stdout), "create.json")["name"] == "one"
    assert "note: " in made.stderr  # the notes go where they disturb no reader
    several = host.create("more", "--count", "2", "--no-start", "-o", "json", "--quiet")
    assert [one["name"] for one in valid(json.loads(several.stdout), "create.json")] == ["more-1", "more-2"]
    assert several.stderr == ""
    gone = valid(json.loads(host.macvm("delete", "-y", "--keep-disks", "one", "-o", "json").stdout), "delete.json")
    (disk,) = gone[0]["kept"]
    host.sh(f"rm {disk}; rmdir {Path(disk).parent}")
    assert host.macvm("delete", "-y", "more-1", "more-2", "-o", "name").stdout == "more-1\nmore-2\n"


def test_images_come_and_go(host: KvmHost) -> None:
    host.sh("truncate -s 1M /run/d; printf '\\x55\\xaa' | dd of=/run/d bs=1 seek=510 conv=notrunc status=none")
    made = host.macvm("image", "import", "/run/d", "mine:1", "-o", "json")
    image = valid(json.loads(made.stdout), "image-import.json")
    gone = valid(json.loads(host.macvm("image", "delete", "-y", "mine:1", "-o", "json").stdout), "image-delete.json")
    assert gone["removed"] == [f"{STATE}/images/{image['digest']}.qcow2"]
    host.sh("rm /run/d")


def test_a_network(host: KvmHost) -> None:
    words = ("--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.200/30", "--subnet", "2001:db8::/64", "--gateway",
             "2001:db8::1", "--aux-address", "printer=192.0.2.201")  # fmt: skip
    made = valid(json.loads(host.macvm("network", "create", "lan", *words, "-o", "json").stdout), "network-create.json")
    assert [(one["gateway"], one["range"]) for one in made["subnets"]] == [
        (None, "192.0.2.200/30"),
        ("2001:db8::1", None),
    ]
    host.create("one", "--network", "lan", "--no-start", "--quiet")
    (listed,) = valid(host.json("network", "list"), "network-list.json")
    assert listed == valid(host.json("network", "show", "lan"), "network-show.json")
    # The last without a network, on the same LAN and in the same pool.
    assert [lease["owner"] for lease in listed["leases"]] == ["one", "one", "full"]
    assert listed["reserved"] == {"printer": "192.0.2.201"}
    assert valid(host.json("network", "up"), "network-up.json") == {"made": []}
    (nic,) = valid(host.json("show", "one"), "show.json")["nics"]
    assert nic["network"] == "lan"
    host.macvm("delete", "-y", "one")
    assert host.macvm("network", "show", "lan", "-o", "name").stdout == "lan\n"
    gone = host.macvm("network", "delete", "lan", "-o", "json").stdout
    assert valid(json.loads(gone), "network-delete.json") == [{"name": "lan"}]
    assert host.macvm("network", "up", "-o", "name").stdout == ""


@pytest.mark.parametrize("words", ["list", "nic list", "image list --local", "network list"])
def test_lists_of_nothing(host: KvmHost, words: str) -> None:
    empty = ["--connect", "test:///default", "--state-dir", "/run/no-state"]
    found = json.loads(host.macvm(*words.split(), *empty, "-o", "json").stdout)
    assert found == [] or words not in ("image list --local", "network list")
    assert re.fullmatch(r"[A-Z ]+\n(test .*\n)*", host.macvm(*words.split(), *empty).stdout)
