"""Catalogues: the shipped one, users' own beside it, and what is wrong with a file, with its place."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from provisioner.actions import catalogue as catalogues
from provisioner.actions.image_sources import find_source, is_elsewhere
from provisioner.errors import NotFound, Problems, Usage
from provisioner.model.catalogue import CatalogueEntry, merge, parse_catalogue
from provisioner.model.checksum import Checksum
from provisioner.resources import resource

DIGEST = "0123456789abcdef" * 4
RELEASE = f'url = "https://example.org/mine.qcow2"\nchecksum = "sha256:{DIGEST}"\n'


def shipped() -> dict[str, CatalogueEntry]:
    return merge([parse_catalogue(resource("images", "catalog.toml").read_text(), "catalog.toml")])


def test_the_shipped_catalogue_has_what_each_image_needs() -> None:
    found = shipped()
    assert set(found) == {"cirros", "tiny", "debian", "ubuntu", "fedora", "alpine", "rocky"}
    for entry in found.values():
        assert entry.login
        assert entry.takes_keys or entry.name == "tiny"
        assert entry.script_only == (entry.name in ("cirros", "tiny"))
        for release in entry.releases:
            assert urlsplit(release.url).scheme == "https"
            assert release.file_name.endswith((".img", ".qcow2"))
            assert release.arch.replace("aarch64", "arm64") in release.url.replace("aarch64", "arm64") or (
                release.arch == "x86_64" and "amd64" in release.url
            )
            assert release.version in release.url
            assert (release.checksum is None) == bool(release.checksums)
    for name in ("debian", "ubuntu", "fedora", "alpine", "rocky"):
        assert {release.arch for release in found[name].releases} == {"x86_64", "aarch64"}
        assert found[name].memory
        assert found[name].disk


def test_the_newest_version_for_the_architecture_is_found() -> None:
    found = shipped()
    newest = {name: found[name].find_release("", "x86_64") for name in ("cirros", "rocky")}
    assert [one and one.version for one in newest.values()] == ["0.6.3", "10"]
    assert (old := found["cirros"].find_release("", "aarch64"))
    assert old.version == "0.5.2"
    assert found["cirros"].find_release("0.6.3", "aarch64") is None
    assert found["tiny"].find_release("", "x86_64") is None


def test_a_later_file_beats_an_earlier_one_key_by_key() -> None:
    first = parse_catalogue(f'[a]\nlogin = "x"\npassword = "p"\n[a.versions.1.x86_64]\n{RELEASE}', "first")
    second = parse_catalogue(
        f'[a]\nlogin = "y"\nmemory = "1G"\n[a.versions.1.aarch64]\n{RELEASE}[a.versions.2.x86_64]\n{RELEASE}', "second"
    )
    third = parse_catalogue(
        '[a.versions.1.x86_64]\nurl = "http://mirror/a.qcow2"\nchecksums = "http://mirror/SUMS"\n[b]\n', "third"
    )
    found = merge([first, second, third])
    assert (found["a"].login, found["a"].password, found["a"].memory) == ("y", "p", 1 << 30)
    releases = {(one.version, one.arch): one for one in found["a"].releases}
    assert set(releases) == {("1", "x86_64"), ("1", "aarch64"), ("2", "x86_64")}
    assert releases["2", "x86_64"].checksum == Checksum("sha256", DIGEST)
    mirrored = releases["1", "x86_64"]
    assert (mirrored.checksum, mirrored.checksums, mirrored.algorithm) == (None, "http://mirror/SUMS", "sha256")
    assert found["b"] == CatalogueEntry("b")
    assert not found["b"].script_only


PLACE = "[a.versions.1.x86_64]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = ", "no TOML"),
        ("a = 1", "a is no table"),
        ("[Web]", "'Web' cannot be an image name"),
        ("[a]\nuser = 'x'", "a has the unknown key 'user'"),
        ("[a]\nlogin = 1", "a.login: '1' is no text"),
        ('[a]\nlogin = "x\\ny"', "a.login: "),
        ("[a]\nmemory = 512", "a.memory: '512' is no text"),
        ("[a]\nmemory = 'much'", "a.memory: 'much' is no amount"),
        ("[a]\ntakes_keys = 'no'", "a.takes_keys: 'no' is not true or false"),
        ("[a]\nconfigured_by = 'hand'", "a.configured_by: 'hand' is not known"),
        ("[a]\nconfigured_by = []", "a.configured_by: '[]' is not known"),
        ("[a]\nfirmware = 'coreboot'", "a.firmware: 'coreboot' is not known"),
        ("[a]\nversions = 1", "a.versions is no table"),
        ("[a.versions.'1/2'.x86_64]", "a.versions.1/2: '1/2' cannot be an image's version"),
        ("[a.versions]\n1 = 2", "a.versions.1 is no table"),
        ("[a.versions.1]\nx86_64 = 2", "a.versions.1.x86_64 is no table"),
        (f"[a.versions.1.'x/86']\n{RELEASE}", "'x/86' is no architecture"),
        (PLACE, "a.versions.1.x86_64 has no url"),
        (PLACE + "url = 'ftp://x/y'", "a.versions.1.x86_64.url: 'ftp://x/y' is no address"),
        (PLACE + "url = 'http://[x/y'", "a.versions.1.x86_64.url: "),
        (PLACE + "url = 'https://x/y'", "a.versions.1.x86_64 has no checksum"),
        (PLACE + RELEASE + "checksums = 'https://x/y'", "has both checksum and checksums"),
        (PLACE + RELEASE + "algorithm = 'sha512'", "algorithm belongs to checksums"),
        (PLACE + "url = 'https://x/y'\nchecksum = 'md5:1'", "a.versions.1.x86_64.checksum: the checksum 'md5:1'"),
        (PLACE + "url = 'https://x/y'\nchecksums = 'https://x/z'\nalgorithm = 'md5'", "algorithm: 'md5' is not known"),
        (PLACE + RELEASE + "size = -1", "a.versions.1.x86_64.size: '-1' is no number of bytes"),
        (PLACE + RELEASE + "size = true", "a.versions.1.x86_64.size: 'True' is no number of bytes"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(text: str, said: str) -> None:
    with pytest.raises(Usage) as error:
        parse_catalogue(text, "/etc/macvm/catalog.d/my.toml")
    assert error.value.message.startswith("/etc/macvm/catalog.d/my.toml")
    assert said in error.value.message
    assert error.value.hint


def test_a_bad_file_stops_only_those_who_need_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[mine]\nlogin = 'me'\n")
    (tmp_path / "b.toml").write_text("[mine]\nlogin = 3\n")
    (tmp_path / "c.toml").write_bytes(b"\xff")
    (tmp_path / "d.toml").mkdir()
    (tmp_path / "ignored").write_text("x")
    with pytest.raises(Problems) as error:
        catalogues.catalogue(tmp_path)
    assert "b.toml: mine.login" in str(error.value)
    assert "c.toml cannot be read: it is not UTF-8" in str(error.value)
    assert "d.toml cannot be read: Is a directory" in str(error.value)
    entries, problems = catalogues.look(tmp_path)
    assert entries["mine"].login == "me"
    assert set(shipped()) < set(entries)
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("./disk", "disk"),
        ("disk.qcow2", "disk"),
        ("/x/Debian-13_generic.QCOW2.xz", "debian-13-generic"),
        ("https://example.org/a/cirros-0.6.1.img?x=y", "cirros-0-6-1"),
        ("https://example.org/" + "a" * 80, "a" * 63),
        ("https://example.org/", "image"),
    ],
)
def test_a_file_or_address_has_a_name_of_its_own(wanted: str, name: str) -> None:
    assert is_elsewhere(wanted)
    source = find_source(wanted, f"sha256:{DIGEST}")
    assert (source.name, source.version) == (name, "")
    assert bool(source.url) != bool(source.path)


@pytest.mark.parametrize(
    ("wanted", "checksum", "error", "said"),
    [
        ("https://example.org/a.qcow2", "", Usage, "has no checksum"),
        ("ftp://example.org/a.qcow2", f"sha256:{DIGEST}", Usage, "is no address"),
        ("debian", f"sha256:{DIGEST}", Usage, "--checksum is of a FILE or URL"),
        ("nope", "", NotFound, "no image 'nope'"),
        ("tiny", "", NotFound, "no 'tiny' for"),
        ("debian:1", "", NotFound, "no 'debian:1' for"),
        ("-x", "", Usage, "cannot be an image name"),
        ("debian:", "", Usage, "cannot be an image's version"),
    ],
)
def test_what_cannot_be_had_is_said(wanted: str, checksum: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        find_source(wanted, checksum)


def test_a_url_without_a_checksum_may_be_insisted_on() -> None:
    assert find_source("https://example.org/a.qcow2", insecure=True).checksum is None
