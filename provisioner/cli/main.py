"""The `macvm` command: its groups, and the one place that turns an error into two lines and an exit status."""

from __future__ import annotations

import gc

# Imports and parsed XML make many objects and hardly any garbage: looking for it every 700 costs a list 10 ms of 70.
gc.set_threshold(100_000)

import contextlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from typing import NoReturn  # noqa: E402

import click  # noqa: E402

from provisioner.cli.base import Group, Hinted, options_of  # noqa: E402
from provisioner.errors import MacvmError, Problems  # noqa: E402

_MACHINES = "provisioner.cli.machines"
_REACHING = "provisioner.cli.reaching"
_SANDBOX = "provisioner.cli.sandbox"
_VIEWS = "provisioner.cli.views"

COMMANDS = {
    "create": ("provisioner.cli.create", "create", "Create and start a VM on the LAN."),
    "list": (_VIEWS, "list_", "List VMs with their NICs and addresses."),
    "show": (_VIEWS, "show", "Show one VM."),
    "start": (_MACHINES, "start", "Start VMs."),
    "stop": (_MACHINES, "stop", "Shut VMs down through ACPI."),
    "restart": (_MACHINES, "restart", "Stop VMs and start them again."),
    "autostart": (_MACHINES, "autostart", "Start VMs with the host, or not."),
    "reset": (_MACHINES, "reset", "Give VMs a fresh disk from their image."),
    "delete": (_MACHINES, "delete", "Delete VMs and all that create made for them."),
    "console": (_MACHINES, "console", "Open a VM's serial console; Ctrl+] ends it."),
    "wait": (_MACHINES, "wait", "Wait until VMs answer."),
    "ip": (_REACHING, "ip", "Print the address that this host reaches a VM by."),
    "ssh": (_REACHING, "ssh", "Log in to a VM with ssh, or run a command in it."),
    "ssh-config": (_REACHING, "ssh_config", "Print what ssh, scp, editors and Ansible reach VMs by."),
    "hosts": (_REACHING, "hosts", "Print `ADDRESS NAME` of every VM, or keep them in /etc/hosts."),
    "capture": (_REACHING, "capture", "Show what a VM's NIC sends and hears, with tcpdump."),
    "nic": ("provisioner.cli.nics", "nic", "The NICs of any libvirt domain."),
    "shim": ("provisioner.cli.shims", "shim", "The host's own way to the guests behind a parent."),
    "network": ("provisioner.cli.networks", "network", "LAN segments with addresses that macvm gives out."),
    "endpoint": ("provisioner.cli.endpoints", "endpoint", "Network namespaces on the LAN, as containers are."),
    "lab": ("provisioner.cli.labs", "lab", "Many VMs from one file."),
    "inventory": ("provisioner.cli.inventory", "inventory", "Print the VMs that run as an inventory for Ansible."),
    "image": ("provisioner.cli.images", "image", "The images that VMs are made from."),
    "gc": ("provisioner.cli.upkeep", "gc", "Finish or undo what was left unfinished."),
    "purge": ("provisioner.cli.purge", "purge", "Take away all that macvm made on this host."),
    "sandbox": (_SANDBOX, "sandbox", "A KVM host in namespaces, to try things without touching your LAN."),
}


@click.group(
    cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="macvm", message="macvm %(version)s")
def cli() -> None:
    """Put KVM virtual machines straight onto the LAN with macvtap, and keep them reachable from their own host."""


def _complain(message: str, hint: str) -> None:
    message = " ".join(message.split())
    click.echo(f"{click.style('error:', fg='red')} {message}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {' '.join(hint.split())}", err=True)


def _usage_hint(error: click.UsageError) -> str:
    if isinstance(error, Hinted):
        return error.hint
    path = error.ctx.command_path if error.ctx else "macvm"
    return f"`{path} --help` shows how it is used"


def report(error: MacvmError) -> int:
    """Print an error as the contract says, each problem with its hint, and return the exit status."""
    for problem in error.problems if isinstance(error, Problems) else (error,):
        _complain(problem.message, problem.hint)
    return error.status


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Ends the process; where arguments are given, as a test does, by `sys.exit`."""
    try:
        status = cli.main(args=arguments, prog_name="macvm", standalone_mode=False)
    except click.exceptions.Exit as ended:
        status = ended.exit_code
    except click.UsageError as error:
        _complain(error.format_message(), _usage_hint(error))
        status = 2
    except click.ClickException as error:
        _complain(error.format_message(), "")
        status = 2
    except MacvmError as error:
        status = report(error)
    except click.Abort:
        click.echo("", err=True)
        status = 130
    except KeyboardInterrupt:
        click.echo("interrupted: what was begun has been undone", err=True)
        status = 130
    except BrokenPipeError:
        # The reader went away (`macvm list | head`): no complaint, and none from the interpreter's own flush either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        where = error.filename or "standard output"
        _complain(f"{where}: {error.strerror or error}", "is the disk full, or read-only?")
        status = 1
    status = status if isinstance(status, int) else 0
    if arguments is None:
        leave(status)
    sys.exit(status)


def leave(status: int) -> NoReturn:
    """Ends the process at once: taking a hundred modules apart takes 25 ms after all is done, with libvirt's event loop
    still in its thread. Nothing hangs on it: what commands open they close, and `click.echo` leaves nothing unwritten.
    """
    for stream in (sys.stdout, sys.stderr):
        # A stream that was closed before Python began is None: `macvm list >&-`.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


__all__ = ["cli", "leave", "main", "options_of", "report"]
