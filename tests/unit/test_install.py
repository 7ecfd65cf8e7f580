"""Units and drop-ins in a folder that stands for `/`, held to what systemd itself makes of them."""

from __future__ import annotations

import configparser
import errno
import os
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

from provisioner.actions import install
from provisioner.context import Context, Options, load_settings
from provisioner.errors import MacvmError, PartlyDone, Problems, Unable, Usage
from provisioner.host import marked_files
from provisioner.host.commands import ToolFailed
from provisioner.model import unit_file
from provisioner.model.endpoint import LINK_PREFIX
from provisioner.model.names import DEVICE_PREFIX, PROBE_PREFIX, SHIM_PREFIX
from tests.conftest import Ran, Require

pytestmark = pytest.mark.usefixtures("as_root")

BOOT = "etc/systemd/system/macvm-shims.service"
WATCH = "etc/systemd/system/macvm-shims-watch.service"
NETWORKS = tuple(f"etc/systemd/system/{daemon}.service.d/macvm-networks.conf" for daemon in ("libvirtd", "virtqemud"))
NETWORKD = "etc/systemd/network/05-macvm.network"
NETWORK_MANAGER = "etc/NetworkManager/conf.d/90-macvm.conf"
FILES = (BOOT, WATCH, *NETWORKS, NETWORKD, NETWORK_MANAGER)
WANTS = Path("etc/systemd/system/multi-user.target.wants")


def context(**options: str) -> Context:
    settings = load_settings(Options(**options), {})  # type: ignore[arg-type]
    return Context(settings, readonly=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with nothing but systemd's own folders, which does not run."""
    made = tmp_path / "root"
    (made / "etc/systemd/system").mkdir(parents=True)
    (made / "etc/systemd/network").mkdir()
    return made


@pytest.fixture
def program(tmp_path: Path) -> Path:
    made = tmp_path / "bin" / "macvm"
    made.parent.mkdir()
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    return made


def everything(root: Path) -> dict[str, str]:
    """All below a folder: a file's text, where a link points to, or that it is a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        text = f"-> {os.readlink(path)}" if path.is_symlink() else "" if path.is_dir() else path.read_text()
        found[str(path.relative_to(root))] = text
    return found


@pytest.fixture
def systemd(require: Require) -> Callable[[Path], str]:
    """What systemd reads from a unit, setting by setting; fails where it has anything to say against it."""
    require(Path("/usr/bin/systemd-analyze").exists(), "no systemd-analyze (the package systemd)")

    def read(unit: Path) -> str:
        plain = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        # A setting that it passes over is no reason for another status than 0.
        assert (plain.returncode, plain.stdout + plain.stderr) == (0, "")
        debug = {**os.environ, "SYSTEMD_LOG_LEVEL": "debug"}
        return subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, env=debug).stdout

    return read


def value(dump: str, key: str) -> list[str]:
    lines = [line.strip() for line in dump.splitlines()]
    return [line.removeprefix(f"{key}: ") for line in lines if line.startswith(f"{key}: ")]


def words(dump: str) -> list[str]:
    """The command line, which systemd quotes for a shell."""
    (line,) = value(dump, "Command Line")
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return said.stdout.split("\0")[:-1]


def test_systemd_takes_both_units(root: Path, program: Path, systemd: Callable[[Path], str]) -> None:
    install.install(context(), program, root)
    boot, watch = systemd(root / BOOT), systemd(root / WATCH)
    assert words(boot) == [str(program), "shim", "up", "--known"]
    assert words(watch) == [str(program), "shim", "watch"]
    after = {word.split()[0] for word in value(boot, "After")}
    assert after >= {"network-online.target", "libvirtd.service", "virtqemud.service"}
    assert [word.split()[0] for word in value(boot, "Wants")] == ["network-online.target"]
    assert "macvm-shims.service" in {word.split()[0] for word in value(watch, "After")}
    assert value(boot, "RemainAfterExit") == ["yes"]
    assert "Restart: on-failure" in watch
    for dump in (boot, watch):
        assert [word.split()[0] for word in value(dump, "RequiresMountsFor")] == ["/var/lib/macvm"]


def test_a_unit_that_systemd_does_not_take_is_noticed(
    root: Path, program: Path, systemd: Callable[[Path], str]
) -> None:
    install.install(context(), program, root)
    (root / BOOT).write_text((root / BOOT).read_text().replace("=oneshot", "=onshot"))
    with pytest.raises(AssertionError, match="Failed to parse service type"):
        systemd(root / BOOT)


@pytest.mark.parametrize("name", ["a b", "50%", "%i", "$HOME", "${HOME}", "é;x", "#x", "~"])
def test_systemd_reads_every_path_as_it_was_meant(
    tmp_path: Path, root: Path, systemd: Callable[[Path], str], name: str
) -> None:
    program = tmp_path / name / "macvm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    connect = "qemu+unix:///system?socket=/run/a%20b;c"
    install.install(context(state_dir=f'/srv/{name}\\"', connect=connect), program, root)
    dump = systemd(root / BOOT)
    called, *arguments = words(dump)
    assert called == str(program), "its own path systemd takes as it is"
    # This is before variables are put in, when `$$` becomes `$`.
    wanted = ["--state-dir", f'/srv/{name}\\"', "--connect", connect, "shim", "up", "--known"]
    assert arguments == [one.replace("$", "$$") for one in wanted]
    assert value(dump, "RequiresMountsFor") == [f'/srv/{name}\\" (origin-file)']


@pytest.mark.parametrize("daemon", ["libvirtd", "virtqemud"])
@pytest.mark.parametrize("name", ["bin", "a b", "50%", "$HOME"])
def test_systemd_has_either_daemon_wait_for_its_links(
    tmp_path: Path, root: Path, systemd: Callable[[Path], str], daemon: str, name: str
) -> None:
    program = tmp_path / name / "macvm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    install.install(context(state_dir="/srv/$x"), program, root)
    unit = root / f"etc/systemd/system/{daemon}.service"
    unit.write_text("[Service]\nType=notify\nExecStart=/bin/true\n")
    dump = systemd(unit)
    before, itself = value(dump, "Command Line")
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {before}"], capture_output=True, text=True, check=True)
    called = ["timeout", "10", *(word.replace("$", "$$") for word in (str(program), "--state-dir", "/srv/$x"))]
    assert said.stdout.split("\0")[:-1] == [*called, "network", "up"]
    assert itself == "/bin/true"
    assert value(dump, "ExecStartPre") == []
    assert "network-online.target" in {word.split()[0] for word in value(dump, "After")}
    assert "network-online.target" not in {word.split()[0] for word in value(dump, "Wants")}


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b", "a\nb", "a\u202eb", "a\udcffb"])
def test_a_program_that_systemd_cannot_run_is_refused(root: Path, name: str) -> None:
    before = everything(root)
    with pytest.raises(Usage, match=r"such a name|cannot stand in a systemd unit"):
        install.install(context(), Path(f"/opt/{name}/macvm"), root)
    assert everything(root) == before


def test_words_that_need_no_quotes_have_none() -> None:
    assert unit_file.command("/usr/bin/macvm", ["--state-dir", "/srv/x", "shim"]) == (
        "/usr/bin/macvm --state-dir /srv/x shim"
    )
    assert unit_file.word("") == '""'


def test_installed_twice_and_uninstalled_twice_leaves_nothing(root: Path, program: Path) -> None:
    before = everything(root)
    first = install.install(context(), program, root)
    once = everything(root)
    assert first.written == tuple(str(root / name) for name in FILES)
    assert not first.started
    assert all(
        text.startswith("# Written by macvm: macvm shim uninstall removes it\n")
        for text in map(once.get, FILES)
        if text
    )
    assert {(root / name).stat().st_mode & 0o777 for name in FILES} == {0o644}
    assert install.install(context(), program, root) == first
    assert everything(root) == once
    assert install.uninstall(context(), root) == install.Removed(first.written, ())
    assert everything(root) == before
    assert install.uninstall(context(), root) == install.Removed((), ())
    assert everything(root) == before


def test_systemctl_finds_them_enabled_and_disables_them(root: Path, program: Path, require: Require) -> None:
    require(Path("/usr/bin/systemctl").exists(), "no systemctl (the package systemd)")

    def enabled() -> list[str]:
        argv = ["systemctl", f"--root={root}", "is-enabled", *install.UNITS]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()

    install.install(context(), program, root)
    assert enabled() == ["enabled", "enabled"]
    links = everything(root / WANTS)
    subprocess.run(["systemctl", f"--root={root}", "disable", *install.UNITS], check=True, capture_output=True)
    assert enabled() == ["disabled", "disabled"]
    subprocess.run(["systemctl", f"--root={root}", "enable", *install.UNITS], check=True, capture_output=True)
    assert everything(root / WANTS) == links, "what systemctl makes is what macvm makes where it cannot be asked"


def test_no_link_of_macvms_is_left_to_others(root: Path, program: Path) -> None:
    install.install(context(), program, root)
    networkd = configparser.ConfigParser()
    networkd.read(root / NETWORKD)
    manager = configparser.ConfigParser()
    manager.read(root / NETWORK_MANAGER)
    patterns = networkd["Match"]["Name"].split()
    devices = manager["keyfile"]["unmanaged-devices+"].split(";")
    assert devices == [f"interface-name:{pattern}" for pattern in patterns]
    for prefix in (SHIM_PREFIX, DEVICE_PREFIX, PROBE_PREFIX, LINK_PREFIX):
        assert any(fnmatch(f"{prefix}525400123456", pattern) for pattern in patterns)
    assert not any(fnmatch(name, pattern) for name in ("eth0", "eth0.50", "enp1s0", "macvtap0") for pattern in patterns)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["file", "masked", "folder", "link"])
def test_what_others_wrote_stays(root: Path, program: Path, name: str, kind: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "file":
            path.write_text("[Unit]\n# Written by macvm: macvm shim uninstall removes it\n")
        case "masked":
            path.symlink_to("/dev/null")
        case "folder":
            path.mkdir()
        case "link":
            marked_files.write(root / "elsewhere", install.MARK, "[Unit]\n")
            path.symlink_to(root / "elsewhere")
    before = everything(root)
    with pytest.raises(Problems) as raised:
        install.install(context(), program, root)
    assert raised.value.status == 4
    assert [problem.message for problem in raised.value.problems] == [
        f"{path} is there already, and macvm did not write it"
    ]
    with pytest.raises(Problems):
        install.install_lines(context(), program, root)
    assert install.uninstall(context(), root) == install.Removed((), (str(path),))
    assert install.uninstall_lines(root) == []
    assert everything(root) == before


def test_uninstall_takes_its_own_from_beside_others(root: Path, program: Path) -> None:
    install.install(context(), program, root)
    (root / BOOT).write_text("[Service]\nExecStart=/bin/true\n")
    (root / "etc/NetworkManager/conf.d/99-theirs.conf").write_text("")
    assert install.uninstall(context(), root).kept == (str(root / BOOT),)
    left = everything(root)
    assert [name for name, text in left.items() if (root / name).is_file()] == [
        "etc/NetworkManager/conf.d/99-theirs.conf",
        BOOT,
    ]
    assert f"{WANTS}/macvm-shims.service" in left, "it is theirs now, and so is that it starts"
    assert f"{WANTS}/macvm-shims-watch.service" not in left


def test_a_file_that_cannot_be_written_undoes_those_before(root: Path, program: Path) -> None:
    (root / "etc/NetworkManager").write_text("no folder")
    before = everything(root)
    with pytest.raises(Unable, match=r"90-macvm\.conf cannot be written"):
        install.install(context(), program, root)
    assert everything(root) == before


def test_folders_that_several_files_share_go_with_the_last(tmp_path: Path, program: Path) -> None:
    root = tmp_path / "bare"
    root.mkdir()
    install.install(context(), program, root)
    install.uninstall(context(), root)
    assert everything(root) == {}


def test_a_full_disk_leaves_no_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    before = everything(root)
    with pytest.raises(Unable, match="cannot be written: No space left on device"):
        marked_files.write(root / "a/b/c", install.MARK, "")
    assert everything(root) == before


def test_only_what_differs_from_the_defaults_is_said(
    root: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACVM_STATE_DIR", "/srv/vms")
    settings = load_settings(Options(), os.environ)
    install.install(Context(settings, readonly=True), program, root)
    assert f"ExecStart={program} --state-dir /srv/vms shim up --known\n" in (root / BOOT).read_text(), (
        "no boot has the environment"
    )


def test_it_outlasts_a_boot_where_the_unit_is_enabled_and_has_this_store(root: Path, program: Path) -> None:
    default, other = context(), context(state_dir="/srv/a b")
    assert not install.outlasts_boot(default, root)
    install.install(default, program, root)
    assert install.outlasts_boot(default, root)
    assert not install.outlasts_boot(other, root)
    install.install(other, program, root)
    assert not install.outlasts_boot(default, root)
    assert install.outlasts_boot(other, root)
    (root / WANTS / "macvm-shims.service").unlink()
    assert not install.outlasts_boot(other, root)


def test_the_program_is_the_one_that_was_called(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "macvm"
    link.symlink_to(program)
    monkeypatch.chdir(program.parent)
    assert install.find_program("./macvm") == program
    assert install.find_program(str(link)) == link, "an upgrade turns the link"
    monkeypatch.setattr("sys.executable", str(program.with_name("python3")))
    assert install.find_program("/usr/lib/python3/dist-packages/pytest/__main__.py") == program
    program.chmod(0o644)
    with pytest.raises(Unable, match="no command that a unit could run"):
        install.find_program("./macvm")


def test_a_program_that_others_may_change_is_said(root: Path, program: Path) -> None:
    assert install.install(context(), program, root).notes == ()
    os.chown(program.parent, 1000, 1000)
    assert install.install(context(), program, root).notes == (
        f"root runs {program} at each boot, and others may change {program.parent}",
    )


def test_a_session_is_refused(root: Path, program: Path) -> None:
    for connect in ("qemu:///session", "qemu+ssh://host/system"):
        with pytest.raises(Unable):
            install.install(context(connect=connect), program, root)
    assert not (root / BOOT).exists()


@pytest.fixture
def running(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Require) -> Callable[..., list[str]]:
    """Has systemd run on `root`: its own `systemctl` enables and disables there, whatever else is asked of it is only
    noted. `running(fails=…)` returns what was asked, and has what begins so fail from then on."""
    require(Path("/usr/bin/systemctl").exists(), "no systemctl (the package systemd)")
    (root / "run/systemd/system").mkdir(parents=True)
    asked, failing = tmp_path / "asked", tmp_path / "failing"
    script = tmp_path / "path" / "systemctl"
    script.parent.mkdir()
    script.write_text(f"""#!/bin/sh
case "$*" in "$(cat {failing})"*) echo "it failed" >&2; exit 1;; esac
case "$1" in is-active) [ "$3" = NetworkManager.service ]; exit;; esac
echo "$*" >>{asked}
case "$1" in enable|disable) verb=$1; shift; [ "$1" = --now ] && shift; exec /usr/bin/systemctl --root={root} $verb "$@";; esac
""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    failing.write_text("nothing")

    def look(fails: str = "nothing") -> list[str]:
        failing.write_text(fails)
        lines = asked.read_text().splitlines() if asked.exists() else []
        asked.write_text("")
        return lines

    return look


UNITS = "macvm-shims.service macvm-shims-watch.service"


def test_a_systemd_that_runs_is_told(root: Path, program: Path, running: Callable[..., list[str]]) -> None:
    before = everything(root)
    done = install.install(context(), program, root)
    assert done.started
    steps = ["daemon-reload", f"enable {UNITS}", f"restart {UNITS}", "reload NetworkManager.service"]
    assert running() == steps
    assert install.install_lines(context(), program, root)[-4:] == [f"systemctl {step}" for step in steps]
    assert install.outlasts_boot(context(), root)
    lines = install.uninstall_lines(root)
    install.uninstall(context(), root)
    steps = running()
    assert steps == [f"disable --now {UNITS}", "daemon-reload", "reload NetworkManager.service"]
    assert [line for line in lines if not line.startswith(("rm ", "rmdir "))] == [f"systemctl {step}" for step in steps]
    assert everything(root) == before
    install.uninstall(context(), root)
    assert running() == []


def test_a_unit_that_cannot_be_enabled_undoes_all(root: Path, program: Path, running: Callable[..., list[str]]) -> None:
    before = everything(root)
    running("enable")
    with pytest.raises(ToolFailed, match="it failed"):
        install.install(context(), program, root)
    assert running() == ["daemon-reload", "daemon-reload"], "once for what is there, once for what is gone"
    assert everything(root) == before


def test_a_link_that_cannot_be_made_undoes_all(root: Path, program: Path) -> None:
    (root / WANTS).mkdir()
    (root / WANTS / "macvm-shims-watch.service").symlink_to("/etc/theirs.service")
    before = everything(root)
    with pytest.raises(
        Unable, match=r"multi-user\.target\.wants/macvm-shims-watch\.service cannot be made: File exists"
    ):
        install.install(context(), program, root)
    assert everything(root) == before


def test_a_unit_that_does_not_start_is_named_and_stays(
    root: Path, program: Path, running: Callable[..., list[str]]
) -> None:
    running("restart")
    with pytest.raises(PartlyDone, match="start with the host, but not all did now: systemctl failed: it failed"):
        install.install(context(), program, root)
    assert "reload NetworkManager.service" in running(), "the others are told all the same"
    assert install.outlasts_boot(context(), root)


def test_uninstall_goes_on_past_an_error(root: Path, program: Path, running: Callable[..., list[str]]) -> None:
    before = everything(root)
    install.install(context(), program, root)
    running("disable")
    with pytest.raises(MacvmError, match="it failed"):
        install.uninstall(context(), root)
    assert everything(root) == before


def test_dry_runs_do_nothing(macvm: Callable[..., Ran], tmp_path: Path) -> None:
    """On this machine: nothing but a look."""
    state = str(tmp_path / "state")
    ran = macvm("--state-dir", state, "shim", "install", "--dry-run")
    assert ran.status == 0, ran
    written = [line.rpartition(" > ")[2] for line in ran.out.splitlines() if line.startswith("printf ")]
    assert written == [f"/{name}" for name in FILES]
    assert not Path("/", BOOT).exists()
    assert macvm("--state-dir", state, "shim", "uninstall", "--dry-run").out == ""
    assert not Path(state).exists()
