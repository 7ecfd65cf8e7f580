"""A guest with a real cloud-init and a real sshd: what it makes of macvm's seed, and how programs of all sorts log in to it.

One guest is shared by the tests, in their order, which begin right after `create --wait=ssh`: `web` has a dual-stack NIC,
and one that asks the LAN's DHCP server.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox import debian_root
from tests.sandbox.kvm_host import STATE, KvmHost

pytestmark = pytest.mark.xdist_group("cloud-init")

#: An emulated boot takes half a minute; a busy machine makes several of it.
PATIENCE = 400

CATALOGUE = """[debian-test]
login = "debian"
configured_by = "cloud-init"
"""

#: Where the tests keep their files on the host.
HERE = "/run/cloud-init-test"
KEY = f"{HERE}/key"
CONFIG = f"{HERE}/ssh-config"

USER_DATA = "#!/bin/sh\necho once >> /var/lib/counter\n"


@pytest.fixture(scope="module", autouse=True)
def web(host: KvmHost) -> Iterator[None]:
    host.clear()
    host.sh(f"mkdir -p {HERE} /etc/macvm/catalog.d; ssh-keygen -q -t ed25519 -N '' -f {KEY}\n"
            f"cat > /etc/macvm/catalog.d/debian-test.toml <<'END'\n{CATALOGUE}END\n"
            f"cat > {HERE}/user-data <<'END'\n{USER_DATA}END")  # fmt: skip
    host.macvm("image", "import", debian_root.disk(), "debian-test:12")
    host.nodes.dhcp(True)
    create(host, "--dns", "192.0.2.53", "--user-data", f"{HERE}/user-data", "--nic", "ip=dhcp,mtu=1400",
           "--lab", "classic", "--label", "role=web")  # fmt: skip
    host.sh(f"macvm ssh-config -i {KEY} > {CONFIG}")
    yield
    host.clear()
    host.nodes.dhcp(False)
    host.macvm("image", "delete", "--yes", "debian-test:12")
    host.sh(
        f"rm -r {HERE} /etc/macvm/catalog.d/debian-test.toml; rmdir --ignore-fail-on-non-empty /etc/macvm/catalog.d"
    )


def create(host: KvmHost, *words: str) -> None:
    host.macvm("create", "web", "--image", "debian-test", "--ip", "192.0.2.61/24", "--ip", "2001:db8::61/64",
               "--ssh-key", f"{KEY}.pub", *words, "--wait=ssh", "--timeout", f"{PATIENCE}s", timeout=PATIENCE + 60)  # fmt: skip


def ssh(host: KvmHost, script: str, ends: int = 0) -> subprocess.CompletedProcess[str]:
    return host.macvm("ssh", "-i", KEY, "web", "--", script, status=ends, timeout=PATIENCE)


def guest(host: KvmHost, script: str) -> str:
    return ssh(host, script).stdout


def addresses(host: KvmHost) -> dict[str, set[str]]:
    """In the guest, by MAC and without the link-local ones."""
    return {
        link["address"]: {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"}
        for link in json.loads(guest(host, "ip -j address"))
    }


def netplan_complains(host: KvmHost) -> list[str]:
    """Of the configuration; of its file's rights it does always, for Debian 12's cloud-init writes it so."""
    said = ssh(host, "sudo netplan generate").stderr
    return [line for line in said.splitlines() if line and not line.endswith("should NOT be accessible by others.")]


# --- how programs log in ----------------------------------------------------------------------------------------------


def test_ssh_with_the_catalogues_user_and_the_commands_own_status(host: KvmHost) -> None:
    assert guest(host, "id -un") == "debian\n"
    ssh(host, "exit 7", ends=7)
    assert host.macvm("ip", "web").stdout == "192.0.2.61\n"
    # Through the shim in both families: whom the guest has at the other end is the host's own address.
    v4, v6 = host.node.addresses
    assert guest(host, "echo $SSH_CONNECTION").split()[0] == v4
    assert host.sh(f"ssh -F {CONFIG} -o HostName=2001:db8::61 web 'echo $SSH_CONNECTION'").split()[0] == v6


def test_files_go_both_ways(host: KvmHost) -> None:
    host.sh(f"""set -e; cd {HERE}; head -c 300000 /dev/urandom > sent
        scp -q -F {CONFIG} sent web:by-scp; scp -q -F {CONFIG} web:by-scp back-by-scp; cmp sent back-by-scp
        printf 'put sent by-sftp\\nget by-sftp back-by-sftp\\n' | sftp -q -F {CONFIG} -b - web; cmp sent back-by-sftp""")


def test_an_editors_remote_mode(host: KvmHost) -> None:
    """A script on standard input of a shell without a terminal, a proxy beside it, and further commands over one connection."""
    options = f"-F {CONFIG} -o ControlPath={HERE}/master"
    said = host.sh(f"""set -e
        echo 'echo server at $(hostname)' | ssh {options} -o ControlMaster=auto -o ControlPersist=60 -T -D 127.0.0.1:1080 web sh
        ssh {options} -O check web 2>&1 | sed 's/ (.*//'
        curl -s --socks5-hostname 127.0.0.1:1080 telnet://localhost:22 -m 5 </dev/null | head -c 7; echo
        ssh {options} -O exit web 2>/dev/null""")
    assert said.splitlines() == ["server at web", "Master running", "SSH-2.0"]


def test_ansible(host: KvmHost) -> None:
    host.sh(f"echo \"web ansible_ssh_common_args='-F {CONFIG}'\" > {HERE}/inventory")
    ansible = f"env ANSIBLE_HOME={HERE}/ansible LC_ALL=C.UTF-8 {Path(sys.executable).with_name('ansible')} -i {HERE}/inventory all"
    assert "web | CHANGED | rc=0 >>\nweb" in host.sh(f"{ansible} -m raw -a hostname", timeout=PATIENCE)
    assert '"ping": "pong"' in host.sh(f"{ansible} -m ping", timeout=PATIENCE)


def test_ansible_by_macvms_own_inventory(host: KvmHost) -> None:
    """As a file, through a pipe, and as a script that it asks: without a word of ssh's in the way."""
    programs = Path(sys.executable).parent
    ansible = f"env ANSIBLE_HOME={HERE}/ansible LC_ALL=C.UTF-8 {programs}"
    host.sh(f"""macvm inventory -i {KEY} > {HERE}/hosts.yaml
        printf '#!/bin/sh\nexec macvm inventory -i {KEY} "$@"\n' > {HERE}/script; chmod 755 {HERE}/script""")
    file = json.loads(host.sh(f"{ansible}/ansible-inventory -i {HERE}/hosts.yaml --list"))
    asked = json.loads(host.sh(f"{ansible}/ansible-inventory -i {HERE}/script --list"))
    assert file == asked
    assert (file["role_web"]["hosts"], file["lab_classic"]["hosts"]) == (["web"], ["web"])
    assert host.json("inventory", "-i", KEY, "--host", "web") == file["_meta"]["hostvars"]["web"]
    pipe = f"{ansible}/ansible -i <(macvm inventory -i {KEY} --lab classic)"
    assert "web | CHANGED | rc=0 >>\nweb" in host.sh(f"{pipe} role_web -m raw -a hostname", timeout=PATIENCE)
    assert '"ping": "pong"' in host.sh(f"{pipe} all -m ping", timeout=PATIENCE)
    assert host.macvm("inventory", "--lab", "other", status=3).stderr.startswith("error: no VM is of a lab 'other'")


# --- what cloud-init makes of the seed --------------------------------------------------------------------------------


def test_cloud_init_has_nothing_to_complain_of(host: KvmHost) -> None:
    assert "status: done" in guest(host, "cloud-init status --wait --long")
    assert guest(host, "sudo grep -E 'WARNING|ERROR|Traceback|deprecat' /var/log/cloud-init.log; :") == ""
    state = guest(host, "systemctl is-system-running --wait; systemctl --failed --plain --no-legend")
    assert state == "running\n"
    assert netplan_complains(host) == []


def test_its_name_and_what_it_was_given_to_run(host: KvmHost) -> None:
    assert guest(host, "hostname; cat /etc/hostname /var/lib/counter") == "web\nweb\nonce\n"
    uuid = host.show("web")["uuid"]
    assert guest(host, "sudo cat /var/lib/cloud/data/instance-id").strip() == uuid


def test_every_nic_has_its_addresses(host: KvmHost) -> None:
    static, dynamic = (nic["mac"] for nic in host.show("web")["nics"])
    found = addresses(host)
    assert found[static] == {"192.0.2.61/24", "2001:db8::61/64"}
    (leased,) = map(ipaddress.IPv4Interface, found[dynamic])
    assert ipaddress.IPv4Address("192.0.2.100") <= leased.ip <= ipaddress.IPv4Address("192.0.2.199")
    assert leased.ip == ipaddress.IPv4Address(host.show("web")["nics"][1]["addresses"][0]["address"])
    links = {link["address"]: link["mtu"] for link in json.loads(guest(host, "ip -j link"))}
    assert (links[static], links[dynamic]) == (1500, 1400)
    routes = guest(host, "ip route get 198.51.100.1; ip route get 2001:db8:1::1")
    assert "via 192.0.2.1 dev eth0" in routes
    assert "via 2001:db8::1 dev eth0" in routes
    assert "DNS=192.0.2.53" in guest(host, "cat /run/systemd/netif/state").split()
    for address in ("192.0.2.61", "2001:db8::61", str(leased.ip)):
        host.sh(f"ping -c 1 -W 10 {address}", node=host.lan)


# --- what lasts -------------------------------------------------------------------------------------------------------


def test_a_nic_attached_later_has_its_address_after_a_reboot_and_nothing_is_done_twice(host: KvmHost) -> None:
    keys, boot = guest(host, "cat /etc/ssh/ssh_host_*.pub"), guest(host, "cat /proc/sys/kernel/random/boot_id")
    before = addresses(host)
    attached = host.json("nic", "attach", "web", "--ip", "192.0.2.62/24", "--ip", "2001:db8::62/64")["nic"]["mac"]
    # By itself: QEMU goes on, with the seed open that was there before.
    host.node.run(["macvm", "ssh", "-i", KEY, "web", "--", "sudo systemctl reboot"], timeout=PATIENCE)
    again = f"[ $(cat /proc/sys/kernel/random/boot_id) != {boot.strip()} ]"
    # While it boots it takes no packets, and ssh's own patience is that of TCP, which asks ever less often.
    until = f"until ssh -F {CONFIG} -o ConnectTimeout=2 web '{again}'; do sleep 1; done"
    host.sh(f"timeout {PATIENCE} bash -c {shlex.quote(until)}", timeout=PATIENCE + 60)
    assert "status: done" in guest(host, "cloud-init status --wait --long")
    found = addresses(host)
    assert found.pop(attached) == {"192.0.2.62/24", "2001:db8::62/64"}
    assert found == before
    assert netplan_complains(host) == []
    routes = guest(host, "ip route get 198.51.100.1; ip route get 2001:db8:1::1")
    assert "via 192.0.2.1 dev eth0" in routes
    assert "via 2001:db8::1 dev eth0" in routes
    for node in (host.node, host.lan):
        host.sh("ping -c 1 -W 10 192.0.2.62 && ping -c 1 -W 10 2001:db8::62", node=node)
    assert guest(host, "cat /etc/ssh/ssh_host_*.pub") == keys
    assert guest(host, "cat /var/lib/counter") == "once\n"


def test_a_new_vm_of_the_same_name_and_address_is_no_alarm(host: KvmHost) -> None:
    old, uuid = guest(host, "cat /etc/ssh/ssh_host_*.pub"), host.show("web")["uuid"]
    host.macvm("delete", "--yes", "web")
    create(host)
    host.sh(f"macvm ssh-config -i {KEY} > {CONFIG}")
    done = host.node.run(
        ["ssh", "-v", "-F", CONFIG, "web", "cat /etc/ssh/ssh_host_*.pub"], check=True, timeout=PATIENCE
    )
    assert done.stdout.split()[1] != old.split()[1]
    assert "CHANGED" not in done.stderr
    assert guest(host, "cat /etc/ssh/ssh_host_*.pub") == done.stdout
    heir = host.show("web")["uuid"]
    assert heir != uuid
    host.sh(f"ssh-keygen -F {heir} -f {STATE}/machines/{heir}/known_hosts")
