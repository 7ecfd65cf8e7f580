"""Starts a sandbox, and runs commands in its nodes: the outside of what `sandbox_node` does inside."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import provisioner
from provisioner.errors import MacvmError, NotFound, TimeUp, Unable
from provisioner.host.commands import missing_tool
from provisioner.host.namespaces import children_in_new_pid_namespace, missing_rights
from provisioner.host.sandbox_node import SOCKETS

#: Debian package by tool, without which no KVM host can be made.
TOOLS = ("ip", "libvirtd", "virtlogd")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_NODE = "import sys, json; sys.path.insert(0, sys.argv[1]); from provisioner.host.sandbox_node import main; \
main(json.loads(sys.argv[2]))"
#: What points into the caller's own /run, or belongs to the caller's macvm and libvirt.
_NOT_INSIDE = ("MACVM_", "LIBVIRT_", "XDG_RUNTIME_DIR", "DBUS_")


class CannotRun(MacvmError):
    """The command was not found (127) or cannot be executed (126), as in a shell."""

    def __init__(self, message: str, status: int, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


def check_able() -> None:
    """Raise Unable where this process or machine cannot carry a sandbox; the message names all that is missing."""
    rights = missing_rights()
    if rights:
        raise Unable(
            f"a sandbox needs what this process has not: {', '.join(rights)}",
            "sudo macvm sandbox …, or a privileged one",
        )
    for tool in TOOLS:
        if not shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_SBIN}"):
            raise missing_tool("libvirtd" if tool == "virtlogd" else tool)


def environment() -> dict[str, str]:
    """This process's environment as a command inside gets it: this `macvm` first in PATH, and none of our settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INSIDE)}
    homes = [os.path.dirname(os.path.abspath(sys.argv[0])), os.path.dirname(sys.executable)]
    first = [home for home in homes if os.access(os.path.join(home, "macvm"), os.X_OK)][:1]
    there = env.get("PATH", os.defpath).split(":")
    env["PATH"] = ":".join([*first, *there, *(folder for folder in _SBIN.split(":") if folder not in there)])
    return env


# --- the first process -----------------------------------------------------------------------------------------------


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
                    [sys.executable, "-I", "-S", "-c", _NODE, package, json.dumps(settings)],
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


# --- commands in a node ----------------------------------------------------------------------------------------------


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
        return CannotRun(f"{command}: cannot be executed: {error.strerror}", 126)


def cut_power(sockets: Path, node: str) -> None:
    """End a node with all its processes at once."""
    with _connect(sockets, node) as client, suppress(ConnectionResetError):
        _send(client, {"power": "off"}, (0, 1, 2))
        client.recv(1)


# --- a user's command: the standard streams passed through ------------------------------------------------------------


def attach(sockets: Path, node: str, argv: Sequence[str]) -> int:
    """Run a command in a node as if it had been run here: standard streams, terminal, signals, working directory.

    Returns its exit status, 128 + n where signal n ended it. Main thread only.
    """
    terminal = os.isatty(0) and os.isatty(1)
    with _caught_signals() as caught:
        running = start(sockets, node, argv, (0, 1, 2), cwd=os.getcwd(), terminal=terminal)
        caught.pass_to(running)
        if running.terminal is not None:
            _relay(running, running.terminal)
        return running.wait()


class _Caught:
    """Signals to this process, kept until there is a command to pass them to."""

    def __init__(self) -> None:
        self._running: Running | None = None
        self._early: list[int] = []

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self._running:
            self._running.signal(number)
        else:
            self._early.append(number)

    def pass_to(self, running: Running) -> None:
        self._running = running
        for number in self._early:
            running.signal(number)


@contextmanager
def _caught_signals() -> Iterator[_Caught]:
    caught = _Caught()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    # One that is ignored, as after nohup, is ignored inside too.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, caught.handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _relay(running: Running, master: int) -> None:
    """Bytes between our terminal and the command's, until the command has ended and all that it wrote is out."""

    def same_size(*_: object) -> None:
        with suppress(OSError):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(1, termios.TIOCGWINSZ, bytes(8)))

    before = termios.tcgetattr(0)
    resized = signal.signal(signal.SIGWINCH, same_size)
    same_size()
    try:
        tty.setraw(0, termios.TCSANOW)  # at once: what was typed ahead is for the command
        sources: list[int] = [0, master, running.fileno()]
        while True:
            # Once the status has come, only the terminal's rest is waited for, briefly: the kernel brings it a moment
            # later, and a process left in the background may hold the terminal open for ever.
            ended = running.fileno() not in sources
            readable, _, _ = select.select(sources, [], [], 0.1 if ended else None)
            if ended and master not in readable:
                break
            if running.fileno() in readable:
                sources = [master]
            if master in readable:
                try:
                    os.write(1, os.read(master, 65536))
                except OSError:  # EIO: nobody holds the other end any more
                    break
            if 0 in readable and 0 in sources:
                typed = os.read(0, 65536)
                if typed:
                    os.write(master, typed)
                else:
                    sources.remove(0)
    finally:
        signal.signal(signal.SIGWINCH, resized)
        termios.tcsetattr(0, termios.TCSANOW, before)
