"""The local images: import, build, list, delete."""

from __future__ import annotations

import re
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from provisioner.context import Context
from provisioner.errors import NotFound, Taken, Unable, Usage
from provisioner.host import disks
from provisioner.host.leases import now
from provisioner.host.store import Store, StoredImage
from provisioner.model.names import check_name, printable
from provisioner.resources import resource

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}", re.ASCII)


class CatalogueEntry(NamedTuple):
    """How an image's guests are used: login and password for the console, and whether user-data must be a script."""

    name: str
    login: str
    password: str = ""
    script_only: bool = False
    takes_keys: bool = True


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """The shipped catalogue, by image name."""
    entries = tomllib.loads(resource("images", "catalog.toml").read_text())
    return {name: CatalogueEntry(name=name, **facts) for name, facts in entries.items()}


def image_path(context: Context, image: StoredImage) -> Path:
    return context.images_dir / f"{image.digest}.qcow2"


def find_image(images: list[StoredImage], wanted: str) -> StoredImage | None:
    """The newest local image of that `NAME` or `NAME:VERSION`."""
    name, _, version = wanted.partition(":")
    found = [image for image in images if image.name == name and version in ("", image.version)]
    return max(found, key=_age, default=None)


def _age(image: StoredImage) -> tuple[list[int], str]:
    numbers = [int(part) for part in image.version.split(".") if part.isdecimal()]
    return numbers, image.added


def choose_image(images: list[StoredImage], wanted: str) -> StoredImage:
    """The image of that name, or the default one: the newest CirrOS, else tiny. Raises NotFound."""
    if wanted:
        image = find_image(images, wanted)
        if image is None:
            here = ", ".join(sorted({image.name for image in images})) or "none"
            hint = f"images here: {here}; macvm image import FILE NAME, or macvm image build tiny"
            raise NotFound(f"there is no image {printable(wanted)} here", hint)
        return image
    image = find_image(images, "cirros") or find_image(images, "tiny")
    if image is None:
        raise NotFound("there is no image here yet", "macvm image build tiny, or macvm image import FILE NAME")
    return image


def check_base(context: Context, image: StoredImage) -> None:
    """Raises Unable where the base under the overlays is not what it was: guests would read wrong data, and
    `qemu-img check` would find nothing. Read again only where the file's stamp has changed."""
    path = image_path(context, image)
    hint = "put the image back: macvm image build tiny, or macvm image import FILE NAME"
    try:
        stamp = disks.stamp(path)
    except OSError as error:
        raise Unable(f"the image {image.name} is missing: {path}: {error.strerror}", hint) from error
    if stamp == image.stamp:
        return
    if disks.sha256(path) != image.digest:
        raise Unable(f"the image {image.name} has changed since it was stored: {path}", hint)


def list_images(store: Store | None) -> list[StoredImage]:
    return store.images() if store else []


def import_image(context: Context, source: Path, wanted: str, checksum: str) -> StoredImage:
    """Raises NotFound, Taken, ImageRefused."""
    context.require_local_root("importing an image")
    name, _, version = wanted.partition(":")
    check_name(name, "an image name")
    if version and not _VERSION.fullmatch(version):
        raise Usage(f"{printable(version)} cannot be an image's version", "letters, digits, and . _ + -, such as 0.6.2")
    images = context.store.images()
    context.say(f"checking and storing {source}")
    disk = disks.import_disk(source, context.images_dir, checksum)
    # The same bytes again put back a base that was lost or spoilt.
    if any((image.name, image.version) == (name, version) and image.digest != disk.digest for image in images):
        if all(image.digest != disk.digest for image in images) and not users_of(context, disk.path):
            disks.remove_file(disk.path, context.images_dir)
        hint = f"give it another version, such as {name}:2, or delete the old one: macvm image delete {wanted}"
        raise Taken(f"there is another image {wanted} already", hint)
    return _add(context, disk, name, version)


def build_tiny(context: Context) -> StoredImage:
    """Builds the tiny image from the host's own kernel and busybox; replaces an older one, whose files go unless disks
    are overlays of them."""
    from provisioner.host.tiny import build

    context.require_local_root("building an image")
    # Opening the store makes the folders.
    folder = context.store.path.parent / context.images_dir.name
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as work:
        built = build(Path(work))
        disk = disks.import_disk(built.disk, folder)
        kernel = disks.import_file(built.kernel, folder, ".vmlinuz")
        initrd = disks.import_file(built.initrd, folder, ".initrd")
    old = find_image(context.store.images(), "tiny")
    new = _add(context, disk, "tiny", "", kernel.name, initrd.name)
    if old and old.digest != new.digest and not _overlays(context, image_path(context, old)):
        for path in _files_of(context, old, context.store.images()):
            disks.remove_file(path, context.images_dir)
    return new


def _add(
    context: Context, disk: disks.DiskImage, name: str, version: str, kernel: str = "", initrd: str = ""
) -> StoredImage:
    entry = catalogue().get(name)
    image = StoredImage(
        name=name,
        version=version,
        digest=disk.digest,
        login=entry.login if entry else "",
        kernel=kernel,
        initrd=initrd,
        size=disk.size,
        virtual_size=disk.virtual_size,
        stamp=disks.stamp(disk.path),
        added=now(),
    )
    context.store.add_image(image)
    return image


def delete_image(context: Context, wanted: str) -> list[Path]:
    """Removes an image and its files; refused while a machine's disk is an overlay of it. Returns the files removed.

    Raises NotFound, Taken.
    """
    context.require_local_root("deleting an image")
    image, gone = find_deletable(context, context.store, wanted)
    context.store.remove_image(image.name, image.version)
    for path in gone:
        disks.remove_file(path, context.images_dir)
    return gone


def find_deletable(context: Context, store: Store | None, wanted: str) -> tuple[StoredImage, list[Path]]:
    """The image, and the files that no other image has too. Raises NotFound, Taken."""
    images = list_images(store)
    image = find_image(images, wanted)
    if image is None:
        raise NotFound(f"there is no image {printable(wanted)} here", "`macvm image list` shows those that are")
    path = image_path(context, image)
    users = users_of(context, path)
    if users:
        hint = f"delete them first: macvm delete {' '.join(users)}"
        raise Taken(f"the image {wanted} is the base of the disks of {', '.join(users)}", hint)
    overlays = _overlays(context, path)
    if overlays:
        # Of a machine that is just being made, or was deleted with --keep-disks.
        named = " ".join(map(str, overlays))
        raise Taken(f"the image {wanted} is the base of {named}", f"where they are of no use any more: rm {named}")
    return image, _files_of(context, image, [other for other in images if other is not image])


def _overlays(context: Context, base: Path) -> list[Path]:
    """macvm's own disks over a base, of machines and kept ones."""
    return [disk for disk in context.machines_dir.glob("*/*.qcow2") if base in disks.backing_files(disk)]


def _files_of(context: Context, image: StoredImage, others: list[StoredImage]) -> list[Path]:
    """An image's files that none of the others has too."""
    kept = {name for other in others for name in (f"{other.digest}.qcow2", other.kernel, other.initrd)}
    names = (f"{image.digest}.qcow2", image.kernel, image.initrd)
    return [context.images_dir / name for name in names if name and name not in kept]


def users_of(context: Context, base: Path) -> list[str]:
    """Names of the machines with a disk over `base`, macvm's or not."""
    users = []
    for machine in context.hypervisor.machines():
        known = machine.marks.base == base.stem if machine.marks else False
        if known or any(base in (path, *disks.backing_files(path)) for path in machine.files if path.suffix != ".iso"):
            users.append(machine.name)
    return users
