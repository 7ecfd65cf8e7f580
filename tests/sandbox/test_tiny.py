"""Boots the tiny image with plain QEMU: no libvirt, no root, no link of this machine."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pycdlib
import pytest

from provisioner.errors import MacvmError
from provisioner.host.tiny import CMDLINE, TinyImage, build

Require = Callable[[object, str], None]

#: Patience for a busy machine; alone, a guest is there after 2 to 4 s.
PATIENCE = 90.0

USER, LINK, PLUGGED, LATE = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03", "52:54:00:aa:00:04"

SERVER_NETWORK = f"""\
version: 2
ethernets:
  nic0:
    match:
      macaddress: "{LINK}"
    set-name: eth0
    dhcp4: false
    dhcp6: false
    mtu: 1400
    addresses:
      - "192.0.2.11/24"
      - "2001:db8::11/64"
    routes:
      - to: "198.51.100.0/24"
        via: "192.0.2.1"
  nic1:
    match:
      macaddress: "{USER}"
    set-name: eth1
    dhcp4: false
    dhcp6: false
    addresses:
      - "10.0.2.15/24"
    nameservers:
      addresses: ["192.0.2.53"]
"""

CLIENT_INTERFACES = """\
auto eth0
iface eth0 inet static
    address 192.0.2.12
    netmask 255.255.255.0
iface eth0 inet6 static
    address 2001:db8::12
    netmask 64
"""


def wait_until(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)


class Guest:
    """A QEMU process, its serial console and its monitor (QMP)."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self.folder = folder
        self.output = b""
        self._numbers = itertools.count()
        monitor = folder / "qmp"
        self.began = time.monotonic()
        basics = [
            "-accel",
            "tcg",
            "-m",
            "192",
            "-display",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-serial",
            "stdio",
        ]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", *basics, "-qmp", f"unix:{monitor},server=on,wait=off", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: monitor.exists() or self.process.poll() is not None, "QEMU's monitor")
        assert self.process.poll() is None, self.text
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.settimeout(PATIENCE)
        self._monitor.connect(str(monitor))
        self._answers = self._monitor.makefile()
        self._answers.readline()
        self.qmp("qmp_capabilities")

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    def _read(self) -> None:
        assert self.process.stdout
        while data := os.read(self.process.stdout.fileno(), 65536):
            self.output += data

    def qmp(self, command: str, **arguments: object) -> None:
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._answers.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return

    def wait_for(self, text: str, after: int = 0) -> int:
        """Where the console's output goes on behind `text`."""
        wait_until(lambda: text in self.text[after:] or self.process.poll() is not None, f"{text!r} on {self.text}")
        assert text in self.text[after:], self.text
        return self.text.index(text, after) + len(text)

    def type(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, prompt: str, line: str, after: int) -> int:
        place = self.wait_for(prompt, after)
        self.type(line)
        return place

    def login(self, password: str = "gocubsgo") -> int:
        place = self.answer("login: ", "cirros", len(self.text) - len("login: ") if self.idle else 0)
        return self.answer("Password: ", password, place)

    @property
    def idle(self) -> bool:
        return self.text.endswith("login: ")

    def sh(self, command: str) -> str:
        """What a command prints, typed into a shell that is logged in."""
        mark = f"mark{next(self._numbers)}"
        place = len(self.text)
        self.type(f"{command}; echo {mark[:2]}''{mark[2:]}")
        end = self.wait_for(mark + "\r\n", place)
        return self.text[place : end - len(mark) - 2].split("\n", 1)[1].replace("\r", "").replace("\x1b[6n", "")

    def end(self) -> None:
        self._answers.close()
        self._monitor.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def seed(path: Path, files: dict[str, bytes]) -> Path:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    made: set[str] = set()
    for number, (name, data) in enumerate(files.items()):
        for folder in reversed([str(parent) for parent in Path(name).parents if str(parent) != "."]):
            if folder not in made:
                made.add(folder)
                iso.add_directory(f"/{folder.upper()}", rr_name=Path(folder).name, joliet_path=f"/{folder}")
        parent = str(Path(name).parent).upper().removeprefix(".")
        place = f"/{parent}/F{number}.;1".replace("//", "/")
        iso.add_fp(io.BytesIO(data), len(data), place, rr_name=Path(name).name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(port: int) -> str:
    """The guest's page, or nothing while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def cdrom(iso: Path) -> list[str]:
    return ["-drive", f"file={iso},if=none,id=seed,media=cdrom,readonly=on", "-device", "ide-cd,drive=seed,bus=ide.0"]


def user_net(name: str, forward: int = 0) -> list[str]:
    hole = f",hostfwd=tcp:127.0.0.1:{forward}-:80" if forward else ""
    return ["-netdev", f"user,id={name},restrict=on{hole}"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, require: Require) -> TinyImage:
    require(shutil.which("qemu-system-x86_64"), "needs qemu-system-x86_64 (apt install qemu-system-x86)")
    try:
        return build(tmp_path_factory.mktemp("image"))
    except MacvmError as error:
        require(False, f"cannot build the tiny image: {error.message}")
        raise


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The socket of a cable between two guests: two datagram sockets, whichever of them comes first."""
    return tmp_path_factory.mktemp("link")


def cable(link: Path, this: str, other: str) -> list[str]:
    ends = f"local.type=unix,local.path={link / this},remote.type=unix,remote.path={link / other}"
    return ["-netdev", f"dgram,id=link,{ends}"]


def direct(image: TinyImage) -> list[str | Path]:
    return ["-kernel", image.kernel, "-initrd", image.initrd, "-append", CMDLINE]


class Server(Guest):
    """On q35, booted directly, with its two NICs plugged in the other order than the seed lists them."""

    port: int


@pytest.fixture(scope="module")
def server(image: TinyImage, link: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    files = {
        "meta-data": b'{"instance-id": "i-1", "public-keys": {}, "local-hostname": "web1"}',
        "user-data": b"#!/bin/sh\nhostname > /www/user-data.txt\n",
        "network-config": SERVER_NETWORK.encode(),
        "files/etc/network/interfaces": b"auto eth0\niface eth0 inet static\n address 203.0.113.1\n",
        "files/www/extra.txt": b"from the seed\n",
    }
    iso = seed(folder / "seed.iso", files)
    port = free_port()
    nics = ["-device", f"virtio-net-pci,netdev=user,mac={USER}", "-device", f"e1000,netdev=link,mac={LINK}"]
    ports = ["-device", "pcie-root-port,id=spare,chassis=1"]
    networks = [*user_net("user", port), *cable(link, "server", "client"), *user_net("more")]
    guest = Server(folder, "-M", "q35", *networks, *nics, *ports, *cdrom(iso), *direct(image))
    guest.port = port
    yield guest
    guest.end()


@pytest.fixture(scope="module")
def client(image: TinyImage, link: Path, tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Guest]:
    """On i440fx, booted by SeaBIOS from an overlay, told its addresses by /etc/network/interfaces alone."""
    folder = tmp_path_factory.mktemp("client")
    files = {
        "meta-data": b'{"instance-id": "i-2", "hostname": "web2"}',
        "user-data": b"touch /www/must-not-be.txt\n",
        "files/etc/network/interfaces": CLIENT_INTERFACES.encode(),
    }
    iso = seed(folder / "seed.iso", files)
    overlay = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.disk, overlay], check=True)
    disk = ["-drive", f"file={overlay},if=virtio"]
    networks = [*cable(link, "client", "server"), *user_net("more")]
    guest = Guest(folder, "-M", "pc", *networks, "-device", "virtio-net-pci,netdev=link", *cdrom(iso), *disk)
    yield guest
    guest.end()


@pytest.fixture(scope="module")
def shell(client: Guest) -> Guest:
    """The client, logged in as cirros."""
    client.wait_for("web2 login: ")
    client.wait_for("$ ", client.login())
    return client


def test_page_has_name_and_static_addresses_by_mac(server: Server, client: Guest) -> None:
    wait_until(lambda: "2001:db8::11/64" in page(server.port), "the server's page")
    lines = page(server.port).splitlines()
    assert lines[0] == "web1"
    assert {"192.0.2.11/24 eth0", "2001:db8::11/64 eth0", "10.0.2.15/24 eth1"} <= set(lines)
    assert "203.0.113.1" not in page(server.port)


def test_prompt_names_the_machine_and_refuses_a_wrong_password_and_root(server: Server) -> None:
    place = server.wait_for("web1 login: ")
    assert "login as 'cirros' user. default password: 'gocubsgo'" in server.text
    server.login("wrong")
    place = server.answer("web1 login: ", "root", server.wait_for("Login incorrect", place))
    server.wait_for("Login incorrect", place)
    server.wait_for("web1 login: ", place)
    assert "# " not in server.text[place:]


def test_cirros_has_sudo(shell: Guest) -> None:
    assert shell.sh("id -un").split() == ["cirros"]
    assert shell.sh('sudo sh -c \'id -un; echo "$0"\' "it\'s me"').split("\n")[:2] == ["root", "it's me"]


def test_seed_files_mtu_route_and_user_data(server: Server, shell: Guest) -> None:
    assert shell.sh("wget -qO - http://192.0.2.11/extra.txt") == "from the seed\n"
    wait_until(lambda: shell.sh("wget -qO - http://192.0.2.11/user-data.txt") == "web1\n", "the user-data's file")
    assert shell.sh("ls /www") == "cgi-bin\n"


def test_disk_boot_reads_interfaces_and_reaches_the_other_over_both_families(server: Server, shell: Guest) -> None:
    assert "192.0.2.12/24 eth0" in shell.sh("wget -qO - http://127.0.0.1/")
    assert "web1\n" in shell.sh("wget -qO - 'http://[2001:db8::11]/'")
    assert "1 packets received" in shell.sh("ping -c 1 -W 5 192.0.2.11")
    assert "1 packets received" in shell.sh("ping -c 1 -W 5 2001:db8::11")


def test_hotplug_on_q35_takes_the_address_that_the_seed_has_by_then(server: Server, client: Guest) -> None:
    wait_until(lambda: page(server.port), "the server's page")
    more = SERVER_NETWORK + (
        f'  nic2:\n    match:\n      macaddress: "{PLUGGED.upper()}"\n    set-name: eth2\n    dhcp4: false\n'
        '    addresses:\n      - "198.18.0.9/24"\n'
    )
    seed(server.folder / "seed.iso", {"meta-data": b"{}", "network-config": more.encode()})
    for _ in range(2):
        server.qmp("device_add", driver="virtio-net-pci", id="plugged", netdev="more", mac=PLUGGED, bus="spare")
        wait_until(lambda: "198.18.0.9/24 eth2" in page(server.port), "the plugged NIC's address")
        server.qmp("device_del", id="plugged")
        wait_until(lambda: page(server.port) and "eth2" not in page(server.port), "the NIC's end")
        wait_until(lambda: unplugged(server), "QEMU's unplug")


def unplugged(guest: Guest) -> bool:
    """Whether QEMU's side of an unplug is over: only then the same name may be used again."""
    try:
        guest.qmp("qom-get", path="/machine/peripheral/plugged", property="type")
    except AssertionError:
        return True
    return False


def test_hotplug_on_i440fx_asks_dhcp_and_again_when_the_cable_comes_back(shell: Guest) -> None:
    shell.qmp("device_add", driver="e1000", id="late", netdev="more", mac=LATE)
    show = "ip -4 -o address show dev eth1 | grep -c 10.0.2."
    wait_until(lambda: shell.sh(show).strip() == "1", "an address by DHCP")
    shell.qmp("set_link", name="late", up=False)
    wait_until(lambda: shell.sh("ps | grep -c '[u]dhcpc'").strip() == "0", "the end of udhcpc")
    shell.sh("sudo ip address flush dev eth1")
    shell.qmp("set_link", name="late", up=True)
    wait_until(lambda: shell.sh(show).strip() == "1", "an address by DHCP again")
    shell.qmp("device_del", id="late")
    wait_until(lambda: shell.sh("ps | grep -c '[u]dhcpc'").strip() == "0", "the end of udhcpc")


def test_power_button_ends_a_guest_without_seed_and_nic(image: TinyImage, tmp_path: Path) -> None:
    guest = Guest(tmp_path, "-M", "pc", *direct(image))
    try:
        guest.wait_for("tiny login: ")
        # acpid starts beside the prompt.
        end = time.monotonic() + PATIENCE
        while guest.process.poll() is None and time.monotonic() < end:
            guest.qmp("system_powerdown")
            try:
                guest.process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                continue
        assert guest.process.returncode == 0
    finally:
        guest.end()
