"""An ordinary user of the `libvirt` group looks, and is told what needs root; through sudo, what is theirs is found."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.sandbox.kvm_host import STATE, KvmHost, complaints

#: An ordinary user in a group that libvirt's socket belongs to, who may yet read the checkout, wherever it lies.
GROUP = 4711
MEMBER = ["setpriv", "--reuid=65534", "--regid=65534", f"--groups={GROUP}"]
MEMBER += [
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "env",
    "XDG_STATE_HOME=/run/member",
]

LOOKS = [
    "list", "show web", "nic list", "nic list web", "network list", "network show lan", "image list", "image verify",
    "shim status", "ip web", "endpoint list", "hosts", "ssh-config web", "wait web", "lab list", "ls", "domiflist web",
    "create more --ip 192.0.2.3/24 --dry-run", "delete web --dry-run", "stop web --dry-run", "shim up --dry-run",
    "nic attach web --ip none --dry-run", "network delete spare --dry-run", "hosts --write --dry-run",
]  # fmt: skip

NEED_ROOT = [
    "create more", "delete -y web", "start web", "restart web", "reset -y web", "nic attach web", "nic detach web eth0",
    "nic set web --link down", "network create more --subnet 198.51.100.0/24", "network delete lan", "network up",
    "shim up", "shim down eth0", "shim forget 192.0.2.64", "shim install", "endpoint create box", "endpoint delete box",
    "image build tiny", "image delete -y tiny", "gc", "hosts --write", "capture web", "shim watch",
]  # fmt: skip


@pytest.fixture(scope="module")
def member(host: KvmHost) -> Iterator[KvmHost]:
    """The host as a member of the group finds it."""
    sockets = "/run/libvirt/libvirt-sock"
    host.macvm(
        "network", "create", "lan", "--parent", "eth0", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.64/29"
    )
    host.macvm("network", "create", "spare", "--parent", "eth0", "--subnet", "198.51.100.0/24")
    host.create("web", "--network", "lan")
    host.sh(f"mkdir /run/member; chown 65534 /run/member; chgrp {GROUP} {sockets}; chmod 770 {sockets}")
    yield host
    host.sh(f"rm -r /run/member; chgrp 0 {sockets}; chmod 700 {sockets}")
    host.macvm("delete", "--yes", "web")
    host.macvm("network", "delete", "lan", "spare")


@pytest.mark.parametrize("words", LOOKS)
def test_a_member_looks_without_root(member: KvmHost, words: str) -> None:
    done = member.node.run([*MEMBER, "macvm", *words.split()])
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert done.stdout + done.stderr


@pytest.mark.parametrize("words", ["list", "show web", "nic list", "network list", "image list --local", "shim status"])
def test_a_member_sees_what_root_sees(member: KvmHost, words: str) -> None:
    as_root = member.json(*words.split())
    assert json.loads(member.node.run([*MEMBER, "macvm", *words.split(), "-o", "json"]).stdout) == as_root


@pytest.mark.parametrize("words", NEED_ROOT)
def test_what_needs_root_says_so_and_changes_nothing(member: KvmHost, words: str) -> None:
    done = member.node.run([*MEMBER, "macvm", *words.split()], timeout=60)
    assert done.returncode == 5, done.stdout + done.stderr
    error, hint = complaints(done.stderr)[-1]
    assert "root" in error + hint
    assert "sudo macvm" in hint


def test_what_libvirt_alone_does_a_member_may(member: KvmHost) -> None:
    """As with virsh, whose rights these are."""
    for words in ("autostart on web", "autostart off web", "stop --force web"):
        assert member.node.run([*MEMBER, "macvm", *words.split()], timeout=60).returncode == 0
    member.macvm("start", "web")


def test_through_sudo_the_callers_keys_go_into_the_guest_and_their_files_are_theirs(member: KvmHost) -> None:
    home = member.sh("getent passwd libvirt-qemu").split(":")[5]
    ids = member.sh("id -u libvirt-qemu; id -g libvirt-qemu").split()
    sudo = ["env", "-u", "XDG_STATE_HOME", "SUDO_USER=libvirt-qemu", f"SUDO_UID={ids[0]}", f"SUDO_GID={ids[1]}"]
    sudo.append("MACVM_SSH_KEY=~/.ssh/id_ed25519.pub")
    member.sh(
        f"mkdir -p {home}/.ssh; ssh-keygen -q -t ed25519 -N '' -f {home}/.ssh/id_ed25519; chown -R {ids[0]}:{ids[1]} {home}"
    )
    key = member.sh(f"cat {home}/.ssh/id_ed25519.pub").split()[1]
    try:
        made = ["macvm", "create", "mine", "--memory", "128", "--no-start", "--ip", "192.0.2.11/24", "-o", "json"]
        uuid = json.loads(member.node.run([*sudo, *made], check=True).stdout)["uuid"]
        seed = f"{STATE}/machines/{uuid}/seed.iso"
        assert member.sh(f"grep -ac '{key}' {seed}").strip() != "0"
        config = member.node.run([*sudo, "macvm", "ssh-config", "web"], check=True)
        assert f"{home}/.local/state/macvm/known_hosts" in config.stdout
        assert f'IdentityFile "{home}/.ssh/id_ed25519"' in config.stdout
        assert member.sh(f"stat -c %u {home}/.local/state/macvm/known_hosts").strip() == ids[0]
    finally:
        member.sh(f"rm -rf {home}/.ssh {home}/.local")
        member.node.run(["macvm", "delete", "--yes", "mine"])
