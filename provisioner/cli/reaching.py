"""The commands that reach a VM by its name: its address, ssh, /etc/hosts, and what its NIC sends and hears."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from provisioner.actions import reaching
from provisioner.cli import render, words
from provisioner.cli.base import Command, Hinted
from provisioner.cli.completion import machine_names, nic_names
from provisioner.cli.run import changing, looking, tell
from provisioner.errors import MacvmError, Unable, Usage

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from provisioner.actions.hosts import Host
    from provisioner.context import Options

_KEY = click.option(
    "-i", "key", type=click.Path(exists=True, path_type=Path), metavar="KEY", help="The private key to log in with."
)


@click.command(cls=Command)
@click.argument("name", required=False, metavar="NAME", shell_complete=machine_names)
@click.option("--wait", is_flag=False, flag_value="", metavar="[=SECONDS]", help="Until an address is known.")
@click.option("--timeout", type=words.SECONDS, default="60", help="How long --wait waits.  [60s]")
def ip(name: str | None, wait: str | None, timeout: float) -> None:
    """Print the address that this host reaches a VM by, alone on its line; with -o json all there are.

    A VM may have several: one that the host's routes lead to comes before one that it cannot reach, and
    IPv6's link-local ones are never meant.
    """
    # Click gives an option whose value may be left out the word after it, whatever that is.
    if wait and name is None:
        name, wait = wait, ""
    if name is None:
        raise Usage("Missing argument 'NAME'.", "`macvm ip --help` shows how it is used")
    if wait:
        timeout = words.SECONDS.convert(wait, None, None)
    with looking(agents=True) as (context, options):
        context.require_local("telling a VM's address")
        if wait is not None:
            # Most who reach a machine by name wait for nothing.
            from provisioner.actions.waiting import Waiting

            with closing(Waiting(context)) as waiting:
                waiting.until([name], "ip", timeout)
        _, reached = reaching.get_address(context, name)
        if options.output == "json":
            render.print_json(reached)
        else:
            click.echo(reached.address)


def _login_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Machines, behind `USER@` too."""
    user, sign, name = incomplete.rpartition("@")
    items = machine_names(ctx, param, name)
    for item in items:
        item.value = f"{user}{sign}{item.value}"
    return items


@contextmanager
def _own_status() -> Iterator[None]:
    """ssh's status is passed through, so macvm's own failures get one that commands rarely use. "This host cannot do
    it" keeps its 5, as in `macvm sandbox`."""
    try:
        yield
    except MacvmError as error:
        if not isinstance(error, Unable) and error.status not in (126, 127):
            error.status = 125
        raise


class _Ssh(Command):
    """Says where a command's own options go."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = "what is for the VM stands behind --: macvm ssh NAME -- ls -l"
            raise Hinted(error.format_message(), hint, ctx) from error


@click.command(cls=_Ssh)
@click.argument("target", metavar="[USER@]NAME", shell_complete=_login_names)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND]")
@_KEY
def ssh(target: str, command: Sequence[str], key: Path | None) -> None:
    """Log in to a VM with ssh, or run COMMAND in it.

    The user is the image's, unless said. Host keys are kept for each VM, so that a new one at an old address is no
    alarm. Ends with ssh's own status; 125 where macvm failed, 127 where there is no ssh.
    """
    user, sign, name = target.rpartition("@")
    if sign and not user:
        raise Usage(f"{target} names no user before the @", f"macvm ssh {name}, or macvm ssh USER@{name}")
    with _own_status():
        with looking(agents=True) as (context, _):
            context.require_local("ssh to a VM")
            from provisioner.actions import ssh as action

            argv = action.argv(action.target(context, name, user, key and key.absolute()), command)
        _become(argv)


def _become(argv: list[str]) -> None:
    from provisioner.host.commands import missing_tool

    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        failed: MacvmError = missing_tool(argv[0])
        if not isinstance(error, FileNotFoundError):
            failed = MacvmError(
                f"{argv[0]} cannot be executed: {error.strerror}", f"check the rights of `which {argv[0]}`"
            )
        failed.status = 127 if isinstance(error, FileNotFoundError) else 126
        raise failed from error


@click.command("ssh-config", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]…", shell_complete=machine_names)
@_KEY
def ssh_config(names: Sequence[str], key: Path | None) -> None:
    """Print a Host section for each VM that runs and has an address, or for those named.

    \b
    macvm ssh-config > ~/.ssh/macvm, and in ~/.ssh/config: Include macvm
    Or: ssh -F, scp -F, rsync -e, ansible --ssh-common-args '-F FILE'.
    """
    with looking(agents=True) as (context, options):
        context.require_local("an ssh configuration")
        from provisioner.actions import ssh as action

        found = action.config(context, names, key and key.absolute())
    _say(found.notes)
    if options.output == "json":
        render.print_json(found.targets)
    elif options.output == "name":
        render.print_names(to.name for to in found.targets)
    else:
        click.echo("\n".join(action.block(to) for to in found.targets), nl=False)


@click.command(cls=Command)
@click.option("--write", is_flag=True, help="Keep them in a marked block of /etc/hosts.")
@click.option("--dry-run", is_flag=True, help="With --write: show what would change, and change nothing.")
def hosts(write: bool, dry_run: bool) -> None:
    """Print `ADDRESS NAME` for each VM and endpoint of which an address is known.

    With --write they stand in /etc/hosts, between `# macvm begin` and `# macvm end`; no other line is touched.
    """
    from provisioner.actions import hosts as action

    with changing() if write and not dry_run else looking(agents=True) as (context, options):
        context.require_local("names of this host's own VMs")
        if not write:
            found = action.look(context)
            _say(found.notes)
            if options.output == "json":
                render.print_json(found.hosts)
            else:
                _print_hosts(found.hosts, options)
            return
        written = action.write(context, dry_run=dry_run)
    _say(written.notes)
    if options.output == "json":
        shown = ("file", "changed", "hosts")
        render.print_json({name: value for name, value in written._asdict().items() if name in shown})
    elif options.output == "name":
        render.print_names(dict.fromkeys(host.name for host in written.hosts))
    elif dry_run:
        click.echo("\n".join(action.writing_lines(written)) or "# nothing is missing")
    else:
        tell(f"{'written' if written.changed else 'unchanged'}: {written.file}")


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        tell(f"note: {note}")


def _print_hosts(found: Iterable[Host], options: Options) -> None:
    if options.output == "name":
        render.print_names(dict.fromkeys(host.name for host in found))
    else:
        for host in found:
            click.echo(str(host))


class _Output:
    """The file of `-w`. Opened at once, so that what is wrong with it is said at once; what was in it stays until there
    is something to put there, and a new one in which nothing came to be is taken away again."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_new = path != "-" and not os.path.lexists(path)
        self._written = False
        self._file: BinaryIO = sys.stdout.buffer if path == "-" else open(path, "ab")  # noqa: SIM115

    def __enter__(self) -> _Output:
        return self

    def write(self, data: bytes) -> None:
        if not self._written and self._path != "-":
            # A pipe or a device has nothing to cut off.
            with suppress(OSError):
                self._file.truncate(0)
        self._written = True
        self._file.write(data)
        # Whoever reads it meanwhile, through a pipe or by `tail -f`, has whole packets.
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._path != "-":
            self._file.close()
        if self._is_new and not self._written:
            os.unlink(self._path)


@click.command(cls=Command)
@click.argument("name", shell_complete=machine_names)
@click.argument("words", nargs=-1, metavar="[NIC] [FILTER]…", shell_complete=nic_names)
@click.option("-w", "file", metavar="FILE", help="Write packets to a pcap file, or with - to standard output.")
def capture(name: str, words: Sequence[str], file: str | None) -> None:
    """Show what a VM's NIC sends and hears: tcpdump on its host device, whatever that is called today.

    Goes on when the VM is stopped and started again, into the same file with -w. Ctrl+C ends it. FILTER is tcpdump's.
    """
    if file == "-" and sys.stdout.isatty():
        raise Usage("a pcap file is nothing for a terminal", "name a file, or pipe it: … -w - | wireshark -k -i -")
    with looking() as (context, options):
        context.require_local("capturing")
        from provisioner.actions import capture as action

        wanted = action.choose(context, name, words)
        with _Output(file) if file is not None else nullcontext() as output:
            action.capture(context, wanted, output.write if output else None, options.verbose)
