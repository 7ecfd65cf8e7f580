"""pydantic's plugins, which no command of macvm's has."""

from __future__ import annotations

import sys
from types import ModuleType


def skip_plugins() -> None:
    """Before pydantic is imported: it is told that no installed package has a plugin for it.

    It would import importlib.metadata, and with it email and zipfile, to read the metadata of every package, whether
    PYDANTIC_DISABLE_PLUGINS is set or not: 15 ms of the 200 that a lab with nothing to do takes. Where it looks for
    them in another way by now, it finds what there is, and takes its time.
    """
    if "importlib.metadata" in sys.modules or "pydantic" in sys.modules:
        return
    nothing = ModuleType("importlib.metadata")
    nothing.entry_points = lambda **_: ()  # type: ignore[attr-defined]
    sys.modules["importlib.metadata"] = nothing
    try:
        import pydantic.plugin._loader  # noqa: F401
    except ImportError:
        pass
    finally:
        del sys.modules["importlib.metadata"]
