"""`make install`, `make uninstall` and `make deb` on a Debian 12 without compiler, pip or network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.sandbox.debian_host import CHECKOUT, CONTROL, DebianHost, offline, wheels

pytestmark = [pytest.mark.xdist_group("packaging"), pytest.mark.usefixtures("as_root")]

#: A copy of the checkout that is another version, and has one command less.
NEWER = """
mkdir /tmp/newer
tar -c --exclude=__pycache__ Makefile README.md pyproject.toml provisioner templates images packaging | tar -x -C /tmp/newer
cd /tmp/newer
sed -i 's/^version = .*/version = "9.9"/' pyproject.toml
sed -i '/^    "capture":/d' provisioner/cli/main.py
"""
#: What is typed, `macvm sandb`, as each shell hands it to its completion.
SHELLS = {
    "bash": "bash -c 'source /usr/share/bash-completion/bash_completion; _completion_loader macvm; COMP_WORDS=(macvm sandb); COMP_CWORD=1; _macvm_completion macvm; echo ${COMPREPLY[@]}'",
    "fish": "fish -c 'complete -C \"macvm sandb\"'",
    "zsh": "zsh -fc 'autoload -U compinit; compinit -D; compdef() { :; }; _describe() { print -l ${(P)3}; }; words=(macvm sandb); CURRENT=2; $_comps[macvm]'",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> DebianHost:
    """Where `make install` was said, and nothing after it: for other changes take a layer over it."""
    host = DebianHost(tmp_path_factory.mktemp("installed"))
    assert host.sh("make install") == "installed /usr/local/bin/macvm\n"
    return host


@pytest.fixture
def above(installed: DebianHost, tmp_path: Path) -> DebianHost:
    return DebianHost(tmp_path, installed)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package, built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("deb")
    for name in ("Makefile", "README.md", "pyproject.toml", "provisioner", "templates", "images", "packaging"):
        source = CHECKOUT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
    env = os.environ | offline(wheels()) | {"SOURCE_DATE_EPOCH": "1700000000"}
    built = subprocess.run(["make", "deb"], cwd=copy, env=env, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (made,) = (copy / "dist").iterdir()
    return made


def test_installed_without_a_compiler(installed: DebianHost) -> None:
    assert installed.run("type gcc cc pip pip3").stdout.count("not found") == 4
    parts = installed.sh("cd /usr/local/lib/macvm; ls; stat -c %a . click/core.py")
    assert "libvirt" not in parts
    assert "lxml" not in parts
    assert parts.endswith("755\n644\n")
    assert installed.sh("cd /; macvm --version").startswith("macvm ")
    # The environment has no say in what is imported: sudo may leave it.
    theirs = "mkdir /tmp/e; echo 'print(1)' >/tmp/e/sitecustomize.py; PYTHONPATH=/tmp/e"
    assert installed.sh(f"{theirs} macvm --version").startswith("macvm ")


def test_pip_takes_the_distributions_bindings_where_it_sees_them(tmp_path: Path) -> None:
    """`pipx install --system-site-packages` does the same; without that word libvirt's are compiled."""
    host = DebianHost(tmp_path)
    host.sh("python3 -m venv --system-site-packages /opt/v; /opt/v/bin/pip install -q .")
    assert "libvirt" not in host.sh("ls /opt/v/lib/python3*/site-packages")
    assert host.sh("cd /; /opt/v/bin/macvm --version").startswith("macvm ")
    assert "cirros" in host.sh("cd /; /opt/v/bin/macvm image list")


def test_units_run_the_installed_one(above: DebianHost) -> None:
    script = "macvm network create lan --parent eth0 --subnet 192.0.2.0/24 -o name && macvm shim install -o name >/dev/null && sed -n s/^ExecStart=//p /etc/systemd/system/macvm-shims.service"
    said = above.sh(f"cd /; macvm sandbox run -- sh -c '{script}'")
    assert said.splitlines()[::2] == ["lan", "/usr/local/bin/macvm shim up --known"], said


def test_man_pages_are_the_commands_own_help(installed: DebianHost) -> None:
    pages = "/usr/local/share/man/man1/macvm*.1"
    assert installed.sh(f"groff -K utf8 -man -Tutf8 -ww -z {pages}") == ""
    names = set(installed.sh(f"for page in {pages}; do basename $page .1; done").split())
    assert {"macvm", "macvm-create", "macvm-nic", "macvm-nic-attach"} <= names
    assert installed.sh(f"lexgrog {pages}").count(" - ") == len(names)
    text = installed.sh("MANWIDTH=100 man macvm-nic-attach")
    assert "macvm nic attach [OPTIONS] NAME" in text
    assert "--parent DEV" in text
    assert "Any libvirt domain will do." in text
    assert "The command line or an input file is wrong." in installed.sh("man macvm")


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_complete(installed: DebianHost, shell: str) -> None:
    assert installed.sh(f"cd /; {SHELLS[shell]}").split()[0].split(":")[0] == "sandbox"


def test_a_second_install_takes_the_place_of_the_first(above: DebianHost) -> None:
    assert "macvm-capture" in above.sh("man -w macvm-capture")
    above.sh(f"{NEWER} make install; touch /usr/local/lib/macvm/mine")
    assert above.sh("macvm --version") == "macvm 9.9\n"
    assert above.run("man -w macvm-capture").returncode == 16
    assert "9.9" not in "".join(name for name in above.files() if "dist-info" in name and "9.9" not in name)
    assert len([name for name in above.files() if re.search(r"/macvm-[^/]*\.dist-info$", name)]) == 1


def test_an_install_that_fails_leaves_what_was_there(above: DebianHost) -> None:
    before = above.files()
    done = above.run(f"{NEWER} echo 'import nothing' >> provisioner/cli/main.py; make install")
    assert done.returncode
    assert "error: what was built does not run: see above" in done.stdout
    assert above.files() == before
    assert "9.9" not in above.sh("macvm --version")


def test_nothing_is_left_of_what_was_installed_and_nothing_else_goes(tmp_path: Path) -> None:
    host = DebianHost(tmp_path)
    host.sh("mkdir -p /var/stage/opt/mine/share/man")
    before = host.files()
    where = "PREFIX=/opt/mine DESTDIR=/var/stage"
    host.sh(f"make install {where}")
    made = host.files() - before
    assert {"/var/stage/opt/mine/bin/macvm", "/var/stage/opt/mine/share/man/man1/macvm.1"} < made
    host.sh(f"touch /var/stage/opt/mine/bin/theirs; make uninstall {where}")
    assert host.files() - before == {"/var/stage/opt/mine/bin", "/var/stage/opt/mine/bin/theirs"}


#: On a host of its own, with something of each kind there; the second time nothing is there to take away.
UNINSTALLED = """
macvm network create lan --parent eth0 --subnet 192.0.2.0/24 -q -o name
macvm endpoint create e1 --network lan -q -o name
macvm shim install -q -o name >/dev/null
ip -br link | grep -c mv-eth0
make uninstall </dev/null 2>&1 | grep -o "stays, as .* all"
make uninstall PURGE=--yes >/dev/null 2>&1
ip -br link | grep -c mv-eth0
find /var/lib/macvm -mindepth 1
find /etc /run -type f -name "*macvm*"
"""


def test_uninstall_purges_first_and_stops_where_that_does_not(installed: DebianHost, above: DebianHost) -> None:
    said = above.sh(f"macvm sandbox run -- sh -c '{UNINSTALLED}' || true")
    assert said.splitlines() == ["lan", "e1", "1", "stays, as `macvm purge` did not do all", "0"]
    # Of /etc the sandbox has a layer of its own.
    assert [name for name in above.files() if "macvm" in name] == ["/etc/fish/completions/macvm.fish"]
    assert above.files() < installed.files()


#: The host before `make install`, and after `make uninstall`, with something of each kind there in between. Another
#: macvm, which opened the sandbox, is there before and after.
WHOLE = r"""
host() {
  ip -d link; ip addr; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; ip neigh show nud permanent
  ip neigh show proxy; ip netns; sysctl -a 2>/dev/null | grep -E "^net.ipv[46].(conf|neigh|ip_)"; virsh list --all
  find / -xdev -regextype egrep -regex "/(proc|sys|tmp|root|srv|var/log|var/cache)" -prune -o ! -type d -printf "%p %m %U:%G %l %s\n"
  find /etc /var/lib /run -printf "%p %y %m %U:%G %l\n"; find /etc /var/lib/macvm -type f -exec md5sum {} +
}
settled() { timeout 20 sh -c "while ip -6 addr show tentative | grep -q inet6; do sleep 0.05; done"; host | sed -E "s/valid_lft.*//; s/expires [0-9]+sec//" | sort; }
settled >/tmp/before
make install PREFIX=/opt/mine
PATH=/opt/mine/bin:$PATH
macvm network create lan --parent eth0 --subnet 192.0.2.0/24 -q -o name
macvm endpoint create e1 --network lan -q -o name
macvm shim install -q
settled >/tmp/between
make uninstall PREFIX=/opt/mine PURGE="--yes -q"
settled >/tmp/after
for kind in /opt/mine/bin/macvm macvm-shims.service mv-eth0 macvm.db macvm-e1; do grep -o -m1 -e "$kind" /tmp/between | head -n 1; done
diff /tmp/before /tmp/after
"""


def test_after_uninstall_the_host_is_as_before_install(above: DebianHost) -> None:
    above.sh("cat >/srv/whole <<'END'\n" + WHOLE + "END")
    said = above.sh("macvm sandbox run -- bash -eu /srv/whole 2>&1 || true").splitlines()
    installed, *made = said
    assert installed == "installed /opt/mine/bin/macvm"
    assert made == [
        *("lan", "e1", "removed /opt/mine/bin/macvm"),
        *("/opt/mine/bin/macvm", "macvm-shims.service", "mv-eth0", "macvm.db", "macvm-e1"),
    ]


#: What is not as it should be, and what is said of it.
FAULTS = {
    "old Python": (
        "printf '%s\\n' '#!/bin/sh' 'exec /usr/bin/python3 -c \"import sys; sys.version_info = (3, 9, 2); $2\"' >/tmp/python3.9; chmod +x /tmp/python3.9; make install PYTHON=/tmp/python3.9",
        "macvm needs Python 3.11 or newer, and /tmp/python3.9 is 3.9: make install PYTHON=/usr/bin/python3.11",
    ),
    "no libvirt": (
        "rm -r /usr/lib/python3/dist-packages/libvirt_python-*; make install",
        "python3-libvirt is not there for /usr/bin/python3, or too old: apt install python3-libvirt",
    ),
    "no venv": (
        "rm -r /usr/share/python-wheels /usr/lib/python3.11/ensurepip; make install",
        "pip cannot be had from this Python: apt install python3-venv",
    ),
    "another's": (
        "touch /usr/local/bin/macvm; make install",
        "/usr/local/bin/macvm is there already, and make install did not write it: move it away",
    ),
    "no root": (
        "setpriv --reuid 65534 --regid 65534 --clear-groups make install",
        "/usr/local/lib/.macvm-… cannot be written: sudo make install",
    ),
    "nothing there": (
        "make uninstall",
        "no /usr/local/lib/macvm/manifest: make install has put nothing there",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, fault: str) -> None:
    host = DebianHost(tmp_path)
    script, line = FAULTS[fault]
    done = host.run(script)
    said, make = done.stdout.splitlines()
    assert re.sub(r"macvm-\w{8}", "macvm-…", said) == f"error: {line}"
    assert make.startswith("make: ***")
    assert done.returncode


#: On a host of its own: prerm takes away the units, which would run what is gone.
PACKAGED = """
macvm image build tiny -q
macvm create web1 --ip 192.0.2.11/24 -o name
macvm nic attach web1 --ip none -q -o name
macvm endpoint create e1 --parent eth0 --ip 192.0.2.40/24 -o name
macvm shim install -q
sed -n s/^ExecStart=//p /etc/systemd/system/macvm-shims.service
echo "of: mine" >/tmp/lab.yaml
macvm lab plan /tmp/lab.yaml 2>&1 | grep -o "lab.yaml:1:1:"
virsh -q list --name
apt-get remove -qq -y macvm >/dev/null
ls /etc/systemd/system/macvm* /usr/lib/macvm
virsh -q list --name
"""


def test_the_package_installs_runs_and_goes(package: Path, tmp_path: Path) -> None:
    host = DebianHost(tmp_path)
    file = host.put(package)
    before = host.files()
    host.sh(f"apt-get install -y --no-install-recommends {file}")
    assert host.sh("cd /; macvm --version").startswith("macvm ")
    assert "KVM virtual machines" in host.sh("whatis macvm")
    assert host.sh("man macvm-shim-up | grep -c -e --dry-run") == "1\n"
    for line in SHELLS.values():
        assert host.sh(f"cd /; {line}").split()[0].split(":")[0] == "sandbox"
    said = host.sh(f"cd /; macvm sandbox run -- sh -c '{PACKAGED}' 2>/tmp/errors || cat /tmp/errors").splitlines()
    assert [word for word in said if word and not re.fullmatch("(..:){5}..", word)] == [
        *("web1", "e1", "/usr/bin/macvm shim up --known", "lab.yaml:1:1:", "web1", "web1")
    ]
    assert host.files() == before


def test_each_dependency_is_debians_or_vendored() -> None:
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    vendored = (CONTROL.parent / "vendored").read_text().splitlines()
    debians = [one for one in (requirement.split(";")[0] for requirement in wanted) if one not in vendored]
    for requirement in debians:
        name, bound, *_ = re.split(">=|,", requirement)
        assert f" python3-{name.removesuffix('-python')} (>= {bound}),\n" in CONTROL.read_text()
    assert len(debians) + len(vendored) == len(wanted), "what is vendored is wanted"
