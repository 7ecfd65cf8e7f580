"""What the shell completes NAME and NIC with: quick, and quiet where libvirt cannot be asked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from provisioner.cli.base import options_of
from provisioner.errors import MacvmError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from provisioner.actions.views import NicView
    from provisioner.context import Context

T = TypeVar("T")

#: Seconds that whoever pressed Tab waits for a daemon that hangs.
_PATIENCE = 2.0


def machine_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The machines there are, but for those that the command line names already."""

    def look(context: Context) -> list[tuple[str, str]]:
        from provisioner.actions import views

        return [(machine.name, machine.state) for machine in views.look(context).machines]

    given = ctx.params.get(param.name or "") or ()
    found = _ask(ctx, look) or ()
    return [_item(name, state) for name, state in found if name.startswith(incomplete) and name not in given]


def nic_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The NICs of the machine that the command line names, each by one of its names that begins so."""

    def look(context: Context) -> tuple[NicView, ...]:
        from provisioner.actions import views

        return views.show(context, ctx.params["name"]).nics

    nics = _ask(ctx, look) or ()
    places = Counter(_place(nic) for nic in nics)
    items = []
    for nic in nics:
        # bash ends a word at a colon, so the MAC is offered with dashes unless a colon is there already.
        names = [nic.device or "", nic.mac.replace(":", "-"), nic.mac, _place(nic) if places[_place(nic)] == 1 else ""]
        name = next((name for name in names if name and name.startswith(incomplete.lower())), "")
        if name:
            mode = nic.kernel_mode or nic.mode
            items.append(_item(name, f"{mode} on {nic.parent}" if mode else f"network {nic.network}"))
    return items


def network_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The networks there are."""

    def look(context: Context) -> list[tuple[str, str]]:
        store = context.reading_store
        return [(one.name, f"{one.mode.value} on {one.parent}") for one in store.networks.all()] if store else []

    given = ctx.params.get(param.name or "") or ()
    found = _ask(ctx, look) or ()
    return [_item(name, text) for name, text in found if name.startswith(incomplete) and name not in given]


def image_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The images that are here, without versions: bash ends a word at a colon."""

    def look(context: Context) -> list[str]:
        from provisioner.actions import images

        return sorted({image.name for image in images.list_images(context.reading_store)})

    return [_item(name, "") for name in _ask(ctx, look) or () if name.startswith(incomplete)]


def pullable_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The images of the catalogue that can be pulled."""
    from provisioner.actions.image_sources import offers_beside

    names = dict.fromkeys(offer.source.name for offer in offers_beside([]))
    return [_item(name, "") for name in names if name.startswith(incomplete)]


def endpoint_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The endpoints there are."""

    def look(context: Context) -> list[tuple[str, str]]:
        store = context.reading_store
        if store is None or not store.has_endpoint():
            return []
        from provisioner.host.endpoints import Endpoints

        return [(one.name, f"{one.mode.value} on {one.nic.parent}") for one in Endpoints(store).all()]

    given = ctx.params.get(param.name or "") or ()
    found = _ask(ctx, look) or ()
    return [_item(name, text) for name, text in found if name.startswith(incomplete) and name not in given]


def _item(name: str, text: str) -> CompletionItem:
    from click.shell_completion import CompletionItem

    return CompletionItem(name, help=text)


def _place(nic: NicView) -> str:
    return nic.parent or nic.network or ""


def _ask(ctx: click.Context, question: Callable[[Context], T]) -> T | None:
    """The answer; None where none comes in time: an error's text would end in the command line that is typed."""
    # Every command imports this module, and few are completed.
    from provisioner.context import open_context

    answers: list[T] = []

    def attempt() -> None:
        try:
            context = open_context(options_of(ctx), readonly=True)
            # Another host may want a password, or be slow.
            if context.is_local:
                answers.append(question(context))
            context.close()
        except (MacvmError, OSError):
            pass

    asking = threading.Thread(target=attempt, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return answers[0] if answers else None
