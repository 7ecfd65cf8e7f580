"""AppArmor enforces libvirt's own profiles, as on Debian and Ubuntu: Debian's kernel has it on, the profiles and the
program that loads them are Debian's packages."""

from __future__ import annotations

import base64

from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost, complaints

#: A sandbox's own devpts has QEMU open this and not /dev/ptmx; the next line is the site's own, as everybody may add.
_OWN_DEVPTS = "/dev/pts/ptmx rw,"
_LOCAL = "/etc/apparmor.d/local/abstractions/libvirt-qemu"

_ENFORCE = f"""
mount -t securityfs securityfs /sys/kernel/security
echo '{_OWN_DEVPTS}' >{_LOCAL}
echo Optimize=no-expr-simplify >>/etc/apparmor/parser.conf  # five profiles a start, each half as long
apparmor_parser --replace /etc/apparmor.d/usr.sbin.libvirtd /etc/apparmor.d/usr.lib.libvirt.virt-aa-helper
sed -i 's/security_driver = .*/security_driver = "apparmor"/' /etc/libvirt/qemu.conf
kill $(cat /run/libvirtd.pid)
timeout 60 sh -c 'while pgrep -x libvirtd; do sleep 0.1; done' >/dev/null
libvirtd --daemon --pid-file /run/libvirtd.pid
cat /proc/$(pgrep -x libvirtd)/attr/current
"""
#: Else every libvirtd of this kernel would be confined from now on.
_SET_FREE = "apparmor_parser --remove /etc/apparmor.d/usr.sbin.libvirtd /etc/apparmor.d/usr.lib.libvirt.virt-aa-helper"

#: Its disk builds on a file that only the disk names, and neither has a name by which libvirt's helper may read it.
_THEIRS = """
mkdir -m 755 /data
qemu-img create -q -f qcow2 /data/base.foo 8M
qemu-img create -q -f qcow2 -b /data/base.foo -F qcow2 /data/over.foo
virsh -q define /dev/stdin <<'END'
<domain type='qemu'>
  <name>theirs</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <controller type='usb' model='none'/>
    <disk type='file'><driver name='qemu' type='qcow2'/><source file='/data/over.foo'/><target dev='vda'/></disk>
  </devices>
</domain>
END
"""


def _halting_kernel() -> bytes:
    """By Linux's boot protocol (Documentation/x86/boot.rst, 2.02), so that QEMU loads it: writes a `k` to the serial
    port, and halts."""
    image = bytearray(8 << 10)
    image[0x1F1] = 4  # sectors of its 16-bit part after the first
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x208] = b"\xeb\x66HdrS\x02\x02"  # jmp 0x268
    image[0x211] = 1
    # mov dx, 0x3f8; mov al, 'k'; out dx, al; cli; hlt; jmp to the hlt
    image[0x268:0x272] = bytes.fromhex("baf803 b06b ee fa f4 ebfd")
    return bytes(image)


def test_confined_machines_and_what_they_are_denied(as_root: None) -> None:
    with make_sandbox() as box:
        host = KvmHost(box)
        try:
            assert host.sh(_ENFORCE, timeout=120).endswith("libvirtd (enforce)\n")
            host.sh(f"base64 -d >/srv/kernel <<< {base64.b64encode(_halting_kernel()).decode()}")
            host.sh("qemu-img create -q -f qcow2 /tmp/empty.qcow2 8M; cp /srv/kernel /lib/modules/kernel")
            host.macvm("image", "import", "/tmp/empty.qcow2", "empty")
            _works(host)
            _says_what_is_denied(host)
        finally:
            host.sh(_SET_FREE)


def _works(host: KvmHost) -> None:
    boot = ["--kernel", "/srv/kernel", "--initrd", "/srv/kernel", "--memory", "64"]
    host.macvm("create", "web1", "--image", "empty", *boot, "--ip", "192.0.2.11/24", "--no-probe")
    uuid = host.sh("virsh -q domuuid web1").strip()
    confined = "cat /proc/$(cat /run/libvirt/qemu/web1.pid)/attr/current"
    assert host.sh(confined) == f"libvirt-{uuid} (enforce)\n"
    host.macvm("nic", "attach", "web1", "--ip", "none", "--live")
    assert len(host.sh("virsh -q domiflist web1").strip().splitlines()) == 2
    host.sh("timeout 60 sh -c 'until grep -q k /var/log/libvirt/qemu/web1-serial.log; do sleep 0.1; done'")
    assert host.sh(f"dmesg | grep 'DENIED.*libvirt-{uuid}' || true") == ""


def _says_what_is_denied(host: KvmHost) -> None:
    denied = host.macvm("create", "web2", "--kernel", "/lib/modules/kernel", "--ip", "none", status=6)
    [(error, hint)] = complaints(denied.stderr)
    assert error.endswith("libvirt's AppArmor profiles allow no guest /lib/modules/kernel (skipped restricted file)")
    assert hint.startswith("copy it to /var/lib/libvirt/images")

    host.sh(_THEIRS)
    [(error, hint)] = complaints(host.macvm("start", "theirs", status=6).stderr)
    assert error.endswith("AppArmor does not let its guest read /data/base.foo")
    line = hint.split("`")[1]
    assert (line, _LOCAL in hint) == ("/data/base.foo rk,", True)
    host.sh(f"echo '{line}' >>{_LOCAL}")
    host.macvm("start", "theirs")
