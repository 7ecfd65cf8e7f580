"""The catalogue of images: where each version's file lies, how it is known to be right, and how its guests are used.

A catalogue is TOML. A table per image says what its guests are like, a table per version and architecture below it
where the file is:

    [debian]
    login = "debian"
    configured_by = "cloud-init"

    [debian.versions.13.x86_64]
    url = "https://…/debian-13-genericcloud-amd64.qcow2"
    checksums = "https://…/SHA512SUMS"
    algorithm = "sha512"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from provisioner.errors import Usage
from provisioner.model.checksum import DIGITS, Checksum, parse_checksum
from provisioner.model.names import check_name, printable
from provisioner.model.sizes import parse_size

#: What a guest does with its seed: `cirros` reads JSON meta-data and runs user-data only where it is a script,
#: `cloud-init` takes all of it, `none` reads nothing.
WAYS = ("cirros", "cloud-init", "none")

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}", re.ASCII)
_ARCH = re.compile(r"[a-z0-9_]{1,20}", re.ASCII)

#: Facts of images, as TOML gives them and checked, by image name.
Facts = Mapping[str, Mapping[str, Any]]


class Release(NamedTuple):
    """One version for one architecture, as `uname -m` names it. Its checksum is pinned, or stands in the publisher's
    own file at `checksums`, in the given algorithm. `size` is the download's in bytes, 0 where it is not known."""

    version: str
    arch: str
    url: str
    checksum: Checksum | None = None
    checksums: str = ""
    algorithm: str = "sha256"
    size: int = 0

    @property
    def file_name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


class CatalogueEntry(NamedTuple):
    """How an image's guests are used: login and password for the console, the least memory and disk in bytes (0 where
    any will do), one of `WAYS`, whether SSH keys reach them, and the one firmware that they boot by, "" for either."""

    name: str
    login: str = ""
    password: str = ""
    configured_by: str = "cloud-init"
    takes_keys: bool = True
    memory: int = 0
    disk: int = 0
    firmware: str = ""
    releases: tuple[Release, ...] = ()

    @property
    def script_only(self) -> bool:
        return self.configured_by == "cirros"

    def find_release(self, version: str, arch: str) -> Release | None:
        """That version's; without one the newest for the architecture."""
        found = [one for one in self.releases if one.arch == arch and version in ("", one.version)]
        return max(found, key=lambda one: version_key(one.version), default=None)


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions: 9 before 10, 0.6.2 before 0.6.3; what is no number comes first."""
    return tuple(int(part) for part in version.split(".") if part.isascii() and part.isdecimal())


def check_version(text: str) -> str:
    """`text` itself. Raises Usage."""
    if not _VERSION.fullmatch(text):
        raise Usage(f"{printable(text)} cannot be an image's version", "letters, digits, and . _ + -, such as 0.6.2")
    return text


def parse_catalogue(text: str, source: str) -> Facts:
    """The facts of one file, `source` in messages; `merge` makes entries of them. Raises Usage, with file and key."""
    # Not at the top: of the commands that know images, few read a catalogue.
    import tomllib

    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"{source} is no TOML: {error}", _HINT) from error
    for name, facts in found.items():
        _check_entry(facts, name, source)
    return found


def merge(files: Iterable[Facts]) -> dict[str, CatalogueEntry]:
    """The entries by name. What a later file says of an image beats an earlier one, key by key, and version by version
    and architecture."""
    merged: dict[str, dict[str, Any]] = {}
    releases: dict[str, dict[tuple[str, str], Release]] = {}
    for file in files:
        for name, facts in file.items():
            told = {key: _ENTRY[key](value) for key, value in facts.items() if key != "versions"}
            merged[name] = merged.get(name, {}) | told
            known = releases.setdefault(name, {})
            for version, by_arch in facts.get("versions", {}).items():
                for arch, release in by_arch.items():
                    known[version, arch] = _release(version, arch, release)
    return {
        name: CatalogueEntry(name=name, releases=tuple(releases[name].values()), **facts)
        for name, facts in merged.items()
    }


def _release(version: str, arch: str, facts: Mapping[str, Any]) -> Release:
    return Release(version=version, arch=arch, **{key: _RELEASE[key](value) for key, value in facts.items()})


_HINT = "an image is a table with login, configured_by, … and [NAME.versions.VERSION.ARCH] tables with url and checksum"


def _check_entry(facts: Any, name: str, source: str) -> None:
    _check_word(name, source, lambda: check_name(name, "an image name"))
    _check_table(facts, name, source)
    _check_values({key: value for key, value in facts.items() if key != "versions"}, _ENTRY, name, source)
    versions = facts.get("versions", {})
    _check_table(versions, f"{name}.versions", source)
    for version, by_arch in versions.items():
        place = f"{name}.versions.{version}"
        _check_word(place, source, lambda version=version: check_version(version))  # type: ignore[misc]
        _check_table(by_arch, place, source)
        for arch, release in by_arch.items():
            _check_release(release, arch, f"{place}.{arch}", source)


def _check_release(facts: Any, arch: str, place: str, source: str) -> None:
    _check_table(facts, place, source)
    if not _ARCH.fullmatch(arch):
        raise Usage(f"{source}: {place}: {printable(arch)} is no architecture", "as `uname -m` says it, such as x86_64")
    _check_values(facts, _RELEASE, place, source)
    if "url" not in facts:
        raise Usage(f"{source}: {place} has no url", 'add url = "https://…"')
    if ("checksum" in facts) == ("checksums" in facts):
        hint = 'one of them: checksum = "sha256:…", or checksums = "https://…" for the publisher\'s own file'
        problem = "both checksum and checksums" if "checksum" in facts else "no checksum"
        raise Usage(f"{source}: {place} has {problem}", hint)
    if "algorithm" in facts and "checksums" not in facts:
        raise Usage(f"{source}: {place}: algorithm belongs to checksums", "a checksum names its own: sha512:…")


def _check_table(facts: Any, place: str, source: str) -> None:
    if not isinstance(facts, dict):
        raise Usage(f"{source}: {place} is no table", _HINT)


def _check_word(place: str, source: str, check: Callable[[], object]) -> None:
    try:
        check()
    except Usage as error:
        raise Usage(f"{source}: {place}: {error.message}", error.hint) from error


def _check_values(facts: Mapping[str, Any], takes: Mapping[str, Callable[[Any], Any]], place: str, source: str) -> None:
    for key, value in facts.items():
        if key not in takes:
            raise Usage(f"{source}: {place} has the unknown key {printable(key)}", f"the keys are {', '.join(takes)}")
        _check_word(f"{place}.{key}", source, lambda: takes[key](value))  # noqa: B023


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise Usage(f"{printable(str(value))} is no text of one line", 'text stands in quotes: "…"')
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Usage(f"{printable(str(value))} is not true or false", "without quotes: true or false")
    return value


def _amount(value: Any) -> int:
    return parse_size(_text(value), what="amount of memory or disk")


def _bytes(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Usage(f"{printable(str(value))} is no number of bytes", "the download's size, without quotes")
    return value


def _url(value: Any) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or " " in text:
        raise Usage(f"{printable(text, 200)} is no address", "https://… or http://…")
    return text


def _word_of(known: Iterable[str]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in known:
            raise Usage(f"{printable(str(value))} is not known", f"one of {', '.join(known)}")
        return str(value)

    return check


_ENTRY: Mapping[str, Callable[[Any], Any]] = {
    "login": _text,
    "password": _text,
    "configured_by": _word_of(WAYS),
    "takes_keys": _flag,
    "memory": _amount,
    "disk": _amount,
    "firmware": _word_of(("bios", "uefi")),
}
_RELEASE: Mapping[str, Callable[[Any], Any]] = {
    "url": _url,
    "checksum": lambda value: parse_checksum(_text(value)),
    "checksums": _url,
    "algorithm": _word_of(tuple(DIGITS)),
    "size": _bytes,
}
