"""`macvm create`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from provisioner.actions import machines, preview, pulling, views
from provisioner.actions.request import CreateRequest, NicRequest, numbered
from provisioner.cli import parameters, render, words
from provisioner.cli.base import Command
from provisioner.cli.machines import open_console, require_terminal
from provisioner.cli.progress import showing_progress
from provisioner.cli.run import changing, looking, tell
from provisioner.cli.views import print_machine
from provisioner.context import Context, Options
from provisioner.errors import MacvmError, PartlyDone, Usage
from provisioner.host import caller, user_files
from provisioner.model.machine import DirectBoot, check_exposure
from provisioner.model.mode import MacvtapMode

_PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("name", required=False)
@parameters.nic_options
@click.option("--nic", "nics", multiple=True, metavar="KEY=VALUE,…", help="One more NIC; `--nic help` lists the keys.")
@click.option(
    "--image", default="", metavar="NAME[:VERSION]|FILE|URL", help="Default: the newest CirrOS here, else tiny."
)
@click.option("--checksum", default="", metavar="sha256:…", help="The FILE's or URL's, as its publisher says.")
@click.option("--insecure-no-checksum", "insecure", is_flag=True, help="Take a URL that nothing vouches for.")
@click.option(
    "--memory", type=parameters.MEMORY, metavar="SIZE", help="MiB, or 512M, 2G.  [512, or what the image needs]"
)
@click.option("--vcpus", type=int, default=1, metavar="N", help="Virtual CPUs.  [1]")
@click.option("--disk", type=parameters.DISK, metavar="SIZE", help="Size of the disk; default: the image's.")
@click.option(
    "--ssh-key", "ssh_keys", multiple=True, type=_PATH, help="Public key file; default: your own ~/.ssh/*.pub."
)
@click.option(
    "--user-data", multiple=True, type=_PATH, metavar="FILE", help="For the guest's first boot: a script, cloud-config."
)
@click.option("--password", help="For the image's login; only its hash reaches the guest.")
@click.option("--template", type=_PATH, metavar="FILE", help="A libvirt domain of yours to start from.")
@click.option("--virt-type", type=click.Choice(["auto", "kvm", "qemu"]), help="KVM or emulation.  [auto]")
@click.option(
    "--firmware", type=click.Choice(["bios", "uefi"]), help="What it boots with; default: the image's, else bios."
)
@click.option("--kernel", type=_PATH, metavar="FILE", help="Boot this kernel, without a boot loader.")
@click.option("--initrd", type=_PATH, metavar="FILE", help="Its initramfs.")
@click.option("--cmdline", default="", metavar="TEXT", help="Its command line.")
@click.option("--vnc", type=parameters.VNC, is_flag=False, flag_value="", metavar="[=ADDRESS[:PORT]]", help="A screen.")
@click.option("--vnc-exposed", is_flag=True, help="Let --vnc listen beyond this host, unencrypted.")
@click.option("--no-start", is_flag=True, help="Define only.")
@click.option("--no-shim", is_flag=True, help="Leave the host's side alone: the host will not reach the guest.")
@parameters.probe_options
@click.option("--take-parent", is_flag=True, help="Let passthrough take a link that the host itself uses.")
@click.option("--autostart", is_flag=True, help="Start with the host.")
@parameters.wait_options
@click.option("--console", is_flag=True, help="Open the serial console afterwards.")
@click.option("--count", type=int, metavar="N", help="NAME-1 … NAME-N, at consecutive addresses.")
@click.option("--lab", default="", metavar="L", help="The lab it belongs to.")
@click.option("--label", "labels", multiple=True, type=words.LABEL, help="For `list -l`.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
def create(name: str | None, count: int | None, dry_run: bool, **given: Any) -> None:
    """Create and start a VM on the LAN.

    Its NIC sits on a host link with macvtap; for a static address the host gets a shim, so that the two can talk.
    """
    if "help" in given["nics"]:
        render.print_facts(parameters.NIC_KEYS.items())
        return
    wait_for, console = given.pop("wait_for"), given.pop("console")
    timeout = given.pop("timeout")
    if console and count:
        raise Usage("--console and --count exclude one another", "open it later: macvm console NAME")
    if console and not dry_run:
        require_terminal(name or "NAME")
    with looking() if dry_run else changing() as (context, options):
        if not given["ssh_keys"] and context.settings.ssh_key:
            given["ssh_keys"] = [caller.expanded(context.settings.ssh_key)]
        request = _request(machines.unused_name(context) if name is None else name, **given)
        what = _what_to_wait_for(request, wait_for, console)
        request = _with_first_image(context, request, dry_run)
        requests = [request] if count is None else numbered(request, count)
        if dry_run:
            for text in preview.create_each(context, requests):
                click.echo(text)
            return
        with showing_progress() as progress:
            requests = machines.with_images(context, requests, progress)
        names = _create_and_wait(context, requests, what, timeout) if what else _create_all(context, requests)
        _print(context, options, names, alone=count is None)
    if console:
        open_console(names[0])


def _what_to_wait_for(request: CreateRequest, wait_for: str | None, console: bool) -> str:
    """ "" for nothing. Raises Usage."""
    if (wait_for is not None or console) and not request.start:
        raise Usage("--no-start leaves nothing to wait for", "leave --wait, --console or --no-start out")
    if wait_for is None:
        return ""
    told = [nic.addressing for nic in request.nics]
    if any(one.static or one.auto for one in told):
        return wait_for or "ping"
    if not wait_for and not any(one.dhcp for one in told):
        raise Usage(
            "--wait needs an address, and the guest is told none",
            "add --ip ADDRESS/LENGTH or --ip dhcp; --wait=ip where the guest sets one itself; or leave --wait out",
        )
    return wait_for or "ip"


def _request(
    name: str,
    *,
    mode: MacvtapMode | None,
    parent: str | None,
    ip: Sequence[str],
    gateway: Sequence[str],
    dns: Sequence[str],
    mac: Any,
    mtu: int | None,
    network: str | None,
    probe: str | None,
    no_probe: bool,
    nics: Sequence[str],
    kernel: Path | None,
    initrd: Path | None,
    cmdline: str,
    vnc: Any,
    vnc_exposed: bool,
    virt_type: str | None,
    ssh_keys: Sequence[Path],
    user_data: Sequence[Path],
    memory: int | None,
    disk: int | None,
    no_start: bool,
    no_shim: bool,
    password: str | None,
    **same: Any,
) -> CreateRequest:
    """`same` are options whose names and values the request takes as they are."""
    first = parameters.first_nic(mode, parent, ip, gateway, dns, mac, mtu, network)
    more = [parameters.parse_nic(text) for text in nics]
    if (initrd or cmdline) and not kernel:
        raise Usage("--initrd and --cmdline need --kernel", "add --kernel FILE")
    check_exposure(vnc, exposed=vnc_exposed)
    if vnc and vnc.listen not in ("127.0.0.1", "::1"):
        tell(f"warning: whoever reaches {vnc.listen} sees and controls {name}'s screen")
    return CreateRequest(
        name=name,
        nics=tuple([first] if first else [] if more else [NicRequest()]) + tuple(more),
        memory=memory,
        disk_size=disk,
        ssh_keys=user_files.read_keys(ssh_keys) if ssh_keys else None,
        user_data=user_files.read_user_data(user_data),
        password=password or "",
        virt_type=virt_type or "",
        boot=DirectBoot(kernel.absolute(), initrd.absolute() if initrd else None, cmdline) if kernel else None,
        vnc=vnc,
        start=not no_start,
        shim=not no_shim,
        probe=parameters.one_pace(probe, no_probe),
        **same,
    )


def _with_first_image(context: Context, request: CreateRequest, dry_run: bool) -> CreateRequest:
    """Offers CirrOS where there is no image yet, on a terminal: nothing is downloaded that nobody asked for."""
    if not pulling.needs_first(context, request) or dry_run or not sys.stdin.isatty():
        return request
    source = pulling.first_choice()
    size = f", {source.size}" if source.size else ""
    is_wanted = click.confirm(f"There is no image here yet. Pull {source.title}{size}?", default=True, err=True)
    return request._replace(image=source.title) if is_wanted else request


def _create_all(
    context: Context, requests: Sequence[CreateRequest], before_resume: machines.BeforeResume | None = None
) -> list[str]:
    """One after the other. What was made before a failure stays, and is named."""
    names: list[str] = []
    told: set[str] = set()
    if len(requests) > 1:
        # What stands in the way of the last is known before the first is made.
        machines.check(context, requests)
    for request in requests:
        try:
            made = machines.create(context, request, before_resume)
        except (MacvmError, KeyboardInterrupt) as error:
            if not names:
                raise
            said = str(error) or "interrupted"
            raise PartlyDone(
                f"{request.name} was not made ({said}); {', '.join(names)} were, and stay",
                getattr(error, "hint", "") or f"macvm delete {' '.join(names)}",
            ) from error
        names.append(made.name)
        for note in made.notes:
            if note not in told:
                tell(f"note: {note}")
        told.update(made.notes)
    return names


def _create_and_wait(context: Context, requests: Sequence[CreateRequest], what: str, timeout: float) -> list[str]:
    """What a guest says first is heard only by who listens before it runs."""
    from provisioner.actions.waiting import Waiting

    with contextlib.closing(Waiting(context)) as begun:
        names = _create_all(context, requests, begun.listen)
        begun.until(names, what, timeout)
    return names


def _print(context: Context, options: Options, names: Sequence[str], *, alone: bool) -> None:
    made = [views.show(context, name) for name in names]
    if options.output == "json":
        render.print_json(made[0] if alone else made)
    elif options.output == "name":
        render.print_names(names)
    else:
        for machine in made:
            print_machine(machine)
