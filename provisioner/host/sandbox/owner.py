"""Starts a sandbox from outside, and keeps it for as long as its owner lives."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import provisioner
from provisioner.errors import MacvmError, Unable
from provisioner.host.commands import missing_tool
from provisioner.host.namespaces import children_in_new_pid_namespace, missing_rights
from provisioner.host.sandbox.client import SBIN
from provisioner.host.sandbox.layout import SOCKETS

#: Without one of these no KVM host can be made.
TOOLS = ("ip", "libvirtd", "virtlogd")
_FIRST_PROCESS = "import sys, json; sys.path.insert(0, sys.argv[1]); from provisioner.host.sandbox.main import main; \
main(json.loads(sys.argv[2]))"


def check_able() -> None:
    """Raise Unable where this process or machine cannot carry a sandbox; the message names all that is missing."""
    rights = missing_rights()
    if rights:
        raise Unable(
            f"a sandbox needs what this process has not: {', '.join(rights)}",
            "sudo macvm sandbox …, or a privileged one",
        )
    for tool in TOOLS:
        if not shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{SBIN}"):
            raise missing_tool("libvirtd" if tool == "virtlogd" else tool)


class Owner:
    """Starts the sandbox's first process and holds its lifeline: when this process dies, the kernel ends them all."""

    def __init__(self, hosts: int, hairpin: bool) -> None:
        """Raises Unable or MacvmError; nothing is left in that case."""
        check_able()
        package = str(Path(provisioner.__file__).resolve().parent.parent)
        lifeline, self._hold = os.pipe()
        report, writable = os.pipe()
        said = os.memfd_create("stderr")
        settings = {"hosts": hosts, "hairpin": hairpin, "lifeline": lifeline, "report": writable}
        try:
            with children_in_new_pid_namespace():
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _FIRST_PROCESS, package, json.dumps(settings)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    pass_fds=(lifeline, writable),
                    cwd="/",
                    start_new_session=True,  # Ctrl+C is for the command, which gets it passed on
                )
            os.close(writable)
            writable = -1
            answer = json.loads(os.read(report, 65536) or b'{"error": "its first process died"}')
            if "error" in answer:
                self.close()
                raise self._failure(answer, os.pread(said, 65536, 0).decode(errors="replace"))
        except OSError as error:
            os.close(self._hold)
            raise Unable(
                f"no PID namespace can be made here: {error.strerror}", "a privileged container, or a VM"
            ) from error
        finally:
            for fd in (lifeline, report, writable, said):
                if fd >= 0:
                    os.close(fd)

    @staticmethod
    def _failure(answer: dict[str, object], traceback: str) -> MacvmError:
        lines = traceback.strip().splitlines()
        message = f"the sandbox did not start: {answer['error']}{': ' + lines[-1] if lines else ''}"
        number = answer.get("errno")
        if number in (errno.EPERM, errno.EACCES):
            return Unable(message, "run it as root of the machine, or in a privileged container")
        if number in (errno.ENODEV, errno.EOPNOTSUPP):
            return Unable(message, "a kernel with macvtap, veth, bridge and overlayfs, built in or as modules")
        return MacvmError(message, "`dmesg | tail` may say more")

    @property
    def sockets(self) -> Path:
        """The directory of the nodes' sockets, seen from outside."""
        return Path(f"/proc/{self.process.pid}/root{SOCKETS}")

    def close(self) -> None:
        """End every process in it, and wait until they are gone."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
            os.close(self._hold)
