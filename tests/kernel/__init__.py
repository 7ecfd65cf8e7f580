"""What macvm stands on and this machine's kernel may lack: VLANs, ipvlan, bonds, on Debian's own kernel.

`outside` boots that kernel once, in QEMU's emulation and over this very file system (virtme-ng), and has each test of
this folder run in there; `inside` is what takes them there. To pytest they are tests like others: `-k`, node ids,
tracebacks and captured output work as ever.

`MACVM_TEST_KERNEL` is another kernel's path, or `own` to run them right here.
"""
