"""systemd as PID 1 on a host of a sandbox, with processes, /run and cgroups of its own, over the host's links and files.

Its units are the administrator's and a few of the distribution's. All of these would be at work on the machine below
(udev, sysctl, binfmt), and for the same reason /sys is read-only, and /proc/sys but for the network's part.
"""

from __future__ import annotations

import shlex
import time
import uuid
from types import TracebackType

from provisioner.actions.sandbox import Process
from tests.sandbox.kvm_host import KvmHost

_UNITS = (
    "basic.target sysinit.target sockets.target multi-user.target network.target network-online.target slices.target "
    "shutdown.target systemd-journald.service systemd-journald.socket "
    "libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket virtlogd.service virtlogd.socket "
    "virtlogd-admin.socket virtlockd.service virtlockd.socket virtlockd-admin.socket"
)

#: Once for a host. What is enabled outlasts a boot; the sandbox's own libvirtd makes room for the unit.
_PREPARE = rf"""
[ ! -e /etc/units ] || exit 0
kill $(pgrep -x 'libvirtd|virtlogd')
timeout 30 sh -c "while pgrep -x 'libvirtd|virtlogd'; do sleep 0.05; done" >/dev/null
set -e
mount -t tmpfs -o mode=755 units /etc/systemd/system
mkdir -p /etc/units/sysinit.target.wants /etc/systemd/journald.conf.d
ln -s $(printf '/lib/systemd/system/%s ' {_UNITS}) /etc/units
ln -s /lib/systemd/system/systemd-journald.service /etc/units/sysinit.target.wants
printf '[Unit]\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\n' >/etc/units/halted.target
printf '[Journal]\nStorage=volatile\n' >/etc/systemd/journald.conf.d/own.conf
systemctl --root=/ --quiet enable libvirtd.service
mount -t cgroup2 cgroup2 /sys/fs/cgroup
"""

_BOOT = r"""
mkdir "$1"; echo $$ >"$1/cgroup.procs"
exec unshare --cgroup --mount --pid --fork --kill-child sh -ec "$0"
"""
_INIT = """
mount -t proc proc /proc
mount -t tmpfs -o mode=755 run /run; mkdir /run/lock
umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -o remount,bind,ro /sys
mount --bind /proc/sys /proc/sys; mount --bind /proc/sys/net /proc/sys/net; mount -o remount,bind,ro /proc/sys
exec env -i PATH="$PATH" container=macvm SYSTEMD_UNIT_PATH=/etc/systemd/system:/etc/units \
  /lib/systemd/systemd --system --unit=multi-user.target
"""


#: Seconds. In a kernel that is emulated itself all takes ten times as long.
_PATIENCE = 180.0


class Booted:
    """A host of a sandbox while it is up: `with Booted(host) as up: up.sh("systemctl …")`."""

    def __init__(self, host: KvmHost) -> None:
        self._host = host
        # The kernel numbers cgroups for the whole machine, and another test may have a host of its own.
        self._group = f"/sys/fs/cgroup/macvm-booted-{uuid.uuid4().hex}"
        host.sh(_PREPARE)
        self._unshare: Process = host.node.start(["sh", "-ec", _BOOT, _INIT, self._group])
        try:
            # Who enters before it has begun is in its way.
            there = f"test -S /proc/$(pgrep -x -P {self._unshare.pid} systemd)/root/run/systemd/private"
            host.sh(f"timeout {_PATIENCE:.0f} sh -c 'until {there}; do sleep 0.1; done'", timeout=_PATIENCE + 10)
            self.until("systemctl is-system-running | grep -Eq 'running|degraded'", "systemd never got up")
        except BaseException:
            self.close()
            raise

    def run(self, script: str) -> int:
        return self._host.node.run(self._argv(script), timeout=_PATIENCE).returncode

    def sh(self, script: str) -> str:
        """Standard output of a shell script, which must end with 0."""
        return self._host.node.run(self._argv(script), check=True, timeout=_PATIENCE).stdout

    def _argv(self, script: str) -> list[str]:
        inside = f"exec nsenter --target $(pgrep -x -P {self._unshare.pid} systemd) --mount --pid --cgroup bash -c "
        return ["bash", "-c", inside + shlex.quote(script)]

    def until(self, condition: str, otherwise: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while self.run(condition) != 0:
            assert time.monotonic() < deadline, f"{otherwise}\n{self.told()}"
            time.sleep(0.1)

    def told(self) -> str:
        """What there is to know of a failure."""
        asked = (
            "systemctl list-jobs; systemctl --failed; journalctl --no-pager | tail -n 60; ip route; macvm shim status"
        )
        done = self._host.node.run(self._argv(asked), timeout=_PATIENCE)
        return done.stdout + done.stderr + self._unshare.stderr

    def shut_down(self) -> None:
        """Stops every unit, in their order."""
        self.sh("systemctl start --job-mode=replace-irreversibly halted.target")

    def close(self) -> None:
        """The power goes, and with it every link that is not the host's own."""
        self._unshare.close()
        gone = f"until [ ! -d {self._group} ] || find {self._group} -depth -type d -exec rmdir {{}} + 2>/dev/null; do sleep 0.05; done"
        self._host.sh(f"timeout 30 bash -c {shlex.quote(gone)}")
        links = "ip -o link show type macvlan; ip -o link show type macvtap; ip -o link show type vlan"
        self._host.sh(f"({links}) 2>/dev/null | sed -E 's/^[0-9]+: ([^@:]+).*/\\1/' | xargs -rn1 ip link del dev")

    def __enter__(self) -> Booted:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
