"""Small facts of this host, and of the user who called: memory, name servers, SSH keys, ping, password hashes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import re
import time
from pathlib import Path

from provisioner.host.commands import missing_tool, run
from provisioner.model.nic import Address

_SSH = 22

#: The bytes within which a server is to name itself.
_GREETING = 4096


def memory_total() -> int:
    """The host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def name_servers() -> tuple[Address, ...]:
    """The host's DNS servers that a guest can ask too: for systemd-resolved's stub on the loopback, those behind it."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        with contextlib.suppress(OSError):
            found = _servers(Path(path).read_text(errors="replace"))
            if found:
                return found
    return ()


def _servers(text: str) -> tuple[Address, ...]:
    found: list[Address] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(words[1])
                if not address.is_loopback and not address.is_link_local:
                    found.append(address)
    return tuple(found)


def invoking_home() -> Path:
    """Home of the user who called, through sudo too: of who became root, not of who became another by `sudo -u`."""
    user = os.environ.get("SUDO_USER") if os.geteuid() == 0 else None
    with contextlib.suppress(KeyError):
        return Path(pwd.getpwnam(user).pw_dir if user else pwd.getpwuid(os.getuid()).pw_dir)
    return Path("/nonexistent")


def ssh_public_keys() -> tuple[str, ...]:
    """The invoking user's public keys, one line each; certificates, which lie beside them, are none."""
    from provisioner.model.ssh_key import is_public_key, key_lines  # which is asked for where a VM is made

    keys: list[str] = []
    with contextlib.suppress(OSError):
        for path in sorted((invoking_home() / ".ssh").glob("*.pub")):
            with contextlib.suppress(OSError):
                keys += key_lines(path.read_text(errors="replace"))
    return tuple(filter(is_public_key, keys))


def answers_ping(address: Address, seconds: float = 1.0) -> bool:
    """Whether one echo request is answered within `seconds`."""
    import subprocess

    argv = ["ping", "-n", "-q", "-c", "1", "-W", f"{seconds:g}", str(address)]
    try:
        return subprocess.run(argv, capture_output=True, check=False, timeout=seconds + 5).returncode == 0
    except FileNotFoundError as error:
        raise missing_tool("ping") from error
    except subprocess.TimeoutExpired:
        return False


def greets_as_ssh(address: Address, seconds: float = 1.0) -> bool:
    """Whether TCP port 22 answers within `seconds` with a line that begins with `SSH-`; others may come before it
    (RFC 4253, 4.2)."""
    import socket

    deadline, said = time.monotonic() + seconds, b"\n"
    with contextlib.suppress(OSError), socket.create_connection((str(address), _SSH), timeout=seconds) as talk:
        while len(said) < _GREETING and (left := deadline - time.monotonic()) > 0:
            talk.settimeout(left)
            more = talk.recv(_GREETING)
            said += more
            if b"\nSSH-" in said:
                return True
            if not more:
                break
    return False


def password_hash(password: str) -> str:
    """crypt(5)'s SHA-512 hash; the password goes through standard input, where no other process sees it."""
    return run(["openssl", "passwd", "-6", "-stdin"], stdin=os.fsencode(password)).decode().strip()


def kvm_problem() -> str:
    """Why this host cannot run KVM guests; empty where it can.

    `/dev/kvm` alone proves nothing: under some hypervisors it opens although the CPU offers neither VMX nor SVM, and a
    guest then hangs at its first instruction.
    """
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    machine = os.uname().machine
    if machine != "x86_64":
        return ""
    with contextlib.suppress(OSError):
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if flags and not {"vmx", "svm"} & set(flags[1].split()):
            return "/dev/kvm is there, but the CPU shows neither vmx nor svm"
    return ""
