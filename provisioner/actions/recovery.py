"""What a killed macvm left unfinished: undone, or finished, by the next command that changes something, or by `gc`.

One look is not enough. A libvirt call whose client died can still take effect a second later, so a define or an attach
that was intended and is not to be seen keeps its row, with UUID, MACs and leases, until a look at least a minute later,
or until libvirt's daemon has been restarted since.
"""

from __future__ import annotations

from typing import NamedTuple

from provisioner.actions import nic_changes, nics, power, probing, shims, vlans
from provisioner.actions.removal import Remains, remove_all
from provisioner.context import Context
from provisioner.errors import MacvmError
from provisioner.host.journal import Unfinished, Work
from provisioner.host.store import Store
from provisioner.model.names import Mac

#: Seconds between the first look and the one that settles it.
GRACE = 60.0

#: What is finished, and not undone.
_FORWARD = ("start", "delete", "detach", "endpoint-delete")

#: What begins the sentence of a row that is still there.
UNSETTLED, UNCERTAIN = "not settled: ", "uncertain: "


def recover(context: Context) -> list[str]:
    """Settles every abandoned row that can be settled, and says what it did, a sentence each. One that cannot be
    settled now is said and left: it must not stand in the way of other machines."""
    told = []
    for row in context.journal.abandoned():
        work = context.journal.adopt(row)
        if work is None:
            continue
        try:
            told.append(_settle(context, row, work))
        except MacvmError as error:
            told.append(f"{UNSETTLED}{row.action} {row.machine}, begun {row.began}: {error.message}")
        finally:
            work.leave()
    if told:
        probing.clear(context)
    return told


def release_orphans(context: Context) -> list[str]:
    """Gives back what machines and NICs hold that libvirt no longer has, and says so. A machine whose disks macvm made
    keeps them for `delete`, for they may be wanted, but no address."""
    told = []
    for orphan in find_orphans(context, context.store):
        told += _release_nic(context, orphan) if orphan.mac else _release_machine(context, orphan)
    if context.store.has_endpoint():
        from provisioner.actions import endpoint_removal

        told += endpoint_removal.release_gone(context)
    probing.clear(context)
    return [*told, *(f"removed: {name}, which no network is on" for name in vlans.clear(context))]


def foresee_releases(context: Context) -> list[str]:
    """What `release_orphans` would give back of machines, NICs and endpoints. Changes nothing."""
    store = context.reading_store
    if store is None:
        return []
    told = [str(orphan) for orphan in find_orphans(context, store)]
    if store.has_endpoint():
        from provisioner.actions import endpoint_removal

        told += [endpoint_removal.held_by(endpoint) for endpoint in endpoint_removal.find_gone(store)]
    return told


class Orphan(NamedTuple):
    """A machine that libvirt no longer has; with `mac`, a NIC that neither the running machine nor its definition has:
    attached with --live, and lost with the power, or detached behind macvm's back. `held` are its addresses."""

    uuid: str
    name: str
    mac: str
    held: tuple[str, ...]

    def __str__(self) -> str:
        who = f"the NIC {self.mac} of {self.name}" if self.mac else self.name
        what = f"{', '.join(self.held)} of {who}" if self.held else f"what {who} held"
        return f"{what}, which is gone" + ("" if self.mac else " from libvirt")


def find_orphans(context: Context, store: Store) -> list[Orphan]:
    """Changes nothing. In this order: what is claimed now has a journal row, or libvirt has it by the time it is asked,
    so that a create or an attach that is under way, or begins meanwhile, loses nothing."""
    found, leases = list[Orphan](), store.leases()
    claimed = [(uuid, name, list(store.told_of(uuid))) for uuid, name in store.machines().items()]
    busy = {row["uuid"] for row in store.rows("SELECT uuid FROM journal")}
    for uuid, name, macs in claimed:
        if uuid in busy:
            continue
        if context.hypervisor.state(uuid) is None:
            found.append(Orphan(uuid, name, "", tuple(lease.address for lease in leases if lease.owner == uuid)))
            continue
        machine = context.hypervisor.get(uuid)
        there = {nic.mac for nic in (*machine.nics, *nics.saved_nics(context, machine))}
        for mac in macs:
            if mac not in there:
                found.append(Orphan(uuid, name, mac, tuple(lease.address for lease in leases if lease.mac == mac)))
    return found


def _release_machine(context: Context, orphan: Orphan) -> list[str]:
    uuid, name = orphan.uuid, orphan.name
    routes = shims.routes_of(context.store, uuid)
    if context.store.files_of(uuid):
        context.store.release_leases(uuid)
        shims.release(context, routes)
        said = [f"released: {orphan}"] if orphan.held else []
        return [*said, f"kept: the files of {name}, which is gone from libvirt: macvm delete {name}"]
    remains = Remains(name, uuid, tuple(routes))
    remove_all(context, context.journal.begin("delete", name, uuid, remains.facts()), remains)
    return [f"released: {orphan}"]


def _release_nic(context: Context, orphan: Orphan) -> list[str]:
    uuid, mac = orphan.uuid, orphan.mac
    routes = [route for route in shims.routes_of(context.store, uuid) if route.mac == mac]
    facts = {"mac": mac, **shims.as_facts(routes)}
    work = context.journal.begin("detach", orphan.name, uuid, facts)
    try:
        nics.forget(context, context.hypervisor.get(uuid), Mac(mac), routes, work)
    except BaseException:
        work.leave()
        raise
    work.close()
    return [f"released: {orphan}"]


def _settle(context: Context, row: Unfinished, work: Work) -> str:
    what = f"{row.action} {row.machine}, begun {row.began}"
    if _is_uncertain(context, row):
        work.keep_uncertain(context.clock(), context.hypervisor.daemon())
        return f"{UNCERTAIN}{what}: libvirt may still carry it out; macvm gc settles it in a minute"
    forward = row.action in _FORWARD
    if row.action in ("create", "delete"):
        # Closes the row itself, or leaves it where something remains.
        remove_all(context, work, Remains.read(row.machine, row.uuid, row.facts))
    elif row.action.startswith("endpoint-"):
        from provisioner.actions import endpoint_removal

        endpoint_removal.settle(context, row, work)
    elif row.action == "reset":
        from provisioner.actions import reset

        forward = reset.settle(context, row, work)
        work.close()
    else:
        _settle_one_machine(context, row, work)
        work.close()
    return f"{'finished' if forward else 'undid'}: {what}"


def _settle_one_machine(context: Context, row: Unfinished, work: Work) -> None:
    machine = context.hypervisor.find(row.uuid)
    if machine is None:
        # Deleted since, and what it held with it.
        return
    if row.action == "start":
        power.finish_start(context, row.uuid)
        return
    mac, facts = Mac(row.facts["mac"]), row.facts
    routes = list(Remains.read(row.machine, row.uuid, facts).routes)
    if row.action == "set":
        nic_changes.put_back(context, machine, mac, facts, routes, work)
    else:
        halves = (facts.get("live", True), facts.get("config", True))
        if not nics.take_away(context, machine, mac, halves, routes, work):
            raise nics.kept_by_guest(machine, mac)


def _is_uncertain(context: Context, row: Unfinished) -> bool:
    """Whether a call was intended whose effect is not to be seen, and may yet come."""
    intended = {step for step, state in row.steps.items() if state == "intended"}
    if row.action == "create":
        pending = "define" in intended and context.hypervisor.state(row.uuid) is None
    elif row.action == "attach" and context.hypervisor.state(row.uuid) is not None:
        live, saved = nics.seen(context, row.uuid, Mac(row.facts["mac"]))
        pending = ("live" in intended and not live) or ("saved" in intended and not saved)
    else:
        pending = False
    if not pending:
        return False
    if row.looked is None:
        return True
    restarted = row.daemon != context.hypervisor.daemon()
    return not restarted and context.clock() - row.looked < GRACE
