"""What a KVM host has, as text to compare before and after."""

from __future__ import annotations

from provisioner.actions.sandbox import Node

_PARTS = {
    "links": "ip -o link | sed 's/@.*//; s/^[0-9]*: //' | sort",
    "routes": "ip route; ip -6 route | grep -v '^fe80'",
    "neighbours": "(ip neigh; ip -6 neigh; ip neigh show proxy; ip -6 neigh show proxy) | grep -E 'PERMANENT|proxy'",
    "files": "find /var/lib/macvm -mindepth 1 ! -name 'macvm.db-*' | sort; "
    "find /etc/libvirt/qemu ! -type d; ls /var/log/libvirt/qemu | grep serial",
    "domains": "virsh list --all --name",
    "rows": "python3 - <<'END'\n"
    "import sqlite3\n"
    "db = sqlite3.connect('/var/lib/macvm/macvm.db')\n"
    "for table in ('macs', 'leases', 'files', 'journal', 'steps'):\n"
    "    print(table, db.execute(f'SELECT * FROM {table}').fetchall())\n"
    "END",
    "processes": "pgrep -c qemu-system",
}


def snapshot(host: Node) -> dict[str, str]:
    script = "\n".join(f"echo '### {name}'; {{ {command}; }} 2>/dev/null" for name, command in _PARTS.items())
    text = host.run(["bash", "-c", script.replace("; } 2", "\n} 2")]).stdout
    parts = text.split("### ")[1:]
    return {name: body.strip() for name, _, body in (part.partition("\n") for part in parts)}
