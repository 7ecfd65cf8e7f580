"""Finds `templates/` and `images/`, from a checkout and from an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(*parts: str) -> Path:
    """Path of a shipped file, such as `resource("templates", "q35.xml")`.

    A wheel holds them under `provisioner/_data`; a checkout beside the package.

    Raises FileNotFoundError where the installation is incomplete.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(f"macvm's own file {'/'.join(parts)} is missing from this installation")
