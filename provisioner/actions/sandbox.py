"""A KVM host in namespaces, with a switch and a LAN peer: to try macvtap's modes without touching the LAN."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from provisioner.errors import TimeUp, Unable
from provisioner.host.commands import ToolFailed
from provisioner.host.sandbox import client, terminal
from provisioner.host.sandbox.client import Running
from provisioner.host.sandbox.layout import LAN, SOCKETS, SWITCH, addresses, host_name, spare_port
from provisioner.host.sandbox.owner import Owner

#: KVM hosts that fit below the DHCP server's range.
MOST_HOSTS = 98
_DHCP_PID = "/run/macvm-dhcp.pid"


class Process:
    """A command that runs in a node in the background, with its output so far at any time."""

    def __init__(self, running: Running, output: int, errors: int) -> None:
        self._running = running
        self._output = output
        self._errors = errors
        self.pid = running.pid  # as the node numbers it

    @property
    def stdout(self) -> str:
        return _text(self._output)

    @property
    def stderr(self) -> str:
        return _text(self._errors)

    def signal(self, number: int) -> None:
        self._running.signal(number)

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, 128 + n where signal n ended it. Raises TimeUp; the command then runs on."""
        return self._running.wait(timeout)

    def close(self) -> None:
        """Kill it and its process group where it still runs, and forget its output."""
        self._running.close()
        for fd in (self._output, self._errors):
            if fd >= 0:
                os.close(fd)
        self._output = self._errors = -1

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text(memfd: int) -> str:
    return os.pread(memfd, os.fstat(memfd).st_size, 0).decode(errors="replace")


class Node:
    """The switch, the LAN peer or a KVM host of a sandbox."""

    def __init__(self, sockets: Path, name: str) -> None:
        self._sockets = sockets
        self.name = name

    @property
    def addresses(self) -> tuple[str, str]:
        """IPv4 and IPv6, without prefix lengths. The switch has none."""
        return addresses(self.name)

    def start(self, argv: Sequence[str | Path], *, input: str = "", cwd: str | Path | None = None) -> Process:
        """Start a command in the background. Raises NotFound for no such node, CannotRun."""
        # Files in memory and not pipes: nobody has to read them for the command to go on, and they may be read twice.
        given, output, errors = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
        try:
            for fd in (output, errors):
                # Commands that write at the same time, or open /dev/stdout anew, then do not overwrite one another.
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
            os.write(given, input.encode())
            os.lseek(given, 0, os.SEEK_SET)
            words = [str(word) for word in argv]
            running = client.start(
                self._sockets, self.name, words, (given, output, errors), cwd=str(cwd or os.getcwd())
            )
        except BaseException:
            os.close(output)
            os.close(errors)
            raise
        finally:
            os.close(given)
        return Process(running, output, errors)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: str = "",
        timeout: float | None = 60,
        check: bool = False,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. `returncode` is 128 + n where signal n ended it.

        Raises TimeUp after `timeout` seconds, with the command killed; with `check`, ToolFailed for any status but 0.
        """
        with self.start(argv, input=input, cwd=cwd) as process:
            try:
                status = process.wait(timeout)
            except TimeUp as error:
                message = f"{argv[0]} on {self.name} did not end within {timeout:g} s: {process.stderr}"
                raise TimeUp(message, "it has been ended") from error
            done = subprocess.CompletedProcess([str(word) for word in argv], status, process.stdout, process.stderr)
        if check and status:
            message = f"{' '.join(done.args)} on {self.name}: status {status}: {done.stderr.strip()}"
            raise ToolFailed(message, "run it by hand in `macvm sandbox shell`")
        return done

    def attach(self, argv: Sequence[str]) -> int:
        """Run a command with this process's own standard streams, terminal and signals; its exit status."""
        return terminal.attach(self._sockets, self.name, argv)

    def power_cut(self) -> None:
        """End the node and all its processes at once, as a power cut does. It does not come back."""
        client.cut_power(self._sockets, self.name)


class Nodes:
    """What can be reached from inside a sandbox, and from its owner."""

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets

    def host(self, number: int = 1) -> Node:
        return Node(self._sockets, host_name(number))

    @property
    def lan(self) -> Node:
        return Node(self._sockets, LAN)

    @property
    def switch(self) -> Node:
        return Node(self._sockets, SWITCH)

    def hairpin(self, on: bool) -> None:
        """Have the switch send frames back out of the port they came in by, or not: on the ports of all KVM hosts."""
        self.switch.run(["ip", "-batch", "-"], input="\n".join(self.hairpin_lines(on)) + "\n", check=True)

    def hairpin_lines(self, on: bool) -> list[str]:
        """The arguments of `ip` on the switch that do it. The LAN peer's port stays as it is: no VM lives there."""
        hosts = sorted(path.name for path in self._sockets.iterdir() if path.name not in (LAN, SWITCH))
        ports = [port for host in hosts for port in (host, spare_port(host))]
        return [f"link set dev {port} type bridge_slave hairpin {'on' if on else 'off'}" for port in ports]

    def dhcp(self, on: bool) -> None:
        """Start or stop the LAN peer's DHCP server. Either may be said twice."""
        running = self.lan.run(["pgrep", "--pidfile", _DHCP_PID]).returncode == 0
        if on and not running:
            self.lan.run(dhcp_server(), check=True)
        elif running and not on:
            pid = self.lan.run(["cat", _DHCP_PID], check=True).stdout.strip()
            self.lan.run(["kill", pid], check=True)
            # Until it has gone it holds the port, and the next one could not start.
            self.lan.run(["tail", f"--pid={pid}", "--sleep-interval=0.01", "-f", "/dev/null"], check=True)


def dhcp_server() -> list[str]:
    """dnsmasq as DHCP server alone: it detaches once it serves."""
    return [
        "dnsmasq",
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=eth0",
        "--dhcp-range=192.0.2.100,192.0.2.199,1h",
        "--dhcp-authoritative",
        "--no-ping",  # saves the 3 s in which it listens for another holder of the address
        "--dhcp-leasefile=/run/macvm-dhcp.leases",
        f"--pid-file={_DHCP_PID}",
    ]


class Sandbox(Nodes):
    """A sandbox of this process's own: `with Sandbox(hosts=2) as box: box.host(1).run(["virsh", "list"])`.

    It ends with the block, and with this process however that ends.
    """

    def __init__(self, hosts: int = 1, hairpin: bool = False) -> None:
        """Returns when every host's libvirtd is ready. Raises Unable where this machine cannot carry one."""
        self._owner = Owner(hosts, hairpin)
        super().__init__(self._owner.sockets)

    @property
    def pid(self) -> int:
        """Process id of its first process."""
        return self._owner.process.pid

    def close(self) -> None:
        self._owner.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def around() -> Nodes:
    """The sandbox that this process runs in. Raises Unable outside of one."""
    sockets = Path(SOCKETS)
    if not sockets.is_dir():
        raise Unable("this is not inside a sandbox", "macvm sandbox shell")
    return Nodes(sockets)
