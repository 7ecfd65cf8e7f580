"""Boots a kernel with virtme-ng and has tests run inside it."""

from __future__ import annotations

import ast
import collections
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.conftest import required

ROOT = Path(__file__).parents[2]

#: Seconds that a boot, and then each test, may take before the guest counts as hanging.
PATIENCE = 240.0
#: Seconds after which a guest that nobody ended any more ends by itself: pytest may have been killed.
LIFETIME = 1800
#: Lines of the console that a failure shows.
TAIL = 60

#: Drivers of the emulated board that no test needs, and that cost the boot seconds.
_UNWANTED = "ahci,i2c_i801,iTCO_wdt,lpc_ich,psmouse,pcspkr,sr_mod,cdrom,powernow_k8,acpi_cpufreq,aesni_intel"

#: The root file system once more, for `guest.sh` to mount in its own way.
_MACHINE = "-fsdev local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"
_MACHINE += " -device virtio-9p-pci,fsdev=machine,mount_tag=machine"

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[^\[]|[\r\0]")


class GuestFailed(Exception):
    """The guest did not start, hangs or has gone; says so with the end of its console."""


def find_kernel() -> Path:
    """The newest kernel that is installed with its modules, or MACVM_TEST_KERNEL. Skips the test where there is none."""
    if named := os.environ.get("MACVM_TEST_KERNEL"):
        return Path(named)
    there = [path for path in Path("/boot").glob("vmlinuz-*") if (Path("/lib/modules") / path.name[8:]).is_dir()]
    required(there, "no kernel with modules in /boot (linux-image-amd64)")
    newest = max(there, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    required(os.access(newest, os.R_OK), f"{newest} is not readable")
    return newest


def find_vng() -> str:
    """virtme-ng, of this Python's own environment or the system's. Skips the test where it is missing."""
    found = shutil.which("vng", path=search_path())
    required(found, "vng is not installed (virtme-ng)")
    required(shutil.which("qemu-system-x86_64"), "qemu-system-x86_64 is not installed (qemu-system-x86)")
    return str(found)


def search_path() -> str:
    """PATH with this Python's own folder first: vng looks there for its helpers."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


class Guest:
    """A kernel in emulation that runs this folder's tests. The first one waits for the boot."""

    def __init__(self, vng: str, kernel: Path) -> None:
        # vng leaves files behind when it is killed.
        self._folder = tempfile.TemporaryDirectory(prefix="macvm-kernel-")
        argv = ["timeout", "--kill-after=5", str(LIFETIME), vng, "--verbose", "--run", str(kernel)]
        # KVM is seldom there where tests run, and 9p is what QEMU itself can do. A second CPU costs more than it gives:
        # on a busy machine each of them spins while it waits for the other.
        argv += ["--disable-kvm", "--disable-microvm", "--force-9p", "--cpus=1", "--memory=2G", "--user=root"]
        argv += [f"--append=module_blacklist={_UNWANTED}", f"--qemu-opts={_MACHINE}"]
        argv += ["--", shlex.join(["sh", str(Path(__file__).with_name("guest.sh")), sys.executable, str(ROOT)])]
        env = {**os.environ, "PATH": search_path(), "TMPDIR": self._folder.name}
        # In a session of its own: one signal ends all of it, and Ctrl+C does not reach QEMU.
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=env,
            text=True,
            errors="replace",
            bufsize=1,
            start_new_session=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._console: collections.deque[str] = collections.deque(maxlen=TAIL)
        self._readers = [
            threading.Thread(target=self._hear, daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._booted = False
        self._lost = ""

    def _hear(self) -> None:
        for line in _pipe(self._process.stdout):
            self._answers.put(line)
        self._answers.put("")

    def _watch(self) -> None:
        for line in _pipe(self._process.stderr):
            self._console.append(_ESCAPES.sub("", line))

    def _answer(self, meanwhile: str) -> Any:
        try:
            line = self._answers.get(timeout=PATIENCE)
        except queue.Empty:
            self._lose(f"the guest kernel has said nothing for {PATIENCE:g} s {meanwhile}")
        if not line:
            self._lose(f"the guest kernel has gone {meanwhile}")
        try:
            return ast.literal_eval(line)
        except (SyntaxError, ValueError):
            self._lose(f"the guest said {line!r} {meanwhile}")

    def _lose(self, what: str) -> None:
        self.close()
        self._lost = what
        raise GuestFailed(f"{what}; the end of its console:\n{''.join(self._console)}")

    def run(self, test: str, following: str | None) -> Iterator[Any]:
        """Its reports, as pytest serialises them. Takes the node ids of the test and of the one after it.

        Raises GuestFailed."""
        if self._lost:
            raise GuestFailed(f"{self._lost}: see the first test that failed of it")
        if not self._booted:
            if (said := self._answer("while it started")) != "ready":
                self._lose(f"the guest said {said!r} while it started")
            self._booted = True
        try:
            assert self._process.stdin
            self._process.stdin.write(f"{(test, following)!r}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer is then that it has gone
        while (report := self._answer(f"in {test}")) != "done":
            yield report

    def close(self) -> None:
        """Cuts its power."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for reader in self._readers:
            reader.join(5)
        self._folder.cleanup()


def _pipe(opened: IO[str] | None) -> IO[str]:
    assert opened
    return opened
