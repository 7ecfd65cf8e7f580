"""Why a machine did not start where AppArmor or SELinux confine guests: libvirt's own error does not name the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from provisioner.errors import HypervisorFailed
from provisioner.model.denial import Denial, find_denial, refused_by_helper, unreadable

#: What auditd writes, where it runs; else the kernel logs it.
_AUDIT_LOG = Path("/var/log/audit/audit.log")
_TAIL = 1 << 18
#: syslog(2)
_READ_ALL, _SIZE_BUFFER = 3, 10

_HELPERS = ("/usr/lib/libvirt/virt-aa-helper", "/usr/libexec/libvirt/virt-aa-helper", "/usr/libexec/virt-aa-helper")


def explain(error: HypervisorFailed, uuid: str, since: float, definition: Callable[[], str]) -> None:
    """Has the error of a start that was tried at `since`, in seconds of the epoch, name the file that the machine was
    denied, where that can be found."""
    # The kernel's stamps come from a coarser clock.
    denial = _find(uuid, definition, since - 1, error.message)
    if denial:
        error.message, error.hint = f"{error.message}: {denial.message}", denial.hint


def _find(uuid: str, definition: Callable[[], str], since: float, message: str) -> Denial | None:
    for log in (_kernel_log, _audit_log):
        if denial := find_denial(log(), uuid, since):
            return denial
    if "AppArmor" in message:
        return refused_by_helper(_ask_helper(uuid, definition))
    return unreadable(message)


def _kernel_log() -> str:
    """Empty for those who may not read it."""
    import ctypes

    syslog = ctypes.CDLL(None).klogctl
    size = syslog(_SIZE_BUFFER, None, 0)
    if size <= 0:
        return ""
    buffer = ctypes.create_string_buffer(size)
    read = syslog(_READ_ALL, buffer, size)
    return buffer.raw[: max(0, read)].decode(errors="replace")


def _audit_log() -> str:
    try:
        with _AUDIT_LOG.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _ask_helper(uuid: str, definition: Callable[[], str]) -> str:
    """What the program that writes a machine's profile says of it; it is not to write any."""
    import subprocess

    helper = next((path for path in _HELPERS if os.access(path, os.X_OK)), None)
    if helper is None:
        return ""
    argv = [helper, "--dryrun", "--create", "--uuid", f"libvirt-{uuid}"]
    with contextlib.suppress(HypervisorFailed, OSError, subprocess.TimeoutExpired):
        done = subprocess.run(argv, input=definition(), capture_output=True, text=True, timeout=10, check=False)
        return done.stderr
    return ""
