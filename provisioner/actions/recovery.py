"""What a killed macvm left unfinished: undone, or finished, by the next command that changes something, or by `gc`.

One look is not enough. A libvirt call whose client died can still take effect a second later, so a define or an attach
that was intended and is not to be seen keeps its row, with UUID, MACs and leases, until a look at least a minute later,
or until libvirt's daemon has been restarted since.
"""

from __future__ import annotations

from provisioner.actions import nic_changes, nics, power, shims
from provisioner.actions.removal import Remains, remove_all
from provisioner.context import Context
from provisioner.errors import MacvmError
from provisioner.host.journal import Unfinished, Work
from provisioner.model.names import Mac

#: Seconds between the first look and the one that settles it.
GRACE = 60.0

#: What begins the sentence of a row that is still there.
UNSETTLED = "not settled: "


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
    return told


def release_orphans(context: Context) -> list[str]:
    """Gives back what machines hold that libvirt no longer has, and says so. A machine whose disks macvm made keeps
    them, with all else, for `delete`: they may be wanted."""
    told = []
    busy = {row.uuid for row in context.journal.unfinished()}
    for uuid, name in context.store.machines().items():
        if uuid in busy or context.hypervisor.state(uuid) is not None:
            continue
        if context.store.files_of(uuid):
            told.append(f"kept: {name} is gone from libvirt, its files are not: macvm delete {name}")
            continue
        remains = Remains(name, uuid, tuple(shims.routes_of(context.store.leases(), uuid)))
        remove_all(context, context.journal.begin("delete", name, uuid, remains.facts()), remains)
        told.append(f"released: what {name} held, which is gone from libvirt")
    return told


def _settle(context: Context, row: Unfinished, work: Work) -> str:
    what = f"{row.action} {row.machine}, begun {row.began}"
    if _is_uncertain(context, row):
        work.keep_uncertain(context.clock(), context.hypervisor.daemon())
        return f"uncertain: {what}: libvirt may still carry it out; macvm gc settles it in a minute"
    if row.action in ("create", "delete"):
        # Closes the row itself, or leaves it where something remains.
        remove_all(context, work, Remains.read(row.machine, row.uuid, row.facts))
    else:
        _settle_one_machine(context, row, work)
        work.close()
    return f"{'finished' if row.action in ('start', 'delete', 'detach') else 'undid'}: {what}"


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
