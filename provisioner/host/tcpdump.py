"""Runs tcpdump on one device; its packets as one pcap stream however often it is run anew."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from provisioner.errors import MacvmError, Unable
from provisioner.host.commands import ToolFailed, missing_tool

#: libpcap's savefile format (pcap-savefile(5)): a file begins with the one, each packet with the other, in the byte
#: order of the host that wrote it.
_FILE_HEADER, _PACKET = 24, struct.Struct("=IIII")

#: What tcpdump says when its device goes, has gone, or is not there or not up yet.
_DEVICE_TROUBLE = ("interface disappeared", "interface went down", "No such device", "is not up")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Sink = Callable[[bytes], None]


def argv(device: str, words: Sequence[str], *, raw: bool, verbose: int = 0) -> list[str]:
    """`words` are the filter's; `--` keeps them from being options.

    Immediate mode, which tcpdump takes by itself where it prints: otherwise the kernel hands packets over by the
    second, and what it holds when the device goes is lost.
    """
    how = ["--immediate-mode", "-U", "-w", "-"] if raw else ["-l"]
    return ["tcpdump", "-n", *["-v"] * verbose, *how, "-i", device, "--", *words]


class Stream:
    """Puts runs together: whole packets only, and the file's header once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._rest, self._head_done, self._runs = b"", False, 0

    def begin(self) -> None:
        """Before each run. A packet that the one before was cut off in is left out."""
        self._rest, self._head_done = b"", False

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        end = 0
        if not self._head_done:
            if len(data) < _FILE_HEADER:
                self._rest = data
                return
            data = data if self._runs == 0 else data[_FILE_HEADER:]
            end = _FILE_HEADER if self._runs == 0 else 0
            self._head_done, self._runs = True, self._runs + 1
        end = _whole(data, end)
        if end:
            self._sink(data[:end])
        self._rest = data[end:]


class _Lines:
    """What tcpdump says on standard error. That which device is gone is told in macvm's words."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.all: list[str] = []
        self._say, self._rest = say, b""

    def feed(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            text = line.decode(errors="replace").strip().removeprefix("tcpdump: ")
            if text.startswith("listening on") or text[:1].isdigit():
                self._say(text)
            elif text and not text.startswith("verbose output suppressed"):
                self.all.append(text)


def _whole(data: bytes, end: int) -> int:
    """Where the last packet ends that is all there, from `end` on."""
    while end + _PACKET.size <= len(data):
        beyond = end + _PACKET.size + _PACKET.unpack_from(data, end)[2]
        if beyond > len(data):
            break
        end = beyond
    return end


class Interrupt:
    """Ctrl+C, SIGTERM or a closed terminal: asks tcpdump to end, and is remembered. A second one is not waited for."""

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen[bytes] | None = None

    def watch(self, child: subprocess.Popen[bytes] | None) -> None:
        self._child = child
        if self.asked:
            self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)

    def _come(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        self._end()
        if again:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """What signals do during the block."""
    interrupt = Interrupt()
    # Under nohup a closed terminal ends nothing.
    heeded = [one for one in _SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt._come) for number in heeded}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(command: Sequence[str], interrupt: Interrupt, stream: Stream | None, say: Callable[[str], None]) -> bool:
    """One run, until the device goes (True) or tcpdump is told to end. Without a stream it prints for itself.

    What it says on standard error goes to `say`. Raises Unable where there is no tcpdump, or no right to capture;
    ToolFailed for a filter that it does not understand.
    """
    try:
        output = subprocess.PIPE if stream else None
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise missing_tool("tcpdump") from error
    lines = _Lines(say)
    try:
        interrupt.watch(child)
        with selectors.DefaultSelector() as pipes:
            if stream and child.stdout:
                stream.begin()
                pipes.register(child.stdout, selectors.EVENT_READ, stream.feed)
            if child.stderr:
                pipes.register(child.stderr, selectors.EVENT_READ, lines.feed)
            while pipes.get_map():
                for key, _ in pipes.select():
                    if data := os.read(key.fd, 1 << 16):
                        key.data(data)
                    else:
                        pipes.unregister(key.fileobj)
        child.wait()
    finally:
        interrupt.watch(None)
        child.kill()
        child.wait()
    if interrupt.asked or child.returncode == 0:
        return False
    if any(trouble in line for line in lines.all for trouble in _DEVICE_TROUBLE):
        return True
    if child.returncode == -signal.SIGPIPE:
        raise BrokenPipeError
    raise _failure(lines.all, child.returncode)


def _failure(said: Sequence[str], status: int) -> MacvmError:
    reason = said[0] if said else f"status {status}"
    if "ermission" in reason or "not permitted" in reason:
        return Unable(f"tcpdump may not capture: {reason}", "run as root: sudo macvm capture …")
    return ToolFailed(f"tcpdump failed: {reason}", "is the filter right? man pcap-filter")
