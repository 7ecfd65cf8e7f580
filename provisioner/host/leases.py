"""Claims of MACs and addresses, inside one transaction: all of a machine's, or none.

An address is claimed by the primary key (parent, address): whoever gives it out, a network or the user, two NICs of one
LAN cannot both have it.
"""

from __future__ import annotations

import ipaddress
import socket
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from provisioner.errors import NotFound, Taken

if TYPE_CHECKING:
    from provisioner.model.ipam import Pick, Pool
    from provisioner.model.nic import Address


class LeaseClaim(NamedTuple):
    """An address on the LAN of a parent. `served` False where the host's side is left alone."""

    parent: str
    address: str
    served: bool = True


class NicClaim(NamedTuple):
    """A MAC with its addresses. `told` is what `Store.told_of` gives back; `network` is empty on a bare parent."""

    mac: str
    leases: tuple[LeaseClaim, ...] = ()
    told: str = ""
    network: str = ""


class Lease(NamedTuple):
    """An address that a NIC holds. `network` is empty for one on a bare parent; `owner` is the machine's UUID, and
    `machine` its name."""

    parent: str
    address: str
    mac: str
    network: str
    subnet: str
    served: bool
    since: str
    owner: str
    machine: str


def now(ago: float = 0.0) -> str:
    """Wall-clock time for people to read, or what it was so many seconds ago; no decision hangs on it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago))


class Leases:
    """MACs, leases and pools, as the connection's open transaction sees them, or as they are now. `coming` are names of
    networks that are not there yet, of which nobody has had anything."""

    def __init__(self, db: sqlite3.Connection, coming: Collection[str] = ()) -> None:
        self._db, self._coming = db, coming

    @property
    def db(self) -> sqlite3.Connection:
        """For rows of other tables that are part of a claim."""
        return self._db

    def _first(self, sql: str, *values: object) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return found

    def claim(self, owner: str, machine: str, nics: Iterable[NicClaim]) -> None:
        """Claims MACs and leases for a machine. Raises Taken, naming the holder; NotFound for a network that is
        gone."""
        busy = self._first("SELECT action FROM journal WHERE machine = ? AND uuid <> ?", machine, owner)
        if busy:
            hint = "choose another name; if that macvm was killed, macvm gc clears it"
            raise Taken(f"{machine} is taken: another macvm has begun to {busy['action']} a machine of that name", hint)
        for nic in nics:
            found = self._first("SELECT machine FROM macs WHERE mac = ?", nic.mac)
            if found:
                hint = "leave --mac out, and macvm chooses one"
                raise Taken(f"MAC {nic.mac} is held by machine {found['machine']}", hint)
            subnets = self._subnets(nic.network)
            sql = "INSERT INTO macs (mac, owner, machine, told, network) VALUES (?, ?, ?, ?, ?)"
            self._db.execute(sql, (nic.mac, owner, machine, nic.told, nic.network or None))
            for lease in nic.leases:
                self._claim_lease(nic, lease, _subnet_of(lease.address, subnets))

    def _subnets(self, network: str) -> list[str]:
        if not network:
            return []
        if not self._first("SELECT 1 FROM networks WHERE name = ?", network):
            raise _gone(network)
        return [row["subnet"] for row in self._db.execute("SELECT subnet FROM pools WHERE network = ?", (network,))]

    def _claim_lease(self, nic: NicClaim, lease: LeaseClaim, subnet: str) -> None:
        holder = self.holder(lease.parent, lease.address)
        if holder:
            raise Taken(f"address {lease.address} is held by machine {holder}", "choose another with --ip")
        row = (lease.parent, lease.address, nic.mac, nic.network, subnet, lease.served, now())
        self._db.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        for table in ("released", "conflicts"):
            self._db.execute(f"DELETE FROM {table} WHERE network = ? AND address = ?", (nic.network, lease.address))

    def give_back(self, mac: str) -> None:
        """A MAC with its leases; not held is fine."""
        self._db.execute("DELETE FROM macs WHERE mac = ?", (mac,))

    def holder(self, parent: str, address: str) -> str | None:
        """Name of the machine that holds an address on a parent's LAN."""
        sql = "SELECT machine FROM leases JOIN macs USING (mac) WHERE parent = ? AND address = ?"
        found = self._first(sql, parent, address)
        return found["machine"] if found else None

    def holders(self, network: str, subnet: str, limit: int) -> list[str]:
        """Names of some machines that hold addresses of a pool."""
        sql = (
            "SELECT DISTINCT machine FROM leases JOIN macs USING (mac) WHERE leases.network = ? AND subnet = ? LIMIT ?"
        )
        return [row["machine"] for row in self._db.execute(sql, (network, subnet, limit))]

    def holders_beside(self, parent: str, pool: Pool) -> list[str]:
        """Names of the machines that hold addresses of a pool without a network, on its parent."""
        sql = "SELECT address, machine FROM leases JOIN macs USING (mac) WHERE parent = ? AND leases.network = ''"
        rows = self._db.execute(sql, (parent,))
        return [row["machine"] for row in rows if ipaddress.ip_address(row["address"]) in pool]

    def pick(self, network: str, parent: str, subnet: str, pool: Pool, avoid: Collection[Address] = ()) -> Pick | None:
        """The address that a network gives out next; None where the pool is exhausted. Changes nothing: it is held once
        it is claimed, with `advance`, in the same transaction. `avoid` are passed over this once.

        What it costs grows neither with the pool nor with the leases: where the last one stood is kept, and those given
        back wait in their order. Raises NotFound for a network that is gone.
        """
        from provisioner.model import ipam  # which no command needs that only shows leases

        row = self._first("SELECT next FROM pools WHERE network = ? AND subnet = ?", network, subnet)
        if row is None and network not in self._coming:
            raise _gone(network)
        waits = "SELECT 1 FROM released WHERE network = ? AND address = ?"

        def is_held(address: Address) -> bool:
            text = str(address)
            return bool(address in avoid or self.holder(parent, text) or self._first(waits, network, text))

        def all_held() -> set[int]:
            return self._held(parent, pool.first.version) | {int(address) for address in avoid}

        start = ipaddress.ip_address(row["next"]) if row and row["next"] else None
        return ipam.pick(pool, start, is_held, self._released(network, parent, subnet, avoid), all_held)

    def _held(self, parent: str, version: int) -> set[int]:
        """The addresses of a family that are held on a parent's LAN. 65,000 of them take `ip_address` 0.1 s longer."""
        family, mark = (socket.AF_INET, "%.%") if version == 4 else (socket.AF_INET6, "%:%")
        rows = self._db.execute("SELECT address FROM leases WHERE parent = ? AND address LIKE ?", (parent, mark))
        return {int.from_bytes(socket.inet_pton(family, row["address"])) for row in rows}

    def _released(self, network: str, parent: str, subnet: str, avoid: Collection[Address]) -> Iterator[Address]:
        sql = "SELECT address FROM released WHERE network = ? AND subnet = ? ORDER BY turn"
        for found in self._db.execute(sql, (network, subnet)):
            address = ipaddress.ip_address(found["address"])
            if address not in avoid and not self.holder(parent, found["address"]):
                yield address

    def advance(self, network: str, subnet: str, picked: Pick) -> None:
        """Has the next pick go on after this one."""
        following = str(picked.next) if picked.next else None
        sql = "UPDATE pools SET next = ? WHERE network = ? AND subnet = ?"
        self._db.execute(sql, (following, network, subnet))

    def record_conflict(self, network: str, address: Address, mac: str) -> None:
        """That another on the LAN has an address of a network's."""
        sql = "INSERT OR REPLACE INTO conflicts VALUES (?, ?, ?, ?)"
        self._db.execute(sql, (network, str(address), mac, now()))


def _gone(network: str) -> NotFound:
    return NotFound(f"the network {network} is gone", "`macvm network list` shows all there are")


def _subnet_of(address: str, subnets: Iterable[str]) -> str:
    return next((one for one in subnets if ipaddress.ip_address(address) in ipaddress.ip_network(one)), "")
