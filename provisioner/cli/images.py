"""`macvm image`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from provisioner.actions import images, preview, pulling
from provisioner.actions.catalogue import look
from provisioner.actions.image_sources import Offer, Source, find_release, find_source, offers_beside
from provisioner.cli import render
from provisioner.cli.base import group, options_of
from provisioner.cli.completion import image_names, pullable_names
from provisioner.cli.progress import showing_progress
from provisioner.cli.run import changing, confirm, looking, tell
from provisioner.context import Options
from provisioner.errors import MacvmError, Problems, Usage
from provisioner.host.store import StoredImage
from provisioner.model.checksum import Checksum, parse_checksum
from provisioner.model.sizes import human_size

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_INSECURE = click.option(
    "--insecure-no-checksum", "insecure", is_flag=True, help="Take a URL that nothing vouches for."
)


@group()
def image() -> None:
    """The images that VMs are made from."""


def _as_json(found: StoredImage) -> dict[str, Any]:
    kept = ("name", "version", "digest", "size", "virtual_size", "login", "added", "source", "checksum")
    return {key: getattr(found, key) for key in kept} | {"local": True}


def _offer_as_json(offer: Offer) -> dict[str, Any]:
    """One of the catalogue that is not here has the keys of one that is, null where they are not known."""
    pinned = offer.source.checksum
    release = offer.source.release
    return {
        "name": offer.source.name,
        "version": offer.source.version,
        "digest": pinned.digest if pinned and pinned.algorithm == "sha256" else None,
        "size": release.size or None if release else None,
        "virtual_size": None,
        "login": offer.entry.login,
        "added": None,
        "source": offer.source.url,
        "checksum": str(pinned or ""),
        "local": False,
    }


def _print_one(found: StoredImage, said: str = "stored", **more: object) -> None:
    options = options_of(click.get_current_context())
    if options.output == "json":
        render.print_json(_as_json(found) | more)
    elif options.output == "name":
        render.print_names([images.title(found)])
    else:
        tell(f"{said}: {images.title(found)}, {human_size(found.size)}, sha256 {found.digest}")


@image.command("list")
@click.option("--local", "only_local", is_flag=True, help="Only those that are here.")
def list_(only_local: bool) -> None:
    """List the images that are here, and those of the catalogue that can be pulled."""
    with looking(libvirt=False) as (context, options):
        found = images.list_images(context.reading_store)
        offers = [] if only_local else offers_beside(found)
        for problem in [] if only_local else look()[1]:
            tell(f"warning: {problem.message}")
        if options.output == "json":
            render.print_json([*map(_as_json, found), *map(_offer_as_json, offers)])
        elif options.output == "name":
            render.print_names([*map(images.title, found), *(offer.source.title for offer in offers)])
        else:
            render.print_table(
                ("NAME", "VERSION", "SIZE", "DISK", "LOGIN", "DIGEST"), [*map(_row, found), *map(_offer_row, offers)]
            )


def _row(one: StoredImage) -> tuple[str, ...]:
    return (one.name, one.version, human_size(one.size), human_size(one.virtual_size), one.login, one.digest[:12])


def _offer_row(offer: Offer) -> tuple[str, ...]:
    return (offer.source.name, offer.source.version, offer.source.size, "", offer.entry.login, "(to pull)")


@image.command()
@click.argument("name", metavar="NAME[:VERSION]", shell_complete=pullable_names)
@_DRY_RUN
def pull(name: str, dry_run: bool) -> None:
    """Fetch an image of the catalogue, for this host's architecture; the newest without a VERSION.

    What is here already is fetched again only where its publisher has a newer build of it.
    """
    found = _fetch(find_release(name), dry_run)
    if found:
        _print_one(found.image, "stored" if found.fetched else "here already, and the same", fetched=found.fetched)


def _fetch(source: Source, dry_run: bool) -> pulling.Pulled | None:
    if dry_run:
        with looking(libvirt=False) as (context, _):
            click.echo("\n".join(pulling.preview(context, source)))
        return None
    with changing(libvirt=False) as (context, _), showing_progress() as progress:
        return pulling.pull(context, source, progress)


@image.command("import")
@click.argument("file", metavar="FILE|URL")
@click.argument("name", metavar="NAME[:VERSION]")
@click.option("--checksum", default="", metavar="sha256:…", help="The file's, as its publisher says.")
@_INSECURE
@_DRY_RUN
def import_(file: str, name: str, checksum: str, insecure: bool, dry_run: bool) -> None:
    """Take a disk into the local images: raw or qcow2, or one of them packed by xz, gzip or zstd."""
    given = _checksum(checksum)
    if "://" in file:
        return _import_url(file, name, checksum, insecure, dry_run)
    if dry_run:
        click.echo(f"# checks {file}, and copies it into the image store as {name}")
        return
    with changing(libvirt=False) as (context, _):
        found = images.import_image(context, Path(file).absolute(), name, given)
    _print_one(found)


def _checksum(text: str) -> Checksum | None:
    try:
        return parse_checksum(text) if text else None
    except Usage as error:
        raise Usage(f"--checksum {text[:200]} is not understood", error.hint) from error


def _import_url(url: str, title: str, checksum: str, insecure: bool, dry_run: bool) -> None:
    name, version = images.split_name(title)
    source = find_source(url, checksum, insecure=insecure)._replace(name=name, version=version, named=True)
    found = _fetch(source, dry_run)
    if found:
        _print_one(found.image)


@image.command()
@click.argument("recipe", type=click.Choice(["tiny"]))
@_DRY_RUN
def build(recipe: str, dry_run: bool) -> None:
    """Build an image: `tiny`, from this host's own kernel and busybox, in seconds and without network."""
    if dry_run:
        click.echo(f"# builds {recipe} from this host's newest kernel and busybox, and stores it")
        return
    with changing(libvirt=False) as (context, _):
        found = images.build_tiny(context)
    _print_one(found)


@image.command()
@click.argument("name", metavar="[NAME[:VERSION]]", default="", shell_complete=image_names)
def verify(name: str) -> None:
    """Read all images that are here again, or one: each must still be what was stored."""
    with looking(libvirt=False) as (context, options):
        found = images.verify(context, name)
    _print_verified(found, options)
    hint = "put the image back: macvm image pull, build or import it again; until then its VMs are not started"
    problems: list[MacvmError] = [
        MacvmError(f"the image {images.title(one.image)}: {problem}", hint) for one in found for problem in one.problems
    ]
    if problems:
        raise Problems(problems)


def _print_verified(found: list[images.Verified], options: Options) -> None:
    if options.output == "json":
        facts = ("name", "version", "digest")
        rows = [{key: getattr(one.image, key) for key in facts} | {"problems": one.problems} for one in found]
        render.print_json(rows)
    elif options.output == "name":
        render.print_names(images.title(one.image) for one in found if not one.problems)
    else:
        for one in found:
            if not one.problems:
                tell(f"as it was stored: {images.title(one.image)}")


@image.command()
@click.argument("name", metavar="NAME[:VERSION]", shell_complete=image_names)
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
