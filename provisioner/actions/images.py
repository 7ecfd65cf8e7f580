"""The local images: import, build, list, verify, delete."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from provisioner.actions.catalogue import find_entry
from provisioner.context import Context
from provisioner.errors import HypervisorFailed, MacvmError, NotFound, Taken, Unable
from provisioner.host import disks
from provisioner.host.leases import now
from provisioner.host.store import Store, StoredImage
from provisioner.model.catalogue import check_version, version_key
from provisioner.model.checksum import Checksum
from provisioner.model.found import FoundMachine
from provisioner.model.names import check_name, printable

#: The version of a build that was replaced by another of the same name and version, while disks are overlays of it.
_REPLACED = "replaced-"


class Verified(NamedTuple):
    """An image that was read again; `problems` are empty where all of it is as it was stored."""

    image: StoredImage
    problems: tuple[str, ...]


class Made(NamedTuple):
    """A file that became an image: where it was pulled from, and its checksum, as its publisher says them."""

    source: str = ""
    checksum: Checksum | None = None


def title(image: StoredImage) -> str:
    """`NAME:VERSION`, or `NAME` of an image without a version."""
    return f"{image.name}:{image.version}" if image.version else image.name


def image_path(context: Context, image: StoredImage) -> Path:
    """One that is not here yet has no digest."""
    return context.images_dir / f"{image.digest or 'SHA256'}.qcow2"


def find_image(images: list[StoredImage], wanted: str) -> StoredImage | None:
    """The newest local image of that `NAME` or `NAME:VERSION`."""
    name, _, version = wanted.partition(":")
    found = [image for image in images if image.name == name and version in ("", image.version)]
    return max(found, key=_age, default=None)


def _age(image: StoredImage) -> tuple[bool, tuple[int, ...], str]:
    return not image.version.startswith(_REPLACED), version_key(image.version), image.added


def find_default(images: list[StoredImage]) -> StoredImage | None:
    """The newest CirrOS, else tiny."""
    return find_image(images, "cirros") or find_image(images, "tiny")


def check_base(context: Context, image: StoredImage) -> None:
    """Raises Unable where the base under the overlays is not what it was: guests would read wrong data, and
    `qemu-img check` would find nothing. Read again only where the file's stamp has changed."""
    path = image_path(context, image)
    hint = f"put the image back: {_way_back(image)}"
    try:
        stamp = disks.stamp(path)
    except OSError as error:
        raise Unable(f"the image {image.name} is missing: {path}: {error.strerror}", hint) from error
    if stamp == image.stamp:
        return
    if disks.digest_of(path) != image.digest:
        raise Unable(f"the image {image.name} has changed since it was stored: {path}", hint)


def _way_back(image: StoredImage) -> str:
    if image.name == "tiny":
        return "macvm image build tiny"
    return f"macvm image pull {title(image)}" if image.source else f"macvm image import FILE {title(image)}"


def check_base_of(context: Context, machine: FoundMachine) -> None:
    """As `check_base`, of the image that a machine was made from; of one that the store does not know by its content.

    Raises Unable.
    """
    base = machine.marks.base if machine.marks else ""
    if not base:
        return
    known = list_images(context.reading_store)
    image = next((image for image in known if image.digest == base), None)
    if image:
        return check_base(context, image)
    path = context.images_dir / f"{base}.qcow2"
    problem = _problem(path, {})
    if problem:
        raise Unable(f"the base image of {machine.name} is not as it was: {problem}", f"put back {path}")


def list_images(store: Store | None) -> list[StoredImage]:
    return store.images() if store else []


def verify(context: Context, wanted: str) -> list[Verified]:
    """Reads the files of an image, or of all, again. Raises NotFound."""
    images = list_images(context.reading_store)
    if wanted:
        images = [get_image(images, wanted)]
    known: dict[Path, str] = {}
    found = []
    for image in images:
        problems = [_problem(path, known) for path in _files_of(context, image, [])]
        found.append(Verified(image, tuple(filter(None, problems))))
    return found


def _problem(path: Path, known: dict[Path, str]) -> str:
    """What is wrong with a file that is named by its digest, or "". `known` are files that were read already."""
    if path not in known:
        try:
            digest = disks.digest_of(path)
            known[path] = "" if digest == path.stem else f"{path} has changed: its sha256 is {digest}"
        except OSError as error:
            known[path] = f"{path} cannot be read: {error.strerror}"
    return known[path]


def get_image(images: list[StoredImage], wanted: str) -> StoredImage:
    """`find_image`, or NotFound."""
    image = find_image(images, wanted)
    if image is None:
        raise NotFound(f"there is no image {printable(wanted)} here", "`macvm image list` shows those that are")
    return image


def split_name(wanted: str) -> tuple[str, str]:
    """Name and version of `NAME[:VERSION]`. Raises Usage."""
    name, colon, version = wanted.partition(":")
    return check_name(name, "an image name"), check_version(version) if colon else ""


def import_image(context: Context, source: Path, wanted: str, checksum: Checksum | None) -> StoredImage:
    """Takes a file, packed or not, into the store. Raises NotFound, Taken, ImageRefused."""
    context.require_local_root("importing an image")
    name, version = split_name(wanted)
    images = context.store.images()
    context.say(f"checking and storing {source}")
    disks.check_file(source, checksum)
    with _unpacked(context, source) as (disk, is_ours):
        stored = disks.import_disk(disk, context.images_dir, move=is_ours)
    # The same bytes again put back a base that was lost or spoilt; nothing else of the image has changed with it.
    old = next((image for image in images if (image.name, image.version) == (name, version)), None)
    if old and old.digest != stored.digest:
        if all(image.digest != stored.digest for image in images) and not users_of(context, stored.path):
            disks.remove_file(stored.path, context.images_dir)
        hint = f"give it another version, such as {name}:2, or delete the old one: macvm image delete {wanted}"
        raise Taken(f"there is another image {wanted} already", hint)
    if old:
        kept = old._replace(stamp=disks.stamp(stored.path))
        context.store.add_image(kept)
        return kept
    new = _image(stored, name, version, Made(checksum=checksum))
    context.store.add_image(new)
    return new


def store_file(context: Context, file: Path, name: str, version: str, made: Made) -> StoredImage:
    """Takes a file that was fetched into the store's own folder, and uses it up; replaces an older build of that name
    and version. Raises ImageRefused."""
    with _unpacked(context, file) as (disk, _):
        stored = disks.import_disk(disk, context.images_dir, move=True)
    return _replace(context, _image(stored, name, version, made))


@contextlib.contextmanager
def _unpacked(context: Context, source: Path) -> Iterator[tuple[Path, bool]]:
    """The disk in a file, and whether it is a temporary one that may be moved: unpacked where it was packed."""
    from provisioner.host.unpack import unpack

    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=context.images_dir) as work:
        # So that an error names what its reader knows.
        target = Path(work) / (source.stem or "disk")
        is_packed = unpack(source, target, disks.MOST_VIRTUAL)
        yield (target, True) if is_packed else (source, False)


def build_tiny(context: Context) -> StoredImage:
    """Builds the tiny image from the host's own kernel and busybox; replaces an older one, whose files go unless disks
    are overlays of them."""
    from provisioner.host.tiny import build

    context.require_local_root("building an image")
    # Opening the store makes the folders.
    folder = context.store.path.parent / context.images_dir.name
    with _full_disk_said(folder), tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as work:
        built = build(Path(work))
        disk = disks.import_disk(built.disk, folder)
        kernel = disks.import_file(built.kernel, folder, ".vmlinuz")
        initrd = disks.import_file(built.initrd, folder, ".initrd")
    return _replace(context, _image(disk, "tiny")._replace(kernel=kernel.name, initrd=initrd.name))


@contextlib.contextmanager
def _full_disk_said(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MacvmError(f"the image cannot be built in {folder}: {error.strerror}", f"df -h {folder}") from error


def _replace(context: Context, new: StoredImage) -> StoredImage:
    """The one of that name and version stays under another version while disks are overlays of it, else it goes."""
    old = next((one for one in context.store.images() if (one.name, one.version) == (new.name, new.version)), None)
    if old and old.digest != new.digest and _is_base(context, image_path(context, old)):
        context.store.add_image(old._replace(version=f"{_REPLACED}{old.digest[:12]}"))
    context.store.add_image(new)
    if old:
        for path in _files_of(context, old, context.store.images()):
            disks.remove_file(path, context.images_dir)
    return new


def _is_base(context: Context, path: Path) -> bool:
    """Whether any disk is an overlay of it; to be on the safe side where libvirt cannot be asked."""
    try:
        return bool(_overlays(context, path) or users_of(context, path))
    except HypervisorFailed:
        return True


def _image(disk: disks.DiskImage, name: str, version: str = "", made: Made = Made()) -> StoredImage:  # noqa: B008  # a value
    """A disk that is in the store's folder, as the store is to know it."""
    entry = find_entry(name)
    return StoredImage(
        name=name,
        version=version,
        digest=disk.digest,
        login=entry.login if entry else "",
        kernel="",
        initrd="",
        size=disk.size,
        virtual_size=disk.virtual_size,
        stamp=disks.stamp(disk.path),
        added=now(),
        source=made.source,
        checksum=str(made.checksum or ""),
    )


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
    image = get_image(images, wanted)
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
