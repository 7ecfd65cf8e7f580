"""Files from the web: resumed where they were cut off, verified while they come, and in place only when whole."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from provisioner.errors import MacvmError, Unable
from provisioner.host.disks import ImageRefused
from provisioner.host.hashing import Hasher
from provisioner.host.web import READ_TIMEOUT, Answer, DownloadFailed, opened, shown
from provisioner.model.checksum import Checksum
from provisioner.model.sizes import human_size

#: Bytes that are done, and bytes in all where the server says so.
Progress = Callable[[int, int | None], None]

#: The largest file that is taken: no cloud image comes near.
MOST_BYTES = 64 << 30

# Tries in a row that bring nothing new; each waits twice as long as the one before.
_TRIES = 5
_PAUSE = 0.5

_CHUNK = 256 << 10
_TELL_EVERY = 0.1
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", re.ASCII)


def fetch(
    url: str,
    target: Path,
    checksum: Checksum | None,
    *,
    progress: Progress | None = None,
    most: int = MOST_BYTES,
    timeout: float = READ_TIMEOUT,
    pause: float = _PAUSE,
) -> None:
    """Puts the file at `url` into `target`, whole and with that checksum, or not at all.

    It grows in `target`.part, which stays where the network failed, and is gone on with by the next call that has a
    checksum to tell whether both pieces belong together. Another process that fetches the same is waited for.
    `timeout` is how many seconds the server may be silent, `most` the largest size in bytes that is taken.

    Raises Usage, ImageRefused for wrong bytes, DownloadFailed, Unable where the disk cannot take it.
    """
    with _disk_errors(target), ExitStack() as stack:
        part = _Part(stack, target, checksum)
        if part.is_there_already():
            return
        if not part.is_right():
            _fill(part, url, _Throttled(progress), most, timeout, pause)
        part.finish()


def fetch_text(url: str, most: int, *, timeout: float = READ_TIMEOUT, pause: float = _PAUSE) -> str:
    """A small text of at most `most` bytes, such as a checksum file. Raises Usage, DownloadFailed."""
    tries = 0
    while True:
        try:
            with opened(url, {}, timeout) as response:
                content = bytearray()
                while len(content) <= most and (chunk := response.read1(_CHUNK, decode_content=False)):
                    content += chunk
            if len(content) > most:
                raise DownloadFailed(f"{shown(url)} is larger than {human_size(most)}", "is it the right address?")
            return content.decode(errors="replace")
        except DownloadFailed as error:
            tries += 1
            if not error.passing or tries >= _TRIES:
                raise
            time.sleep(max(error.wait, pause * 2**tries))


def _fill(part: _Part, url: str, told: _Throttled, most: int, timeout: float, pause: float) -> None:
    tries, furthest = 0, part.size
    while True:
        try:
            with opened(url, part.conditions(), timeout) as response:
                part.answered(response, url, most)
                _copy(response, part, told, most, url)
            told(part.size, part.total, now=True)
            part.check(url)
            return
        except DownloadFailed as error:
            tries = 1 if part.size > furthest else tries + 1
            furthest = max(furthest, part.size)
            if not error.passing or tries >= _TRIES:
                raise
            time.sleep(max(error.wait, pause * 2 ** (tries - 1)))


def _copy(response: Answer, part: _Part, told: _Throttled, most: int, url: str) -> None:
    while chunk := response.read1(_CHUNK, decode_content=False):
        part.add(chunk)
        if part.size > most:
            part.discard()
            raise ImageRefused(f"{shown(url)} is refused: it is larger than {human_size(most)}", "is it a disk image?")
        told(part.size, part.total)


class _Part:
    """The file beside the target that grows, held against other processes, and what is known of the whole."""

    def __init__(self, stack: ExitStack, target: Path, checksum: Checksum | None) -> None:
        self._target = target
        self._path = target.with_name(f"{target.name}.part")
        self._checksum = checksum
        self._descriptor = _open_alone(self._path)
        stack.callback(os.close, self._descriptor)
        self._hasher = stack.enter_context(Hasher(checksum.algorithm)) if checksum else None
        self._validator = ""
        # Whether bytes of more than one answer are in it.
        self._is_pieced = False
        self.size = 0
        self.total: int | None = None
        if checksum:
            self._take_up()
        else:
            # Nothing would tell that the rest is of another file.
            self._restart()

    def _take_up(self) -> None:
        """What an earlier call left is read once, for its digest."""
        while chunk := os.read(self._descriptor, _CHUNK):
            self._note(chunk)
        self._is_pieced = self.size > 0

    def _note(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self._hasher:
            self._hasher.update(chunk)

    def _restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        if self._hasher:
            self._hasher.restart()
        self.size, self.total, self._validator, self._is_pieced = 0, None, "", False

    def add(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._note(chunk)

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)

    def is_there_already(self) -> bool:
        """Whether another process brought it while this one waited for it."""
        if not self._checksum or not self._target.is_file():
            return False
        with Hasher(self._checksum.algorithm) as hasher, self._target.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
            if hasher.digest() != self._checksum:
                return False
        self.discard()
        return True

    def is_right(self) -> bool:
        return self.size > 0 and self._hasher is not None and self._hasher.digest() == self._checksum

    def conditions(self) -> dict[str, str]:
        """What to ask with: for the rest, and only if it is still the rest of the same file (RFC 9110, 13.1.5)."""
        if not self.size:
            return {}
        asked = {"Range": f"bytes={self.size}-"}
        return asked | {"If-Range": self._validator} if self._validator else asked

    def answered(self, response: Answer, url: str, most: int) -> None:
        """Takes note of what the answer says. Raises DownloadFailed, ImageRefused, Unable where it is of no use."""
        if response.status == 200:
            self._restart()
            self.total = response.length_remaining
            tag = response.headers.get("ETag", "")
            self._validator = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            if self.total is None and not response.chunked and not self._checksum:
                raise DownloadFailed(f"{shown(url)}: the server does not say how long it is", "give its --checksum")
        else:
            self._take_range(response, url)
        if self.total is None:
            return
        if self.total > most:
            self.discard()
            reason = f"it has {human_size(self.total)}, and macvm takes at most {human_size(most)}"
            raise ImageRefused(f"{shown(url)} is refused: {reason}", "is it a disk image?")
        free = os.fstatvfs(self._descriptor)
        if self.total - self.size > free.f_bavail * free.f_frsize:
            folder = self._path.parent
            message = f"{human_size(self.total - self.size)} do not fit into {folder}"
            raise Unable(message, f"make room: df -h {folder}")

    def _take_range(self, response: Answer, url: str) -> None:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        first = match[1] if match else None
        total = int(match[2]) if match and match[2] != "*" else None
        at_end = response.status == 416 and total == self.size
        goes_on = response.status == 206 and first == str(self.size)
        if not (at_end or goes_on) or (self.total is not None and total != self.total):
            self._restart()
            message = f"{shown(url)}: the server does not go on where it was asked to"
            raise DownloadFailed(message, "run it again", passing=True)
        self.total = total
        self._is_pieced = self.size > 0

    def check(self, url: str) -> None:
        """Raises ImageRefused for wrong bytes; DownloadFailed where the rest is to be asked for, or all of it again."""
        if self.total is not None and self.size != self.total:
            message = f"{shown(url)}: {self.size:,} bytes came of {self.total:,}"
            if self.size > self.total:
                self._restart()
            raise DownloadFailed(message, "run it again", passing=True)
        if not self.size:
            self.discard()
            raise ImageRefused(f"{shown(url)} is refused: it is empty", "is it the right address?")
        found = self._hasher.digest() if self._hasher else None
        if found == self._checksum:
            return
        if self._is_pieced:
            # The pieces may be of two files: once more in one piece.
            self._restart()
            raise DownloadFailed(f"{shown(url)} changed while it was fetched", "run it again", passing=True)
        self.discard()
        message = f"{shown(url)} is refused: it does not have the checksum that was given"
        raise ImageRefused(message, f"expected {self._checksum}, found {found}: is it the right file, or release?")

    def finish(self) -> None:
        os.fsync(self._descriptor)
        self._path.rename(self._target)
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _open_alone(path: Path) -> int:
    """The file, locked; waits while another process holds it. The lock goes with the process, however it ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it may have renamed or removed it.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


class _Throttled:
    """Tells at most ten times a second."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._next = 0.0

    def __call__(self, done: int, total: int | None, *, now: bool = False) -> None:
        if self._progress is None:
            return
        if now or time.monotonic() >= self._next:
            self._next = time.monotonic() + _TELL_EVERY
            self._progress(done, total)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    folder = target.parent
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk of {folder} is full: {target.name} is there in part"
            raise Unable(message, f"make room (df -h {folder}), and run it again: it goes on from there") from error
        raise MacvmError(f"{target} cannot be written: {error.strerror}", f"see `ls -ld {folder}`") from error
