"""Sandboxes for tests: one or two KVM hosts with their own libvirtd, one set per worker process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from provisioner.actions.sandbox import Sandbox
from provisioner.errors import Unable
from tests.sandbox.kvm_host import KvmHost


def make_sandbox(hosts: int = 1, hairpin: bool = False) -> Sandbox:
    """A sandbox, or a skip with the reason; where tests must all run (CI, MACVM_REQUIRE_ALL=1), a failure."""
    try:
        return Sandbox(hosts, hairpin)
    except Unable as unable:
        if os.environ.get("CI") or os.environ.get("MACVM_REQUIRE_ALL") == "1":
            raise
        pytest.skip(f"no sandbox here: {unable.message}")


@pytest.fixture(scope="session")
def box() -> Iterator[Sandbox]:
    """One KVM host, shared by this worker's tests: leave it as it was found."""
    with make_sandbox() as made:
        yield made


@pytest.fixture(scope="session")
def two_hosts() -> Iterator[Sandbox]:
    """Two KVM hosts on one switch, shared by this worker's tests: leave them as they were found."""
    with make_sandbox(hosts=2) as made:
        yield made


@pytest.fixture
def fresh_box() -> Iterator[Sandbox]:
    """A KVM host for one test alone, to break as it likes."""
    with make_sandbox() as made:
        yield made


@pytest.fixture(scope="session")
def host(box: Sandbox) -> KvmHost:
    """The host of `box` with the tiny image, and with the files that macvm makes once: snapshots compare without them."""
    made = KvmHost(box)
    made.macvm("image", "build", "tiny")
    made.macvm("create", "first", "--no-start", "--ip", "192.0.2.90/24")
    made.macvm("delete", "--yes", "first")
    return made
