"""Files from the web: resumed where they were cut off, verified while they come, in place only when they are whole."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from provisioner.errors import MacvmError, Unable
from provisioner.host.part import Part
from provisioner.host.web import READ_TIMEOUT, DownloadFailed, opened, shown
from provisioner.model.checksum import Checksum
from provisioner.model.sizes import human_size

#: Is told how many bytes are here, and how many there are in all where the server says so.
Progress = Callable[[int, int | None], None]

#: The largest file that is taken: no cloud image comes near.
MOST_BYTES = 64 << 30

# Tries in a row that bring nothing new; each waits twice as long as the one before, beginning with so many seconds.
_TRIES = 5
PAUSE = 0.5

_CHUNK = 256 << 10
_TELL_EVERY = 0.1


def fetch(
    url: str,
    target: Path,
    checksum: Checksum | None,
    *,
    progress: Progress | None = None,
    most: int = MOST_BYTES,
    timeout: float = READ_TIMEOUT,
    pause: float = PAUSE,
) -> None:
    """Puts the file at `url` into `target`, whole and with that checksum, or not at all.

    It grows in `target`.part, which stays where the network failed: the next call goes on with it, given a checksum.
    Another process that fetches the same is waited for. Without a checksum it is as whole as the server says.
    `timeout` is how many seconds the server may be silent, `most` the largest size in bytes that is taken.

    Raises Usage, ImageRefused for wrong bytes, DownloadFailed, Unable where the disk cannot take it.
    """
    with _disk_errors(target), Part(target, checksum, shown(url), most) as part:
        if part.is_there_already():
            return
        if not part.is_right():
            _fill(part, url, _throttled(progress), timeout, pause)
        part.finish()


def fetch_text(url: str, most: int, *, timeout: float = READ_TIMEOUT, pause: float = PAUSE) -> str:
    """A text of at most `most` bytes, such as a checksum file. Raises Usage, DownloadFailed."""
    tries = 0
    while True:
        try:
            with opened(url, {}, timeout) as answer:
                content = b""
                while len(content) <= most and (chunk := answer.read1(_CHUNK, decode_content=False)):
                    content += chunk
            break
        except DownloadFailed as error:
            tries += 1
            _wait_or_raise(error, tries, pause)
    if len(content) > most:
        raise DownloadFailed(f"{shown(url)} is larger than {human_size(most)}", "is it the address of a text?")
    return content.decode(errors="replace")


def _fill(part: Part, url: str, tell: Progress, timeout: float, pause: float) -> None:
    tries, furthest, has_begun = 0, part.size, False
    while True:
        try:
            with opened(url, part.conditions(), timeout) as answer:
                part.answered(answer)
                while answer.status != 416 and (chunk := answer.read1(_CHUNK, decode_content=False)):
                    part.add(chunk)
                    has_begun = True
                    tell(part.size, part.total)
            if part.is_whole():
                tell(part.size, part.size)
                return
            tries, furthest = 0, 0
        except DownloadFailed as error:
            if part.is_right():
                return
            tries = 1 if part.size > furthest else tries + 1
            furthest = max(furthest, part.size)
            _wait_or_raise(error, tries, pause, has_begun=has_begun)


def _wait_or_raise(error: DownloadFailed, tries: int, pause: float, *, has_begun: bool = False) -> None:
    if tries >= _TRIES or not (error.passing or (error.unreachable and has_begun)):
        raise error
    time.sleep(max(error.wait, pause * 2 ** (tries - 1)))


def _throttled(progress: Progress | None) -> Progress:
    """Tells at most ten times a second, and always of the end."""
    due = 0.0

    def tell(done: int, total: int | None) -> None:
        nonlocal due
        if progress and (time.monotonic() >= due or done == total):
            due = time.monotonic() + _TELL_EVERY
            progress(done, total)

    return tell


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    folder = target.parent
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk of {folder} is full: {target.name} has come in part"
            raise Unable(message, f"make room, and run it again: df -h {folder}") from error
        raise MacvmError(f"{target} cannot be written: {error.strerror}", f"see ls -ld {folder}") from error
