"""Where images come from that are not here yet: the catalogue, addresses, and files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import images
from provisioner.actions.catalogue import catalogue, look
from provisioner.actions.request import is_elsewhere
from provisioner.errors import NotFound, Usage
from provisioner.host.store import StoredImage
from provisioner.model.catalogue import CatalogueEntry, Release, version_key
from provisioner.model.checksum import Checksum, parse_checksum
from provisioner.model.names import printable
from provisioner.model.sizes import human_size

_SUFFIXES = re.compile(r"(\.(qcow2|img|raw|xz|gz|zst))+$", re.IGNORECASE)
_OTHERS = re.compile(r"[^a-z0-9]+")


class Source(NamedTuple):
    """Where an image comes from: `url`, or the file `path`. A `release` of the catalogue has its checksum, or says
    where it is published. One that is not `named` by the user or the catalogue gets a version from its digest, and is
    here already under whatever name."""

    name: str
    version: str = ""
    url: str = ""
    path: Path | None = None
    checksum: Checksum | None = None
    release: Release | None = None
    named: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}:{self.version}" if self.version else self.name

    @property
    def size(self) -> str:
        """The download's, for people; "" where it is not known."""
        return human_size(self.release.size) if self.release and self.release.size else ""


class Offer(NamedTuple):
    """What the catalogue has, and what its guests are like."""

    source: Source
    entry: CatalogueEntry


def offers_beside(stored: list[StoredImage]) -> list[Offer]:
    """What can be pulled for this host's architecture and is not here, the newest of each first. Bad files of the
    user's are left out."""
    here = {(image.name, image.version) for image in stored}
    arch = os.uname().machine
    found = [
        Offer(_of_release(entry.name, release), entry)
        for entry in look()[0].values()
        for release in sorted(entry.releases, key=lambda one: version_key(one.version), reverse=True)
        if release.arch == arch
    ]
    return [offer for offer in found if (offer.source.name, offer.source.version) not in here]


def _of_release(name: str, release: Release) -> Source:
    return Source(name, release.version, release.url, checksum=release.checksum, release=release, named=True)


def find_source(wanted: str, checksum: str = "", *, insecure: bool = False) -> Source:
    """What `NAME[:VERSION]`, FILE or URL stands for; `insecure`: a URL may go without a checksum.

    Raises Usage, NotFound.
    """
    given = parse_checksum(checksum) if checksum else None
    if not is_elsewhere(wanted):
        if given:
            raise Usage("--checksum is of a FILE or URL: the catalogue has its own", "leave it out, or name a file")
        return find_release(wanted)
    if "://" not in wanted:
        path = Path(wanted).absolute()
        return Source(_name_of(path.name), path=path, checksum=given)
    if not wanted.startswith(("http://", "https://")):
        raise Usage(f"{printable(wanted, 200)} is no address that macvm fetches from", "https://…, http://…, or a file")
    if given is None and not insecure:
        hint = "add --checksum sha256:…, from its publisher; or insist with --insecure-no-checksum"
        raise Usage(f"nothing says what {printable(wanted, 200)} should be: it has no checksum", hint)
    found = Release("", "", wanted)
    return Source(_name_of(found.file_name), url=wanted, checksum=given)


def _name_of(file_name: str) -> str:
    """A name that an image may have, for a file."""
    name = _OTHERS.sub("-", _SUFFIXES.sub("", file_name).lower()).strip("-")[:63].strip("-")
    return name or "image"


def find_release(wanted: str) -> Source:
    """The catalogue's `NAME[:VERSION]` for this host's architecture. Raises Usage, NotFound."""
    name, version = images.split_name(wanted)
    entry = catalogue().get(name)
    arch = os.uname().machine
    release = entry.find_release(version, arch) if entry else None
    if entry is None or release is None:
        raise _not_in_catalogue(wanted, entry, arch)
    return _of_release(name, release)


def _not_in_catalogue(wanted: str, entry: CatalogueEntry | None, arch: str) -> NotFound:
    if entry is None:
        known = ", ".join(sorted(one.name for one in catalogue().values() if one.find_release("", arch)))
        return NotFound(
            f"the catalogue has no image {printable(wanted)}",
            f"it has {known}; others: macvm image import FILE|URL NAME --checksum sha256:…",
        )
    versions = ", ".join(one.version for one in entry.releases if one.arch == arch)
    message = f"the catalogue has no {printable(wanted)} for {arch}"
    if entry.name == "tiny":
        return NotFound(message, "macvm image build tiny")
    return NotFound(message, f"it has {versions}" if versions else "macvm image import FILE NAME")


def pinned() -> list[Source]:
    """What the catalogue has, of which the checksum is known: a file that a user fetched by hand may be one of them."""
    return [
        _of_release(entry.name, release)
        for entry in look()[0].values()
        for release in entry.releases
        if release.checksum
    ]


def find_here(stored: list[StoredImage], source: Source, checksum: Checksum | None) -> StoredImage | None:
    """The local image that was made from the file with that checksum."""
    for image in stored:
        is_named = not source.named or (image.name, image.version) == (source.name, source.version)
        # A qcow2 is stored as it came.
        if is_named and checksum and str(checksum) in (image.checksum, f"sha256:{image.digest}"):
            return image
    return None
