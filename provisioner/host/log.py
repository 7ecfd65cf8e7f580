"""What macvm tells of its work: steps and calls to whoever asked with -v, and each change to the host's log.

A change is one line of systemd's journal, with fields (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/), else of syslog,
else of nothing. Secrets are in neither: arguments of calls are shown by name and length where they may hold any.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_JOURNAL, _SYSLOG = Path("/run/systemd/journal/socket"), Path("/dev/log")

#: syslog(3)
_NOTICE, _WARNING = 5, 4


class _Ear:
    """Who listens in this process: to nobody's cost where nobody does."""

    level = 0
    say: Callable[[str], None] = staticmethod(lambda _: None)
    #: Changes that were written down.
    changes = 0


_ear = _Ear()


def listen(level: int, say: Callable[[str], None]) -> None:
    """`say` is told, from any thread, each step at level 1, and each call to libvirt, the kernel and tools at 2."""
    _ear.level, _ear.say = level, say


def step(text: str, facts: Mapping[str, Any] | None = None) -> None:
    """What is begun, with what is known of it."""
    if _ear.level > 0:
        _ear.say(f"step: {text}{_listed(facts or {})}")


def _listed(facts: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key} {_short(value)}" for key, value in facts.items() if value not in ("", None, [], {}))
    return f" ({shown})" if shown else ""


def _short(value: Any) -> str:
    """Texts that may hold a secret, as a domain's XML does and a JSON for its agent, by their length."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_short, value))
    text = str(value)
    if text[:1] in ("<", "{", "[") or len(text) > 200:
        return f"{text[:1]}…, {len(text)} characters"
    return text if text.isprintable() else ascii(text)


def is_detailed() -> bool:
    """Whether calls are told: what they are told as need not be made up otherwise."""
    return _ear.level > 1


def call(kind: str, text: str) -> None:
    """One call, where `is_detailed`."""
    if _ear.level > 1:
        _ear.say(f"{kind}: {text}")


#: linux/rtnetlink.h, and the length of each kind's header
_KINDS = {0: "LINK", 4: "ADDR", 8: "ROUTE", 12: "NEIGH"}
_VERBS = ("NEW", "DEL", "GET", "SET")
_HEADERS = {"LINK": 16, "ADDR": 8, "ROUTE": 12, "NEIGH": 12}


def netlink(message: bytes) -> None:
    """A message of rtnetlink's, where `is_detailed`: its kind, and its attributes by number."""
    length, kind = struct.unpack_from("IH", message)
    what = _KINDS.get(kind - 16 & ~3, "")
    name = f"RTM_{_VERBS[kind & 3]}{what}" if what else f"kind {kind}"
    at, shown = 16 + _HEADERS.get(what, 16), [message[16 : 16 + _HEADERS.get(what, 16)].hex()]
    while at + 4 <= length:
        size, number = struct.unpack_from("HH", message, at)
        data = message[at + 4 : at + size]
        text = data.rstrip(b"\0")
        is_text = len(text) > 3 and text.isascii() and text.decode().isprintable()
        shown.append(f"{number & 0x3FFF}={text.decode() if is_text else data.hex()}")
        at += max(4, (size + 3) & ~3)
    call("netlink", f"{name} {' '.join(shown)}")


class _Traced:
    """A module of C functions, each of which is told when it is called."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        # The event loop's turns and the end of Python's own objects are none of macvm's doing.
        if not callable(found) or name.startswith(("virEvent", "virGetLastError", "virRegister")) or "Free" in name:
            return found

        def traced(*arguments: Any) -> Any:
            shown = [_short(one) for one in arguments if isinstance(one, (str, bytes, int))]
            call("libvirt", f"{name}({', '.join(shown)})")
            return found(*arguments)

        return traced


def trace(binding: ModuleType, functions: str) -> None:
    """Has the functions of a binding, which it looks up in the module of C functions of that name, told."""
    if _ear.level > 1 and not isinstance(getattr(binding, functions), _Traced):
        setattr(binding, functions, _Traced(getattr(binding, functions)))


def changes() -> int:
    """How many changes were written down in this process."""
    return _ear.changes


def record(action: str, machine: str, error: BaseException | None = None, *, result: str = "", uuid: str = "") -> None:
    """One line of the host's log: who did what, to what, and how it ended. Never fails."""
    _ear.changes += 1
    if not (_JOURNAL.exists() or _SYSLOG.exists()):
        return
    from provisioner.model.masking import masked

    ended = result or ("failed" if error else "done")
    # An error's words may repeat what was typed.
    reason = " ".join(masked(str(error).encode(errors="replace")).split())[:500] if error and str(error) else ""
    who = {"uid": os.environ.get("SUDO_UID") or str(os.getuid()), "user": os.environ.get("SUDO_USER", "")}
    by = f"uid {who['uid']}" + (f" ({who['user']}, through sudo)" if who["user"] else "")
    line = f"{action}{' ' + machine if machine else ''}: {ended}{': ' + reason if reason else ''}, by {by}"
    fields = {
        "MESSAGE": line,
        "PRIORITY": str(_WARNING if error else _NOTICE),
        "SYSLOG_IDENTIFIER": "macvm",
        "MACVM_ACTION": action,
        "MACVM_MACHINE": machine,
        "MACVM_UUID": uuid,
        "MACVM_RESULT": ended,
        "MACVM_REASON": reason,
        "MACVM_UID": who["uid"],
        "MACVM_USER": who["user"],
    }
    printable = {key: "".join(c if c.isprintable() else "?" for c in text) for key, text in fields.items() if text}
    if not _to_journal(printable):
        _to_syslog(printable["MESSAGE"], _WARNING if error else _NOTICE)


def _to_journal(fields: Mapping[str, str]) -> bool:
    data = "".join(f"{key}={value}\n" for key, value in fields.items()).encode(errors="replace")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.sendto(data, str(_JOURNAL))
    except OSError:
        return False
    return True


def _to_syslog(text: str, priority: int) -> None:
    import syslog

    syslog.openlog("macvm", syslog.LOG_PID | syslog.LOG_NDELAY, syslog.LOG_DAEMON)
    syslog.syslog(priority, text)
    syslog.closelog()


def pending() -> BaseException | None:
    """The error that is being handled where this is called."""
    return sys.exc_info()[1]
