"""PID 1 of a node: the loop that reaps, and that runs commands for others."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from provisioner.host.sandbox.layout import SOCKETS
from provisioner.host.sandbox.processes import spawn


class Node:
    """PID 1 of one node: reaps, and runs commands for whoever asks at its socket."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.selector = selectors.DefaultSelector()
        self.watched: dict[int, Callable[[int], None]] = {}  # process id -> what to do with its wait status
        awake, wake = socket.socketpair()
        awake.setblocking(False)
        wake.setblocking(False)
        self._pair = awake, wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self.on_readable(awake, self._reap)

    def on_readable(self, source: Any, act: Callable[[], None]) -> None:
        self.selector.register(source, selectors.EVENT_READ, act)

    def listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"{SOCKETS}/{self.name}")
        listener.listen(128)
        self.on_readable(listener, lambda: self._serve(listener.accept()[0]))

    def loop(self) -> NoReturn:
        while True:
            for key, _ in self.selector.select():
                # What an earlier event of this round closed is no longer ours to act on.
                if self.selector.get_map().get(key.fd) is key:
                    key.data()

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._pair[0].recv(4096)
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                ended = self.watched.pop(pid, None)
                if ended:
                    ended(status)

    def _serve(self, client: socket.socket) -> None:
        """One request: start the command, then pass signals in and the status out."""
        client.settimeout(5)
        fds: list[int] = []
        slave = -1
        try:
            _, fds, _, _ = socket.recv_fds(client, 16, 4, socket.MSG_CMSG_CLOEXEC)
            if len(fds) != 4:
                client.close()
                return
            request = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
            if request.get("power") == "off":
                os._exit(0)  # the kernel kills all that lives in this PID namespace: a power cut
            stdin, stdout, stderr = fds[1:]
            master: list[int] = []
            if request["terminal"]:
                # The node's own devpts: a terminal of the machine's would be a stranger to /dev/pts in here.
                controller, slave = os.openpty()
                master = [controller]
                fds.append(controller)
                stdin = stdout = slave
                stderr = slave if os.isatty(stderr) else stderr
            try:
                pid = spawn(
                    request["argv"],
                    (stdin, stdout, stderr),
                    request["env"],
                    request["cwd"],
                    request["umask"],
                    request["terminal"],
                )
            except OSError as error:
                client.send(json.dumps({"errno": error.errno, "where": error.filename}).encode())
                client.close()
                return
            self._follow(client, pid)
            socket.send_fds(client, [json.dumps({"pid": pid}).encode()], master)
        except OSError:
            client.close()  # the client went away in the middle: nobody is left to tell
        finally:
            for fd in [*fds, slave]:
                if fd >= 0:
                    os.close(fd)

    def _follow(self, client: socket.socket, pid: int) -> None:
        def heard() -> None:
            try:
                numbers = client.recv(64)
            except OSError:
                numbers = b""
            with suppress(ProcessLookupError):
                for number in numbers or [signal.SIGKILL]:
                    os.killpg(pid, number)
            if not numbers:
                self.selector.unregister(client)
                client.close()
                self.watched.pop(pid, None)

        def ended(status: int) -> None:
            self.selector.unregister(client)
            code = os.waitstatus_to_exitcode(status)
            with suppress(OSError):
                client.send(json.dumps({"status": code if code >= 0 else 128 - code}).encode())
            client.close()

        self.watched[pid] = ended
        self.on_readable(client, heard)
