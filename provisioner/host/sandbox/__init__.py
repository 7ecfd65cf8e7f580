"""Whole KVM hosts made of namespaces, on a switch of their own: what runs inside, and how it is reached from outside.

The first process, PID 1 inside, is the switch. It forks one *node* for the LAN peer and one for each KVM host, each the
PID 1 of namespaces of its own. A node reaps, so that libvirt never waits for a zombie; a host's also plays udev for
macvtaps. Nobody can setns(2) from one node into another one's PID namespace, so every node takes requests on a socket
instead: argv, environment and working directory in a memfd, plus the three standard descriptors; it answers with the
status.

Nothing inside is visible outside: all mounts are private, all directories tmpfs, all namespaces anonymous. When the
first process goes, the kernel ends every process in its PID namespace, and the rest goes with them.

Outside are `owner`, `client` and `terminal`. All else here is `main` and what it imports, and runs under
`python -I -S`: the standard library alone, and little of it, since all of it is imported at each start.
"""
