"""A Debian 12 disk that boots: a real systemd, cloud-init and sshd from Debian's packages, with the host's own kernel.

It is made once, by mmdebstrap, without loop devices, and kept in the user's cache under the hash of what it is made of.
What is left out or switched off of an ordinary Debian only costs an emulated CPU time; nothing of it is macvm's affair.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from provisioner.host import tiny
from provisioner.host.commands import run

SUITE = "bookworm"
#: netplan.io, as in Debian's own cloud images; over dbus logind hears of the power button.
PACKAGES = ("systemd-sysv", "udev", "dbus", "cloud-init", "netplan.io", "openssh-server", "sudo")
#: What dpkg need not unpack.
LEFT_OUT = ("man", "doc", "locale", "i18n", "info", "lintian", "bug")

#: Beside the package's own settings: of Debian's cloud images the line on /etc/hosts; else what saves an emulated CPU time,
#: such as modules that nothing here has any use for.
CLOUD_CONFIG = """\
manage_etc_hosts: true
datasource_list: [ NoCloud ]
ssh_genkeytypes: [ed25519]
locale: C.UTF-8
cloud_init_modules: [bootcmd, write-files, growpart, resizefs, set_hostname, update_hostname, update_etc_hosts, users-groups, ssh]
cloud_config_modules: [locale, set-passwords, runcmd]
cloud_final_modules: [scripts-vendor, scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user, final-message]
"""

#: Nobody in the sandbox sends router advertisements, and networkd would wait 12 s for one at each boot. udev goes through
#: what macvm's machines have, not the kernel's 70 terminals.
DROP_INS = {
    **{f"network/10-netplan-nic{n}.network.d/own.conf": "[Network]\nIPv6AcceptRA=no\n" for n in range(4)},
    "journald.conf.d/own.conf": "[Journal]\nStorage=volatile\n",
    "system/systemd-udev-trigger.service.d/own.conf": (
        "[Service]\nExecStart=\nExecStart=udevadm trigger --action=add --prioritized-subsystem=block,net "
        "--subsystem-match=block --subsystem-match=net --subsystem-match=input --subsystem-match=virtio-ports\n"
    ),
}

#: Units that nobody waits for here.
MASKED = """
apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
getty@tty1.service serial-getty@ttyS0.service modprobe@.service systemd-hostnamed.service systemd-pstore.service
systemd-binfmt.service systemd-update-utmp.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount
sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
"""

MODULES = ("ext4", "crc32c_generic", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console")
MODULES += ("ahci", "sr_mod", "isofs", "button", "evdev")

#: The first process: busybox, until the root is there. It deletes nothing of itself: when the guest reboots, the kernel
#: unpacks this to the same pages, and QEMU takes 13 s to write to 7 MB of pages that code was translated from since.
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox modprobe -a {modules}
until [ -b /dev/vda2 ]; do /bin/busybox usleep 10000; done
/bin/busybox mount -t ext4 /dev/vda2 /root
cd /root
/bin/busybox mount -o move . /
exec /bin/busybox chroot . /sbin/init
"""

_SECTOR = 512
_BOOT_START, _BOOT_SECTORS = 2048, 80 << 11
_ROOT_START, _ROOT_SECTORS = _BOOT_START + _BOOT_SECTORS, 900 << 11


def disk() -> Path:
    """The qcow2 disk, built in about a minute where the cache has none. Another process that builds it is waited for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macvm-tests"
    cache.mkdir(parents=True, exist_ok=True)
    version, kernel = tiny.newest_kernel(Path("/boot"), Path("/lib/modules")) or ("", Path())
    assert version, "no kernel in /boot: apt install linux-image-amd64"
    recipe = [Path(__file__).read_bytes(), Path(tiny.__file__).read_bytes(), version.encode(), kernel.read_bytes()]
    path = cache / f"debian-{hashlib.sha256(b''.join(recipe)).hexdigest()[:16]}.qcow2"
    with (cache / "debian-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _clean(cache)
            with tempfile.TemporaryDirectory(prefix=".debian-", dir=cache) as work:
                _build(Path(work), kernel, Path("/lib/modules", version)).rename(path)
        os.utime(path)
    return path


def _clean(cache: Path) -> None:
    """What builds left that were killed, and disks that nobody asked for in a week."""
    for folder in cache.glob(".debian-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for old in cache.glob("debian-*.qcow2"):
        if time.time() - old.stat().st_mtime > 7 * 86400:
            old.unlink()


def _build(work: Path, kernel: Path, modules: Path) -> Path:
    root, raw, made = work / "root", work / "raw", work / "qcow2"
    bootstrap(root, work / "sources.list", PACKAGES, LEFT_OUT)
    _settle(root)
    with raw.open("wb") as file:
        file.write(_boot_record())
        file.truncate((_ROOT_START + _ROOT_SECTORS) * _SECTOR)
    offset = f"offset={_ROOT_START * _SECTOR}"
    features = ["-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", offset]
    run(["mke2fs", "-q", *features, "-d", root, raw, f"{_ROOT_SECTORS // 2}k"], timeout=300)
    _make_boot_partition(raw, work, kernel, modules)
    run(["qemu-img", "convert", "-O", "qcow2", raw, made], timeout=300)
    return made


def bootstrap(root: Path, sources: Path, packages: Sequence[str], left_out: Sequence[str]) -> None:
    """These packages and what they need, from where this machine's own apt takes Debian; nothing of /usr/share's folders
    in `left_out`. `sources` is a file that is written on the way."""
    asked = ["apt-get", "indextargets", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    known = [line.split() for line in run(asked).decode().splitlines()]
    lines = [" ".join(words) for words in known if words[2] in suites and words[3:] == ["main"]]
    assert lines, f"this machine's apt has no source of Debian's {SUITE}"
    sources.write_text("\n".join(lines) + "\n")
    # Killed with this process, however that ends, and with it go the mounts that it makes.
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv += ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}"]
    argv += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in left_out)]
    run([*argv, SUITE, root, sources], timeout=600)


def _settle(root: Path) -> None:
    """What an image's maker sets, and what was this machine's goes."""
    for path in (*(root / "etc/ssh").glob("ssh_host_*"), root / "etc/hostname", root / "etc/resolv.conf"):
        path.unlink(missing_ok=True)
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "etc/machine-id").write_text("")
    (root / "etc/fstab").write_text("/dev/vda2 / ext4 defaults,noatime 0 0\n")
    (root / "etc/cloud/cloud.cfg.d/95_macvm.cfg").write_text(CLOUD_CONFIG)
    for name, text in DROP_INS.items():
        path = root / "etc/systemd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for unit in MASKED.split():
        path = root / "etc/systemd/system" / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")


def _boot_record() -> bytes:
    """tiny's, with a second partition: Linux (type 0x83)."""
    record = bytearray(tiny.master_boot_record(Path("/usr/lib/syslinux/mbr/mbr.bin").read_bytes(), _BOOT_SECTORS))
    beyond = b"\xfe\xff\xff"
    record[462:478] = b"\0" + beyond + b"\x83" + beyond + struct.pack("<II", _ROOT_START, _ROOT_SECTORS)
    return bytes(record)


def _make_boot_partition(raw: Path, work: Path, kernel: Path, modules: Path) -> None:
    """FAT with syslinux, the kernel with nothing to unpack, and an initial RAM file system of busybox and drivers."""
    (work / "kernel").write_bytes(tiny.fast_kernel(kernel.read_bytes()))
    (work / "initrd").write_bytes(_initrd(modules))
    words = f"{tiny.CMDLINE} systemd.show_status=0"
    (work / "syslinux.cfg").write_text(
        f"DEFAULT linux\nPROMPT 0\nLABEL linux\nLINUX /kernel\nINITRD /initrd\nAPPEND {words}\n"
    )
    offset = _BOOT_START * _SECTOR
    partition = f"{raw}@@{offset}"
    geometry = ["-h", "64", "-s", "32", "-H", str(_BOOT_START), "-T", str(_BOOT_SECTORS)]
    run(["mformat", "-i", partition, "-v", "BOOT", "-c", "4", *geometry, "::"])
    run(["syslinux", "--install", "--offset", str(offset), raw])
    run(["mcopy", "-i", partition, *(work / name for name in ("syslinux.cfg", "kernel", "initrd")), "::"])


def _initrd(modules: Path) -> bytes:
    folders = ("bin", "dev", "lib", "lib/modules", f"lib/modules/{modules.name}", "root")
    loaded = tiny.module_entries(modules, MODULES)
    folders += tuple(sorted({str(above) for entry in loaded for above in Path(entry.name).parents} - {".", *folders}))
    return tiny.cpio(
        [
            *(tiny.Entry(folder, stat.S_IFDIR | 0o755) for folder in folders),
            tiny.Entry("bin/busybox", stat.S_IFREG | 0o755, Path("/bin/busybox").read_bytes()),
            tiny.Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            tiny.Entry("init", stat.S_IFREG | 0o755, INIT.format(modules=" ".join(MODULES)).encode()),
            *loaded,
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(f"{disk()}\n")
