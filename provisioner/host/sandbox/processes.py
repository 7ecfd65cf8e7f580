"""Commands that a node starts."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import termios

from provisioner.host.sandbox.failure import Failed

#: For a node's own tools; a user's command brings its environment along.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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
            os.execvpe(argv[0], argv, {"PATH": PATH} if env is None else env)
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


def tool(*argv: str, stdin: str = "") -> None:
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
