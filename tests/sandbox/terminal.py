"""Types at a command that runs on a terminal: `terminal.py COMMAND…`, with `[[awaited, typed], …]` as JSON on standard input.

Prints all that the command said; ends with status 3 where something awaited did not come within its time.
"""

from __future__ import annotations

import json
import os
import pty
import select
import sys
import time

SECONDS = 60.0


def main() -> int:
    steps = [(awaited.encode(), typed.encode()) for awaited, typed in json.load(sys.stdin)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(sys.argv[1], sys.argv[1:])
    said, seen = b"", 0
    status = 0
    for awaited, typed in steps:
        deadline = time.monotonic() + SECONDS
        while (place := said.find(awaited, seen)) < 0 and status == 0:
            data = read(terminal, deadline - time.monotonic())
            said += data
            status = 0 if data else 3
        if status:
            break
        seen = place + len(awaited)
        os.write(terminal, typed)
    while status == 0 and (data := read(terminal, 10)):
        said += data
    os.close(terminal)
    _, ended = os.waitpid(pid, 0)
    sys.stdout.write(said.decode(errors="replace"))
    return status or os.waitstatus_to_exitcode(ended)


def read(terminal: int, seconds: float) -> bytes:
    """What comes next; nothing at the end or when the time is up."""
    if not select.select([terminal], [], [], max(seconds, 0))[0]:
        return b""
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: the other side has closed it
        return b""


if __name__ == "__main__":
    sys.exit(main())
