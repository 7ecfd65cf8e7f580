"""Digests of what is on its way, in a thread of their own: hashlib works without the interpreter's lock."""

from __future__ import annotations

import queue
import threading
from types import TracebackType

from provisioner.model.checksum import Checksum

# So many chunks may wait to be hashed: the network is not read ahead of a hash that is slower than it.
_AHEAD = 8


class Hasher:
    """Takes the chunks of a file in order; `digest` waits until all are hashed."""

    def __init__(self, algorithm: str) -> None:
        import hashlib

        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def update(self, chunk: bytes) -> None:
        self._chunks.put(chunk)

    def restart(self) -> None:
        """Forgets what has come so far."""
        import hashlib

        self._chunks.join()
        self._hash = hashlib.new(self._algorithm)

    def digest(self) -> Checksum:
        """Of all that has come so far."""
        self._chunks.join()
        return Checksum(self._algorithm, self._hash.hexdigest())

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._hash.update(chunk)
            self._chunks.task_done()

    def __enter__(self) -> Hasher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chunks.put(None)
        self._thread.join()
