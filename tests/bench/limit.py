"""The limit that libvirt sets: its own API defines and starts the domains of XML files, with a number of threads.

`python -m tests.bench.limit up|down FOLDER THREADS`; each thread has a connection, for the daemon serves five calls of
one at a time.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import libvirt  # noqa: TID251 - macvm's own way to it is what this is compared with


def _up(connection: Any, path: Path) -> None:
    connection.defineXML(path.read_text()).create()


def _down(connection: Any, path: Path) -> None:
    domain = connection.lookupByName(path.stem)
    domain.destroy()
    domain.undefine()


def each(act: Callable[[Any, Path], None], folder: Path, threads: int) -> None:
    """Raises libvirtError."""
    left = deque(sorted(folder.glob("*.xml")))

    def serve(_: int) -> None:
        connection = libvirt.open("qemu:///system")
        try:
            while True:
                act(connection, left.popleft())
        except IndexError:
            return
        finally:
            connection.close()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(serve, range(threads)))


if __name__ == "__main__":
    each({"up": _up, "down": _down}[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]))
