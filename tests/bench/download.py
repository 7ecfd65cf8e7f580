"""What it costs to verify a file while it is downloaded: 200 MB with a checksum, and beside it the same without one.

At the paces of links of 1 and 10 Gbit/s, and as fast as loopback goes, which no hash keeps up with. The server is
another process; both sides take turns, and both end with the file on the disk.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from provisioner.host.download import fetch
from provisioner.model.checksum import Checksum

SIZE = 200_000_000

# Bytes of a body in a second: what Ethernet, IP and TCP leave of a link's bits. 0 is no limit.
_LINKS = (
    ("verified at 1 Gbit/s", "ratio < 1.05", 118_000_000),
    ("verified at 10 Gbit/s", "ratio < 1.05", 1_180_000_000),
    ("verified on loopback", "", 0),
)
# asm-generic/socket.h; Python has no name for it. TCP keeps to it by itself, also on loopback.
_SO_MAX_PACING_RATE = 47


class Row(NamedTuple):
    """Median milliseconds with and without a checksum, and the median of the turns' ratios."""

    title: str
    goal: str
    verified: float
    plain: float
    ratio: float


def rows(rounds: int) -> Iterator[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = folder / "source"
        source.write_bytes(os.urandom(SIZE // 200) * 200)
        checksum = Checksum("sha256", hashlib.sha256(source.read_bytes()).hexdigest())
        argv = [sys.executable, "-m", "tests.bench.download", str(source)]
        server = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        stack.callback(server.kill)
        assert server.stdout
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        for title, goal, pace in _LINKS:
            yield _row(title, goal, f"{url}/{pace}", folder / "fetched", checksum, rounds)


def _row(title: str, goal: str, url: str, target: Path, checksum: Checksum, rounds: int) -> Row:
    spent: dict[Checksum | None, list[float]] = {checksum: [], None: []}
    for number in range(rounds + 1):
        for side in (checksum, None) if number % 2 else (None, checksum):
            began = time.perf_counter()
            fetch(url, target, side)
            took = (time.perf_counter() - began) * 1000
            assert target.stat().st_size == SIZE
            target.unlink()
            if number:
                spent[side].append(took)
    ratio = median(one / other for one, other in zip(spent[checksum], spent[None], strict=True))
    return Row(title, goal, median(spent[checksum]), median(spent[None]), ratio)


def _serve(source: Path) -> None:
    """Any path that is a number is the file, at so many bytes a second; 0 is no limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, source.open("rb") as file:
                pace = int(connection.recv(65536).split()[1].lstrip(b"/"))
                if pace:
                    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, pace)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
                connection.sendfile(file)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
