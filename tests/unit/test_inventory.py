"""The inventory, as Ansible's own program reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from provisioner.actions.labs import inventory
from provisioner.actions.labs.inventory import Inventory
from provisioner.actions.ssh import Target
from provisioner.actions.views import MachineView
from provisioner.errors import NotFound, Unable


def machine(name: str, lab: str | None = None, **labels: str) -> MachineView:
    return MachineView(name, name, "running", lab, labels, "tiny", (), True)


def target(
    name: str, user: str | None = "cirros", known_hosts: str = "/var/lib/macvm/machines/x/known_hosts"
) -> Target:
    return Target(name, "192.0.2.11", user, "uuid", Path(known_hosts), (Path("/home/me/my key"),))


def made(*machines: MachineView) -> Inventory:
    hosts = {one.name: inventory._variables(target(one.name)) for one in machines}
    return Inventory(hosts, inventory._groups(machines), ())


def read_by_ansible(folder: Path, path: str) -> tuple[Any, str]:
    program = Path(sys.executable).with_name("ansible-inventory")
    environment = {**os.environ, "ANSIBLE_HOME": str(folder), "LC_ALL": "C.UTF-8"}
    command = ["bash", "-c", f'"$0" -i {path} --list', str(program)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout), done.stderr


MACHINES = [
    machine("web1", "my-lab", role="web", site="5 & more: {x}"),
    machine("12", "my-lab", role="web"),
    machine("role_db", None, role="db"),
    machine("no", None, all=""),
    machine("plain"),
]
GROUPS = {
    "lab_my_lab": ["12", "web1"],
    "role_web": ["12", "web1"],
    "site_5___more___x_": ["web1"],
    "role_db_": ["role_db"],
    "all_": ["no"],
}


@pytest.mark.parametrize("way", ["file", "pipe", "script"])
def test_ansible_reads_it_without_a_warning(tmp_path: Path, way: str) -> None:
    found = made(*MACHINES)
    (tmp_path / "hosts.yaml").write_text(found.yaml())
    (tmp_path / "listed.json").write_text(json.dumps(found.listed()))
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nexec cat {tmp_path}/listed.json\n")
    script.chmod(0o755)
    path = {"file": "hosts.yaml", "pipe": "<(cat hosts.yaml)", "script": "./script"}[way]
    read, said = read_by_ansible(tmp_path, path)
    assert said == ""
    assert read["_meta"]["hostvars"] == found.hosts
    assert {group: sorted(read[group]["hosts"]) for group in GROUPS} == GROUPS
    assert read["ungrouped"]["hosts"] == ["plain"]
    assert set(read["all"]["children"]) == {"ungrouped", *GROUPS}


@pytest.mark.parametrize("way", ["file", "script"])
def test_ansible_reads_one_of_nobody(tmp_path: Path, way: str) -> None:
    found = Inventory({}, {}, ())
    (tmp_path / "empty.yaml").write_text(found.yaml())
    (tmp_path / "script").write_text(f"#!/bin/sh\necho '{json.dumps(found.listed())}'\n")
    (tmp_path / "script").chmod(0o755)
    read, _ = read_by_ansible(tmp_path, {"file": "empty.yaml", "script": "./script"}[way])
    assert read["_meta"]["hostvars"] == {}


def test_how_a_host_is_reached() -> None:
    assert inventory._variables(target("web")) == {
        "ansible_host": "192.0.2.11",
        "ansible_user": "cirros",
        "ansible_ssh_common_args": "-o HostKeyAlias=uuid"
        " -o 'UserKnownHostsFile=\"/var/lib/macvm/machines/x/known_hosts\"' -o StrictHostKeyChecking=accept-new"
        " -o CheckHostIP=no -o 'IdentityFile=\"/home/me/my key\"'",
    }
    assert "ansible_user" not in inventory._variables(target("web", user=None))


def test_a_path_that_ansible_would_take_for_a_template_is_refused() -> None:
    with pytest.raises(Unable, match="template"):
        inventory._variables(target("web", known_hosts="/srv/{{ 1 }}/known_hosts"))


def test_one_host() -> None:
    found = made(*MACHINES)
    assert inventory.host(found, "12") == found.hosts["12"]
    with pytest.raises(NotFound, match="'web9' is not in the inventory"):
        inventory.host(found, "web9")
