"""`macvm lab`."""

from __future__ import annotations

from provisioner.cli import render
from provisioner.cli.base import group


@group()
def lab() -> None:
    """Many VMs from one file."""


@lab.command()
def schema() -> None:
    """Print the JSON schema of lab files, for editors.

    An editor with YAML's language server takes it from a file's first line: # yaml-language-server: $schema=FILE
    """
    from provisioner.actions.labs.forms import json_schema

    render.print_json(json_schema())
