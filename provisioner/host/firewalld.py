"""firewalld's zones, over D-Bus by busctl: firewall-cmd starts a Python of its own, half a second for each question.

A link that is in no zone is in the default one. A zone's runtime is what holds now; its permanent configuration is what
a reload, or the next boot, brings (firewalld.dbus(5)).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from provisioner.errors import MacvmError
from provisioner.host.commands import ToolFailed, run

_NAME = "org.fedoraproject.FirewallD1"
_PATH = "/org/fedoraproject/FirewallD1"
_CONFIG = f"{_PATH}/config"
#: Where it has been installed, and what every question goes through.
_TRACES = ("/etc/firewalld", "/run/dbus/system_bus_socket")


def is_there() -> bool:
    """Whether it may run at all: two looks at the file system, no program."""
    return all(map(os.path.exists, _TRACES))


def zone(link: str) -> str:
    """The zone that a link's packets are in. Empty where firewalld does not run, or does not say."""
    if not is_there():
        return ""
    with suppress(MacvmError):
        return _own_zone(link) or _call(_PATH, "", "getDefaultZone")
    return ""


def to_join(parent: str, shim: str) -> str:
    """The parent's zone, where the shim is not in it; else empty."""
    wanted = zone(parent)
    return wanted if wanted and zone(shim) != wanted else ""


def join(parent: str, shim: str) -> None:
    """Has a shim's packets be treated as the parent's are, now and after a reload. A firewalld that refuses is no
    reason to make no shim: `to_join` still names the zone then."""
    wanted = to_join(parent, shim)
    if not wanted:
        return
    with suppress(MacvmError):
        _call(_PATH, ".zone", "changeZoneOfInterface", wanted, shim)
        _leave_permanent(shim)
        _call(_find(wanted), ".config.zone", "addInterface", shim)


def leave(shim: str) -> None:
    """Takes a shim out of its zone, now and for later; in none is fine."""
    if not is_there():
        return
    with suppress(MacvmError):
        own = _own_zone(shim)
        if own:
            _call(_PATH, ".zone", "removeInterface", own, shim)
        _leave_permanent(shim)


def joining_lines(parent: str, shim: str) -> list[str]:
    """The lines that amount to `join`, for a shim that is still to be made."""
    wanted = to_join(parent, shim)
    options = f"--zone={wanted} --change-interface={shim}"
    return [f"firewall-cmd {options}", f"firewall-cmd --permanent {options}"] if wanted else []


def leaving_lines(shim: str) -> list[str]:
    own = ""
    with suppress(MacvmError):
        own = _own_zone(shim) if is_there() else ""
    options = f"--zone={own} --remove-interface={shim}"
    return [f"firewall-cmd {options}", f"firewall-cmd --permanent {options}"] if own else []


def _own_zone(link: str) -> str:
    return _call(_PATH, ".zone", "getZoneOfInterface", link)


def _leave_permanent(shim: str) -> None:
    lasting = _call(_CONFIG, ".config", "getZoneOfInterface", shim)
    if lasting:
        _call(_find(lasting), ".config.zone", "removeInterface", shim)


def _find(zone: str) -> str:
    return _call(_CONFIG, ".config", "getZoneByName", zone)


def _call(path: str, interface: str, method: str, *words: str) -> str:
    """The first value of the answer. Raises ToolFailed, also where firewalld does not run: asking starts nothing."""
    typed = ["s" * len(words), *words] if words else []
    argv = ["busctl", "--json=short", "--auto-start=no", "--timeout=10", "call"]
    said = run([*argv, _NAME, path, _NAME + interface, method, *typed])
    try:
        values = json.loads(said or b"{}").get("data") or [""]
    except ValueError as error:
        raise ToolFailed(f"busctl said {said[:80]!r}", "is it systemd's?") from error
    return str(values[0])
