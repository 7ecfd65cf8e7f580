"""`macvm image`."""

from __future__ import annotations

from pathlib import Path

import click

from provisioner.actions import images, preview
from provisioner.cli import render
from provisioner.cli.base import group, options_of
from provisioner.cli.run import changing, confirm, looking, tell
from provisioner.errors import Usage
from provisioner.host.store import StoredImage
from provisioner.model.sizes import human_size

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")


@group()
def image() -> None:
    """The images that VMs are made from."""


def _title(found: StoredImage) -> str:
    return f"{found.name}:{found.version}" if found.version else found.name


def _as_json(found: StoredImage) -> dict[str, object]:
    kept = ("name", "version", "digest", "size", "virtual_size", "login", "added")
    return {key: getattr(found, key) for key in kept}


def _print_one(found: StoredImage) -> None:
    options = options_of(click.get_current_context())
    if options.output == "json":
        render.print_json(_as_json(found))
    elif options.output == "name":
        render.print_names([_title(found)])
    else:
        tell(f"stored: {_title(found)}, {human_size(found.size)}, sha256 {found.digest}")


@image.command("list")
def list_() -> None:
    """List the images that are here."""
    with looking(libvirt=False) as (context, options):
        found = images.list_images(context.reading_store)
        if options.output == "json":
            render.print_json([_as_json(one) for one in found])
        elif options.output == "name":
            render.print_names(_title(one) for one in found)
        else:
            rows = [
                (one.name, one.version, human_size(one.size), human_size(one.virtual_size), one.login, one.digest[:12])
                for one in found
            ]
            render.print_table(("NAME", "VERSION", "SIZE", "DISK", "LOGIN", "DIGEST"), rows)


@image.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name", metavar="NAME[:VERSION]")
@click.option("--checksum", default="", metavar="sha256:…", help="The file's, as its publisher says.")
@_DRY_RUN
def import_(file: Path, name: str, checksum: str, dry_run: bool) -> None:
    """Take a raw or qcow2 disk into the local images."""
    kind, _, digest = checksum.partition(":")
    if checksum and (kind != "sha256" or len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef")):
        raise Usage(f"--checksum {checksum} is not understood", "sha256: and 64 hexadecimal digits")
    if dry_run:
        click.echo(f"would check {file} and copy it into the image store as {name}")
        return
    with changing(libvirt=False) as (context, _):
        found = images.import_image(context, file.absolute(), name, digest)
    _print_one(found)


@image.command()
@click.argument("recipe", type=click.Choice(["tiny"]))
@_DRY_RUN
def build(recipe: str, dry_run: bool) -> None:
    """Build an image: `tiny`, from this host's own kernel and busybox, in seconds and without network."""
    if dry_run:
        click.echo(f"would build {recipe} from this host's newest kernel and busybox, and store it")
        return
    with changing(libvirt=False) as (context, _):
        found = images.build_tiny(context)
    _print_one(found)


@image.command()
@click.argument("name", metavar="NAME[:VERSION]")
@_DRY_RUN
def delete(name: str, dry_run: bool) -> None:
    """Delete an image that no VM's disk is an overlay of."""
    if dry_run:
        with looking() as (context, _):
            click.echo("\n".join(preview.delete_image(context, name)))
        return
    confirm(f"Delete the image {name}?", options_of(click.get_current_context()))
    with changing() as (context, options):
        gone = images.delete_image(context, name)
    if options.output == "json":
        render.print_json({"name": name, "removed": gone})
    elif options.output == "name":
        render.print_names([name])
    else:
        tell(f"deleted: {name}")
