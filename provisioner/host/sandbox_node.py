"""What runs as PID 1 inside the sandbox: the switch, and below it the LAN peer and every KVM host.

The first process is the switch. It forks one *node* for the LAN peer and one for each KVM host, each the PID 1 of
namespaces of its own. A node reaps, so that libvirt never waits for a zombie; a host's also plays udev for macvtaps.
Nobody can setns(2) from one node into another one's PID namespace, so every node takes requests on a socket instead:
argv, environment and working directory in a memfd, plus the three standard descriptors; it answers with the status.

Nothing here is visible outside: all mounts are private, all directories tmpfs, all namespaces anonymous. When the first
process goes, the kernel ends every process in its PID namespace, and the rest goes with them.

Runs under `python -I -S`: the standard library alone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import selectors
import signal
import socket
import stat
import struct
import termios
import uuid
from collections.abc import Callable
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from typing import Any, NoReturn

from provisioner.host.namespaces import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    fork_in_new_pid_namespace,
    mount,
    unshare,
)

#: Where every node finds the sockets of all of them. Its existence tells a process that it is in a sandbox.
SOCKETS = "/run/macvm-sandbox"
SWITCH, LAN = "switch", "lan"
#: Longest wait for one step of a host's start; on a fast machine the whole start takes a fraction of a second.
PATIENCE = 60.0

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "kvm", "net/tun", "vhost-net")
_OWN_DIRECTORIES = ("/var/lib/macvm", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
_QEMU_CONF = """\
namespaces = []
cgroup_controllers = []
security_driver = "none"
stdio_handler = "logd"
"""
_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0700"
host_uuid = "{uuid}"
"""
#: The first call of every libvirt client, REMOTE_PROC_AUTH_LIST: length, program, version, procedure, call, serial,
#: status (https://libvirt.org/kbase/internals/rpc.html).
_AUTH_LIST = struct.pack(">7I", 28, 0x20008086, 1, 66, 0, 1, 0)


def host_name(number: int) -> str:
    return f"host{number}"


def addresses(node: str) -> tuple[str, str]:
    """A node's IPv4 and IPv6 address: the LAN peer has .1 and ::1, the first KVM host .2 and ::2, and so on."""
    last = 1 if node == LAN else int(node.removeprefix("host")) + 1
    return f"192.0.2.{last}", f"2001:db8::{last:x}"


class Failed(Exception):
    """A step of the start failed; `number` is an errno, or 0."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


# --- processes -------------------------------------------------------------------------------------------------------


def spawn(
    argv: list[str],
    fds: tuple[int, int, int],
    env: dict[str, str] | None = None,
    cwd: str = "/",
    umask: int = 0o022,
    terminal: bool = False,
) -> int:
    """Start a command in a session of its own and return its process id once exec(2) has worked.

    With `terminal`, standard input becomes the session's controlling terminal. Raises the OSError of chdir or exec.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for target, fd in enumerate(fds):
                os.dup2(fd, target)
            if terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # Python ignores these two, and an ignored signal stays ignored over exec.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            os.umask(umask)
            os.chdir(cwd)
            os.execvpe(argv[0], argv, {"PATH": _PATH} if env is None else env)
        except OSError as error:
            where = cwd if error.filename == cwd else argv[0]
            os.write(writable, json.dumps([error.errno, where]).encode())
        finally:
            os._exit(127)
    os.close(writable)
    with open(readable, "rb") as file:
        failure = file.read()
    if failure:
        os.waitpid(pid, 0)
        number, where = json.loads(failure)
        raise OSError(number, os.strerror(number), where)
    return pid


def _tool(*argv: str, stdin: str = "") -> None:
    """Run a tool of the node's own to its end. Raises Failed with its last line of standard error."""
    given, said = os.memfd_create("stdin"), os.memfd_create("stderr")
    try:
        os.pwrite(given, stdin.encode(), 0)
        _, status = os.waitpid(spawn(list(argv), (given, said, said)), 0)
        if status:
            lines = os.pread(said, 65536, 0).decode(errors="replace").strip().splitlines()
            # iproute2 ends a batch with "Command failed -:3"; the kernel's own word stands before it.
            lines = [line for line in lines if not line.startswith("Command failed")]
            message = lines[0] if lines else "failed"
            raise Failed(f"{argv[0]}: {message}", errno.EOPNOTSUPP if "Unknown device type" in message else 0)
    finally:
        os.close(given)
        os.close(said)


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


# --- directories -----------------------------------------------------------------------------------------------------


def _own_dev() -> None:
    """A /dev of the node's own. The tmpfs comes first: nothing is ever made in the machine's /dev, nor its ptmx."""
    there: dict[str, os.stat_result] = {}
    for name in _DEVICES:
        with suppress(FileNotFoundError):
            there[name] = os.stat(f"/dev/{name}")
    mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755")
    for folder, mode in (("net", 0o755), ("pts", 0o755), ("shm", 0o1777)):
        os.mkdir(f"/dev/{folder}")
        os.chmod(f"/dev/{folder}", mode)
    for name, like in there.items():
        os.mknod(f"/dev/{name}", like.st_mode, like.st_rdev)
        os.chown(f"/dev/{name}", like.st_uid, like.st_gid)
        os.chmod(f"/dev/{name}", stat.S_IMODE(like.st_mode))
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV)
    os.symlink("pts/ptmx", "/dev/ptmx")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")


def _own_views() -> None:
    """/dev, /proc and /sys as this node's namespaces see them. The new sysfs also hides the machine's cgroups."""
    _own_dev()
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _own_etc(name: str, hosts: int) -> None:
    """An overlay: /etc/macvm may not exist on the machine, and nothing written in here may stay there."""
    upper, work = f"/run/etc-{name}/upper", f"/run/etc-{name}/work"
    os.makedirs(upper)
    os.makedirs(work)
    mount("overlay", "/etc", "overlay", 0, f"lowerdir=/etc,upperdir={upper},workdir={work}")
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for node in (LAN, *map(host_name, range(1, hosts + 1))):
        lines += [f"{address} {node}" for address in addresses(node)]
    # No name server is on this LAN: without one in resolv.conf a look-up is refused at once, not given up after 10 s.
    for file, text in (("hosts", "\n".join(lines) + "\n"), ("resolv.conf", ""), ("hostname", name + "\n")):
        with suppress(FileNotFoundError):
            os.unlink(f"/etc/{file}")
        _write(f"/etc/{file}", text)


def _own_run() -> None:
    sockets = os.open(SOCKETS, os.O_PATH | os.O_DIRECTORY)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir(SOCKETS, 0o700)
    mount(f"/proc/self/fd/{sockets}", SOCKETS, flags=MS_BIND)
    os.close(sockets)
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)


def _cover(directory: str) -> None:
    """An empty tmpfs over a directory, with the directories in it made again, owners and modes too."""
    if not os.path.isdir(directory):
        _mirror(os.path.dirname(directory))
        os.mkdir(directory, 0o755)
    own = os.stat(directory)
    with os.scandir(directory) as entries:
        below = [(entry.name, entry.stat()) for entry in entries if entry.is_dir(follow_symlinks=False)]
    mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={stat.S_IMODE(own.st_mode):o}")
    for name, like in below:
        path = f"{directory}/{name}"
        os.mkdir(path)
        os.chown(path, like.st_uid, like.st_gid)
        os.chmod(path, stat.S_IMODE(like.st_mode))


def _mirror(directory: str) -> None:
    """A tmpfs over a directory with all that was in it bound back, so that a missing mount point can be made in it.

    Making it in the directory itself would leave it on the machine, and removing it there would unmount what is on it.
    """
    if directory in _mirrored:
        return
    covered = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    with os.scandir(directory) as entries:
        below = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name, mode in below:
        source, target = f"/proc/self/fd/{covered}/{name}", f"{directory}/{name}"
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            _write(target, "")
        mount(source, target, flags=MS_BIND | MS_REC)
    os.close(covered)
    _mirrored.add(directory)


_mirrored: set[str] = set()


def _own_libvirt() -> None:
    """Empty state, and a configuration of the sandbox's own: no domain, network or hook of the machine's comes in."""
    kept: dict[str, bytes] = {}
    files = [f"/etc/libvirt/nwfilter/{name}" for name in _listed("/etc/libvirt/nwfilter")]
    files += ["/etc/libvirt/qemu/networks/default.xml", "/etc/libvirt/libvirt.conf"]
    # What QEMU can do takes a second to find out, and holds for this machine's QEMU wherever it runs.
    known = "/var/cache/libvirt/qemu/capabilities"
    files += [f"{known}/{name}" for name in _listed(known)]
    for path in files:
        with suppress(OSError), open(path, "rb") as file:
            kept[path] = file.read()
    os.makedirs("/etc/libvirt", exist_ok=True)
    os.makedirs("/etc/macvm", exist_ok=True)
    mount("tmpfs", "/etc/libvirt", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    mount("tmpfs", "/etc/macvm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for directory in _OWN_DIRECTORIES:
        _cover(directory)
    for path, content in kept.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    _write("/etc/libvirt/qemu.conf", _QEMU_CONF)
    _write("/etc/libvirt/libvirtd.conf", _LIBVIRTD_CONF.format(uuid=uuid.uuid4()))
    _write("/etc/libvirt/virtlogd.conf", "")


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


# --- the wire --------------------------------------------------------------------------------------------------------


def _wire(nodes: dict[str, int], hairpin: bool) -> None:
    """The switch, and a cable to each node: its end of the veth is called `eth0`, the port has the node's name."""
    for scope in ("all", "default"):
        _write(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "1")  # a switch has no addresses
    lines = ["link add name switch0 type bridge stp_state 0 mcast_snooping 0", "link set dev switch0 up"]
    for name, pid in nodes.items():
        last = int(addresses(name)[0].rpartition(".")[2])
        lines += [
            f"link add name {name} type veth peer name eth0 address 02:00:c0:00:02:{last:02x} netns {pid}",
            f"link set dev {name} master switch0 up",
        ]
        if hairpin and name != LAN:
            lines.append(f"link set dev {name} type bridge_slave hairpin on")
    _tool("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def _plug(name: str) -> None:
    """Addresses and default routes on `eth0`, once the switch has pushed it in here."""
    # `nodad` leaves out the link-local address that the kernel makes by itself.
    _write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
    # A new network namespace inherits this from the machine; a KVM host that forwards would blur what macvtap does.
    _write("/proc/sys/net/ipv4/ip_forward", "0")
    _complete_checksums("eth0")
    v4, v6 = addresses(name)
    lines = [
        "link set dev lo up",
        f"address add {v4}/24 brd + dev eth0",
        f"address add {v6}/64 dev eth0 nodad",
        "link set dev eth0 up",
    ]
    if name != LAN:
        lines += [f"route add default via {address}" for address in addresses(LAN)]
    _tool("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def _need_macvtap() -> None:
    """Load the kernel's macvtap where it is a module not loaded yet: only making a link does that. Raises Failed."""
    if os.path.isdir("/sys/class/macvtap"):
        return
    try:
        _tool("ip", "link", "add", "link", "eth0", "name", "macvtap-probe", "type", "macvtap")
    except Failed as failed:
        raise Failed(f"this kernel has no macvtap ({failed})", errno.EOPNOTSUPP) from failed
    _tool("ip", "link", "delete", "dev", "macvtap-probe")


def _complete_checksums(link: str) -> None:
    """Switch checksum offload off. A veth hands frames over with half a checksum, and DHCP clients drop those."""
    siocethtool, ethtool_stxcsum = 0x8946, 0x17
    command = create_string_buffer(struct.pack("=II", ethtool_stxcsum, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, siocethtool, struct.pack("16sP", link.encode(), addressof(command)))


class TapNodes:
    """Makes /dev/tapN as macvtaps come, and removes it as they go: udev's work, which nobody does in here.

    The kernel only has to say that *something* changed; what there is, is read from sysfs. So a lost message does no
    harm, and neither does a link that is renamed at once: the class directory names devices by interface index.

    The kernel itself makes the same node in devtmpfs, which is one for the whole machine, and there a macvtap of the
    machine's with the same index would find its name taken, and its VM opens ours. So what the kernel put into
    `outer`, the /dev that this one covers, on account of a macvtap in here is taken out again.
    """

    def __init__(self, outer: int) -> None:
        self._outer = outer
        self.events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.events.bind((0, 1))  # RTMGRP_LINK
        self.events.setblocking(False)
        self._made: dict[str, int] = {}

    def sync(self) -> None:
        with suppress(OSError):  # EAGAIN when all is read, ENOBUFS when some was lost
            while True:
                self.events.recv(65536)
        there: dict[str, int] = {}
        for kind in ("macvtap", "ipvtap"):
            for name in _listed(f"/sys/class/{kind}"):
                # Gone again since, or being unregistered.
                with suppress(OSError), open(f"/sys/class/{kind}/{name}/dev") as file:
                    major, _, minor = file.read().partition(":")
                    there[name] = os.makedev(int(major), int(minor))
        for name, device in self._made.items():
            if there.get(name) != device:
                with suppress(FileNotFoundError):
                    os.unlink(f"/dev/{name}")
        for name, device in there.items():
            if self._made.get(name) != device:
                with suppress(FileExistsError):
                    os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o600, device)
                with suppress(FileNotFoundError):
                    if os.stat(name, dir_fd=self._outer).st_rdev == device:
                        os.unlink(name, dir_fd=self._outer)
        self._made = there


# --- nodes -----------------------------------------------------------------------------------------------------------


def _start_libvirt(node: Node, line: socket.socket) -> None:
    """virtlogd and libvirtd; `line` hears when libvirtd answers, or why it ended."""
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind("/run/libvirtd-ready")
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with open(os.devnull, "rb") as nothing:
        for daemon in ("virtlogd", "libvirtd"):
            log = f"/var/log/libvirt/{daemon}.log"
            with open(log, "ab") as file:
                env = {"PATH": _PATH, "LANG": "C.UTF-8"}
                if daemon == "libvirtd":
                    env["NOTIFY_SOCKET"] = "/run/libvirtd-ready"
                pid = spawn([daemon], (nothing.fileno(), file.fileno(), file.fileno()), env)

    def listening() -> None:
        # It notifies once its socket is there, with its drivers still to come: only an answer means that it is ready.
        node.selector.unregister(notified)
        notified.close()
        os.unlink("/run/libvirtd-ready")
        asking.connect("/run/libvirt/libvirt-sock")
        asking.send(_AUTH_LIST)
        node.on_readable(asking, answered)

    def answered() -> None:
        node.selector.unregister(asking)
        ready = asking.recv(64)
        asking.close()
        if ready:  # without one it has just died, and `ended` is next
            node.watched.pop(pid, None)
            line.send(b"ready")

    def ended(_status: int) -> None:
        with open(log, errors="replace") as file:
            said = file.read().strip().splitlines()
        line.send(_failure(Failed(f"libvirtd ended while starting: {said[-1] if said else 'its log is empty'}")))

    node.on_readable(notified, listening)
    node.watched[pid] = ended


def _be_node(name: str, hosts: int, line: socket.socket) -> NoReturn:
    """The life of the LAN peer or of a KVM host, as PID 1 of its own namespaces."""
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
    node = Node(name)
    node.listen()
    line.send(b"namespaces")
    socket.sethostname(name)
    _own_etc(name, hosts)
    if name != LAN:
        _own_libvirt()
    _own_run()
    outer_dev = os.open("/dev", os.O_PATH | os.O_DIRECTORY)
    _own_views()
    if name == LAN:
        line.recv(16)
        _plug(name)
        line.send(b"ready")
        node.loop()
    taps = TapNodes(outer_dev)
    node.on_readable(taps.events, taps.sync)
    # libvirtd takes the longest of all and needs no LAN: it starts while the cables are still being laid.
    _start_libvirt(node, line)
    line.recv(16)
    _plug(name)
    _need_macvtap()
    node.loop()


def _failure(error: Exception) -> bytes:
    number = error.number if isinstance(error, Failed) else getattr(error, "errno", 0)
    return json.dumps({"error": str(error), "errno": number}).encode()


def _fork_node(name: str, hosts: int) -> tuple[int, socket.socket]:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = fork_in_new_pid_namespace()
    if pid == 0:
        try:
            ours.close()
            _be_node(name, hosts, its)
        except (OSError, Failed) as error:
            its.send(_failure(error))
        finally:
            os._exit(1)
    its.close()
    return pid, ours


def _hear(line: socket.socket, name: str, lifeline: int) -> None:
    """Wait for a node's next word. Ends everything when the owner goes meanwhile; raises Failed on a failed start."""
    both: list[Any] = [line, lifeline]
    readable, _, _ = select.select(both, [], [], PATIENCE)
    if lifeline in readable:
        os._exit(1)
    said = line.recv(65536) if readable else b""
    if said.startswith(b"{"):
        failure = json.loads(said)
        raise Failed(f"{name}: {failure['error']}", failure["errno"] or 0)
    if not said:
        raise Failed(f"{name} {'ended while starting' if readable else f'did not start within {PATIENCE:g} s'}")


def _start(hosts: int, hairpin: bool, lifeline: int) -> Node:
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
    mount("", "/", flags=MS_REC | MS_PRIVATE)  # before anything else: no mount of ours may ever reach the machine
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir(SOCKETS, 0o700)
    socket.sethostname(SWITCH)
    nodes = {name: _fork_node(name, hosts) for name in (*map(host_name, range(1, hosts + 1)), LAN)}
    switch = Node(SWITCH)
    switch.listen()
    for name, (_, line) in nodes.items():
        _hear(line, name, lifeline)
    _wire({name: pid for name, (pid, _) in nodes.items()}, hairpin)
    for _, line in nodes.values():
        line.send(b"wired")
    _own_views()
    for name, (_, line) in nodes.items():
        _hear(line, name, lifeline)
        line.close()
    return switch


def main(settings: dict[str, Any]) -> NoReturn:
    """PID 1 of the sandbox.

    `settings`: hosts, hairpin, and two descriptors: `lifeline`, whose other end only the owner holds, so that it reads
    as ended when the owner has died in whatever way, and `report`, for one line of JSON once the start is over.
    """
    lifeline, report = settings["lifeline"], settings["report"]
    os.set_inheritable(lifeline, False)
    os.set_inheritable(report, False)
    os.umask(0o022)
    try:
        switch = _start(settings["hosts"], settings["hairpin"], lifeline)
    except (OSError, Failed) as error:
        os.write(report, _failure(error))
        os._exit(1)
    os.write(report, b"{}")
    os.close(report)
    switch.on_readable(lifeline, lambda: os._exit(0))
    switch.loop()
