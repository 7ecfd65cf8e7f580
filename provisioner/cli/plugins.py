"""pydantic's plugins, which no command of macvm's has."""

from __future__ import annotations

import sys
from types import ModuleType


def skip_plugins() -> None:
    """Before pydantic is used: tells it that no installed package has a plugin for it.

    It would import importlib.metadata, and with it email and zipfile, to read the metadata of every package, whether
    PYDANTIC_DISABLE_PLUGINS is set or not: 15 ms of the 200 that a lab with nothing to do takes. A pydantic that cannot
    be told so looks for them itself.
    """
    if "importlib.metadata" in sys.modules or "pydantic" in sys.modules:
        return
    nothing = ModuleType("importlib.metadata")
    nothing.entry_points = nothing.distributions = lambda **_: ()  # type: ignore[attr-defined]
    sys.modules["importlib.metadata"] = nothing
    try:
        from pydantic.plugin import _loader

        _loader.get_plugins()  # which looks once
    except Exception:  # noqa: BLE001 - whatever another pydantic makes of it
        sys.modules.pop("pydantic.plugin._loader", None)
    finally:
        del sys.modules["importlib.metadata"]
