"""Commands in a node, asked for at its socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from provisioner.errors import MacvmError, NotFound, TimeUp

#: Where Debian has the tools that only root runs, and which are not in every PATH.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
#: What points into the caller's own /run, or belongs to the caller's macvm and libvirt.
_NOT_INSIDE = ("MACVM_", "LIBVIRT_", "XDG_RUNTIME_DIR", "DBUS_")


class CannotRun(MacvmError):
    """The command was not found (127) or cannot be executed (126), as in a shell."""

    def __init__(self, message: str, status: int, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


def environment() -> dict[str, str]:
    """This process's environment as a command inside gets it: this `macvm` first in PATH, and none of our settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INSIDE)}
    homes = [os.path.dirname(os.path.abspath(sys.argv[0])), os.path.dirname(sys.executable)]
    first = [home for home in homes if os.access(os.path.join(home, "macvm"), os.X_OK)][:1]
    there = env.get("PATH", os.defpath).split(":")
    env["PATH"] = ":".join([*first, *there, *(folder for folder in SBIN.split(":") if folder not in there)])
    return env


class Running:
    """A command that was started in a node. Closing it, or this process's death, kills the command and its group."""

    def __init__(self, client: socket.socket, pid: int, terminal: int | None) -> None:
        self._client = client
        self.pid = pid  # as the node numbers it
        self.terminal = terminal
        self.status: int | None = None

    def fileno(self) -> int:
        return self._client.fileno()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        with suppress(OSError):
            self._client.send(bytes([number]))

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, 128 + n where signal n ended it. Raises TimeUp, and then the command still runs."""
        if self.status is None:
            self._client.settimeout(timeout)
            try:
                answer = self._client.recv(4096)
            except TimeoutError as error:
                raise TimeUp(f"the command did not end within {timeout:g} s", "it may still run") from error
            except ConnectionResetError:
                answer = b""
            self.close()
            # No answer: the node itself went, as in a power cut. Its processes were killed.
            self.status = json.loads(answer)["status"] if answer else 128 + signal.SIGKILL
        return self.status

    def close(self) -> None:
        self._client.close()
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None


def _connect(sockets: Path, node: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        client.connect(str(sockets / node))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        client.close()
        there = ", ".join(sorted(path.name for path in sockets.glob("*"))) or "none"
        raise NotFound(f"no {node} runs in this sandbox", f"there are: {there}") from error
    return client


def _send(client: socket.socket, request: Mapping[str, object], fds: Sequence[int]) -> None:
    body = os.memfd_create("request")
    try:
        with open(body, "wb", closefd=False) as file:
            file.write(json.dumps(request).encode())
        socket.send_fds(client, [b"request"], [body, *fds])
    finally:
        os.close(body)


def start(
    sockets: Path, node: str, argv: Sequence[str], fds: tuple[int, int, int], *, cwd: str, terminal: bool = False
) -> Running:
    """Start a command in a node, with these three descriptors or, where `terminal`, on a terminal of the node's.

    Raises NotFound for no such node, CannotRun.
    """
    umask = os.umask(0o022)
    os.umask(umask)
    client = _connect(sockets, node)
    request = {"argv": list(argv), "env": environment(), "cwd": cwd, "umask": umask, "terminal": terminal}
    try:
        _send(client, request, fds)
        answer, masters, _, _ = socket.recv_fds(client, 65536, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        client.close()
        raise MacvmError(f"{node} did not take the command: {error.strerror}", "is the sandbox still there?") from error
    reply: dict[str, Any] = json.loads(answer) if answer else {"errno": 0, "where": node}
    if "errno" in reply:
        client.close()
        raise _cannot_run(reply, argv[0])
    return Running(client, reply["pid"], masters[0] if masters else None)


def _cannot_run(reply: Mapping[str, Any], command: str) -> MacvmError:
    number = int(reply["errno"])
    if reply["where"] != command:
        said = os.strerror(number) if number else "it went away"
        return MacvmError(f"{reply['where']}: {said}", "is the sandbox still there?")
    try:
        raise OSError(number, os.strerror(number))
    except FileNotFoundError:
        return CannotRun(
            f"{command}: command not found", 127, "in the sandbox PATH is yours, with macvm's own folder first"
        )
    except OSError as error:
        hint = "check its rights, and the first line of a script"
        return CannotRun(f"{command}: cannot be executed: {error.strerror}", 126, hint)


def cut_power(sockets: Path, node: str) -> None:
    """End a node with all its processes at once."""
    with _connect(sockets, node) as client, suppress(ConnectionResetError):
        _send(client, {"power": "off"}, (0, 1, 2))
        client.recv(1)
