"""Libvirt's connection URIs."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_local(uri: str) -> bool:
    """Whether a connection's domains run on this very host."""
    parts = urlsplit(uri)
    _, _, transport = parts.scheme.partition("+")
    return not parts.hostname and transport in ("", "unix")
