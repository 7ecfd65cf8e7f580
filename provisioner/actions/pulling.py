"""Chooses the image of a machine, and brings one that is not here yet."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from provisioner.actions import images
from provisioner.actions.catalogue import look
from provisioner.actions.image_sources import Source, find_here, find_release, find_source, pinned
from provisioner.actions.request import CreateRequest, is_elsewhere
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound, Taken, Usage
from provisioner.host import disks
from provisioner.host.store import StoredImage
from provisioner.model.checksum import Checksum, find_checksum
from provisioner.model.names import printable

#: Bytes that are done, and bytes in all where the server says so.
Progress = Callable[[int, int | None], None]

#: A checksum file names some hundred files.
_MOST_CHECKSUMS = 1 << 20

#: What a killed pull left is gone on with for a week.
_PULL, _KEEP = ".pull-", 7 * 24 * 3600.0


class Pulled(NamedTuple):
    """`fetched` is False where it was here already."""

    image: StoredImage
    fetched: bool


def wanted_by(context: Context, request: CreateRequest) -> str:
    """The image that was asked for; "" for the default one, and for none beside a kernel of the user's own. Raises
    Usage."""
    wanted = request.image or ("" if request.boot else context.settings.image)
    if request.checksum and not wanted:
        raise Usage("--checksum is of a FILE or URL", "name it: --image FILE, or --image URL")
    return wanted


def lacking(context: Context, request: CreateRequest) -> Source | None:
    """What is to be brought for a machine; None where it is here. Raises Usage, NotFound."""
    wanted, checksum, insecure = wanted_by(context, request), request.checksum, request.insecure
    if not wanted:
        return None
    stored = images.list_images(context.reading_store)
    if is_elsewhere(wanted):
        source = find_source(wanted, checksum, insecure=insecure)
        # What a file has in it is known when it is read.
        return source if source.path or not find_here(stored, source, source.checksum) else None
    if not checksum and images.find_image(stored, wanted):
        return None
    try:
        return find_source(wanted, checksum)
    except NotFound as error:
        here = ", ".join(sorted({image.name for image in stored})) or "none"
        raise NotFound(f"there is no image {printable(wanted)} here", f"images here: {here}; {error.hint}") from None


def choose(context: Context, request: CreateRequest) -> StoredImage | None:
    """The image that a machine is made from; one that is to be brought has no digest yet. None with a kernel alone.

    Raises Usage, NotFound.
    """
    stored = images.list_images(context.reading_store)
    wanted = wanted_by(context, request)
    if not wanted:
        image = None if request.boot else images.find_default(stored)
        if image is None and not request.boot:
            raise NotFound("there is no image here yet", _first_hint())
        return image
    if source := lacking(context, request):
        return _to_come(source)
    if is_elsewhere(wanted):
        source = find_source(wanted, request.checksum, insecure=request.insecure)
        return find_here(stored, source, source.checksum)
    return images.find_image(stored, wanted)


def needs_first(context: Context, request: CreateRequest) -> bool:
    """Whether a machine is to have the default image, and there is none."""
    wants = not request.boot and not wanted_by(context, request)
    return wants and images.find_default(images.list_images(context.reading_store)) is None


def _to_come(source: Source) -> StoredImage:
    entry = look()[0].get(source.name)
    return StoredImage(
        name=source.name,
        version=source.version,
        digest="",
        login=entry.login if entry else "",
        kernel="",
        initrd="",
        size=0,
        virtual_size=0,
        stamp="",
        added="",
        source=source.url or str(source.path),
    )


def preview(context: Context, source: Source) -> list[str]:
    """The steps of a pull. Asks nobody: whether a newer build is there, only the publisher's file tells."""
    here = images.list_images(context.reading_store)
    if find_here(here, source, source.checksum):
        return [f"# {source.title} is here already, and the same"]
    release = source.release
    checked = (
        [f"curl -fL {shlex.quote(release.checksums)}  # for its checksum"] if release and not release.checksum else []
    )
    return [*checked, *bringing_lines(context, _to_come(source)), f"# stored as {source.title}"]


def bringing_lines(context: Context, image: StoredImage) -> list[str]:
    """What amounts to bringing an image that is not here; empty for one that is."""
    if image.digest:
        return []
    base = str(images.image_path(context, image))
    how = ["curl", "-fLo", base, image.source] if "://" in image.source else ["cp", image.source, base]
    return [shlex.join(how), f"sha256sum {shlex.quote(base)}"]


def first_choice() -> Source:
    """What is offered where there is no image yet: the newest CirrOS. Raises NotFound."""
    return find_release("cirros")


def _first_hint() -> str:
    try:
        source = first_choice()
    except MacvmError:
        return "macvm image build tiny, or macvm image import FILE NAME"
    pull = f"macvm image pull cirros ({source.size})" if source.size else "macvm image pull cirros"
    return f"{pull}, macvm image build tiny, or macvm image import FILE NAME"


def bring(context: Context, source: Source, progress: Progress | None = None) -> StoredImage:
    """The image, fetched or imported first where it is not here. Raises as `pull` does."""
    return _take_file(context, source, source.path) if source.path else pull(context, source, progress).image


def pull(context: Context, source: Source, progress: Progress | None = None) -> Pulled:
    """Fetches an image, unless the same is here. Of two that pull the same, the second waits for the first.

    Raises Unable, Taken, NotFound, Usage, DownloadFailed, ImageRefused.
    """
    from provisioner.host.download import fetch
    from provisioner.host.web import shown

    context.require_local_root("pulling an image")
    folder = context.store.path.parent / context.images_dir.name
    checksum = _checksum(source)
    with context.lock(f"pull {source.url}", waiting=f"waiting for another macvm that pulls {source.title}"):
        here = find_here(context.store.images(), source, checksum)
        if here and _is_whole(context, here):
            return Pulled(here, False)
        if not here:
            _check_replaceable(context, source)
        _forget_old(folder)
        context.say(f"pulling {source.title} from {shown(source.url)}" + (f", {source.size}" if source.size else ""))
        with _place(folder, source, checksum) as target:
            fetch(source.url, target, checksum, progress=progress)
            return Pulled(_store(context, source, target, checksum), True)


def _checksum(source: Source) -> Checksum | None:
    """The pinned one, or what the publisher's file says now."""
    from provisioner.host.download import fetch_text

    release = source.release
    if not release or release.checksum:
        return source.checksum
    return find_checksum(fetch_text(release.checksums, _MOST_CHECKSUMS), release.file_name, release.algorithm)


@contextlib.contextmanager
def _place(folder: Path, source: Source, checksum: Checksum | None) -> Iterator[Path]:
    """Where a download grows, under its publisher's name for it. What was cut off stays for the next pull."""
    import hashlib

    key = hashlib.sha256(f"{source.url} {checksum}".encode()).hexdigest()[:16]
    place = folder / f"{_PULL}{key}"
    place.mkdir(mode=0o700, exist_ok=True)
    target = place / (urlsplit(source.url).path.rpartition("/")[2] or "image")
    try:
        yield target
    finally:
        target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.rmdir()


def _forget_old(folder: Path) -> None:
    """Removes what was cut off long ago and never asked for again, and what killed imports left."""
    import shutil

    for left in folder.glob(".*-*"):
        with contextlib.suppress(FileNotFoundError):
            inside = left.iterdir() if left.is_dir() else ()
            if time.time() - max(path.stat().st_mtime for path in (left, *inside)) > _KEEP:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _store(context: Context, source: Source, file: Path, checksum: Checksum | None) -> StoredImage:
    from provisioner.host.web import shown

    version = source.version if source.named else (checksum.digest if checksum else disks.digest_of(file))[:12]
    made = images.Made(shown(source.url), checksum)
    context.say(f"checking and storing {source._replace(version=version).title}")
    return images.store_file(context, file, source.name, version, made)


def _take_file(context: Context, source: Source, path: Path) -> StoredImage:
    """The image that is made from a file of the user's, under its digest: the same file again is the same image."""
    context.require_local_root("importing an image")
    disks.check_file(path, source.checksum)
    found = Checksum("sha256", disks.digest_of(path))
    here = find_here(context.store.images(), source, found)
    if here and _is_whole(context, here):
        return here
    known = next((one for one in pinned() if one.checksum == found), None)
    wanted = known.title if known else f"{source.name}:{found.digest[:12]}"
    return images.import_image(context, path, wanted, source.checksum or found)


def _is_whole(context: Context, image: StoredImage) -> bool:
    try:
        images.check_base(context, image)
    except MacvmError as error:
        context.say(f"{error.message}: it is put back")
        return False
    return True


def _check_replaceable(context: Context, source: Source) -> None:
    """A newer build of a release takes the place of one that was pulled; nothing does of what a user imported."""
    for image in context.store.images():
        is_same = source.named and (image.name, image.version) == (source.name, source.version)
        if is_same and not (source.release and image.source):
            hint = f"delete it first: macvm image delete {source.title}"
            raise Taken(f"there is another image {source.title} already, which is no older build of it", hint)
