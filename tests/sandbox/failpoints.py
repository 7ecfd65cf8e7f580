"""Runs macvm with something happening at a named step boundary: `python failpoints.py SETTING… -- MACVM-ARGUMENTS`.

Settings: `record=FILE` appends the name of each boundary; `kill=NAME` dies there by SIGKILL; `fail=NAME` raises there;
`pause=NAME:SECONDS` waits there; `stop-libvirtd=NAME` stops the daemon there by SIGSTOP, `kill-libvirtd=NAME` ends it by
SIGKILL, and `restart-libvirtd=NAME` starts it again after that; `ahead=SECONDS` sets the clock forward. NAME@2 is the
second time that it comes there.
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from provisioner.cli import main, run
from provisioner.context import Context
from provisioner.errors import MacvmError


def signal_libvirtd(number: int) -> None:
    os.kill(int(Path("/run/libvirtd.pid").read_text()), number)


def main_with(settings: dict[str, str], arguments: list[str]) -> None:
    pause_at, _, pause = settings.get("pause", "").rpartition(":")

    turns: collections.Counter[str] = collections.Counter()

    def at(name: str) -> None:
        if "record" in settings:
            with Path(settings["record"]).open("a") as file:
                file.write(name + "\n")
        turns[name] += 1
        if turns[name] > 1:
            name += f"@{turns[name]}"
        if name == settings.get("stop-libvirtd"):
            signal_libvirtd(signal.SIGSTOP)
        if name in (settings.get("kill-libvirtd"), settings.get("restart-libvirtd")):
            signal_libvirtd(signal.SIGKILL)
        if name == settings.get("restart-libvirtd"):
            subprocess.Popen(["libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid"])
        if name == pause_at:
            time.sleep(float(pause))
        if name == settings.get("fail"):
            raise MacvmError(f"made to fail at {name}", "none")
        if name == settings.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare(context: Context) -> None:
        ahead = float(settings.get("ahead", "0"))
        context.checkpoint = at
        context.clock = lambda: time.monotonic() + ahead

    run.context_hook = prepare
    main.main(arguments)


if __name__ == "__main__":
    split = sys.argv.index("--")
    main_with(dict(word.split("=", 1) for word in sys.argv[1:split]), sys.argv[split + 1 :])
