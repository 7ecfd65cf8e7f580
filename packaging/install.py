"""`make install` and `make uninstall`: macvm in a folder of its own under PREFIX, for the Python that runs this.

libvirt's and lxml's bindings are the distribution's where they fit, so that nothing is compiled; all else comes as
wheels into PREFIX/lib/macvm. A manifest there names every file and folder that was made, and only those go again.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: What comes from the distribution where it fits, by the package's name there.
SHARED = {"libvirt-python": "python3-libvirt", "lxml": "python3-lxml"}
#: Of these the index has no wheels.
NO_WHEELS = {"libvirt-python"}

#: -I: whoever calls it through sudo has no say in what is imported.
LAUNCHER = """\
#!{python} -I
import sys

sys.path.insert(0, {home!r})

from provisioner.cli.main import main

main()
"""


class Failed(Exception):
    """What is wrong, in one line."""


class Places:
    """Where things go under PREFIX, and under DESTDIR until a package manager puts them there."""

    def __init__(self, prefix: Path, destdir: str) -> None:
        if not prefix.is_absolute() or (destdir and not Path(destdir).is_absolute()):
            raise Failed(f"PREFIX={prefix} and DESTDIR={destdir} are to be absolute paths")
        self.destdir = destdir.rstrip("/")
        share = prefix / "share"
        self.home = prefix / "lib" / "macvm"
        self.manifest = self.home / "manifest"
        self.program = prefix / "bin" / "macvm"
        self.man = share / "man" / "man1"
        # fish looks into /usr/local only where XDG_DATA_DIRS names it.
        is_local = prefix == Path("/usr/local")
        fish = Path("/etc/fish/completions") if is_local else share / "fish" / "vendor_completions.d"
        self.completions = {
            "bash": share / "bash-completion" / "completions" / "macvm",
            "zsh": share / "zsh" / "site-functions" / "_macvm",
            "fish": fish / "macvm.fish",
        }

    def staged(self, path: Path) -> Path:
        return Path(f"{self.destdir}{path}")

    def missing(self, folder: Path) -> list[Path]:
        """Of a folder and those above it, what is to be made."""
        return [path for path in (folder, *folder.parents) if not self.staged(path).exists()]

    def noted(self) -> tuple[set[Path], set[Path]]:
        """The manifest's files and folders; none where there is no manifest."""
        file = self.staged(self.manifest)
        lines = file.read_text().splitlines() if file.is_file() else []
        return {Path(line) for line in lines if line[-1] != "/"}, {Path(line) for line in lines if line[-1] == "/"}

    def remove(self, files: Iterable[Path], folders: Iterable[Path]) -> None:
        """What is gone already is passed over; a folder with something else in it stays."""
        for path in files:
            self.staged(path).unlink(missing_ok=True)
        for folder in sorted(folders, reverse=True):
            if folder.is_relative_to(self.home):
                # Another Python, which came later, has written its own.
                shutil.rmtree(self.staged(folder) / "__pycache__", ignore_errors=True)
            with suppress(OSError):
                self.staged(folder).rmdir()


def install(places: Places) -> None:
    """A new one beside the old, then in its place: whoever runs macvm meanwhile has the one or the other, whole."""
    old_files, old_folders = places.noted()
    home = places.staged(places.home)
    made = places.missing(places.home.parent)
    _refuse_foreign(places, old_files, [places.home, places.program, *places.completions.values()])
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".macvm-", dir=home.parent) as folder:
            work = Path(folder)
            new = _build(places, work)
            extras = _extras(places, new, work)
            _refuse_foreign(places, old_files, extras)
            inside = [(places.home / path.relative_to(new), path.is_dir()) for path in new.rglob("*")]
            files = {*extras, places.manifest, *(path for path, is_folder in inside if not is_folder)}
            made += [path for extra in extras for path in places.missing(extra.parent)]
            folders = {*made, *old_folders, places.home, *(path for path, is_folder in inside if is_folder)}
            lines = [*sorted(map(str, files)), *sorted(f"{path}/" for path in folders)]
            (new / places.manifest.name).write_text("\n".join(lines) + "\n")
            if home.exists():
                # Not a rename: where it comes from a container's image there is none.
                shutil.move(home, work / "old")
            new.rename(home)
            for path, source in extras.items():
                places.staged(path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, places.staged(path))
    except BaseException:
        places.remove([], made)
        raise
    places.remove([path for path in old_files - files if not path.is_relative_to(places.home)], [])
    print(f"installed {places.staged(places.program)}")


def _refuse_foreign(places: Places, ours: set[Path], wanted: Iterable[Path]) -> None:
    for path in wanted:
        known = path in ours or (path == places.home and ours)
        if not known and os.path.lexists(places.staged(path)):
            raise Failed(f"{places.staged(path)} is there already, and make install did not write it: move it away")


def _build(places: Places, work: Path) -> Path:
    """A folder with macvm and what it needs, by a pip that goes again."""
    home = work / "macvm"
    done = subprocess.run([sys.executable, "-m", "venv", work / "pip"], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Failed("pip cannot be had from this Python: apt install python3-venv")
    python = work / "pip" / "bin" / "python"
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    wanted = [requirement for requirement in project["dependencies"] if not _is_shared(python, requirement)]
    for missing in NO_WHEELS.intersection(map(_name, wanted)):
        raise Failed(f"{SHARED[missing]} is not there for {sys.executable}, or too old: apt install {SHARED[missing]}")
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-compile",
        "--only-binary",
        ":all:",
        "--target",
        home,
    ]
    settings = os.environ | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for asked in (wanted, ["--no-deps", str(HERE.parent)]):
        if subprocess.run([*pip, *asked], env=settings, check=False).returncode:
            raise Failed(f"pip could not install {' '.join(asked)}")
    # Their programs would begin with a pip that is gone.
    shutil.rmtree(home / "bin", ignore_errors=True)
    compileall.compile_dir(home, quiet=1, stripdir=str(home), prependdir=str(places.home))
    return home


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else requirement


def _is_shared(python: Path, requirement: str) -> bool:
    """Whether the distribution has it, in a version that fits."""
    if _name(requirement) not in SHARED:
        return False
    try:
        version = metadata.version(_name(requirement))
    except metadata.PackageNotFoundError:
        return False
    look = (
        "import sys; from pip._vendor.packaging.requirements import Requirement;"
        "sys.exit(sys.argv[2] not in Requirement(sys.argv[1]).specifier)"
    )
    return subprocess.run([python, "-c", look, requirement, version], check=False).returncode == 0


def _extras(places: Places, home: Path, work: Path) -> dict[Path, Path]:
    """What goes elsewhere: each file's place, and the file. macvm writes most of them, and so is known to run."""
    program, man = work / "program", work / "man"
    program.write_text(LAUNCHER.format(python=sys.executable, home=str(places.home)))
    program.chmod(0o755)
    man.mkdir()
    scripts = {place: work / shell for shell, place in places.completions.items()}
    settings = os.environ | {"PYTHONPATH": str(home)}
    for writer, targets in (("manpages.py", [man]), ("completions.py", [*scripts.values()])):
        argv: list[str | Path] = [sys.executable, "-sPB", HERE / writer, *targets]
        if subprocess.run(argv, env=settings, check=False).returncode:
            raise Failed("what was built does not run: see above")
    return {places.program: program, **scripts, **{places.man / page.name: page for page in man.iterdir()}}


def uninstall(places: Places, options: list[str]) -> None:
    """What macvm made on this host goes first, while there is a macvm that knows of it."""
    files, folders = places.noted()
    if not files:
        raise Failed(f"no {places.staged(places.manifest)}: make install has put nothing there")
    if not places.destdir and subprocess.run([places.program, "purge", *options], check=False).returncode:
        hint = "make uninstall PURGE='--yes', or PURGE='--yes --keep-vms' to leave the VMs"
        raise Failed(f"{places.program} stays, as `macvm purge` did not do all: {hint}")
    places.remove(files, folders)
    print(f"removed {places.staged(places.program)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["install", "uninstall"])
    parser.add_argument("--prefix", type=Path, required=True)
    parser.add_argument("--destdir", default="")
    given, options = parser.parse_known_args()
    os.umask(0o022)
    try:
        places = Places(given.prefix, given.destdir)
        install(places) if given.action == "install" else uninstall(places, options)
    except Failed as failure:
        sys.exit(f"error: {failure}")
    except PermissionError as error:
        sys.exit(f"error: {error.filename} cannot be written: sudo make {given.action}")


if __name__ == "__main__":
    main()
