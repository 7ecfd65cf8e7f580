"""Makes shims last: two systemd units, one at boot and one that watches, drop-ins that keep others off them, and one
that has VLAN links there before libvirt starts the machines on them."""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import script
from provisioner.actions.wiring import Findings
from provisioner.context import Context, Options, Settings, load_settings
from provisioner.errors import MacvmError, PartlyDone, Taken, Unable
from provisioner.host import log, marked_files, systemd
from provisioner.model import unit_file
from provisioner.resources import resource

MARK = marked_files.mark("macvm shim uninstall")
BOOT_UNIT = "macvm-shims.service"
UNITS = (BOOT_UNIT, "macvm-shims-watch.service")

#: The drop-ins are written where their program is not installed, too: nothing else reads them, and it may come later.
_FILES = (
    *(systemd.UNITS / unit for unit in UNITS),
    *(systemd.UNITS / f"{daemon}.service.d" / "macvm-networks.conf" for daemon in ("libvirtd", "virtqemud")),
    Path("etc/systemd/network/05-macvm.network"),
    Path("etc/NetworkManager/conf.d/90-macvm.conf"),
)
_READERS = ("systemd-networkd.service", "NetworkManager.service")

_LOGS = "journalctl " + " ".join(f"-u {unit}" for unit in UNITS)


class Installed(NamedTuple):
    """`started` is False where systemd does not run now: the next boot starts the units."""

    written: tuple[str, ...]
    started: bool
    notes: tuple[str, ...]


class Removed(NamedTuple):
    """`kept` are files of the names that macvm uses and did not write."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def find_program(called: str) -> Path:
    """The macvm that runs, for units to run: `called` is `sys.argv[0]`. Links in it stay, as an upgrade may turn them.

    Raises Unable where there is no such command, as when Python was given a module.
    """
    beside = Path(sys.executable).with_name("macvm")
    for path in (Path(os.path.abspath(called)), beside):
        if path.name.startswith("macvm") and path.is_file() and os.access(path, os.X_OK):
            return path
    raise Unable(f"{called} is no command that a unit could run, and there is no {beside}", "pip install macvm")


def install(context: Context, program: Path, root: Path = Path("/")) -> Installed:
    """Writes units and drop-ins, and has systemd start them now, where it runs, and at each boot; any number of times.

    Raises Taken, before anything is written, for a file of the same name without macvm's mark; PartlyDone where all is
    in place and a unit does not start.
    """
    context.require_local_root("installing units")
    files = plan(context, program, root)
    running = systemd.is_running(root)
    with ExitStack() as undo:
        # What fails in undoing is not told: what made it necessary is.
        if running:
            undo.callback(_each, [partial(systemd.control, "daemon-reload")])
        for path, body in files:
            if not marked_files.is_there(path):
                undo.callback(_each, [partial(marked_files.remove, path)])
            log.step(f"write {path}")
            marked_files.write(path, MARK, body)
        for link, _ in _links(root):
            if not marked_files.is_there(link):
                undo.callback(_each, [partial(_unlink, link)])
        if running:
            systemd.control("daemon-reload")
            systemd.control("enable", *UNITS)
        else:
            _link(root)
        undo.pop_all()
    if running:
        _start()
    return Installed(tuple(str(path) for path, _ in files), running, _notes(program))


def plan(context: Context, program: Path, root: Path = Path("/")) -> list[tuple[Path, str]]:
    """Each file with its text. Raises Unable, Usage; Problems, with a Taken for each file that is another's."""
    context.require_local("installing units")
    command = unit_file.command(str(program), _options(context.settings))
    words = {
        "@macvm@": command,
        "@bounded-macvm@": unit_file.command("timeout", ["10", str(program), *_options(context.settings)]),
        "@state-dir@": unit_file.word(str(context.state_dir)),
    }
    findings, files = Findings(), []
    for relative in _FILES:
        path = root / relative
        with findings.checking():
            if marked_files.is_there(path) and not marked_files.is_marked(path, MARK):
                hint = f"see `ls -l {path}`; move it away, and install again"
                raise Taken(f"{path} is there already, and macvm did not write it", hint)
        text = resource("templates", "systemd", relative.name).read_text()
        for placeholder, value in words.items():
            text = text.replace(placeholder, value)
        files.append((path, text))
    findings.finish()
    return files


def _options(settings: Settings) -> list[str]:
    """The options that have macvm at boot find what this one works with, as far as the configuration file does not."""
    there = load_settings(Options(), {})
    options = []
    if settings.state_dir != there.state_dir:
        options += ["--state-dir", str(settings.state_dir)]
    if settings.connect != there.connect:
        options += ["--connect", settings.connect]
    return options


def _links(root: Path) -> list[tuple[Path, str]]:
    """What `systemctl enable` makes of `WantedBy=multi-user.target`: each link with its target."""
    return [(root / systemd.WANTED / unit, f"/{systemd.UNITS / unit}") for unit in UNITS]


def _link(root: Path) -> None:
    for link, target in _links(root):
        if _is_link(link, target):
            continue
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        except OSError as error:
            raise Unable(f"{link} cannot be made: {error.strerror}", f"see `ls -l {link}`") from error


def _is_link(link: Path, target: str) -> bool:
    return link.is_symlink() and os.readlink(link) == target


def _start() -> None:
    """Raises PartlyDone."""
    # Not `enable --now`: a watcher of an earlier install, perhaps another macvm, would run on.
    problems = _each([partial(systemd.control, "restart", *UNITS), *_reloads()])
    if problems:
        said = "; ".join(problem.message for problem in problems)
        raise PartlyDone(f"the units are installed and start with the host, but not all did now: {said}", _LOGS)


def _reloads() -> list[Callable[[], None]]:
    return [partial(systemd.control, "reload", unit) for unit in _READERS if systemd.is_active(unit)]


def _each(steps: Sequence[Callable[[], object]]) -> list[MacvmError]:
    findings = Findings()
    for step in steps:
        with findings.checking():
            step()
    return findings.problems


def _notes(program: Path) -> tuple[str, ...]:
    whole = program.resolve()
    for path in (whole, *whole.parents):
        found = path.stat()
        open_to_others = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if found.st_uid or open_to_others or (found.st_mode & stat.S_IWGRP and found.st_gid):
            return (f"root runs {program} at each boot, and others may change {path}",)
    return ()


def install_lines(context: Context, program: Path, root: Path = Path("/")) -> list[str]:
    """What `install` would do. Raises what `plan` does."""
    lines, there = list[str](), set[Path]()
    for path, body in plan(context, program, root):
        folders, text = marked_files.assembled(path, MARK, body, there)
        lines += [shlex.join(["mkdir", *map(str, folders)])] if folders else []
        lines.append(script.writing(path, text))
        there.update(folders)
    if systemd.is_running(root):
        lines += ["systemctl daemon-reload", _systemctl("enable", *UNITS), _systemctl("restart", *UNITS)]
        return lines + [f"systemctl reload {unit}" for unit in _READERS if systemd.is_active(unit)]
    missing = [(link, target) for link, target in _links(root) if not _is_link(link, target)]
    lines += dict.fromkeys(shlex.join(["mkdir", "-p", str(link.parent)]) for link, _ in missing)
    return lines + [shlex.join(["ln", "-s", target, str(link)]) for link, target in missing]


def _systemctl(*words: str) -> str:
    return shlex.join(["systemctl", *words])


def uninstall(context: Context, root: Path = Path("/")) -> Removed:
    """Removes what `install` wrote, and stops the units; shims stay as they are. Any number of times. Goes on past an
    error. Raises Problems."""
    context.require_local_root("removing units")
    ours, kept = find(root)
    units = [path.name for path in ours if path.name in UNITS]
    running = systemd.is_running(root)
    steps: list[Callable[[], object]] = []
    if units and running:
        steps.append(partial(systemd.control, "disable", "--now", *units))
    steps += [partial(_unlink, link) for link in _left_links(root, kept)]
    # The first of them knows of the folders that were made for several.
    steps += [partial(marked_files.remove, path) for path in reversed(ours)]
    if ours and running:
        steps += [partial(systemd.control, "daemon-reload"), *_reloads()]
    findings = Findings()
    findings.problems = _each(steps)
    findings.finish()
    return Removed(tuple(map(str, ours)), tuple(map(str, kept)))


def find(root: Path = Path("/")) -> tuple[list[Path], list[Path]]:
    """macvm's files that are there, and others of their names."""
    there = [path for path in (root / relative for relative in _FILES) if marked_files.is_there(path)]
    ours = [path for path in there if marked_files.is_marked(path, MARK)]
    return ours, [path for path in there if path not in ours]


def _left_links(root: Path, kept: Sequence[Path]) -> list[Path]:
    foreign = {path.name for path in kept}
    return [link for link, target in _links(root) if link.name not in foreign and _is_link(link, target)]


def _unlink(link: Path) -> None:
    try:
        # `systemctl disable` may have been there before.
        link.unlink(missing_ok=True)
    except OSError as error:
        raise Unable(f"{link} cannot be removed: {error.strerror}", f"see `lsattr -d {link.parent}`") from error
    with suppress(OSError):
        link.parent.rmdir()


def uninstall_lines(root: Path = Path("/")) -> list[str]:
    """What `uninstall` would do."""
    ours, kept = find(root)
    units = [path.name for path in ours if path.name in UNITS]
    running = systemd.is_running(root)
    lines = [_systemctl("disable", "--now", *units)] if units and running else []
    if not running:
        links = _left_links(root, kept)
        lines += [shlex.join(["rm", str(link)]) for link in links]
        wanted = dict.fromkeys(str(link.parent) for link in links)
        lines += [shlex.join(["rmdir", "--ignore-fail-on-non-empty", folder]) for folder in wanted]
    for path in reversed(ours):
        lines.append(shlex.join(["rm", str(path)]))
        folders = [str(folder) for folder in reversed(marked_files.made_for(path))]
        lines += [shlex.join(["rmdir", "--ignore-fail-on-non-empty", *folders])] if folders else []
    if ours and running:
        lines += ["systemctl daemon-reload"]
        lines += [f"systemctl reload {unit}" for unit in _READERS if systemd.is_active(unit)]
    return lines


_EXEC = re.compile(r'^ExecStart=(?:"(?:[^"\\]|\\.)*"|\S+)(?P<options>.*) shim up --known$', re.MULTILINE)


def outlasts_boot(context: Context, root: Path = Path("/")) -> bool:
    """Whether the boot unit is installed and enabled, and brings back what is in this very store."""
    unit = root / systemd.UNITS / BOOT_UNIT
    if not (marked_files.is_there(root / systemd.WANTED / BOOT_UNIT) and marked_files.is_marked(unit, MARK)):
        return False
    found = _EXEC.search(unit.read_text(errors="replace"))
    return found is not None and found["options"] == "".join(
        f" {unit_file.argument(option)}" for option in _options(context.settings)
    )
