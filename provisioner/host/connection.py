"""The way to libvirt's daemon, and the only importer of its binding: error codes become our errors, and no call waits
for ever.

An event loop is registered before the connection is opened, and runs in a thread: without it keepalive cannot break a
call that hangs in a stopped daemon.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from provisioner.errors import HypervisorFailed, NotFound, Taken, Unable
from provisioner.host import log
from provisioner.model.names import printable
from provisioner.model.uri import is_local

# Its symbols are bound when they are called, not all of them at once: 1.6 ms of every command.
_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_LAZY)
import libvirt  # noqa: E402

sys.setdlopenflags(_flags)

#: Keepalive: a daemon that is silent for this many seconds, this many times, is taken for hung.
_KEEPALIVE = (2, 2)
#: Seconds until the loop runs where nobody listens to events, less than keepalive's interval. While it runs, each call
#: wakes its thread, which then asks for the interpreter: 3 of 100 ms of a list of a hundred domains.
_QUIET = 1.0
#: How long a daemon on this host may take to let a client in.
_OPEN_SECONDS = 8.0
#: How long one that has ended may take to come back, as in a restart: 0.8 s were seen, 1 s beside other work.
_RESTART_SECONDS, _RESTART_TURN = 3.0, 0.05

T = TypeVar("T")

_START_DAEMON = "is it running? systemctl start libvirtd (or virtqemud)"
_HANGS = "the daemon hangs or has ended: systemctl status libvirtd (or virtqemud)"
_LOGS = "journalctl -u libvirtd (or virtqemud) says more"

_loop = threading.Lock()
_loop_runs = False
_listened_to = threading.Event()


def _start_event_loop() -> None:
    global _loop_runs  # noqa: PLW0603 - libvirt's event loop is one for the process as well
    with _loop:
        if _loop_runs:
            return
        # libvirt prints errors to standard error by itself, beside raising them.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _loop_runs = True


def _run_event_loop() -> None:
    _listened_to.wait(_QUIET)
    while libvirt.virEventRunDefaultImpl() == 0:
        pass


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """libvirt's errors as ours; `doing` is what it was asked, such as "to list its domains"."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise _our_error(error, doing) from error


_OUR_ERRORS = {
    libvirt.VIR_ERR_NO_DOMAIN: (NotFound, "macvm list"),
    libvirt.VIR_ERR_DOM_EXIST: (Taken, "choose another name; `macvm list` and `virsh list --all` show those in use"),
    libvirt.VIR_ERR_AUTH_FAILED: (Unable, "run as root, or join the libvirt group (which is root too)"),
    libvirt.VIR_ERR_AUTH_CANCELLED: (Unable, "run as root, or join the libvirt group (which is root too)"),
    libvirt.VIR_ERR_OPERATION_DENIED: (Unable, "run as root: sudo macvm …"),
    libvirt.VIR_ERR_NO_CONNECT: (HypervisorFailed, _START_DAEMON),
}


#: What libvirt's client says, with codes of all kinds, where the daemon ends, or has ended before it is asked.
_GONE = ("connection closed", "end of file", "broken pipe", "connection reset", "socket is closed")


def _our_error(error: libvirt.libvirtError, doing: str) -> Exception:
    message = (error.get_error_message() or str(error)).strip()
    if "keepalive" in message or _has_ended(error):
        return HypervisorFailed(f"libvirt stopped answering when asked {doing}", _HANGS)
    kind, hint = _OUR_ERRORS.get(error.get_error_code(), (HypervisorFailed, _LOGS))
    return kind(f"libvirt refused {doing}: {message}", hint)


def _has_ended(error: libvirt.libvirtError) -> bool:
    message = (error.get_error_message() or "").lower()
    # QEMU's monitor ends in the same words, and keepalive ends the connection to a daemon that runs.
    return any(sign in message for sign in _GONE) and not any(sign in message for sign in ("monitor", "keepalive"))


class _Attempt:
    """Opens a connection in a thread of its own: keepalive begins once the connection is there, and a daemon that hangs
    never lets it come to be."""

    def __init__(self, uri: str, *, readonly: bool) -> None:
        self._uri = uri
        self._open = libvirt.openReadOnly if readonly else libvirt.open
        self._outcome: libvirt.virConnect | libvirt.libvirtError | None = None
        self._thread = threading.Thread(target=self._run, name="libvirt-open", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._open(self._uri)
        except libvirt.libvirtError as error:
            self._outcome = error

    def outcome(self, seconds: float | None) -> libvirt.virConnect | libvirt.libvirtError | None:
        """None where the daemon says nothing for that long. One that is far away may want a password first, so it gets
        all the time."""
        self._thread.join(seconds)
        return self._outcome


class Connection:
    """A connection, opened when it is first asked for."""

    def __init__(self, uri: str, *, readonly: bool) -> None:
        self.uri = uri
        self._readonly = readonly
        self._connection: libvirt.virConnect | None = None
        self._attempt: _Attempt | None = None
        self._opening = threading.Lock()
        #: The run of the daemon's that it leads to, of which another may take the place; "" where none is waited for.
        self._followed = ""

    def open_ahead(self) -> None:
        """Begins to connect beside whatever the caller does next, such as imports; `open` waits for it."""
        if self._attempt is None:
            log.trace(libvirt, "libvirtmod")
            _start_event_loop()
            self._attempt = _Attempt(self.uri, readonly=self._readonly)

    def open(self) -> libvirt.virConnect:
        """Raises HypervisorFailed where no daemon answers, Unable without the rights."""
        with self._opening:
            if self._connection is None:
                self.open_ahead()
                self._connection = self._connect()
                # The same one may have hung, and what it was asked to change be still to come; of what was asked of one
                # far away nothing is known.
                self._followed = self.daemon() if is_local(self.uri) else ""
            return self._connection

    def open_for_events(self) -> libvirt.virConnect:
        """As `open`, for who registers for events: they come without delay."""
        _listened_to.set()
        return self.open()

    def asked(self, question: Callable[[libvirt.virConnect], T]) -> T:
        """The answer to a question that changes nothing; where the daemon has ended since the last one, of that which
        runs by now. What changes something is never asked again: it may have been done."""
        connection = self.open()
        try:
            return question(connection)
        except libvirt.libvirtError as error:
            if not _has_ended(error) or not self._is_another_daemon():
                raise
        with self._opening:
            if self._connection is connection:
                self._connection = None
        return question(self._open_again())

    def _is_another_daemon(self) -> bool:
        """Waits for one, and in vain only once."""
        deadline = time.monotonic() + _RESTART_SECONDS
        while self._followed:
            if self.daemon() not in ("", self._followed):
                return True
            if time.monotonic() >= deadline:
                self._followed = ""
            time.sleep(_RESTART_TURN)
        return False

    def _open_again(self) -> libvirt.virConnect:
        deadline = time.monotonic() + _RESTART_SECONDS
        while True:
            try:
                return self.open()
            except HypervisorFailed:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_RESTART_TURN)

    def daemon(self) -> str:
        """Tells one run of the local daemon from another: after a restart no call of an earlier client is in flight."""
        for name in ("virtqemud", "libvirtd"):
            # A daemon that begins has emptied its file before it writes to it.
            with contextlib.suppress(OSError, IndexError, ValueError):
                pid = int(Path(f"/run/{name}.pid").read_text())
                started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
                return f"{name} {pid} {started}"
        return ""

    def _connect(self) -> libvirt.virConnect:
        assert self._attempt is not None
        outcome, self._attempt = self._attempt.outcome(_OPEN_SECONDS if is_local(self.uri) else None), None
        if outcome is None:
            raise HypervisorFailed(f"libvirt at {printable(self.uri, 200)} does not answer", _HANGS)
        if isinstance(outcome, libvirt.libvirtError):
            raise self._cannot_open(outcome) from outcome
        try:
            outcome.setKeepAlive(*_KEEPALIVE)
        except libvirt.libvirtError as error:
            # A driver inside this very process, such as libvirt's test driver, has no daemon that could hang.
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise self._cannot_open(error) from error
        return outcome

    def _cannot_open(self, error: libvirt.libvirtError) -> Exception:
        code, message = error.get_error_code(), (error.get_error_message() or str(error)).strip()
        denied = code in (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED)
        if denied or "Permission denied" in message:
            hint = "run as root: sudo macvm … (the libvirt group is root too)"
            return Unable(f"libvirt at {self.uri} does not let you in: {message}", hint)
        hint = _START_DAEMON if is_local(self.uri) else "is the address right, and does ssh to it work?"
        return HypervisorFailed(f"libvirt at {printable(self.uri, 200)} is not reachable: {message}", hint)

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None


__all__ = ["Connection", "libvirt", "translated"]
