"""Carries a lab's plan out: what is to go, then networks, shims, images, machines, endpoints, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from provisioner.actions import endpoint_removal, endpoints, images, networks, pulling, shimming, shims
from provisioner.actions.labs import machine_work
from provisioner.actions.labs.changes import Leave, MachineWork, Plan
from provisioner.actions.labs.runner import Event, Runner, Task, Watch, default_jobs
from provisioner.actions.labs.up import Failure, Options, Outcome
from provisioner.actions.labs.wanted import WantedEndpoint
from provisioner.actions.labs.wishes import Lab, ShimWish
from provisioner.actions.networks import NetworkRequest
from provisioner.actions.request import CreateRequest
from provisioner.actions.wiring import Surroundings
from provisioner.context import Context
from provisioner.errors import MacvmError, Problems
from provisioner.host import log
from provisioner.host.labs import Labs, Thing
from provisioner.model.network import Network


class Bringing:
    """One `up`, once its plan is agreed to."""

    def __init__(self, context: Context, lab: Lab, found: Plan, options: Options, watch: Watch) -> None:
        self._context = context
        self._labs = Labs(context.store)
        self._name = lab.name
        self._plan = found
        self._leave = options.leave
        self._watch = watch
        self._runner = Runner(context, options.jobs or default_jobs(), watch)
        self._failed: list[Failure] = []
        self._done: list[str] = []

    def all(self) -> Outcome:
        found = self._plan
        self._each([(name, self._remove_endpoint(name)) for name in found.endpoints_gone])
        self._give_up()
        self._one_by_one()
        self._become(self._with_images())
        self._each([(one.request.name, self._make_endpoint(one)) for one in found.endpoints_new])
        left = tuple(
            change
            for work in found.machines
            if (what := machine_work.is_left(work, self._leave))
            for change in found.changes
            if change.kind == "vm" and change.name == work.name and change.how == what
        )
        return Outcome(found, tuple(self._done), left, tuple(self._failed), self._runner.stopped)

    def _has_failed(self, name: str) -> bool:
        return any(one.name == name for one in self._failed)

    def _fail(self, name: str, error: MacvmError) -> None:
        hints = [one.hint for one in error.problems] if isinstance(error, Problems) else [error.hint]
        self._failed.append(Failure(name, error.message, next(filter(None, hints), "")))

    def _each(self, acts: Sequence[tuple[str, Callable[[Context], object]]]) -> None:
        """Side by side, but for what has failed before."""
        tasks = [Task(name, act) for name, act in acts if not self._has_failed(name)]
        self._run(tasks)

    def _run(self, tasks: Sequence[Task]) -> None:
        self._runner.results = {}
        self._runner.run(tasks)
        for name, error in self._runner.failed.items():
            self._fail(name, error)

    # machines

    def _give_up(self) -> None:
        leave = self._leave
        going = [work for work in self._plan.machines if machine_work.gives_up(work, leave)]
        self._run([Task(work.name, _giving_up(work, leave), work.wanted is None) for work in going])
        self._done += [work.name for work in going if work.wanted is None and not self._has_failed(work.name)]

    def _with_images(self) -> list[MachineWork]:
        """Every image is pulled once, before the machines that need it."""
        works = (work for work in self._plan.machines if machine_work.becomes(work, self._leave))
        coming = [work for work in works if not self._has_failed(work.name)]
        new = [work for work in coming if work.real is None or (work.recreate and self._leave.recreate)]
        brought: dict[tuple[str, str], CreateRequest | MacvmError] = {}
        ready = []
        for work in coming:
            if work not in new or self._runner.stopped:
                ready.append(work)
                continue
            assert work.wanted is not None
            request = work.wanted.request
            key = (request.image, request.checksum)
            if key not in brought:
                brought[key] = self._bring(request)
            found = brought[key]
            if isinstance(found, MacvmError):
                self._fail(work.name, found)
                continue
            request = request._replace(image=found.image, checksum=found.checksum)
            ready.append(work._replace(wanted=work.wanted._replace(request=request)))
        return ready

    def _bring(self, request: CreateRequest) -> CreateRequest | MacvmError:
        try:
            source = pulling.lacking(self._context, request)
            if source is None:
                return request
            return request._replace(image=images.title(pulling.bring(self._context, source)), checksum="")
        except MacvmError as error:
            return error

    def _become(self, ready: Sequence[MachineWork]) -> None:
        if not ready:
            return
        # Once for all: what each of them makes is claimed in the store, where no two can have the same.
        there = Surroundings.look(self._context)
        self._run([Task(work.name, _becoming(work, self._leave, there)) for work in ready])
        self._done += [name for name, result in self._runner.results.items() if not isinstance(result, MacvmError)]

    # what is one by one, and quick

    def _one_by_one(self) -> None:
        found = self._plan
        steps: list[tuple[str, Callable[[], object]]] = []
        steps += [(thing.name, partial(self._remove_shim, thing)) for thing in found.shims_gone]
        steps += [(name, partial(self._remove_network, name)) for name in found.networks_gone]
        steps += [(network.name, partial(self._change_network, network)) for network in found.networks_changed]
        steps += [(network.name, partial(self._make_network, network)) for network in found.networks_new]
        steps += [(wish.parent, partial(self._bring_shim, wish)) for wish in found.shims_up]
        steps += [(parent, partial(shims.reconcile, self._context, parent)) for parent in found.unserved]
        for name, act in steps:
            if self._runner.stopped:
                return
            try:
                act()
            except MacvmError as error:
                self._watch(Event(name, "failed", error.message))
                self._fail(name, error)
            else:
                self._done.append(name)

    def _make_network(self, network: Network) -> None:
        thing = Thing("network", network.name)
        self._labs.own(self._name, thing)
        try:
            networks.create(self._context, request_of(network))
        except BaseException:
            self._labs.disown(thing)
            raise
        log.record("network create", f"{network.name} {network.parent}")

    def _change_network(self, network: Network) -> None:
        planned = networks.plan(self._context, request_of(network), anew=False)
        self._context.store.networks.change(planned)
        log.record("network change", network.name)

    def _remove_network(self, name: str) -> None:
        remove_network(self._context, name)
        self._labs.disown(Thing("network", name))

    def _bring_shim(self, wish: ShimWish) -> None:
        held, others = self._context.store.others.held(), self._context.store.others.all()
        if wish.parent not in held:
            self._labs.own(self._name, Thing("shim", wish.parent))
        known = {one.address for one in others}
        for one in wish.to:
            if one.address and str(one.address) not in known:
                self._labs.own(self._name, Thing("to", str(one.address)))
        shimming.up(self._context, wish.parent, wish.to)
        log.record("shim up", wish.parent)

    def _remove_shim(self, thing: Thing) -> None:
        remove_shim(self._context, thing)
        self._labs.disown(thing)

    # endpoints

    def _make_endpoint(self, wish: WantedEndpoint) -> Callable[[Context], object]:
        def act(context: Context) -> None:
            labs, thing = Labs(context.store), Thing("endpoint", wish.request.name)
            labs.own(self._name, thing)
            try:
                _, notes = endpoints.create(context, wish.request)
            except BaseException:
                labs.disown(thing)
                raise
            for note in notes:
                context.say(note)

        return act

    def _remove_endpoint(self, name: str) -> Callable[[Context], object]:
        def act(context: Context) -> None:
            endpoint_removal.delete(context, [name])
            Labs(context.store).disown(Thing("endpoint", name))

        return act


def remove_network(context: Context, name: str) -> None:
    networks.delete(context, [name])
    log.record("network delete", name)


def remove_shim(context: Context, thing: Thing) -> None:
    """A shim that guests are behind stays until the last of them is gone; gone already is fine."""
    others = context.store.others
    parents = (
        {thing.name} if thing.kind == "shim" else {one.parent for one in others.all() if one.address == thing.name}
    )
    for parent in parents:
        if thing.kind == "shim":
            others.let_go(parent)
        else:
            others.forget(parent, thing.name)
        shims.reconcile(context, parent)
    log.record("shim down" if thing.kind == "shim" else "shim forget", thing.name)


def request_of(network: Network) -> NetworkRequest:
    """What `network create` would be asked for."""
    return NetworkRequest(
        name=network.name,
        parent=network.parent,
        mode=network.mode,
        subnets=tuple(one.subnet for one in network.subnets),
        gateways=tuple(one.gateway for one in network.subnets if one.gateway),
        ranges=tuple(one.range for one in network.subnets if one.range),
        reserved=network.reserved,
        dns=network.dns,
        mtu=network.mtu,
        shim=network.shim,
    )


def _becoming(work: MachineWork, leave: Leave, there: Surroundings) -> Callable[[Context], object]:
    return lambda context: machine_work.become(context, work, leave, there)


def _giving_up(work: MachineWork, leave: Leave) -> Callable[[Context], object]:
    return lambda context: machine_work.give_up(context, work, leave)
