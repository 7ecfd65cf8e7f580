"""What a security driver kept a machine from, read from the lines that it leaves in the kernel's log or auditd's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

#: `audit(SECONDS.MILLISECONDS:SERIAL)`, in the kernel's log as in auditd's.
_STAMP = re.compile(r"\baudit\((\d+)\.(\d+):\d+\)")
#: A string that holds a blank, a quote or anything not ASCII is written in hexadecimal, without quotes (audit(8),
#: `audit_log_untrustedstring` in kernel/audit.c).
_FIELD = re.compile(r'\b(\w+)=(?:"([^"]*)"|(\S+))')
_SELINUX = re.compile(r"avc:\s+denied\s+\{ ([^}]*) \}")
_HELPER = "virt-aa-helper"


class Denial(NamedTuple):
    """`message` goes behind libvirt's own, which says no more than "Permission denied"."""

    message: str
    hint: str


def find_denial(log: str, uuid: str, since: float) -> Denial | None:
    """The last one of a machine since then, in seconds of the epoch."""
    return next(_denials(log, uuid, since), None)


def _denials(log: str, uuid: str, since: float) -> Iterator[Denial]:
    for line in reversed(log.splitlines()):
        stamp = _STAMP.search(line)
        if stamp is None or int(stamp[1]) + int(stamp[2]) / 1000 < since:
            continue
        fields = {name: quoted or _unhex(bare) for name, quoted, bare in _FIELD.findall(line)}
        if fields.get("apparmor") == "DENIED" and "name" in fields:
            if fields.get("profile") == f"libvirt-{uuid}":
                yield _apparmor(fields["name"], fields.get("denied_mask", ""))
            elif fields.get("profile") == _HELPER:
                yield _apparmor_helper(fields["name"])
        elif (selinux := _SELINUX.search(line)) and ":svirt_" in fields.get("scontext", ""):
            path = fields.get("path") or fields.get("name", "something")
            yield _selinux(path, selinux[1], fields.get("tcontext", ""))


def _unhex(bare: str) -> str:
    """Of `name=`; any other field that happens to be hexadecimal is asked by nobody."""
    try:
        return bytes.fromhex(bare).decode(errors="replace") if len(bare) > 1 else bare
    except ValueError:
        return bare


def _apparmor(path: str, mask: str) -> Denial:
    rule = "rwk" if set(mask) & set("wac") else "rk"
    return Denial(
        f"AppArmor does not let its guest {'write' if rule == 'rwk' else 'read'} {path}",
        f"move it to /var/lib/libvirt/images, or add the line `{path} {rule},`"
        " to /etc/apparmor.d/local/abstractions/libvirt-qemu",
    )


def _apparmor_helper(path: str) -> Denial:
    return Denial(
        f"AppArmor does not let libvirt's {_HELPER} read {path}, to see what that builds on",
        "move it to /var/lib/libvirt/images, /srv, /opt or /mnt, or have its name end in .qcow2, .raw, .img or .iso",
    )


def refused_by_helper(said: str) -> Denial | None:
    """What virt-aa-helper says of a machine for which it makes no profile: a line with the file, then one with why."""
    lines = [line.partition(" error: ")[2] for line in said.splitlines() if " error: " in line]
    for path, why in itertools.pairwise(lines):
        if path.startswith("/"):
            hint = "copy it to /var/lib/libvirt/images: no guest may have files of the system's own folders"
            return Denial(f"libvirt's AppArmor profiles allow no guest {path} ({why})", hint)
    return None


def _selinux(path: str, access: str, context: str) -> Denial:
    folder = path.rpartition("/")[0] if path.startswith("/") else "FOLDER"
    return Denial(
        f"SELinux does not let its guest {access} {path}, which is {context}",
        f"semanage fcontext -a -t virt_image_t '{folder}(/.*)?' && restorecon -R {folder}",
    )


_REFUSED = re.compile(r"'(/[^']+)': Permission denied")


def unreadable(message: str) -> Denial | None:
    """QEMU's own complaint, where no security driver has said anything: the rights of the file or of a folder above."""
    found = _REFUSED.search(message)
    if found is None:
        return None
    hint = f"every folder above it must let QEMU's user through: namei -l {found[1]}"
    return Denial(f"QEMU's user may not open {found[1]}", hint)
