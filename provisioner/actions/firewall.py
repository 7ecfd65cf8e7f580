"""What the host's own firewall does to a shim's packets and not to its parent's: the way to a guest is there, and the
guest's own way to the host is not."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import NamedTuple

from provisioner.errors import MacvmError
from provisioner.host import firewalld
from provisioner.host.commands import run
from provisioner.model.firewall import closed_to


class FirewallView(NamedTuple):
    """`rule` is the command that lets a guest's packets in as the parent's are."""

    reason: str
    rule: str


def closed(parent: str, shim: str) -> list[FirewallView]:
    """Nothing for those who may not ask: nftables' rules are root's."""
    if os.geteuid() != 0:
        return []
    found = []
    zone = firewalld.to_join(parent, shim)
    if zone:
        reason = f"{shim} is in firewalld's zone {firewalld.zone(shim)}, and {parent} in {zone}"
        found.append(FirewallView(reason, f"firewall-cmd --zone={zone} --change-interface={shim}"))
    with suppress(MacvmError, ValueError):
        # Some hosts have hundreds of thousands of rules, and nobody is to wait for them here.
        ruleset = json.loads(run(["nft", "-j", "list", "ruleset"], timeout=5))
        for chain in closed_to(ruleset, parent, shim):
            reason = f"the chain {chain.chain} of nftables drops what comes in by {shim}, and not by {parent}"
            found.append(FirewallView(reason, chain.rule))
    return found
