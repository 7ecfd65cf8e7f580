"""A password, and its hash, are on the seed alone: in nothing that macvm or libvirt keep, log or say, and gone with the VM."""

from __future__ import annotations

from tests.sandbox.kvm_host import STATE, KvmHost

PASSWORD = "open-sesame-7309"

#: Every file that macvm, libvirt and QEMU write, but the seeds; and what QEMU was started with.
_KEPT = f"""
grep -alrF -e {PASSWORD} -e "$HASH" {STATE} /var/lib/libvirt /var/log/libvirt /etc/libvirt /run/libvirt /run/macvm* \
    --exclude=seed.iso --exclude-dir=images 2> /dev/null
ps -ww -o args= -C qemu-system-x86_64,libvirtd | grep -F -e {PASSWORD} -e "$HASH"
virsh dumpxml --security-info kept | grep -F -e {PASSWORD} -e "$HASH"
sqlite3 {STATE}/macvm.db .dump | grep -F -e {PASSWORD} -e "$HASH"
true
"""


def test_a_password_is_on_the_seed_alone_and_goes_with_it(host: KvmHost) -> None:
    made = host.macvm("create", "kept", "--memory", "192", "--ip", "192.0.2.47/24", "--password", PASSWORD, "-v")
    seed = f"{STATE}/machines/{host.show('kept')['uuid']}/seed.iso"
    try:
        assert host.sh(f"stat -c '%a %U' {seed}").split() == ["600", "libvirt-qemu"]
        (hashed,) = set(host.sh(f"grep -ao '[$]6[$][^ $]*[$][A-Za-z0-9./]*' {seed}").split())
        assert host.sh(f"HASH='{hashed}'\n{_KEPT}") == ""
        # It would have been found.
        assert host.sh(f"grep -alF '{hashed}' {seed}").strip() == seed
        said = [made, host.macvm("show", "kept"), host.macvm("-o", "json", "show", "kept")]
        said.append(host.macvm("create", "again", "--password", PASSWORD, "--dry-run"))
        told = "".join(one.stdout + one.stderr for one in said)
        assert [word for word in (PASSWORD, hashed, "$6$") if word in told] == []
        assert "'cirros:(masked)' | chpasswd -e" in told
    finally:
        deleted = host.macvm("delete", "--yes", "kept")
    assert PASSWORD not in deleted.stdout + deleted.stderr
    assert host.sh(f"ls -A {STATE}/machines; HASH='{hashed}'\n{_KEPT.replace('virsh', ': virsh')}") == ""
    assert host.sh(f"grep -arlF '{hashed}' {STATE} || true") == ""
