"""Runs external tools: argument lists only, never a shell; a missing tool is named with the package that has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from provisioner.errors import MacvmError, Unable
from provisioner.host import log

#: Which Debian package brings a tool that macvm runs.
PACKAGES = {
    "qemu-img": "qemu-utils",
    "virsh": "libvirt-clients",
    "libvirtd": "libvirt-daemon-system",
    "ip": "iproute2",
    "nft": "nftables",
    "bridge": "iproute2",
    "ping": "iputils-ping",
    "dnsmasq": "dnsmasq-base",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "syslinux": "syslinux",
    "mformat": "mtools",
    "mcopy": "mtools",
    "openssl": "openssl",
    "ssh": "openssh-client",
    "tcpdump": "tcpdump",
}


class ToolFailed(MacvmError):
    """An external tool ended with a status other than 0."""


def missing_tool(tool: str) -> Unable:
    package = PACKAGES.get(tool, tool)
    return Unable(f"{tool} is not installed on this host", f"apt install {package}")


def run(argv: Sequence[str | Path], *, stdin: bytes = b"", timeout: float = 60) -> bytes:
    """Standard output of a tool that ended with status 0.

    Raises Unable when the tool is not installed, ToolFailed with its last line of standard error when it failed or took
    longer than `timeout` seconds.
    """
    # Not at the top: most commands run no tool.
    import shlex
    import subprocess

    words = [str(word) for word in argv]
    log.call("run", shlex.join(words))
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise missing_tool(words[0]) from error
    except subprocess.TimeoutExpired as error:
        hint = "is this host, or a disk of it, very slow or stuck? run it by hand"
        raise ToolFailed(f"{words[0]} did not end within {timeout:g} s: {shlex.join(words)}", hint) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = lines[-1] if lines else f"status {done.returncode}"
        raise ToolFailed(f"{words[0]} failed: {said}", f"by hand: {shlex.join(words)}")
    return done.stdout
