"""Images: build, import, list, delete; and what becomes of a base that changes under its overlays."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.sandbox.kvm_host import STATE, KvmHost, complaints
from tests.sandbox.test_json import valid

pytestmark = pytest.mark.xdist_group("images")


@pytest.fixture(autouse=True)
def clean(host: KvmHost) -> Iterator[None]:
    """No machines and no image but tiny, before and after, and nothing else left."""
    host.clear()
    with host.unchanged():
        yield
        host.clear()
        for image in host.json("image", "list", "--local"):
            if image["name"] != "tiny":
                host.macvm("image", "delete", "--yes", f"{image['name']}:{image['version']}".rstrip(":"))
        host.sh("rm -rf /run/images")


@pytest.fixture
def sources(host: KvmHost) -> dict[str, str]:
    """A disk with a boot sector, raw and as qcow2."""
    host.sh("mkdir /run/images; cd /run/images; truncate -s 4M disk.raw; printf '\\x55\\xaa' |"
            " dd of=disk.raw bs=1 seek=510 conv=notrunc status=none; qemu-img convert -O qcow2 disk.raw disk.qcow2")  # fmt: skip
    return {kind: f"/run/images/disk.{kind}" for kind in ("raw", "qcow2")}


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_import(host: KvmHost, sources: dict[str, str], kind: str) -> None:
    digest = host.sh(f"sha256sum {sources[kind]}").split()[0]
    host.macvm("image", "import", sources[kind], "mine:1.0", "--checksum", f"sha256:{digest}")
    (image,) = [image for image in host.json("image", "list", "--local") if image["name"] == "mine"]
    assert (image["version"], image["virtual_size"]) == ("1.0", 4 << 20)
    stored = f"{STATE}/images/{image['digest']}.qcow2"
    assert host.sh(f"stat -c '%a %U' {stored}").split() == ["444", "root"]
    assert host.sh(f"sha256sum {stored}").split()[0] == image["digest"]
    host.sh(f"qemu-img compare {sources[kind]} {stored}")
    host.create("user", "--image", "mine:1.0", "--no-start")
    assert host.show("user")["image"] == "mine:1.0"


def test_the_newest_version_is_taken(host: KvmHost, sources: dict[str, str]) -> None:
    for version in ("9", "10"):
        host.macvm("image", "import", sources["raw"], f"mine:{version}")
    host.create("user", "--image", "mine", "--no-start")
    assert host.show("user")["image"] == "mine:10"


def test_build_twice_is_the_same_image(host: KvmHost) -> None:
    with host.unchanged():
        before = host.json("image", "list", "--local")
        host.macvm("image", "build", "tiny")
        assert [image["digest"] for image in host.json("image", "list", "--local")] == [
            image["digest"] for image in before
        ]


def test_a_build_on_a_full_disk_says_which_and_leaves_nothing(host: KvmHost) -> None:
    host.sh("mkdir /run/images /run/images/small; mount -t tmpfs -o size=8m none /run/images/small")
    try:
        words = ["--state-dir", "/run/images/small", "image", "build", "tiny"]
        ((error, hint),) = complaints(host.macvm(*words, status=1).stderr)
        assert error == "the image cannot be built in /run/images/small/images: No space left on device"
        assert hint == "df -h /run/images/small/images"
        assert host.sh("ls -A /run/images/small/images") == ""
    finally:
        host.sh("umount /run/images/small")


def test_an_image_in_use_is_not_deleted(host: KvmHost, sources: dict[str, str]) -> None:
    host.macvm("image", "import", sources["qcow2"], "mine")
    host.create("one", "--image", "mine", "--no-start")
    host.create("two", "--image", "mine", "--no-start")
    with host.unchanged():
        ((error, hint),) = complaints(host.macvm("image", "delete", "--yes", "mine", status=4).stderr)
    assert error.endswith("one, two")
    assert hint.endswith("macvm delete one two")
    host.macvm("delete", "--yes", "one", "two")
    host.macvm("image", "delete", "--yes", "mine")


def test_the_base_of_a_kept_disk_is_not_deleted(host: KvmHost, sources: dict[str, str]) -> None:
    host.macvm("image", "import", sources["qcow2"], "mine")
    host.create("one", "--image", "mine", "--no-start")
    host.macvm("delete", "--yes", "--keep-disks", "one")
    disk = host.sh(f"ls {STATE}/machines/*/disk.qcow2").strip()
    for words in (["--yes", "mine"], ["--dry-run", "mine"]):
        with host.unchanged():
            assert disk in host.macvm("image", "delete", *words, status=4).stderr
    host.sh(f"rm {disk}; rmdir {disk.removesuffix('/disk.qcow2')}")
    host.macvm("image", "delete", "--yes", "mine")


def test_another_image_of_the_same_name_is_refused_and_the_same_put_back(
    host: KvmHost, sources: dict[str, str]
) -> None:
    host.macvm("image", "import", sources["qcow2"], "mine:1")
    (image,) = [image for image in host.json("image", "list", "--local") if image["name"] == "mine"]
    base = f"{STATE}/images/{image['digest']}.qcow2"
    host.sh("qemu-img create -q -f qcow2 /run/images/other.qcow2 8M")
    with host.unchanged():
        assert (
            "another image mine:1"
            in host.macvm("image", "import", "/run/images/other.qcow2", "mine:1", status=4).stderr
        )
    host.sh(f"rm {base}")
    assert "put the image back" in host.macvm("create", "user", "--image", "mine", status=5).stderr
    host.macvm("image", "import", sources["qcow2"], "mine:1")
    host.create("user", "--image", "mine", "--no-start")


def test_an_image_put_back_from_a_file_has_its_kernel_still(host: KvmHost, sources: dict[str, str]) -> None:
    (tiny,) = [image for image in host.json("image", "list", "--local") if image["name"] == "tiny"]
    known = (
        f"sqlite3 {STATE}/macvm.db \"SELECT version, digest, kernel, initrd, added FROM images WHERE name = 'tiny'\""
    )
    before = host.sh(known)
    assert ".vmlinuz" in before
    host.sh(f"cp {STATE}/images/{tiny['digest']}.qcow2 /run/images/copy.qcow2")
    host.macvm("image", "import", "/run/images/copy.qcow2", "tiny")
    assert host.sh(known) == before
    host.macvm("create", "user", "--no-start")


def test_an_image_used_by_a_machine_of_others_is_not_deleted(host: KvmHost, sources: dict[str, str]) -> None:
    host.macvm("image", "import", sources["qcow2"], "mine")
    (image,) = [image for image in host.json("image", "list", "--local") if image["name"] == "mine"]
    base = f"{STATE}/images/{image['digest']}.qcow2"
    host.sh(f"cd /run/images; qemu-img create -q -f qcow2 -F qcow2 -b {base} over.qcow2")
    domain = """<domain type='qemu'><name>other</name><memory unit='MiB'>16</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/run/images/over.qcow2'/><target dev='vda'/></disk>
      </devices></domain>"""
    host.node.run(["virsh", "define", "/dev/stdin"], input=domain, check=True)
    try:
        assert "other" in host.macvm("image", "delete", "--yes", "mine", status=4).stderr
    finally:
        host.sh("virsh undefine other")


def test_a_base_that_changed_starts_no_guest(host: KvmHost, sources: dict[str, str]) -> None:
    host.macvm("image", "import", sources["qcow2"], "mine")
    (image,) = [image for image in host.json("image", "list", "--local") if image["name"] == "mine"]
    base = f"{STATE}/images/{image['digest']}.qcow2"
    host.create("user", "--image", "mine", "--no-start")
    host.sh(f"chmod u+w {base}; cp -p {base} /run/images/kept")
    host.sh(f"printf X | dd of={base} bs=1 seek=200000 conv=notrunc status=none")
    for words in (("start", "user"), ("create", "late", "--image", "mine")):
        with host.unchanged():
            ((error, hint),) = complaints(host.macvm(*words, status=5).stderr)
        assert f"the image mine has changed since it was stored: {base}" in error
        assert "image" in hint
    assert host.show("user")["state"] == "off"

    host.sh(f"mv {base} /run/images/aside")
    with host.unchanged():
        assert "is missing" in host.macvm("start", "user", status=5).stderr
    host.sh(f"cp /run/images/kept {base}")  # another inode and time, the same bytes
    host.macvm("start", "user")
    assert host.show("user")["state"] == "running"

    host.sh(f"cp /run/images/aside {base}")
    with host.unchanged():
        assert "has changed" in host.macvm("restart", "--force", "user", status=5).stderr
    assert host.show("user")["state"] == "running"
    host.macvm("stop", "--force", "user")
    assert "has changed" in host.macvm("start", "user", status=5).stderr
    # Of a base that the store has forgotten, its own name says what it was.
    host.sh(f"sqlite3 {STATE}/macvm.db \"DELETE FROM images WHERE name = 'mine'\"")
    with host.unchanged():
        assert f"{base} has changed" in host.macvm("start", "user", status=5).stderr
    host.sh(f"cp /run/images/kept {base}")
    host.macvm("start", "user")
    host.macvm("image", "import", sources["qcow2"], "mine")


def test_verify_reads_all_again(host: KvmHost, sources: dict[str, str]) -> None:
    host.macvm("image", "import", sources["qcow2"], "mine")
    (image,) = [image for image in host.json("image", "list", "--local") if image["name"] == "mine"]
    base = f"{STATE}/images/{image['digest']}.qcow2"
    with host.unchanged():
        assert "as it was stored: mine" in host.macvm("image", "verify").stderr
        assert "no image 'none'" in host.macvm("image", "verify", "none", status=3).stderr
    host.sh(f"chmod u+w {base}; printf X | dd of={base} bs=1 seek=200000 conv=notrunc status=none")
    kernel = host.sh(f"ls {STATE}/images/*.vmlinuz").strip()
    host.sh(f"mv {kernel} /run/images/kernel")
    with host.unchanged():
        broken = host.macvm("image", "verify", "-o", "json", status=1)
    problems = {one["name"]: one["problems"] for one in valid(json.loads(broken.stdout), "image-verify.json")}
    assert [len(problems["mine"]), len(problems["tiny"])] == [1, 1]
    found = complaints(broken.stderr)
    assert any(f"the image mine: {base} has changed" in error for error, _ in found)
    assert any(f"the image tiny: {kernel} cannot be read: No such file" in error for error, _ in found)
    assert host.macvm("-o", "name", "image", "verify", "mine", status=1).stdout == ""
    host.sh(f"mv /run/images/kernel {kernel}")
    host.macvm("image", "import", sources["qcow2"], "mine")
    host.macvm("image", "verify")
