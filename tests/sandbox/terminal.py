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
AGAIN = 3.0


def main() -> int:
    steps = [(awaited.encode(), typed.encode()) for awaited, typed in json.load(sys.stdin)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(sys.argv[1], sys.argv[1:])
    said, seen = b"", 0
    status, last = 0, b""
    for awaited, typed in steps:
        deadline = time.monotonic() + SECONDS
        while (place := said.find(awaited, seen)) < 0 and status == 0:
            data = read(terminal, AGAIN)
            said += data or b""
            if data is None:
                status = 3
            elif not data:
                # A guest that was just starting its login may have thrown Enter away: pressed again, as anybody would.
                os.write(terminal, last if last == b"\n" else b"")
                status = 3 if time.monotonic() > deadline else 0
        if status:
            break
        last = typed
        seen = place + len(awaited)
        os.write(terminal, typed)
    while status == 0 and (data := read(terminal, 10)):
        said += data
    os.close(terminal)
    _, ended = os.waitpid(pid, 0)
    sys.stdout.write(said.decode(errors="replace"))
    return status or os.waitstatus_to_exitcode(ended)


def read(terminal: int, seconds: float) -> bytes | None:
    """What comes next; nothing when the time is up, None at the end."""
    if not select.select([terminal], [], [], seconds)[0]:
        return b""
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: the other side has closed it
        return None


if __name__ == "__main__":
    sys.exit(main())
