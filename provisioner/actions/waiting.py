"""Waiting until machines answer."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence

from provisioner.actions import views
from provisioner.context import Context
from provisioner.errors import TimeUp, Usage
from provisioner.host import system


def wait_for_ping(context: Context, names: Sequence[str], timeout: float) -> dict[str, str]:
    """Machine to the first of its addresses that answered.

    Raises NotFound; Usage for a machine of which no address is known; TimeUp with those that did not answer.
    """
    waiting = {name: _addresses(context, name) for name in names}
    answered: dict[str, str] = {}
    deadline = time.monotonic() + timeout
    while len(answered) < len(waiting):
        for name in [name for name in waiting if name not in answered]:
            left = max(0.1, min(1.0, deadline - time.monotonic()))
            for address in waiting[name]:
                if system.answers_ping(ipaddress.ip_address(address), left):
                    answered[name] = address
                    break
        silent = [f"{name} ({', '.join(waiting[name])})" for name in waiting if name not in answered]
        if silent and time.monotonic() >= deadline:
            quiet = next(name for name in waiting if name not in answered)
            hint = f"see what the guest says: macvm console {quiet}; the machine stays as it is"
            raise TimeUp(f"no answer within {timeout:g} s from {'; '.join(silent)}", hint)
        if silent:
            time.sleep(0.05)
    return answered


def _addresses(context: Context, name: str) -> list[str]:
    machine = views.show(context, name)
    found = [address.address for nic in machine.nics for address in nic.addresses]
    if not found:
        raise Usage(
            f"no address of {machine.name} is known to macvm, so there is none to ping",
            "create it with --ip ADDRESS/LENGTH; what DHCP gave it shows on its console: macvm console NAME",
        )
    return found
