"""Lab files: what they are read to, and what is said of those that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

import provisioner
from provisioner.actions.labs import building, tree
from provisioner.actions.labs.file import load, parse
from provisioner.actions.labs.forms import json_schema
from provisioner.actions.labs.mistakes import MOST_SAID, LabMistakes, Mistake, Place
from provisioner.actions.labs.wishes import Lab, ShimWish
from provisioner.actions.request import CreateRequest, EndpointRequest, NicRequest
from provisioner.cli.main import report
from provisioner.errors import Usage
from provisioner.model.endpoint import IpvlanMode, MacvlanMode
from provisioner.model.machine import DirectBoot, Vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.network import Network, Range, Subnet
from provisioner.model.nic import Addressing
from provisioner.model.shim import To
from tests.conftest import Ran

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJeWfYcYw1bJkzGdnu0IZ7Jy5hT4Ig7qJ7vTq8z7Ae7b me"
MAC = "52:54:00:12:34:56"


def read(text: str | bytes, path: Path = Path("/labs/blue/macvm.yaml"), **environment: str) -> Lab:
    return parse(text.encode() if isinstance(text, str) else text, path, environment)


def mistakes(text: str | bytes, **environment: str) -> tuple[Mistake, ...]:
    with pytest.raises(LabMistakes) as caught:
        read(text, **environment)
    assert caught.value.status == 2
    return caught.value.mistakes


def only(text: str | bytes, **environment: str) -> tuple[int, int, str]:
    """The line, the column and all that is said of the one mistake."""
    (one,) = mistakes(text, **environment)
    return one.place.line, one.place.column, f"{one.what}; {one.hint}"


# what is read


def test_a_whole_lab(tmp_path: Path) -> None:
    for name, text in {"id.pub": KEY, "a.sh": "#!/bin/sh\n", "b.yaml": "#cloud-config\n", "k": "k", "i": "i"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "macvm.yaml").write_text(
        f"""
lab: classic
defaults: {{image: tiny, memory: 96M, mode: vepa, parent: eth9, ssh_keys: [id.pub], labels: {{tier: one, role: any}}}}
images:
  base: {{source: "https://example.net/a.img", checksum: sha256:{"0" * 64}}}
networks:
  lan:
    parent: eth0.50
    mode: private
    subnets: [192.0.2.0/24, {{subnet: "2001:db8::/64", gateway: "2001:db8::1", range: "2001:db8::10-2001:db8::20"}}]
    reserved: {{printer: 192.0.2.40}}
    dns: [192.0.2.53]
    mtu: 1400
    shim: false
vms:
  web:
    count: 2
    image: debian:12
    memory: 512
    vcpus: 2
    disk: 10
    nics:
      - network: lan
      - {{parent: eth0, mode: passthru, ip: [192.0.2.11/24, "2001:db8::11/64"], mtu: 1500, gateway: 192.0.2.1, dns: 192.0.2.2}}
      - libvirt: default
      - {{ip: none}}
    user_data: [a.sh, b.yaml]
    labels: {{role: web}}
    firmware: uefi
    virt_type: qemu
    autostart: true
    password: ${{PASSWORD}}
  db: {{image: base, start: false, shim: false, probe: rfc, ssh_keys: [], user_data: a.sh, vnc: "127.0.0.1:5901",
        nics: [{{mac: "{MAC}"}}], take_parent: true}}
  direct: {{kernel: k, initrd: i, cmdline: quiet, template: k, vnc: true}}
endpoints:
  probe: {{network: lan}}
  filter: {{mode: source, allow_source: "{MAC}", parent: eth1, ip: 192.0.2.9/24, mtu: 1300, netns: box}}
  l3: {{ipvlan: l3}}
shims: [eth0, {{parent: eth1, to: ["192.0.2.40,{MAC}", 192.0.2.32/28]}}]
"""
    )
    lab = load(tmp_path / "macvm.yaml", {"PASSWORD": "secret"})
    lan = Network(
        "lan",
        "eth0.50",
        MacvtapMode.PRIVATE,
        (
            Subnet(ip_network("192.0.2.0/24")),
            Subnet(
                ip_network("2001:db8::/64"),
                ip_address("2001:db8::1"),
                Range(ip_address("2001:db8::10"), ip_address("2001:db8::20")),
            ),
        ),
        (("printer", ip_address("192.0.2.40")),),
        (ip_address("192.0.2.53"),),
        1400,
        False,
    )
    assert lab[:3] == ("classic", tmp_path / "macvm.yaml", (lan,))

    def second(number: int) -> NicRequest:
        static = (ip_interface(f"192.0.2.{10 + number}/24"), ip_interface(f"2001:db8::{10 + number}/64"))
        told = Addressing(static, False, (ip_address("192.0.2.1"),), (ip_address("192.0.2.2"),))
        return NicRequest(MacvtapMode.PASSTHROUGH, "eth0", mtu=1500, addressing=told)

    web = [
        CreateRequest(
            name=f"web-{number}",
            nics=(
                NicRequest(network="lan", addressing=Addressing(auto=True)),
                second(number),
                NicRequest(libvirt_network="default"),
                NicRequest(MacvtapMode.VEPA, "eth9", addressing=Addressing()),
            ),
            image="debian:12",
            memory=512 << 20,
            vcpus=2,
            disk_size=10 << 30,
            ssh_keys=(KEY,),
            user_data=(b"#!/bin/sh\n", b"#cloud-config\n"),
            password="secret",
            virt_type="qemu",
            firmware="uefi",
            autostart=True,
            lab="classic",
            labels=(("tier", "one"), ("role", "web")),
        )
        for number in (1, 2)
    ]
    database = CreateRequest(
        name="db",
        nics=(NicRequest(MacvtapMode.VEPA, "eth9", mac=Mac(MAC)),),
        image="https://example.net/a.img",
        checksum=f"sha256:{'0' * 64}",
        memory=96 << 20,
        ssh_keys=(),
        user_data=(b"#!/bin/sh\n",),
        vnc=Vnc("127.0.0.1", 5901),
        start=False,
        shim=False,
        take_parent=True,
        probe="rfc",
        lab="classic",
        labels=(("tier", "one"), ("role", "any")),
    )
    direct = CreateRequest(
        name="direct",
        nics=(NicRequest(MacvtapMode.VEPA, "eth9"),),
        image="tiny",
        memory=96 << 20,
        ssh_keys=(KEY,),
        template=tmp_path / "k",
        boot=DirectBoot(tmp_path / "k", tmp_path / "i", "quiet"),
        vnc=Vnc(),
        lab="classic",
        labels=(("tier", "one"), ("role", "any")),
    )
    assert lab.machines == (*web, database, direct)
    told = Addressing((ip_interface("192.0.2.9/24"),))
    assert lab.endpoints == (
        EndpointRequest("probe", network="lan", addressing=Addressing(auto=True)),
        EndpointRequest(
            "filter", MacvlanMode.SOURCE, None, "eth1", addressing=told, mtu=1300, sources=(Mac(MAC),), netns="box"
        ),
        EndpointRequest("l3", ipvlan=IpvlanMode.L3),
    )
    to = (To(ip_address("192.0.2.40"), MAC), To(block=ip_network("192.0.2.32/28")))
    assert lab.shims == (ShimWish("eth0"), ShimWish("eth1", to))


def test_what_is_left_out_is_as_create_has_it() -> None:
    lab = read("vms:\n  web:\n")
    assert (lab.name, lab.networks, lab.endpoints, lab.shims) == ("blue", (), (), ())
    assert lab.machines == (CreateRequest("web", (NicRequest(),), lab="blue"),)


@pytest.mark.parametrize("text", ["vms:\n", "lab: blue\n", "{}", "\ufeffvms: {}\n", "%YAML 1.2\n---\nvms: {}\n...\n"])
def test_a_lab_may_be_empty(text: str) -> None:
    assert read(text) == Lab("blue", Path("/labs/blue/macvm.yaml"))


#: A key of the file and of its first NIC, each with the option that says the same.
SAME = [
    ({"memory": "2G"}, ["--memory", "2G"]),
    ({"memory": "700"}, ["--memory", "700"]),
    ({"disk": "3"}, ["--disk", "3"]),
    ({"vcpus": "4"}, ["--vcpus", "4"]),
    ({"labels": "{a: no, b: 0x1f, c: 1.0}"}, ["--label", "a=no", "--label", "b=0x1f", "--label", "c=1.0"]),
    ({"vnc": "':5950'"}, ["--vnc=:5950"]),
    ({"vnc": "'[::]:5950'", "vnc_exposed": "true"}, ["--vnc=[::]:5950", "--vnc-exposed"]),
    ({"firmware": "uefi", "virt_type": "qemu"}, ["--firmware", "uefi", "--virt-type", "qemu"]),
    ({"start": "false", "shim": "false", "autostart": "true"}, ["--no-start", "--no-shim", "--autostart"]),
    ({"probe": "no", "take_parent": "true"}, ["--no-probe", "--take-parent"]),
    ({"password": "1e3"}, ["--password", "1e3"]),
    ({"image": "1e3:1.0"}, ["--image", "1e3:1.0"]),
    ({"nics": "[{parent: eth1, mode: PASSTHRU}]"}, ["--parent", "eth1", "--mode", "PASSTHRU"]),
    ({"nics": "[{mac: 52-54-00-AB-cd-ef, mtu: 1400}]"}, ["--mac", "52-54-00-AB-cd-ef", "--mtu", "1400"]),
    ({"nics": "[{ip: [192.0.2.9, fd00::1/64]}]"}, ["--ip", "192.0.2.9", "--ip", "fd00::1/64"]),
    ({"nics": "[{network: lan, gateway: 192.0.2.1}]"}, ["--network", "lan", "--gateway", "192.0.2.1"]),
    ({"nics": "[{ip: NONE}, {libvirt: default}]"}, ["--ip", "NONE", "--nic", "libvirt=default"]),
]


@pytest.mark.parametrize(("keys", "options"), SAME, ids=lambda value: " ".join(value))
def test_a_word_means_what_it_means_on_the_command_line(
    keys: dict[str, str], options: list[str], monkeypatch: pytest.MonkeyPatch, macvm: Callable[..., Ran], tmp_path: Path
) -> None:
    asked: list[CreateRequest] = []
    monkeypatch.setattr("provisioner.cli.create.preview.create_each", lambda _, requests: asked.extend(requests) or [])
    where = ["--connect", "test:///default", "--state-dir", str(tmp_path)]
    ran = macvm(*where, "create", "web", "--dry-run", "--lab", "blue", "--image", "tiny", *options)
    assert ran.status == 0, ran.err
    keys = {"image": "tiny", **keys}
    lines = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    assert list(read(f"networks: {{lan: }}\nvms:\n  web:\n{lines}").machines) == asked


def test_variables_come_from_the_environment() -> None:
    text = "vms: {web: {memory: '${SIZE}M', password: 'a${P}$$b${NONE:-}c$d', image: '${IMAGE:-tiny}', start: '${S:-false}'}}"
    (web,) = read(text, SIZE="96", P="*&\n: {[", IMAGE="").machines
    assert (web.memory, web.password, web.image, web.start) == (96 << 20, "a*&\n: {[$bc$d", "tiny", False)


def test_the_environment_is_the_processs_own_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("lab: ${BLUE}\n")
    monkeypatch.setenv("BLUE", "sky")
    assert provisioner.Lab.load(path).name == "sky"
    assert provisioner.Lab.load(str(path), {"BLUE": "sea"}).name == "sea"


def test_paths_begin_at_the_labs_folder_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, folder = tmp_path / "home", tmp_path / "lab"
    for path in (home, folder / "images"):
        path.mkdir(parents=True)
    (home / "id.pub").write_text(KEY)
    (folder / "images" / "a.qcow2").write_text("")
    monkeypatch.setattr("provisioner.actions.labs.files.invoking_home", lambda: home)
    monkeypatch.chdir(tmp_path)
    (folder / "macvm.yaml").write_text("vms: {web: {ssh_keys: ~/id.pub, image: images/a.qcow2}}")
    (web,) = load(Path("lab/macvm.yaml"), {}).machines
    assert (web.ssh_keys, web.image) == ((KEY,), str(folder / "images" / "a.qcow2"))


def test_defaults_hold_where_a_vm_says_nothing() -> None:
    text = """
defaults: {nics: [{network: lan}], mode: private, parent: eth7, vcpus: 3, count: 1, labels: {a: one, b: two}}
networks: {lan: }
vms:
  web: {vcpus: 1, labels: {b: own}}
  db: {nics: [{network: lan}, {mode: bridge}, {parent: eth1}, {libvirt: default}]}
"""
    web, database = read(text).machines
    assert (web.name, web.vcpus, web.labels) == ("web-1", 1, (("a", "one"), ("b", "own")))
    assert [nic.network for nic in web.nics] == ["lan"]
    assert database.vcpus == 3
    assert [(nic.network or nic.libvirt_network, nic.mode, nic.parent) for nic in database.nics] == [
        ("lan", None, ""),
        ("", MacvtapMode.BRIDGE, "eth7"),
        ("", MacvtapMode.PRIVATE, "eth1"),
        ("default", None, ""),
    ]


# what is refused before it is looked at


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        (b"", 1, 1, "there is nothing in the file"),
        (b"# only a comment\n", 1, 1, "there is nothing in the file"),
        (b"---\n", 2, 1, "the file holds nothing"),
        (b"- web\n- db\n", 1, 1, "the file holds a list"),
        (b"just words", 1, 1, "the file holds a text"),
        (b"vms: {}\n---\nvms: {}\n", 2, 1, "a second document"),
        (b"vms:\n  web: {}\n  db: {}\n  web: {}\n", 4, 3, "the key 'web' is there twice, first in line 2"),
        (b"vms: {web: {vcpus: 1, 'vcpus': 2}}\n", 1, 23, "the key 'vcpus' is there twice, first in line 1"),
        (b"vms: &all {}\nendpoints: *all\n", 2, 12, "*all is an alias"),
        (b"vms: {web: &a {nics: [*a]}}\n", 1, 23, "*a is an alias"),
        (b"vms: {web: {vcpus: !!int 3}}\n", 1, 20, "'tag:yaml.org,2002:int' is a tag"),
        (b"vms: !!python/object:os.system {}\n", 1, 6, "is a tag"),
        (b"vms:\n\tweb: {}\n", 2, 1, "a tab cannot stand here"),
        (b"vms:\n  web:\n  \tvcpus: 1\n", 3, 3, "a tab cannot stand here"),
        (b"vms:\n  web: {image: caf\xe9}\n", 2, 19, "byte 0xe9 is not UTF-8"),
        ("vms:\n".encode("utf-16"), 1, 1, "byte 0xff is not UTF-8"),
        (b"vms: {\x00}\n", 1, 7, "the character '\\x00' has no place in YAML"),
        (b"vms:\n  web: 'never ends\n", 2, 8, "this is no YAML"),
        (b"vms: {web: {}\n", 1, 6, "this is no YAML"),
        (b"vms: web: db\n", 1, 9, "this is no YAML: mapping values are not allowed here"),
        (b"[a]: b\n", 1, 1, "a list or a mapping is no key"),
        (b"[" * 3000, 1, tree.DEEPEST + 1, "nested more than 16 deep"),
        (b"a: " + b"{a: " * 3000, 1, 4 * tree.DEEPEST, "nested more than 16 deep"),
        (b"".join(b" " * depth + b"a:\n" for depth in range(1000)), 17, 17, "nested more than 16 deep"),
        (b"#" * (tree.LARGEST + 1), 1, 1, "more than 512 KiB"),
        (b"[" + b"a, " * tree.MOST_VALUES + b"]", 1, 3 * tree.MOST_VALUES - 1, "more than 50000 values"),
    ],
    ids=lambda value: value[:30].decode("latin-1") if isinstance(value, bytes) else "",
)  # fmt: skip
def test_what_yaml_allows_or_does_not_is_refused_at_its_place(text: bytes, line: int, column: int, said: str) -> None:
    found = only(text)
    assert found[:2] == (line, column)
    assert said in found[2]


@pytest.mark.parametrize("mac", ["52:54:00:12:34:56", "52:54:00:12:34:99", "525400123456", "5254001234e6"])
def test_a_mac_that_could_be_a_number_stands_in_quotes(mac: str) -> None:
    line, column, said = only(f"vms:\n  web:\n    nics:\n      - mac: {mac}\n")
    assert (line, column) == (4, 14)
    assert f"without quotes {mac} is a number" in said
    assert f'write "{Mac.parse(mac)}"' in said
    assert read(f"vms: {{web: {{nics: [{{mac: '{mac}'}}]}}}}").machines[0].nics[0].mac == Mac.parse(mac)
    assert read("vms: {web: {nics: [{mac: '${M}'}]}}", M=mac).machines[0].nics[0].mac == Mac.parse(mac)


@pytest.mark.parametrize("mac", ["52:54:00:ab:cd:ef", "52-54-00-12-34-56"])
def test_a_mac_that_is_no_number_needs_none(mac: str) -> None:
    assert read(f"vms: {{web: {{nics: [{{mac: {mac}}}]}}}}").machines[0].nics[0].mac == Mac.parse(mac)


@pytest.mark.parametrize("mode", ["no", "off", "on", "yes", "n", "0", "1.5", "''", "source"])
def test_what_is_no_mode_is_none_however_yaml_reads_it(mode: str) -> None:
    line, column, said = only(f"vms: {{web: {{nics: [{{mode: {mode}}}]}}}}")
    assert (line, column) == (1, 27)
    assert "mode" in said


@pytest.mark.parametrize("word", ["yes", "on", "no", "off", "True", "1", "maybe"])
def test_true_and_false_are_the_only_words_of_their_kind(word: str) -> None:
    assert only(f"vms:\n  web:\n    start: {word}\n") == (
        3,
        12,
        f"'{word}' is neither true nor false; {'did you mean true?' if word == 'True' else 'one of true, false'}",
    )


# every mistake at once


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("vm: {}", 1, 1, "there is no key 'vm' here; did you mean vms?"),
        ("vms: {web: {memroy: 1}}", 1, 13, "there is no key 'memroy' here; did you mean memory?"),
        ("vms: {web: {nics: [{networks: lan}]}}", 1, 21, "there is no key 'networks' here; did you mean network?"),
        ("vms: {web: {nics: [{mode: vepaa}]}}", 1, 27, "'vepaa' is no macvtap mode; did you mean vepa?"),
        ("networks: {lan: {mode: brigde}}", 1, 24, "'brigde' is no macvtap mode; did you mean bridge?"),
        ("networks: {lan: {subnets: [{subnt: 192.0.2.0/24, subnet: 192.0.2.0/24}]}}", 1, 29, "did you mean subnet?"),
        ("endpoints: {a: {mode: privat}}", 1, 23, "did you mean private?"),
        ("endpoints: {a: {ipvlan: l2}, a: {}}", 1, 30, "the key 'a' is there twice"),
        ("vms: {web: {firmware: efi}}", 1, 23, "'efi' is not a firmware; did you mean uefi?"),
        ("networks: {lan: }\nvms: {web: {nics: [{network: lna}]}}", 2, 30, "no network 'lna' in the file; did you mean lan?"),
        ("endpoints: {a: {network: lan}}", 1, 26, "no network 'lan' in the file; add it below `networks:`"),
        ("defaults: {nics: [{network: lan}]}", 1, 29, "no network 'lan' in the file"),
        ("vms: {Web: {}}", 1, 7, "'Web' cannot be a name"),
        ("vms: {web: {memory: lots}}", 1, 21, "'lots' is no amount of memory"),
        ("vms: {web: {memory: }}", 1, 20, "nothing stands where an amount of memory belongs"),
        ("vms: {web: {memory: [1]}}", 1, 21, "a list stands where an amount of memory belongs"),
        ("vms: {web: {image: {a: b}}}", 1, 20, "a mapping stands where a text belongs"),
        ("vms: {web: {count: 0}}", 1, 20, "'0' is no number"),
        ("vms: {web: {nics: {parent: eth0}}}", 1, 19, "a list belongs here"),
        ("vms: {web: [a]}", 1, 12, "keys and values belong here"),
        ("vms: [web]", 1, 6, "keys and values belong here"),
        ("shims: [{to: []}]", 1, 9, "parent is missing here"),
        ("shims: [eth0, eth0]", 1, 15, "this parent has its shim in the list already"),
        ("shims: [{parent: eth0, to: 192.0.0.0/8}]", 1, 28, "too large to ask for"),
        ("vms: {web: {labels: {a=b: c}}}", 1, 22, "'a=b' cannot be the key of a label"),
        ("vms: {web: {nics: [{ip: auto}]}}", 1, 20, "ip auto needs a network"),
        ("vms: {web: {nics: [{ip: [dhcp, 192.0.2.9]}]}}", 1, 20, "exclude one another"),
        ("vms: {web: {nics: [{libvirt: default, mtu: 1400}]}}", 1, 20, "libvirt takes no mtu"),
        ("vms: {web: {count: 2, nics: [{mac: '52:54:00:12:34:56'}]}}", 1, 20, "mac and count exclude one another"),
        ("vms: {web: {count: 3, nics: [{ip: 192.0.2.253/24}]}}", 1, 20, "192.0.2.255 is the broadcast address"),
        ("vms: {web: {count: 5000}}", 1, 20, f"more than {building.MOST_MACHINES} VMs"),
        ("vms: {web: {count: 2}, web-2: {}}", 1, 24, "the name web-2 is that of a VM already"),
        ("vms: {web: {}}\nendpoints: {web: {}}", 1, 7, "the name web is that of an endpoint already"),
        ("vms: {a: {nics: [{ip: 192.0.2.9/24}]}, b: {nics: [{}, {ip: 192.0.2.9/24}]}}", 1, 60, "192.0.2.9 is a's already"),
        ("vms: {a: {nics: [{mac: '525400abcdef'}]}}\nendpoints: {b: {mac: '52:54:00:AB:CD:EF'}}", 2, 22, "52:54:00:ab:cd:ef is a's"),
        ("networks: {n: }\nvms: {a: {nics: [{network: n, mode: vepa}]}}", 2, 37, "mode is decided by the network n: bridge"),
        ("networks: {n: {parent: a}}\nendpoints: {a: {network: n, parent: b}}", 2, 37, "parent is decided by the network n: a"),
        ("networks: {n: {subnets: [10.0.0.0/24]}}\nvms: {a: {nics: [{network: n, ip: 10.1.0.1}]}}", 2, 35, "10.1.0.1 is in no subnet of the network n"),
        ("networks: {n: {subnets: [10.0.0.0/24], dns: 10.0.0.9}}\ndefaults: {nics: [{network: n, ip: 10.0.0.9}]}\nvms: {a: }", 2, 36, "10.0.0.9 is kept for a name server"),
        ("vms: {web: {cmdline: quiet}}", 1, 22, "cmdline needs a kernel"),
        ("defaults: {vnc: 0.0.0.0}\nvms: {a: , b: }", 1, 17, "vnc 0.0.0.0 would show the guest's screen"),
        ("vms: {web: {ssh_keys: [none.pub]}}", 1, 24, "there is no file 'none.pub'; paths begin at /labs/blue"),
        ("vms: {web: {image: ./none.img}}", 1, 20, "there is no file './none.img'"),
        ("networks: {a: {subnets: [192.0.2.9/24]}}", 1, 26, "did you mean 192.0.2.0/24?"),
        ("networks: {a: {subnets: [192.0.2.0/24, {subnet: 192.0.2.128/25}]}}", 1, 40, "overlap"),
        ("networks: {a: {subnets: [{subnet: 192.0.2.0/24, gateway: 10.0.0.1}]}}", 1, 26, "lies in no subnet"),
        ("networks: {a: {subnets: [192.0.2.0/24], reserved: {p: 10.0.0.1}}}", 1, 51, "lies in no subnet"),
        ("networks: {a: {subnets: ['fd00::/64'], mtu: 1000}}", 1, 26, "MTU 1000 is too small"),
        ("networks: {a: {subnets: [192.0.2.0/24]}, b: {subnets: [192.0.2.0/24]}}", 1, 45, "overlaps 192.0.2.0/24 of the network a: both would give out 192.0.2.0/24; give each of them its own range"),
        ("images: {a: {source: x.img, checksum: md5}}", 1, 39, "the checksum 'md5' is not understood"),
        ("vms: {web: {password: '${SECRET}'}}", 1, 24, "the variable SECRET is not set; SECRET=… before"),
        ("vms:\n  web:\n    password: a${1x}\n", 3, 16, "'${1x}' names no variable"),
        ("vms: {web: {password: 'a${X'}}", 1, 25, "'${X' names no variable"),
        ("vms:\n  web:\n    cmdline: |\n      ${NO}\n    kernel: /etc/hostname\n", 3, 14, "the variable NO is not set"),
        ('vms: {web: {password: "\\x61${NO}"}}', 1, 23, "the variable NO is not set"),
        ('vms: {web: {password: "a${NO}"}}', 1, 25, "the variable NO is not set"),
        ("lab: ''", 1, 6, "'' cannot be a name"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "",
)  # fmt: skip
def test_a_mistake_is_said_at_its_place_with_a_guess(text: str, line: int, column: int, said: str) -> None:
    found = only(text)
    assert found[:2] == (line, column), found
    assert said in found[2]


def test_a_mistake_hides_none_that_stands_elsewhere() -> None:
    text = """
networks: {lan: {mode: vepaa}, wan: {subnets: [192.0.2.9/24]}}
vms:
  a: {nics: [{mode: vepaa, network: lna}], ssh_keys: none.pub}
  b: {nics: [{ip: 192.0.2.1/24}]}
  c: {nics: [{ip: 192.0.2.1/24}], count: 0, memory: }
  d: {nics: [{ip: 192.0.2.1/24}], cmdline: quiet}
endpoints: {b: {}}
"""
    assert [(one.place.line, one.what.split(" ")[0]) for one in mistakes(text)] == [
        (2, "'vepaa'"),
        (2, "192.0.2.9/24"),
        (4, "'vepaa'"),
        (4, "there"),
        (4, "there"),
        (5, "the"),
        (6, "'0'"),
        (6, "nothing"),
        (7, "the"),
        (7, "cmdline"),
    ]


def test_a_lab_without_a_name_in_a_folder_with_none() -> None:
    with pytest.raises(LabMistakes, match="its folder's, 'My Labs', cannot be one; add a line such as lab: classic"):
        read("vms: {}", Path("/labs/My Labs/macvm.yaml"))
    assert read("lab: mine\n", Path("/labs/My Labs/macvm.yaml")).name == "mine"


def test_the_error_is_a_line_for_each_mistake_and_two_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("lab: blue\nvms:\n  web: {mode: vepaa, vcpu: 2}\n  db: {memory: lots}\n")
    with pytest.raises(LabMistakes) as caught:
        load(path, {})
    assert str(caught.value).splitlines() == [
        f"{path}:3:9: there is no key 'mode' here; one of {caught.value.mistakes[0].hint.removeprefix('one of ')}",
        f"{path}:3:22: there is no key 'vcpu' here; did you mean vcpus?",
        f"{path}:4:16: 'lots' is no amount of memory; a number with K, M, G or T, such as 512M or 2G",
    ]
    assert report(caught.value) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[2:4] == [f"error: {path}:3:22: there is no key 'vcpu' here", "hint: did you mean vcpus?"]
    assert [line.split(":")[0] for line in said] == ["error", "hint"] * 3


def test_mistakes_without_end_come_to_an_end() -> None:
    found = mistakes("vms:\n" + "".join(f"  vm{number}: {{vcpu: 1}}\n" for number in range(MOST_SAID + 7)))
    assert len(found) == MOST_SAID + 1
    assert found[-1] == Mistake(
        Place(MOST_SAID + 2, found[0].place.column + 2), "7 more mistakes follow", "mend those above first"
    )


@pytest.mark.parametrize("where", [".", "none.yaml", "none/macvm.yaml"])
def test_a_file_that_cannot_be_read(where: str, tmp_path: Path) -> None:
    with pytest.raises(Usage, match="cannot be read: "):
        load(tmp_path / where, {})


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(LabMistakes, match="more than 512 KiB"):
        load(Path("/dev/zero"), {})


#: All places where a variable could stand, each of which the secret does not fit.
SECRET = "hunter2-hunter2!"
KEYS = {
    "vms.web": ["count", "checksum", "insecure_no_checksum", "memory", "vcpus", "disk", "user_data", "ssh_keys",
                "template", "firmware", "virt_type", "kernel", "initrd", "vnc", "vnc_exposed", "start", "shim", "probe",
                "autostart", "image"],
    "networks.lan": ["mode", "subnets", "dns", "mtu", "shim"],
    "endpoints.a": ["network", "mode", "ipvlan", "ip", "gateway", "dns", "mac", "mtu", "allow_source", "shim"],
    "defaults": ["mode", "memory"],
}  # fmt: skip


@pytest.mark.parametrize("path", [f"{where}.{key}" for where, keys in KEYS.items() for key in keys])
def test_what_a_variable_holds_is_in_no_error(path: str) -> None:
    keys = path.split(".")
    value = "['${SECRET}']" if keys[-1] == "subnets" else "'${SECRET}'"
    text = "".join(f"{{{key}: " for key in keys) + value + "}" * len(keys)
    secret = f"./{SECRET}/x" if keys[-1] == "image" else SECRET
    said = repr(mistakes(text, SECRET=secret))
    assert "hunter2" not in said
    assert "${SECRET}" in said


def test_a_password_is_in_no_error_of_another_key() -> None:
    said = repr(mistakes("vms: {web: {password: '${P}', nics: [{mode: vepaa}], cmdline: '${P}'}}", P=SECRET))
    assert "vepaa" in said
    assert "hunter2" not in said


def test_a_variable_of_a_network_is_in_no_error_of_a_nic() -> None:
    text = "networks: {lan: {parent: '${P}'}}\nvms: {web: {nics: [{network: lan, parent: eth0}]}}"
    (said,) = mistakes(text, P=SECRET)
    assert said.what == "parent is decided by the network lan: ${P}"


# any text at all

WORDS = st.sampled_from(
    ["lab", "vms", "web", "networks", "lan", "nics", "network", "parent", "mode", "vepa", "ip", "auto", "192.0.2.9/24",
     "count", "2", "subnets", "subnet", "192.0.2.0/24", "endpoints", "shims", "eth0", "defaults", "labels", "mac",
     "'52:54:00:12:34:56'", "images", "memory", "512M", "true", "~", "${X}", "${", "$$", "*a", "&a", "!!int", "<<"]
)  # fmt: skip
MARKS = st.sampled_from(
    [": ", ":", ", ", "\n", "\n  ", "\n    ", "- ", "{", "}", "[", "]", "|\n", "---\n", "? ", "# ", "\t", "%"]
)
ALMOST_YAML = st.lists(st.one_of(WORDS, MARKS, MARKS, st.text(max_size=3)), max_size=60).map("".join)


def _survives(data: bytes) -> None:
    try:
        lab = read(data)
    except LabMistakes as error:
        said = error.mistakes
        lines = str(error).split("\n")
    else:
        assert isinstance(lab, Lab)
        return
    assert len(said) == len(lines) > 0
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert all(one.place > (0, 0) and one.what and one.hint for one in said)


@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbf")
@example(b"%YAML 99999999999999999999.1\n---\na: b")
@example(b"%YAML 1.1\n---\nvms: {web: {start: yes}}")
@example(b"? ? ? ? a")
@settings(deadline=None)
def test_any_bytes_are_a_lab_or_mistakes(data: bytes) -> None:
    _survives(data)


@given(st.one_of(ALMOST_YAML, st.text(max_size=200)))
@example("*\U00018cd6")
@example("a: *" + "b" * 5000)
@example("a: !" + "b" * 5000 + "!c d")
@example("lab: \u202e${HOME}\n")
@example('vms: {web: {memory: "\\u202e\\n${X:-a}", ssh_keys: "\\u202e${X:-a}"}}')
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_lab_or_mistakes(text: str) -> None:
    _survives(text.encode(errors="surrogatepass"))


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(WORDS, st.text(max_size=5)), inner, max_size=3)),
    max_leaves=20,
)  # fmt: skip
SECTIONS = st.sampled_from(["lab", "defaults", "images", "networks", "vms", "endpoints", "shims"])


@given(st.dictionaries(SECTIONS, VALUES, max_size=4))
@settings(deadline=None, max_examples=300)
def test_any_values_are_a_lab_or_mistakes(values: dict[str, Any]) -> None:
    _survives(json.dumps(values).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"a: " + b"x" * 500_000,
        b"'" + b"''" * 250_000,
        b'"' + b"\\n" * 250_000,
        b"vms: {" + b"? " * 200_000,
        b"- " * 200_000,
        b"\n" * 500_000,
        b"a:\n" + b"# x\n" * 120_000,
        b"a: |\n" + b" x\n" * 150_000,
        b"{" + b"a: b, " * 80_000,
        b"".join(b"k%d: [a, b]\n" % number for number in range(30_000)),
        b"a: ${" + b"${" * 200_000,
        b"vms: {web: {password: '" + b"${X}" * 100_000 + b"'}}",
        b"&a " * 150_000,
        b"!a " * 150_000,
    ],
    ids=lambda data: data[:12].decode(),
)
def test_the_largest_files_come_to_an_end(data: bytes) -> None:
    assert len(data) <= tree.LARGEST
    _survives(data)


# many machines, editors, imports


def large(count: int) -> str:
    machine = "  vm%d:\n    image: tiny\n    memory: 96M\n    labels: {role: web, number: %d}\n    nics:\n      - network: lan\n      - {parent: eth0, mode: vepa, ip: 10.0.%d.%d/16}\n"
    return "networks: {lan: {subnets: [192.0.2.0/24]}}\nvms:\n" + "".join(
        machine % (number, number, number // 200, number % 200 + 1) for number in range(count)
    )


def work(text: str) -> int:
    """Counts calls, as time would not be the same twice."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        read(text)
    finally:
        sys.setprofile(None)
    return calls


def test_a_machine_more_costs_the_same_among_many_as_among_few() -> None:
    assert len(read(large(200)).machines) == 200
    few, more, most = (work(large(count)) for count in (10, 60, 210))
    assert most - more < 3.2 * (more - few)


GOOD = [
    large(3),
    "vms: {web: }",
    "shims: [eth0, {parent: eth1, to: 192.0.2.9}]",
    "networks: {lan: {subnets: [192.0.2.0/24, {subnet: 'fd00::/64'}], dns: 192.0.2.1}}\nvms: {web: {nics: [{network: lan, ip: auto}]}}",
    "defaults: {memory: 512, mode: vepa, labels: {a: 1}}\nvms: {web: {count: 2, vnc: true, start: false, disk: 10G}}",
    "endpoints: {a: {ipvlan: l2}, b: {mode: source, allow_source: ['52:54:00:12:34:56']}}",
]


@pytest.mark.parametrize("text", GOOD)
def test_the_schema_takes_what_macvm_takes(text: str) -> None:
    read(text)
    Draft202012Validator.check_schema(json_schema())
    Draft202012Validator(json_schema()).validate(YAML(typ="safe").load(text))


@pytest.mark.parametrize(
    "text",
    ["vm: {}", "vms: {web: {memroy: 1}}", "vms: {web: {nics: [{mode: vepaa}]}}", "vms: {web: {start: 'yes'}}",
     "vms: {web: {nics: {}}}", "vms: [web]", "shims: [{to: a}]", "endpoints: {a: {ipvlan: l4}}", "vms: {Web: {}}",
     "vms: {web: {vcpus: 0}}", "networks: {lan: {subnets: [{gateway: a}]}}", "vms: {web: {labels: []}}"],
)  # fmt: skip
def test_the_schema_refuses_what_macvm_refuses(text: str) -> None:
    mistakes(text)
    assert not Draft202012Validator(json_schema()).is_valid(YAML(typ="safe").load(text))


def _keys(schema: object) -> list[dict[str, Any]]:
    if isinstance(schema, dict):
        own = list(schema.get("properties", {}).values())
        return own + [one for value in schema.values() for one in _keys(value)]
    return [one for value in schema for one in _keys(value)] if isinstance(schema, list) else []


def test_the_schema_describes_every_key(macvm: Callable[..., Ran]) -> None:
    ran = macvm("lab", "schema")
    assert (ran.status, ran.err) == (0, "")
    schema = json.loads(ran.out)
    assert schema == json_schema()
    keys = _keys(schema)
    assert len(keys) > 80
    assert [key for key in keys if not key.get("description")] == []


def test_only_lab_commands_import_what_reads_labs() -> None:
    code = "import sys, provisioner, provisioner.cli.main, provisioner.cli.create, provisioner.cli.labs\n"
    code += "print(sorted(sys.modules.keys() & {'pydantic', 'ruamel.yaml', 'provisioner.actions.labs.file'}))\n"
    code += "import provisioner.actions; assert 'provisioner.actions.labs' not in sys.modules\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def _ran_without_plugins(code: str, **environment: str) -> tuple[str, str]:
    code = f"import sys\nfrom provisioner.cli.plugins import skip_plugins\nskip_plugins()\n{code}\n"
    code += "print('email' in sys.modules)\nimport importlib.metadata\nassert importlib.metadata.version('click')"
    argv = [sys.executable, "-c", code]
    ran = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return ran.stdout, ran.stderr


def test_no_package_is_searched_for_plugins() -> None:
    code = "from pathlib import Path\nfrom provisioner.actions.labs.file import parse\n"
    code += "print(parse(b'lab: one', Path('one.yaml'), {}).name)"
    assert _ran_without_plugins(code) == ("one\nFalse\n", "")


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ("[*found.entry_points(group='pydantic')]", "[]\nFalse\n"),
        ("[one.entry_points for one in found.distributions()]", "[]\nFalse\n"),  # before 2.14
        ("found.version('click') > '8'", "True\nTrue\n"),
    ],
)
def test_a_pydantic_that_cannot_be_told_of_no_plugins_looks_for_them(search: str, told: str, tmp_path: Path) -> None:
    loader = tmp_path / "pydantic/plugin/_loader.py"
    loader.parent.mkdir(parents=True)
    for folder in (loader.parent, loader.parent.parent):
        (folder / "__init__.py").touch()
    loader.write_text(f"import importlib.metadata as found\ndef get_plugins(): return {search}\n")
    code = "from pydantic.plugin._loader import get_plugins\nprint(get_plugins())"
    assert _ran_without_plugins(code, PYTHONPATH=str(tmp_path)) == (told, "")
