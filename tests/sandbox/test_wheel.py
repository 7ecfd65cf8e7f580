"""A wheel, installed into an empty environment outside the checkout: it brings its templates and images along."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Sandbox
from provisioner.resources import resource
from tests.conftest import Require

pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.usefixtures("box")]

CHECKOUT = Path(__file__).parents[2]


def run(*argv: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """From `/`, with an environment that names nothing of the checkout."""
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **settings}
    return subprocess.run([str(word) for word in argv], cwd="/", env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, CHECKOUT)
    require("No matching distribution" not in built.stderr, f"no wheel without hatchling: {built.stderr}")
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("macvm-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory, require: Require) -> Path:
    """The environment's bin folder."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    done = run(home / "bin" / "pip", "install", "-q", "--disable-pip-version-check", wheel)
    require("Temporary failure in name resolution" not in done.stderr, f"no package index: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return home / "bin"


def test_the_wheel_has_every_template_and_image_file(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel).namelist()
    for folder in ("templates", "images"):
        mine = {str(path.relative_to(CHECKOUT)) for path in resource(folder).rglob("*") if path.is_file()}
        assert mine
        assert {f"provisioner/_data/{name}" for name in mine} <= set(packed)
    assert not [name for name in packed if name.startswith("tests")]


def test_help_and_version(installed: Path) -> None:
    assert "create" in run(installed / "macvm", "--help").stdout
    assert run(installed / "macvm", "--version").stdout.startswith("macvm ")


def test_it_finds_its_own_files_and_none_of_the_checkouts(installed: Path) -> None:
    look = (
        "import provisioner, sys; from provisioner.resources import resource; from provisioner.actions.catalogue import catalogue;"
        "print(resource('templates', 'q35.xml')); print(resource('images', 'tiny', 'root', 'init'));"
        "print(sorted(catalogue())); print(provisioner.__file__); print(*sys.path, sep='\\n')"
    )
    done = run(installed / "python", "-c", look)
    assert done.returncode == 0, done.stderr
    assert "'cirros', 'debian', 'fedora', 'rocky', 'tiny'" in done.stdout
    assert str(CHECKOUT) not in done.stdout


def test_it_builds_the_tiny_image_and_plans_a_machine(installed: Path, box: Sandbox) -> None:
    script = "macvm image build tiny && macvm create web1 --ip 192.0.2.11/24 --no-start -o name && macvm create web2 --dry-run"
    done = run(installed / "macvm", "sandbox", "run", "--", "bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("web1\n")
    assert "<name>web2</name>" in done.stdout


def test_no_file_of_the_checkout_is_used(installed: Path, box: Sandbox) -> None:
    """Where the checkout is hidden, everything still works."""
    script = (
        f"mount -t tmpfs none {CHECKOUT} &&"
        "macvm image build tiny && macvm create web1 --ip 192.0.2.11/24 --no-start -o name"
    )
    done = run(installed / "macvm", "sandbox", "run", "--", "unshare", "--mount", "bash", "-c", script)
    assert (done.returncode, done.stdout) == (0, "web1\n"), done.stderr
