"""Debian packages that are unpacked and not installed: what is in them would start, and change the machine of whoever runs
the tests."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from provisioner.host.commands import run


def unpacked(*names: str) -> Path:
    """The packages' files in one folder of the user's cache, from where this machine's apt has them. Another process that
    fetches them is waited for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macvm-tests"
    cache.mkdir(parents=True, exist_ok=True)
    tree = cache / "-".join(("unpacked", *names))
    with (cache / "packages-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as work:
                _fetch(names, Path(work)).rename(tree)
    return tree


def _fetch(names: tuple[str, ...], work: Path) -> Path:
    made = work / "tree"
    made.mkdir()
    # In the folder where it is run, which its own user may not enter: a warning, no more.
    run(["env", "-C", work, "apt-get", "-q", "download", *names], timeout=300)
    for package in work.glob("*.deb"):
        run(["dpkg-deb", "--extract", package, made])
    return made
