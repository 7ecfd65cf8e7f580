"""What is read from the lines that AppArmor and SELinux leave of a denial."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.errors import HypervisorFailed
from provisioner.host import denials
from provisioner.model.denial import Denial, find_denial, refused_by_helper, unreadable

UUID = "60e8c20c-2814-45fd-9442-3d4507b667e3"
NOW = 1795250344.0

#: As Linux 6.1 wrote it, but for the path.
APPARMOR = (
    "[  113.682588] audit: type=1400 audit(1795250344.483:10): apparmor=\"DENIED\" operation=\"open\" "
    f'profile="libvirt-{UUID}" name="/data/base.foo" pid=335 comm="qemu-system-x86" requested_mask="wr" '
    'denied_mask="{mask}" fsuid=64055 ouid=0\n'
)  # fmt: skip
#: As auditd writes it (Red Hat's documentation of SELinux, "Fixing an AVC denial").
SELINUX = (
    'type=AVC msg=audit(1795250344.500:24287): avc:  denied  {{ {access} }} for  pid=2465 comm="qemu-system-x86" '
    'path="/data/disk.qcow2" dev="sda1" ino=399185 scontext=system_u:system_r:svirt_t:s0:c87,c520 '
    "tcontext=unconfined_u:object_r:default_t:s0 tclass=file permissive=0\n"
)


def test_apparmor() -> None:
    read = find_denial(APPARMOR.format(mask="r"), UUID, NOW)
    assert read
    assert read.message == "AppArmor does not let its guest read /data/base.foo"
    assert "`/data/base.foo rk,`" in read.hint
    written = find_denial(APPARMOR.format(mask="wr"), UUID, NOW)
    assert written
    assert written.message == "AppArmor does not let its guest write /data/base.foo"
    assert "`/data/base.foo rwk,`" in written.hint


def test_apparmor_by_auditd_and_with_a_blank_in_the_name() -> None:
    line = APPARMOR.format(mask="r").replace("[  113.682588] audit: type=1400 ", "type=AVC msg=")
    line = line.replace('"/data/base.foo"', b"/data/my base".hex().upper())
    found = find_denial(line, UUID, NOW)
    assert found
    assert found.message.endswith("read /data/my base")


def test_the_last_one_of_this_machine_and_this_start_counts() -> None:
    line = APPARMOR.format(mask="r")
    assert find_denial(line, UUID, NOW + 1) is None
    assert find_denial(line, UUID.replace("6", "7"), NOW) is None
    assert find_denial(line.replace("DENIED", "ALLOWED"), UUID, NOW) is None
    later = find_denial(line + line.replace("base", "other"), UUID, NOW)
    assert later
    assert later.message.endswith("/data/other.foo")


def test_the_helper_of_libvirt() -> None:
    found = find_denial(APPARMOR.format(mask="r").replace(f"libvirt-{UUID}", "virt-aa-helper"), UUID, NOW)
    assert found
    assert found.message.startswith("AppArmor does not let libvirt's virt-aa-helper read /data/base.foo")
    said = "virt-aa-helper: warning: x\nvirt-aa-helper: error: /etc/k\nvirt-aa-helper: error: skipped restricted file\n"
    refused = refused_by_helper(said)
    assert refused
    assert refused.message == "libvirt's AppArmor profiles allow no guest /etc/k (skipped restricted file)"
    assert refused_by_helper("virt-aa-helper: error: could not parse XML\n") is None


def test_selinux() -> None:
    found = find_denial(SELINUX.format(access="read"), UUID, NOW)
    assert found == Denial(
        "SELinux does not let its guest read /data/disk.qcow2, which is unconfined_u:object_r:default_t:s0",
        "semanage fcontext -a -t virt_image_t '/data(/.*)?' && restorecon -R /data",
    )
    other = SELINUX.format(access="read").replace("svirt_t", "httpd_t")
    assert find_denial(other, UUID, NOW) is None


@pytest.mark.parametrize(
    "log", ["", "nothing of it\n", "audit(x.y:1) apparmor=DENIED", 'audit(1795250345.1:1): apparmor="DENIED"']
)
def test_lines_that_say_nothing(log: str) -> None:
    assert find_denial(log, UUID, NOW) is None


def test_the_rights_of_files() -> None:
    found = unreadable("qemu-system-x86_64: -kernel: Could not open '/root/k': Permission denied")
    assert found
    assert found.hint.endswith("namei -l /root/k")
    assert unreadable("No space left on device") is None


def test_an_error_that_nothing_explains_stays() -> None:
    error = HypervisorFailed("libvirt refused to start web1: no", "journalctl")
    denials.explain(error, UUID, NOW, lambda: "")
    assert (error.message, error.hint) == ("libvirt refused to start web1: no", "journalctl")


def test_the_audit_log_explains_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text("x" * (1 << 19) + "\n" + SELINUX.format(access="read"))
    monkeypatch.setattr(denials, "_AUDIT_LOG", log)
    error = HypervisorFailed("libvirt refused to start web1: Permission denied", "journalctl")
    denials.explain(error, UUID, NOW + 1, lambda: "")
    assert error.message.startswith("libvirt refused to start web1: Permission denied: SELinux does not let its guest")
    assert error.hint.startswith("semanage fcontext")


def test_the_kernel_s_log_is_text() -> None:
    assert "\0" not in denials._kernel_log()
