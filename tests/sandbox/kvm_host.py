"""A KVM host of a sandbox as tests use it: macvm run there, its guests asked, its state as a value to compare."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provisioner.actions.sandbox import Node, Sandbox

STATE = "/var/lib/macvm"

#: Runs a command as an ordinary user who may yet read the checkout, wherever it lies.
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
NOBODY += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]

#: All that macvm might leave, a section a line of `#`. Left out: what libvirt keeps (each domain's log, its cache, its
#: empty folder for autostart, one in which it asks a QEMU what that can), the neighbours that the kernel learns and
#: forgets by itself, the number that the store gives to its next journal row, and when an image was built last.
_SNAPSHOT = rf"""
echo '#links'; ip -d -o link | sed -E 's/^[0-9]+: //; s/ state [A-Z]+//'
echo '#addresses'; ip -o address | sed -E 's/^[0-9]+: //'
echo '#routes'; ip -4 route show table all; ip -6 route show table all
echo '#neighbours'; ip neigh show nud permanent; ip neigh show proxy; ip neigh | grep -E '^[^f].* dev m[tv]-'
echo '#files'; find {STATE} /var/lib/libvirt /etc/libvirt /var/log/libvirt /run/libvirt /run/macvm* \
  ! -name 'macvm.db*' ! \( -path '/var/log/libvirt/qemu/*.log' ! -name '*-serial.log' \) ! -path '*/cache/*' \
  ! -path '*/dbus*' ! -path '*/qemu/autostart' ! -path '*/qemu/qmp-*' \
  -printf '%p %y %m %U %G\n' 2>/dev/null
find {STATE} -name 'macvm.db' -printf '%p %m\n'
echo '#domains'; virsh list --all --uuid --name
echo '#rows'; [ ! -e {STATE}/macvm.db ] || sqlite3 {STATE}/macvm.db .dump | grep -v sqlite_sequence |
  sed -E "s/(INSERT INTO images .*),'[0-9:]+','[^']*'(,'[^']*','[^']*')\)/\1\2)/"
echo '#sysctls'; sysctl -a 2>/dev/null | grep -E '^net\.ipv[46]\.(conf|neigh|ip_forward|route)'
echo '#taps'; ls /dev | grep tap
"""


class KvmHost:
    """`macvm` and the shell on one host of a sandbox, and on its LAN peer."""

    def __init__(self, nodes: Sandbox, number: int = 1) -> None:
        self.nodes = nodes
        self.node = nodes.host(number)
        self.lan = nodes.lan

    def macvm(
        self, *words: object, status: int = 0, input: str = "", timeout: float = 150
    ) -> subprocess.CompletedProcess[str]:
        """Run it, and hold it to its status."""
        done = self.node.run(["macvm", *map(str, words)], input=input, timeout=timeout)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, f"macvm {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def create(self, name: str, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """`macvm create` of a small guest."""
        return self.macvm("create", name, "--memory", "128", *words, status=status)

    def json(self, *words: object) -> Any:
        return json.loads(self.macvm(*words, "-o", "json").stdout)

    def show(self, name: str) -> Any:
        return self.json("show", name)

    def sh(self, script: str, *, node: Node | None = None, timeout: float = 60) -> str:
        """Standard output of a shell script, which must end with 0."""
        return (node or self.node).run(["bash", "-c", script], check=True, timeout=timeout).stdout

    def page(self, address: str, path: str = "", *, node: Node | None = None, seconds: int = 60, lines: int = 1) -> str:
        """What a guest serves, asked again and again until it does, and says that many lines."""
        url = f"http://{f'[{address}]' if ':' in address else address}/{path}"
        ask = f'page=$(curl -sfg -m 2 {url}) && [ -n "$page" ] && [ "$(wc -l <<< "$page")" -ge {lines} ]'
        loop = f'until {ask}; do sleep 0.2; done; echo "$page"'
        return self.sh(f"timeout {seconds} bash -c '{loop}'", node=node, timeout=seconds + 10)

    def terminal(self, command: list[str], steps: list[tuple[str, str]]) -> subprocess.CompletedProcess[str]:
        """Runs a command on a terminal: waits for each text, then types the other."""
        script = Path(__file__).with_name("terminal.py")
        return self.node.run([sys.executable, script, *command], input=json.dumps(steps), timeout=120)

    def state(self) -> dict[str, list[str]]:
        """Everything that macvm might change here, by kind, each line by line in order."""
        return state_of(self.node)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Holds what happens inside to leaving all as it was."""
        before = self.state()
        yield
        assert_same(before, self.state())

    def settle_addresses(self) -> None:
        """Waits until no IPv6 address is tentative any more."""
        self.sh("while ip -6 addr show tentative | grep -q inet6; do sleep 0.05; done")

    def delete_endpoints(self) -> None:
        """All that the store has; not by `endpoint list`, for on an emulated CPU Python takes seconds to start."""
        if names := self.sh(f"sqlite3 {STATE}/macvm.db 'SELECT name FROM endpoints'").split():
            self.macvm("endpoint", "delete", *names)

    def clear(self, keep: Iterable[str] = ()) -> None:
        """Deletes macvm's machines."""
        made = [
            machine["name"]
            for machine in self.json("list")
            if machine["made_by_macvm"] and machine["kind"] == "machine"
        ]
        if names := [name for name in made if name not in set(keep)]:
            self.macvm("delete", "--yes", *names)


def state_of(node: Node) -> dict[str, list[str]]:
    """`KvmHost.state`, of a node."""
    text = node.run(["bash", "-c", _SNAPSHOT], timeout=60).stdout
    sections = re.split(r"^#(\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: sorted(filter(None, body.splitlines())) for name, body in zip(*[iter(sections)] * 2, strict=True)}


def assert_same(before: dict[str, list[str]], after: dict[str, list[str]]) -> None:
    gone = {kind: sorted(set(lines) - set(after[kind])) for kind, lines in before.items()}
    new = {kind: sorted(set(lines) - set(before[kind])) for kind, lines in after.items()}
    different = {kind: (gone[kind], new[kind]) for kind in before if before[kind] != after[kind]}
    assert not different, "\n".join(f"{kind}: gone {lost}, new {come}" for kind, (lost, come) in different.items())


def complaints(stderr: str) -> list[tuple[str, str]]:
    """The errors with their hints. Holds macvm to two lines for each."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("note: ", "checking and storing "))]
    assert len(lines) % 2 == 0, stderr
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    for error, hint in pairs:
        assert error.startswith("error: "), stderr
        assert hint.startswith("hint: "), stderr
    return [(error.removeprefix("error: "), hint.removeprefix("hint: ")) for error, hint in pairs]
