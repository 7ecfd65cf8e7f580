"""The file that grows while another is fetched, and what is known of the whole."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from provisioner.errors import Unable
from provisioner.host.disks import ImageRefused
from provisioner.host.hashing import Hasher
from provisioner.host.web import Answer, DownloadFailed
from provisioner.model.checksum import Checksum
from provisioner.model.sizes import human_size

_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)", re.ASCII)
_AGAIN = "run it again, or try another mirror"


class Part:
    """`target`.part, held against other processes; `shown` is the address as messages name it, `most` a limit in bytes.

    Left behind only where the next one can tell, by the checksum, whether what it adds belongs to it.
    """

    def __init__(self, target: Path, checksum: Checksum | None, shown: str, most: int) -> None:
        self.size = 0
        self.total: int | None = None
        self._target = target
        self._path = target.with_name(f"{target.name}.part")
        self._checksum = checksum
        self._shown = shown
        self._most = most
        self._validator = ""
        # Whether the bytes of two answers were put together with nothing to say that they are of one file.
        self._is_doubtful = self._was_doubted = False
        self._is_wanted = checksum is not None
        self._stack = ExitStack()

    def __enter__(self) -> Part:
        with self._stack as stack:
            self._descriptor = _open_alone(self._path)
            stack.callback(os.close, self._descriptor)
            self._hasher = stack.enter_context(Hasher(self._checksum.algorithm)) if self._checksum else None
            if not self._hasher:
                os.ftruncate(self._descriptor, 0)
            while chunk := os.read(self._descriptor, _CHUNK):
                self._note(chunk)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if not (self._is_wanted and self.size):
                self._path.unlink(missing_ok=True)

    def _note(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self._hasher:
            self._hasher.update(chunk)

    def _restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        if self._hasher:
            self._hasher.restart()
        self.size, self.total, self._validator, self._is_doubtful = 0, None, "", False

    def _refuse(self, reason: str, hint: str) -> ImageRefused:
        self._is_wanted = False
        return ImageRefused(f"{self._shown} is refused: {reason}", hint)

    def is_there_already(self) -> bool:
        """Whether the target has come while another process was waited for."""
        if not self._checksum or not self._target.is_file():
            return False
        with Hasher(self._checksum.algorithm) as hasher, self._target.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
            self._is_wanted = hasher.digest() != self._checksum
        return not self._is_wanted

    def is_right(self) -> bool:
        """Whether all of it is here, by the checksum."""
        return self.size > 0 and self._hasher is not None and self._hasher.digest() == self._checksum

    def conditions(self) -> dict[str, str]:
        """What to ask with: for the rest, and only if it is still the rest of the same file (RFC 9110, 13.1.5)."""
        if not (self._checksum or self._validator):
            self._restart()
        asked = {"Range": f"bytes={self.size}-"} if self.size else {}
        return asked | {"If-Range": self._validator} if asked and self._validator else asked

    def answered(self, answer: Answer) -> None:
        """Takes note of what the answer is about to bring. Raises DownloadFailed, ImageRefused, Unable where that is
        of no use."""
        if answer.status == 200:
            self._restart()
            self.total = answer.length_remaining
            tag = answer.headers.get("ETag", "")
            # A weak one would say that another file is as good.
            self._validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
            if self.total is None and not answer.chunked and not self._checksum:
                hint = "give its checksum, which would tell"
                raise DownloadFailed(f"{self._shown}: the server does not say where it ends", hint)
        else:
            self._take_range(answer)
        if self.total is not None:
            self._check_room(self.total)

    def _take_range(self, answer: Answer) -> None:
        match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        first, whole = match.groups() if match else (None, "*")
        total = self.total if whole == "*" else int(whole)
        at_end = answer.status == 416 and total == self.size
        goes_on = answer.status == 206 and first == str(self.size)
        if not (at_end or goes_on) or self.total not in (None, total):
            self._restart()
            message = f"{self._shown}: the server does not go on where it was asked to"
            raise DownloadFailed(message, _AGAIN, passing=True)
        self.total = total
        self._is_doubtful = self._is_doubtful or (self.size > 0 and not self._validator)

    def _check_room(self, total: int) -> None:
        if total > self._most:
            reason = f"it has {human_size(total)}, and at most {human_size(self._most)} are taken"
            raise self._refuse(reason, "is it a disk image?")
        disk = os.fstatvfs(self._descriptor)
        if total - self.size > disk.f_bavail * disk.f_frsize:
            folder = self._path.parent
            message = f"{human_size(total - self.size)} more do not fit into {folder}"
            raise Unable(message, f"make room: df -h {folder}")

    def add(self, chunk: bytes) -> None:
        """Raises ImageRefused, OSError."""
        if self.size + len(chunk) > self._most:
            raise self._refuse(f"it is larger than {human_size(self._most)}", "is it a disk image?")
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._note(chunk)

    def is_whole(self) -> bool:
        """After an answer has ended; False where all of it is to be fetched once more, in one piece.

        Raises ImageRefused for wrong bytes, DownloadFailed where there are fewer or more than there should be.
        """
        if self.total not in (None, self.size):
            # The next answer tells: the rest, or 416, upon which all is thrown away.
            message = f"{self._shown}: {self.size:,} bytes came of {self.total:,}"
            raise DownloadFailed(message, _AGAIN, passing=True)
        if not self.size:
            raise self._refuse("it is empty", "is it the right address?")
        if self._hasher is None or self.is_right():
            return True
        if self._is_doubtful and not self._was_doubted:
            self._restart()
            self._was_doubted = True
            return False
        hint = f"expected {self._checksum}, found {self._hasher.digest()}: the server may have a newer file there"
        raise self._refuse("it does not have the checksum that was given", hint)

    def finish(self) -> None:
        """Puts it in the target's place, on the disk for good."""
        os.fsync(self._descriptor)
        self._path.rename(self._target)
        self._is_wanted = True
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _open_alone(path: Path) -> int:
    """The file, locked; waits while another process holds it. The kernel drops the lock with the process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it may have renamed or removed it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
