"""A kernel that QEMU's user may not open, which libvirt cannot help: the folder above it lets only root through."""

from __future__ import annotations

from tests.sandbox.kvm_host import KvmHost, complaints


def test_a_folder_that_lets_nobody_through(host: KvmHost) -> None:
    host.sh('mkdir -m 700 /run/closed; cp "$(ls -d /boot/vmlinuz-* | tail -n 1)" /run/closed/vmlinuz')
    with host.unchanged():
        denied = host.macvm("create", "web1", "--kernel", "/run/closed/vmlinuz", "--ip", "none", status=6)
    [(error, hint)] = complaints(denied.stderr)
    assert error.endswith("QEMU's user may not open /run/closed/vmlinuz")
    assert hint == "every folder above it must let QEMU's user through: namei -l /run/closed/vmlinuz"
    host.sh("rm -r /run/closed")
