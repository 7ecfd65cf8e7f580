"""What a lab file wishes for, in the requests that the commands for one thing take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from provisioner.actions.request import CreateRequest, EndpointRequest
from provisioner.model.network import Network
from provisioner.model.shim import To

if TYPE_CHECKING:
    from provisioner.actions.labs.changes import Plan
    from provisioner.actions.labs.down import Taken
    from provisioner.actions.labs.mistakes import Place
    from provisioner.actions.labs.runner import Watch
    from provisioner.actions.labs.status import LabStatus
    from provisioner.actions.labs.up import Outcome
    from provisioner.context import Options


class ShimWish(NamedTuple):
    """What `shim up PARENT --to …` is asked for."""

    parent: str
    to: tuple[To, ...] = ()


class Lab(NamedTuple):
    """`path` is the file, None for a lab that was put together by a program. A network's `parent` is empty for the
    default route's link. `machines` are those that `count` makes, each with the lab's name and its own labels.
    `places` are where in the file networks, endpoints, shims, NICs and VMs' images stand: by kind and name, and for a
    NIC, of kind `vm`, by its number too."""

    name: str
    path: Path | None = None
    networks: tuple[Network, ...] = ()
    machines: tuple[CreateRequest, ...] = ()
    endpoints: tuple[EndpointRequest, ...] = ()
    shims: tuple[ShimWish, ...] = ()
    places: Mapping[tuple[str | int, ...], Place] = {}  # never changed

    @classmethod
    def load(cls, path: Path | str, environment: Mapping[str, str] | None = None) -> Lab:
        """A lab from its file; `environment`, where it is given, is where variables are taken from instead.

        Raises LabMistakes with all that is wrong in the file, and Usage where it cannot be read.
        """
        from provisioner.actions.labs.file import load

        return load(Path(path), os.environ if environment is None else environment)

    # For programs. `only` names machines and endpoints that alone are meant; `options` say which libvirt and which
    # state directory, where the environment and /etc/macvm/config.toml do not.

    def plan(self, *only: str, options: Options | None = None) -> Plan:
        """What `up` would do, in `changes`; nothing is changed. Raises Problems, NotFound."""
        from provisioner.actions.labs import api

        return api.plan(self, only, options)

    def up(
        self,
        *only: str,
        restart: bool = False,
        recreate: bool = False,
        destroy: bool = False,
        jobs: int = 0,
        watch: Watch | None = None,
        options: Options | None = None,
    ) -> Outcome:
        """Makes of the lab what it wants, any number of times: `macvm lab up`, which asks nobody.

        `restart` and `recreate` as there; `destroy` lets machines go that the lab has no more. `watch` is told how far
        each is. What failed, or is left, stands in the outcome, which `is_whole` otherwise. Raises Usage where
        something would be destroyed, Problems, NotFound, Unable without root.
        """
        from provisioner.actions.labs import api
        from provisioner.actions.labs.changes import Leave

        leave = Leave(restart, recreate)
        return api.up(self, only, options, watch, jobs=jobs, leave=leave, destroy=destroy)

    def down(
        self,
        *only: str,
        keep_disks: bool = False,
        jobs: int = 0,
        watch: Watch | None = None,
        options: Options | None = None,
    ) -> Taken:
        """Removes what the lab made, and nothing else. Raises NotFound where there is nothing of it."""
        from provisioner.actions.labs import api

        return api.down(self, only, options, watch, jobs=jobs, keep_disks=keep_disks)

    def status(self, *only: str, options: Options | None = None) -> LabStatus:
        """Each thing, as it is wanted and as it is. Raises Problems, NotFound."""
        from provisioner.actions.labs import api

        return api.status(self, only, options)
