"""systemd as it is here: whether it runs, and `systemctl`."""

from __future__ import annotations

from pathlib import Path

from provisioner.host.commands import ToolFailed, run

#: sd_booted(3): this folder is there exactly where systemd is the init of the running system.
RUNNING = Path("run/systemd/system")

#: Where units of the administrator's are, and those that multi-user.target is to start.
UNITS = Path("etc/systemd/system")
WANTED = UNITS / "multi-user.target.wants"


def is_running(root: Path) -> bool:
    return (root / RUNNING).is_dir()


def is_active(unit: str) -> bool:
    """Raises Unable where there is no systemctl."""
    try:
        run(["systemctl", "is-active", "--quiet", unit])
    except ToolFailed:
        return False
    return True


def control(*words: str) -> None:
    """Runs `systemctl`; waits for what it starts, which `shim up` may take minutes over. Raises ToolFailed, Unable."""
    run(["systemctl", *words], timeout=180)
