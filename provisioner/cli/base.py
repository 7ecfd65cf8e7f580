"""What every command shares: the global options, accepted before and after the command, and lazily imported groups."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from provisioner.errors import MacvmError

if TYPE_CHECKING:
    from provisioner.context import Options


def options_of(ctx: click.Context) -> Options:
    """The global options gathered so far, wherever on the command line they stood."""
    # With the context comes libvirt: `--help` has no use for either.
    from provisioner.context import Options

    return ctx.find_root().ensure_object(Options)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and value is not False and value != 0:
        setattr(options_of(ctx), str(param.name), value)


def _global_options() -> list[click.Option]:
    shared: dict[str, Any] = {"expose_value": False, "callback": _keep}
    return [
        click.Option(["-o", "--output"], type=click.Choice(["table", "json", "name"]), help="How to print.", **shared),
        click.Option(["-y", "--yes"], is_flag=True, help="Do not ask.", **shared),
        click.Option(["-v", "--verbose"], count=True, help="Say more.", **shared),
        click.Option(["-q", "--quiet"], is_flag=True, help="Say nothing but errors.", **shared),
        click.Option(["--connect"], metavar="URI", help="The libvirt to use.", **shared),
        click.Option(["--state-dir"], metavar="DIR", help="Where macvm keeps its store, images and disks.", **shared),
    ]


def _path(ctx: click.Context) -> tuple[str, ...]:
    """The command's words, without the program's own."""
    return (*_path(ctx.parent), str(ctx.info_name)) if ctx.parent else ()


class Command(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_global_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except (click.UsageError, MacvmError):
            from provisioner.cli import habits

            meant = habits.options(_path(ctx), args, self)
            if meant == args:
                raise
        ctx.params.clear()
        return super().parse_args(ctx, meant)


class Group(click.Group):
    """A group whose commands are imported when they are asked for: start-up stays under 60 ms.

    `lazy` maps a command's name to `(module, attribute, one line of help)`.
    """

    command_class = Command

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str, str]] | None = None, **kwargs: Any) -> None:
        # Otherwise click answers a command left out with its whole help as the error's text.
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})
        self.lazy = dict(lazy or {})
        self.params.extend(_global_options())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, attribute, _ = self.lazy[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        unknown: click.UsageError | None = None
        try:
            found = super().resolve_command(ctx, args)
            if found[1] is not None:
                return found
        except click.UsageError as error:
            unknown = error
        from provisioner.cli import habits

        try:
            meant = habits.command(_path(ctx), args, self.list_commands(ctx))
        except Hinted:
            if unknown is None:  # completion, which is quiet
                return found
            raise
        if meant:
            return super().resolve_command(ctx, meant)
        if unknown is None:
            return found
        raise Hinted(f"no such command: {args[0]}", self._near(ctx, args[0]), ctx) from unknown

    def _near(self, ctx: click.Context, word: str) -> str:
        """What may be meant by a word that is no command."""
        import difflib

        near = difflib.get_close_matches(word, self.list_commands(ctx), n=1)
        for name in () if near else self.list_commands(ctx):
            noun = self.get_command(ctx, name)
            if isinstance(noun, Group) and word in noun.list_commands(ctx):
                near.append(f"{name} {word}")
        if near:
            return f"did you mean `{ctx.command_path} {near[0]}`?"
        return f"`{ctx.command_path} --help` lists them"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, help_line) for name, (_, _, help_line) in self.lazy.items()]
        rows += [(name, command.get_short_help_str(90)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Hinted(click.UsageError):
    """A usage error with a hint of its own."""

    def __init__(self, message: str, hint: str, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.hint = hint


def group(**attributes: Any) -> Callable[[Callable[..., Any]], Group]:
    """`@group(...)`: a Group below the main one, whose callback does nothing."""

    def wrap(function: Callable[..., Any]) -> Group:
        made: Group = click.group(cls=Group, **attributes)(function)
        return made

    return wrap
