"""Images that come from elsewhere: the catalogue and users' own, addresses, files; over real HTTP inside the sandbox."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Process
from tests.sandbox.kvm_host import STATE, KvmHost, complaints
from tests.sandbox.test_json import valid

pytestmark = pytest.mark.xdist_group("images")

SHELF = "/run/shelf"
ARCH = os.uname().machine

#: Two disks that differ, one of them published packed; with the checksum files that distributions have.
_FILES = f"""
mkdir -p {SHELF} /etc/macvm/catalog.d; cd {SHELF}
make() {{ head -c 3M /dev/urandom > $1.raw; truncate -s 4M $1.raw
  head -c 512 /dev/zero | dd of=$1.raw conv=notrunc status=none
  printf '\\x55\\xaa' | dd of=$1.raw bs=1 seek=510 conv=notrunc status=none; }}
make one; make two; make three
qemu-img convert -O qcow2 one.raw one.qcow2
xz -0 -k two.raw; xz -0 -k three.raw
"""


class Shelf:
    """The files, what was asked of the server, and the test's own catalogue."""

    def __init__(self, host: KvmHost) -> None:
        self.host = host
        host.sh(_FILES)
        self.server = host.node.start([sys.executable, Path(__file__).with_name("shelf.py"), SHELF])
        host.sh(f"timeout 60 bash -c 'until [ -e {SHELF}/port ]; do sleep 0.05; done'")
        self.url = f"http://127.0.0.1:{host.sh(f'cat {SHELF}/port')}"
        self.publish("two")
        place = f"versions.%s.{ARCH}"
        self.catalogue(
            f"""
            [web]
            login = "someone"
            configured_by = "cirros"
            memory = "64M"
            [web.{place % 1}]
            url = "{self.url}/one.qcow2"
            checksum = "sha256:{self.sum("one.qcow2")}"
            [web.{place % 2}]
            url = "{self.url}/two.raw.xz"
            checksums = "{self.url}/SHA512SUMS"
            algorithm = "sha512"
            [wrong.{place % 1}]
            url = "{self.url}/one.qcow2"
            checksum = "sha256:{"0" * 64}"
            [gone.{place % 1}]
            url = "{self.url}/none.qcow2"
            checksum = "sha256:{"0" * 64}"
            [mute]
            login = "someone"
            configured_by = "none"
            [mute.{place % 1}]
            url = "{self.url}/one.qcow2"
            checksum = "sha256:{self.sum("one.qcow2")}"
            [large]
            memory = "1G"
            disk = "64M"
            [large.{place % 1}]
            url = "{self.url}/one.qcow2"
            checksum = "sha256:{self.sum("one.qcow2")}"
            """
        )

    def catalogue(self, text: str, name: str = "test") -> None:
        lines = "\n".join(line.strip() for line in text.splitlines())
        self.host.node.run(["tee", f"/etc/macvm/catalog.d/{name}.toml"], input=lines, check=True)

    def sum(self, name: str, algorithm: str = "sha256") -> str:
        return self.host.sh(f"{algorithm}sum {SHELF}/{name}").split()[0]

    def publish(self, name: str) -> None:
        """What the publisher has as two.raw.xz from now on."""
        self.host.sh(f"cd {SHELF}; [ {name} = two ] || cp {name}.raw.xz two.raw.xz; sha512sum *.xz > SHA512SUMS")

    def asked(self) -> list[str]:
        """What was asked since the last look."""
        return self.host.sh(f"cd {SHELF}; touch requests; cat requests; : > requests").splitlines()

    def wait_for(self, said: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not said():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def shelf(host: KvmHost) -> Iterator[Shelf]:
    made = Shelf(host)
    yield made
    made.server.close()
    host.sh(f"rm -rf {SHELF} /etc/macvm/catalog.d")


@pytest.fixture(autouse=True)
def clean(host: KvmHost, shelf: Shelf) -> Iterator[None]:
    """No machines and no image but tiny, before and after, and nothing else left."""
    host.clear()
    shelf.asked()
    with host.unchanged():
        yield
        host.sh(f"rm -f {SHELF}/*.hold")
        host.clear()
        for image in host.json("image", "list", "--local"):
            if image["name"] != "tiny":
                host.macvm("image", "delete", "--yes", f"{image['name']}:{image['version']}".rstrip(":"))


def local(host: KvmHost, name: str) -> list[dict[str, str]]:
    return [image for image in host.json("image", "list", "--local") if image["name"] == name]


def pulling(host: KvmHost, *words: str) -> Process:
    return host.node.start(["macvm", "image", "pull", *words, "-o", "json"])


def test_pull(host: KvmHost, shelf: Shelf) -> None:
    with host.unchanged():
        said = host.macvm("image", "pull", "web:1", "--dry-run").stdout
    assert f"{shelf.url}/one.qcow2" in said
    assert shelf.asked() == []
    image = valid(json.loads(host.macvm("image", "pull", "web:1", "-o", "json").stdout), "image-pull.json")
    assert (image["fetched"], image["digest"], image["login"]) == (True, shelf.sum("one.qcow2"), "someone")
    assert host.sh(f"stat -c '%a %U' {STATE}/images/{image['digest']}.qcow2").split() == ["444", "root"]
    assert len(shelf.asked()) == 1

    with host.unchanged():
        again = host.macvm("image", "pull", "web:1", "-o", "json")
        assert json.loads(again.stdout)["fetched"] is False
        assert "here already" in host.macvm("image", "pull", "web:1").stderr
        assert host.macvm("-o", "name", "image", "pull", "web:1").stdout == "web:1\n"
    assert shelf.asked() == []

    listed = valid(host.json("image", "list"), "image-list.json")
    found = {(one["name"], one["version"]): one for one in listed}
    assert found["web", "1"]["local"]
    assert found["web", "1"]["source"] == f"{shelf.url}/one.qcow2"
    assert not found["web", "2"]["local"]
    assert {"cirros", "debian", "ubuntu", "fedora", "alpine", "rocky"} <= {name for name, _ in found}
    assert len(listed) == len(found)
    assert set(host.macvm("image", "list", "-o", "name").stdout.split()) >= {"web:1", "web:2", "tiny", "debian:13"}


def test_a_packed_image_by_its_publishers_checksums_and_its_next_build(host: KvmHost, shelf: Shelf) -> None:
    host.macvm("image", "pull", "web")
    (first,) = local(host, "web")
    base = f"{STATE}/images/{first['digest']}.qcow2"
    assert (first["version"], first["checksum"]) == ("2", f"sha512:{shelf.sum('two.raw.xz', 'sha512')}")
    host.sh(f"qemu-img compare {SHELF}/two.raw {base}")
    assert shelf.asked() == ["/SHA512SUMS ", "/two.raw.xz "]
    host.macvm("image", "pull", "web")
    assert shelf.asked() == ["/SHA512SUMS "]

    host.create("user", "--image", "web:2", "--no-start")
    host.sh(f"cp {SHELF}/two.raw.xz {SHELF}/kept")
    shelf.publish("three")
    host.macvm("image", "pull", "web")
    old, new = sorted(local(host, "web"), key=lambda image: image["digest"] != first["digest"])
    assert (old["digest"], old["version"]) == (first["digest"], f"replaced-{first['digest'][:12]}")
    assert new["version"] == "2"
    host.sh(f"qemu-img compare {SHELF}/three.raw {STATE}/images/{new['digest']}.qcow2")

    # The one that was replaced is still a base that is known, checked, and not deleted.
    refused = host.macvm("image", "delete", "--yes", f"web:{old['version']}", status=4)
    assert "is the base of the disks of user" in refused.stderr
    host.sh(f"chmod u+w {base}; printf X | dd of={base} bs=1 seek=200000 conv=notrunc status=none")
    assert "has changed" in host.macvm("start", "user", status=5).stderr
    assert f"{base} has changed" in host.macvm("image", "verify", status=1).stderr
    host.macvm("delete", "--yes", "user")
    host.macvm("image", "delete", "--yes", f"web:{old['version']}")

    # Nothing is kept of one that no disk is an overlay of.
    host.sh(f"mv {SHELF}/kept {SHELF}/two.raw.xz")
    shelf.publish("two")
    host.macvm("image", "pull", "web")
    assert [image["digest"] for image in local(host, "web")] == [first["digest"]]
    assert host.sh(f"ls {STATE}/images/*.qcow2").count(".qcow2") == 2


def test_wrong_bytes_and_what_is_not_there_leave_nothing(host: KvmHost, shelf: Shelf) -> None:
    with host.unchanged():
        ((error, hint),) = [pair for pair in _errors(host.macvm("image", "pull", "wrong", status=2).stderr)]
        assert "does not have the checksum" in error
        assert "0" * 64 in hint
        assert "404" in host.macvm("image", "pull", "gone", status=1).stderr
        assert "404" in host.macvm("create", "user", "--image", "gone", status=1).stderr
        assert "no image 'other'" in host.macvm("image", "pull", "other", status=3).stderr


def _errors(stderr: str) -> list[tuple[str, str]]:
    return complaints("\n".join(line for line in stderr.splitlines() if line.startswith(("error: ", "hint: "))))


def test_a_pull_that_was_killed_is_gone_on_with(host: KvmHost, shelf: Shelf) -> None:
    host.sh(f"touch {SHELF}/one.qcow2.hold")
    part = f"{STATE}/images/.pull-*/one.qcow2.part"
    with pulling(host, "web:1") as first:
        half = int(host.sh(f"stat -c %s {SHELF}/one.qcow2")) // 2
        shelf.wait_for(lambda: host.sh(f"stat -c %s {part} 2>/dev/null || true").strip() == str(half))
        first.signal(signal.SIGKILL)
        first.wait(60)
    host.sh(f"rm {SHELF}/one.qcow2.hold")
    assert local(host, "web") == []
    shelf.asked()
    # What others left long ago goes; what is younger may be somebody's.
    host.sh(
        f"cd {STATE}/images; mkdir .pull-old; touch .pull-old/x.part .part-old .part-new; touch -d '8 days ago' .pull-old/* .pull-old .part-old"
    )
    host.macvm("image", "pull", "web:1")
    assert shelf.asked() == [f"/one.qcow2 bytes={half}-"]
    assert local(host, "web")[0]["digest"] == shelf.sum("one.qcow2")
    assert host.sh(f"cd {STATE}/images; ls -A | grep '^[.]'; rm .part-new") == ".part-new\n"


def test_of_two_pulls_the_second_waits_and_finds_it_there(host: KvmHost, shelf: Shelf) -> None:
    host.sh(f"touch {SHELF}/one.qcow2.hold")
    with pulling(host, "web:1") as first:
        shelf.wait_for(lambda: "one.qcow2" in host.sh(f"cat {SHELF}/requests"))
        with pulling(host, "web:1") as second:
            shelf.wait_for(lambda: "waiting for another macvm that pulls web:1" in second.stderr)
            host.sh(f"rm {SHELF}/one.qcow2.hold")
            assert (first.wait(60), second.wait(60)) == (0, 0), first.stderr + second.stderr
            assert [json.loads(one.stdout)["fetched"] for one in (first, second)] == [True, False]
    assert shelf.asked() == ["/one.qcow2 "]


def test_create_pulls_what_it_needs_when_nothing_else_is_wrong(host: KvmHost, shelf: Shelf) -> None:
    with host.unchanged():
        assert "eth7" in host.create("user", "--image", "web:1", "--parent", "eth7", status=3).stderr
        said = host.create("user", "--image", "web:1", "--dry-run").stdout
    assert shelf.asked() == []
    assert f"curl -fLo {STATE}/images/SHA256.qcow2 {shelf.url}/one.qcow2" in said
    assert "SHA256.qcow2" in re.findall("qemu-img create .*", said)[0]
    host.create("user", "--image", "web:1", "--count", 3, "--no-start")
    assert shelf.asked() == ["/one.qcow2 "]
    assert host.show("user-2")["image"] == "web:1"
    # Overlays of one file, and no copies of it.
    disks = host.sh(f"du -k {STATE}/machines/*/disk.qcow2 | cut -f1").split()
    assert len(disks) == 3
    assert max(map(int, disks)) < 512
    host.create("late", "--image", "web", "--no-start")
    assert host.show("late")["image"] == "web:1", "what is here does"
    assert shelf.asked() == []


def test_the_least_memory_and_disk_of_an_image(host: KvmHost, shelf: Shelf) -> None:
    with host.unchanged():
        for words, said in ((["--memory", "512"], "1.0 GiB"), (["--memory", "2G", "--disk", "32M"], "64 MiB")):
            ((error, hint),) = complaints(host.macvm("create", "user", "--image", "large", *words, status=2).stderr)
            assert "less than large works with" in error
            assert said in hint
    made = host.macvm("create", "user", "--image", "large", "--no-start")
    assert "large gets 1.0 GiB of memory" in made.stderr
    assert "1048576" in host.sh("virsh dominfo user")
    assert "virtual size: 64 MiB" in host.sh(f"qemu-img info -f qcow2 {STATE}/machines/*/disk.qcow2")


def test_what_does_not_reach_a_guest_is_said(host: KvmHost, shelf: Shelf) -> None:
    host.sh(f"printf '#!/bin/sh\\n' > {SHELF}/script; ssh-keygen -q -t ed25519 -N '' -f {SHELF}/key <<< y")
    with host.unchanged():
        for words, option in ((["--user-data", f"{SHELF}/script"], "--user-data"), (["--password", "x"], "--password")):
            ((error, hint),) = complaints(host.create("user", "--image", "mute", *words, status=2).stderr)
            assert error == f"guests of mute read no seed: {option} would not reach them"
            assert "configured_by" in hint
        for image, is_said in (("mute", True), ("tiny", True), ("web:1", False)):
            said = host.create("user", "--image", image, "--ssh-key", f"{SHELF}/key.pub", "--dry-run")
            assert (f"guests of {image} take no SSH keys" in said.stdout + said.stderr) == is_said


def test_create_from_a_file(host: KvmHost, shelf: Shelf) -> None:
    file, digest = f"{SHELF}/one.qcow2", shelf.sum("one.qcow2")
    with host.unchanged():
        for words, status, said in (
            ([f"{SHELF}/none.qcow2"], 3, "there is no file"),
            ([file, "--checksum", f"sha256:{'0' * 64}"], 2, "does not have the checksum"),
            ([file, "--checksum", "sha1:00"], 2, "not understood"),
            (["web:1", "--checksum", f"sha256:{digest}"], 2, "--checksum is of a FILE or URL"),
            (["", "--checksum", f"sha256:{digest}"], 2, "--checksum is of a FILE or URL"),
            ([f"{shelf.url}/one.qcow2"], 2, "has no checksum"),
        ):
            assert said in host.create("user", "--image", *words, status=status).stderr
        host.create("user", "--image", file, "--dry-run")
    host.create("one", "--image", file, "--checksum", f"sha256:{digest}", "--no-start")
    assert host.show("one")["image"] == "web:1", "the catalogue knows it by its checksum"
    host.create("two", "--image", f"{SHELF}/two.raw.xz", "--no-start")
    host.create("three", "--image", f"{SHELF}/two.raw.xz", "--no-start")
    (image,) = local(host, "two")
    assert image["version"] == shelf.sum("two.raw.xz")[:12]
    assert host.show("three")["image"] == f"two:{image['version']}"
    host.sh(f"qemu-img compare {SHELF}/two.raw {STATE}/images/{image['digest']}.qcow2")
    assert shelf.asked() == []


def test_create_from_an_address(host: KvmHost, shelf: Shelf) -> None:
    checksum = f"sha256:{shelf.sum('two.raw.xz')}"
    for name in ("one", "two"):
        host.create(name, "--image", f"{shelf.url}/two.raw.xz", "--checksum", checksum, "--no-start")
    assert shelf.asked() == ["/two.raw.xz "]
    host.create("three", "--image", f"{shelf.url}/one.qcow2", "--insecure-no-checksum", "--no-start")
    assert host.show("three")["image"] == f"one:{shelf.sum('one.qcow2')[:12]}"
    host.macvm("image", "import", f"{shelf.url}/one.qcow2", "mine:1", "--checksum", f"sha256:{shelf.sum('one.qcow2')}")
    assert local(host, "mine")[0]["digest"] == shelf.sum("one.qcow2")
    with host.unchanged():
        words = ["image", "import", f"{shelf.url}/two.raw.xz", "mine:1", "--checksum", checksum]
        assert "another image mine:1 already" in host.macvm(*words, status=4).stderr


def test_without_any_image_a_pull_is_offered_on_a_terminal(host: KvmHost, shelf: Shelf) -> None:
    shelf.catalogue(
        f"""
        [cirros.versions."9.9".{ARCH}]
        url = "{shelf.url}/one.qcow2"
        checksum = "sha256:{shelf.sum("one.qcow2")}"
        size = {4 << 20}
        """,
        "cirros",
    )
    elsewhere = ["--state-dir", "/run/elsewhere"]
    try:
        ((error, hint),) = complaints(host.macvm("create", "user", *elsewhere, "--yes", status=3).stderr)
        assert "no image here yet" in error
        assert "macvm image pull cirros (4.0 MiB)" in hint
        create = ["macvm", "create", "user", "--no-start", *elsewhere]
        question = "Pull cirros:9.9, 4.0 MiB?"
        assert host.terminal(create, [(question, "n\n")]).returncode == 3
        assert shelf.asked() == []
        said = host.terminal(create, [(question, "y\n")])
        assert said.returncode == 0, said.stdout
        assert "MiB" in said.stdout.split(question)[1], "a bar"
        assert shelf.asked() == ["/one.qcow2 "]
        assert host.json("show", "user", *elsewhere)["image"] == "cirros:9.9"
    finally:
        host.node.run(["macvm", "delete", "--yes", "user", *elsewhere])
        host.sh("rm -rf /run/elsewhere /etc/macvm/catalog.d/cirros.toml")


def test_a_bad_catalogue_of_the_users_stops_only_what_needs_it(host: KvmHost, shelf: Shelf) -> None:
    host.create("user", "--no-start")
    shelf.catalogue("[web]\nlogin = 7\n", "worse")
    try:
        said = "/etc/macvm/catalog.d/worse.toml: web.login: '7' is no text"
        for words in (["image", "pull", "web:1"], ["create", "late", "--image", "web:1"], ["create", "late"]):
            with host.unchanged():
                assert said in host.macvm(*words, status=2).stderr
        listed = host.macvm("image", "list")
        assert f"warning: {said}" in listed.stderr
        assert "web" in listed.stdout
        for words in (["image", "list", "--local"], ["image", "verify"], ["list"], ["start", "user"]):
            assert "catalog.d" not in host.macvm(*words).stderr
    finally:
        host.sh("rm /etc/macvm/catalog.d/worse.toml")
