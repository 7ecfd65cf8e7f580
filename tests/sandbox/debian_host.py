"""A Debian 12 root to install into: what macvm's package depends on is there, and no compiler, no pip and no network.

The root is made once, by mmdebstrap, and kept in the user's cache under the hash of what it is made of; each `DebianHost`
is a layer over it. What pip takes is there as wheels.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from provisioner.host.commands import run
from tests.sandbox import debian_root

CHECKOUT = Path(__file__).parents[2]
CONTROL = CHECKOUT / "packaging" / "debian" / "control"
#: For `make install`, and for those who look at what it put there.
TOOLS = ("make", "python3-venv", "man-db", "bash-completion", "zsh", "fish", "procps")
#: For `macvm image build tiny`; kernel and modules are this machine's.
BUILDERS = ("busybox-static", "cpio", "mtools", "syslinux", "syslinux-common", "kmod", "zstd")
LEFT_OUT = ("doc", "locale", "i18n", "info", "lintian", "bug")

SOURCE, _WHEELS = Path("/srv/macvm"), Path("/srv/wheels")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: $1 the root, $2 a folder for the layer, $3 the checkout, $4 the wheels; then the command.
_ENTER = f"""
set -e
mount --make-rprivate /
mkdir -p "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mkdir -p .{SOURCE} .{_WHEELS} usr/lib/modules
mount --bind "$3" .{SOURCE}; mount -o remount,bind,ro .{SOURCE}
mount --bind "$4" .{_WHEELS}
mount --bind /boot boot; mount --bind /lib/modules usr/lib/modules
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev
mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp
pivot_root . mnt; umount -l mnt
shift 4
exec "$@"
"""
_SEEN = r"find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /srv \) -prune -o -print"

_OTHERS = ("/root/", "/var/cache/", "/var/log/", "/var/lib/apt/", "/var/lib/dpkg/")


class DebianHost:
    """`layer` is a folder for what is changed, over the root or over another host as that is then."""

    def __init__(self, layer: Path, below: DebianHost | None = None) -> None:
        self._layer = layer
        self._lower: str = f"{below._layer}/upper:{below._lower}" if below else str(root())

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """A script of bash there, as root, begun in the checkout; what it says of errors is in `stdout` too."""
        words = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", _ENTER, "enter"]
        words += map(str, [self._lower, self._layer, CHECKOUT, wheels(), "bash", "-euc", f"cd {SOURCE}\n{script}"])
        env = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **offline(_WHEELS)}
        return subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    def sh(self, script: str) -> str:
        done = self.run(script)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def put(self, file: Path) -> str:
        """Its name there."""
        folder = self._layer / "upper" / "srv"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
        return f"/srv/{file.name}"

    def files(self) -> set[str]:
        """All names there are, but for the logs, caches and notes of others."""
        return {name for name in self.sh(_SEEN).splitlines() if not name.startswith(_OTHERS)}


def offline(folder: Path) -> dict[str, str]:
    """Settings that have pip take wheels from a folder alone."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


def depends() -> list[str]:
    """The packages that macvm's needs, without versions; of alternatives the first."""
    block = re.search(r"^Depends:\n((?: .*\n)+)", CONTROL.read_text(), re.MULTILINE)
    assert block
    return [name for name in re.findall(r"^ ([a-z0-9][a-z0-9.+-]+)", block[1], re.MULTILINE)]


def root() -> Path:
    """Built in about a minute where the cache has none."""
    packages = ("python3", *depends(), *TOOLS, *BUILDERS)

    def build(work: Path) -> Path:
        debian_root.bootstrap(work / "root", work / "sources.list", packages, LEFT_OUT)
        return work / "root"

    return _kept("host", repr((debian_root.SUITE, packages, LEFT_OUT)), build)


def wheels() -> Path:
    """What macvm and its building need of the package index, as this machine's pip has it; without libvirt's bindings, of
    which there are none."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    needed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted = [requirement for requirement in needed if not requirement.startswith("libvirt-python")]

    def build(work: Path) -> Path:
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--only-binary",
            ":all:",
            "-d",
            work / "wheels",
        ]
        run([*pip, *wanted], timeout=300)
        return work / "wheels"

    return _kept("wheels", repr((sys.version_info[:2], wanted)), build)


def _kept(name: str, recipe: str, build: Callable[[Path], Path]) -> Path:
    """A folder of the user's cache. Another process that builds it is waited for; one that nobody asked for in a week
    goes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macvm-tests"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with (cache / f"{name}-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for old in (*cache.glob(f".{name}-*"), *cache.glob(f"{name}-????????????????")):
                if old.name.startswith(".") or time.time() - old.stat().st_mtime > 7 * 86400:
                    shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as work:
                build(Path(work)).rename(path)
        os.utime(path)
    return path
