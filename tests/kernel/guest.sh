#!/bin/sh
# What the guest runs, over its own root: guest.sh PYTHON ROOT, the checkout's. Answers go out by its standard output
# alone, all else is for the console.
set -eu
python=$1 root=$2
exec 3>&1 4<&0 1>&2 0</dev/null

# The file system that it booted from asks for every name and page anew, each time, and has empty folders where virtme
# thinks that they should be. This one keeps what it has read; and all of it may be written to, for the changes stay
# in memory.
new=/run/root
mkdir -p /run/machine /run/changes $new
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,access=any,msize=512000 machine /run/machine
mount -t tmpfs -o mode=755 changes /run/changes
mkdir /run/changes/upper /run/changes/work
mount -t overlay -o lowerdir=/run/machine,upperdir=/run/changes/upper,workdir=/run/changes/work root $new
for view in proc sys dev; do mount --rbind /$view $new/$view; done
mount -t tmpfs -o mode=755 run $new/run
# Not chroot, which has AppArmor know every file by the name that it has below /run/root.
cd $new
pivot_root . mnt

# Whatever this kernel lacks shows as a failure. No plugins: importing hypothesis alone takes seconds.
exec env -i PATH="${python%/*}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/root LANG=C.UTF-8 \
  MACVM_REQUIRE_ALL=1 MACVM_TEST_KERNEL=own PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
  sh -c 'cd "$1" && exec "$0" -m pytest -p no:cacheprovider -p tests.kernel.inside tests/kernel' "$python" "$root"
