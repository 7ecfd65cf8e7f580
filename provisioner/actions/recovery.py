"""What a killed macvm left unfinished: undone, or finished, by the next command that changes something, or by `gc`.

One look is not enough. A libvirt call whose client died can still take effect a second later, so a define that was
intended and is not to be seen keeps its row, with UUID, MACs and leases, until a look at least a minute later, or until
libvirt's daemon has been restarted since.
"""

from __future__ import annotations

from provisioner.actions import power
from provisioner.actions.removal import Remains, remove_all
from provisioner.context import Context
from provisioner.host.journal import Unfinished, Work

#: Seconds between the first look and the one that settles it.
GRACE = 60.0


def recover(context: Context) -> list[str]:
    """Settles every abandoned row that can be settled, and says what it did, a sentence each."""
    told = []
    for row in context.journal.abandoned():
        work = context.journal.adopt(row)
        if work is None:
            continue
        try:
            told.append(_settle(context, row, work))
        except BaseException:
            work.leave()
            raise
    return told


def _settle(context: Context, row: Unfinished, work: Work) -> str:
    what = f"{row.action} {row.machine}, begun {row.began}"
    if row.action == "start":
        power.finish_start(context, row.uuid)
        work.close()
        return f"finished: {what}"
    if row.action == "create" and _is_uncertain(context, row):
        daemon = context.hypervisor.daemon()
        work.keep_uncertain(context.clock(), daemon)
        return f"uncertain: {what}: libvirt may still define it; macvm gc settles it in a minute"
    remove_all(context, work, Remains.read(row.machine, row.uuid, row.facts))
    return f"{'undid' if row.action == 'create' else 'finished'}: {what}"


def _is_uncertain(context: Context, row: Unfinished) -> bool:
    if row.steps.get("define") != "intended" or context.hypervisor.state(row.uuid) is not None:
        return False
    if row.looked is None:
        return True
    restarted = row.daemon != context.hypervisor.daemon()
    return not restarted and context.clock() - row.looked < GRACE
