"""What a lab file wishes for, in the requests that the commands for one thing take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from provisioner.actions.endpoint_plan import EndpointRequest
from provisioner.actions.request import CreateRequest
from provisioner.model.network import Network
from provisioner.model.shim import To


class ShimWish(NamedTuple):
    """What `shim up PARENT --to …` is asked for."""

    parent: str
    to: tuple[To, ...] = ()


class Lab(NamedTuple):
    """`path` is the file, None for a lab that was put together by a program. A network's `parent` is empty for the
    default route's link. `machines` are those that `count` makes, each with the lab's name and its own labels."""

    name: str
    path: Path | None = None
    networks: tuple[Network, ...] = ()
    machines: tuple[CreateRequest, ...] = ()
    endpoints: tuple[EndpointRequest, ...] = ()
    shims: tuple[ShimWish, ...] = ()

    @classmethod
    def load(cls, path: Path | str, environment: Mapping[str, str] | None = None) -> Lab:
        """A lab from its file; `environment`, where it is given, is where variables are taken from instead.

        Raises LabMistakes with all that is wrong in the file, and Usage where it cannot be read.
        """
        from provisioner.actions.labs.file import load

        return load(Path(path), os.environ if environment is None else environment)
