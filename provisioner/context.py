"""Settings, and the opened host modules that every action takes. Built once by the CLI, or by a test."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from provisioner.errors import Unable, Usage
from provisioner.host import locks
from provisioner.host import store as stores
from provisioner.host.store import Store
from provisioner.model.names import printable
from provisioner.model.uri import is_local

if TYPE_CHECKING:
    from provisioner.host.beside import Beside
    from provisioner.host.hypervisor import Hypervisor
    from provisioner.host.journal import Journal
    from provisioner.model.found import FoundMachine
    from provisioner.model.network import Network
    from provisioner.model.nic import Address

CONFIG = Path("/etc/macvm/config.toml")

#: Keys of the configuration file and of the environment (`MACVM_` and upper case), with their defaults.
DEFAULTS = {
    "connect": "qemu:///system",
    "state_dir": "/var/lib/macvm",
    "parent": "",
    "image": "",
    "virt_type": "auto",
    "ssh_key": "",
}


@dataclass
class Options:
    """The global options as typed; None or 0 where not given."""

    output: str = "table"
    yes: bool = False
    verbose: int = 0
    quiet: bool = False
    connect: str | None = None
    state_dir: str | None = None


class Settings(NamedTuple):
    """What is in force: options beat the environment, which beats the configuration file."""

    connect: str
    state_dir: Path
    parent: str
    image: str
    virt_type: str
    ssh_key: str


def load_settings(options: Options, environment: Mapping[str, str], config: Path = CONFIG) -> Settings:
    """Raises Usage for a configuration file that cannot be used."""
    values = dict(DEFAULTS) | _read_config(config)
    if environment.get("LIBVIRT_DEFAULT_URI"):
        values["connect"] = environment["LIBVIRT_DEFAULT_URI"]
    for key in DEFAULTS:
        values[key] = environment.get(f"MACVM_{key.upper()}") or values[key]
    values["connect"] = options.connect or values["connect"]
    if not values["connect"].isprintable():
        raise Usage(f"{printable(values['connect'])} is no libvirt URI", "such as qemu:///system")
    values["state_dir"] = options.state_dir or values["state_dir"]
    return Settings(**{**values, "state_dir": Path(os.path.abspath(values["state_dir"]))})  # type: ignore[arg-type]


def _read_config(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    import tomllib

    try:
        found = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Usage(f"{path} cannot be read: {error}", "see the README for its keys") from error
    for key, value in found.items():
        if key not in DEFAULTS or not isinstance(value, str):
            raise Usage(f"{path}: {key} is no setting, or no text", f"the settings are {', '.join(DEFAULTS)}")
    return found


def _nothing(_: Any) -> None:
    return None


def _byte(name: str) -> int:
    # Two names may share a byte: that costs a wait, nothing else.
    return zlib.crc32(name.encode()) % 1024


@dataclass
class Context:
    """What an action works with.

    `say` tells progress to whoever waits; `checkpoint` is called at each step's boundary with its name, for tests to
    stop there; `clock` is this boot's monotonic time in seconds; `promised` are addresses that networks give to those
    alone who ask for them by name; `coming` are networks that are made before what is planned.
    """

    settings: Settings
    readonly: bool
    say: Callable[[str], None] = _nothing
    checkpoint: Callable[[str], None] = _nothing
    clock: Callable[[], float] = time.monotonic
    promised: frozenset[Address] = frozenset()
    coming: tuple[Network, ...] = ()
    _opened: list[Store] = field(init=False, default_factory=list)
    _ahead: Beside[list[tuple[FoundMachine, FoundMachine]]] | None = field(init=False, default=None)

    @property
    def is_local(self) -> bool:
        """Whether the machines run on this very host."""
        return is_local(self.settings.connect)

    @cached_property
    def hypervisor(self) -> Hypervisor:
        # Loading libvirt's library takes 15 ms, which commands that ask it nothing do without.
        from provisioner.host.hypervisor import Hypervisor

        return Hypervisor(self.settings.connect, readonly=self.readonly)

    def look_ahead(self) -> None:
        """Begins to ask libvirt for `definitions_ahead` beside whatever the caller does next, such as imports."""
        from provisioner.host.beside import Beside  # which most commands have no use for

        if threading.active_count() == 1:
            with contextlib.suppress(OSError):  # no room for another process: `definitions_ahead` are None
                self._ahead = Beside(self._look)

    def _look(self) -> list[tuple[FoundMachine, FoundMachine]]:
        with contextlib.closing(self.hypervisor):
            return self.hypervisor.with_definitions()

    def definitions_ahead(self) -> list[tuple[FoundMachine, FoundMachine]] | None:
        """The hypervisor's `with_definitions` as they were after `look_ahead`: old by what has been done since. Once;
        None where nothing was seen. Raises HypervisorFailed."""
        ahead, self._ahead = self._ahead, None
        return ahead.outcome() if ahead else None

    def forget_ahead(self) -> None:
        """What was seen ahead may be no longer so."""
        ahead, self._ahead = self._ahead, None
        if ahead:
            ahead.drop()

    @property
    def state_dir(self) -> Path:
        return self.settings.state_dir

    @property
    def images_dir(self) -> Path:
        return self.state_dir / stores.IMAGES

    @property
    def machines_dir(self) -> Path:
        return self.state_dir / stores.MACHINES

    @cached_property
    def store(self) -> Store:
        """For commands that change something."""
        opened = stores.open_store(self.state_dir)
        self._opened.append(opened)
        return opened

    @property
    def reading_store(self) -> Store | None:
        """For commands that only look: nothing is made or changed by it; None where there is nothing to read, which is
        asked again each time, for the first command ever makes the store half way."""
        if not self._opened:
            opened = stores.open_for_reading(self.state_dir)
            if opened is None:
                return None
            self._opened.append(opened)
        return self._opened[0]

    def networks_by_mac(self) -> dict[str, str]:
        """MAC to the name of its network, of those NICs that have one; empty for another host's."""
        store = self.reading_store if self.is_local else None
        return store.networks_by_mac() if store else {}

    @property
    def journal(self) -> Journal:
        # Commands that only look do without it, unless there is something in it.
        from provisioner.host.journal import Journal

        return Journal(self.store, self.checkpoint, self.clock)

    @contextlib.contextmanager
    def lock(self, name: str, waiting: str = "") -> Iterator[None]:
        """Holds a named lock over all macvm processes of this state directory; says `waiting` where another has it."""
        if waiting and self.is_locked(name):
            self.say(waiting)
        held = locks.wait_for_lock(self.state_dir, _byte(name))
        try:
            yield
        finally:
            os.close(held)

    def is_locked(self, name: str) -> bool:
        """Whether another has it."""
        return locks.is_locked(self.state_dir, _byte(name))

    def require_local(self, doing: str) -> None:
        """Raises Unable for a remote or session libvirt."""
        uri = self.settings.connect
        if not self.is_local:
            parts = urlsplit(uri)
            user = f"{parts.username}@" if parts.username else ""
            hint = f"ssh {user}{parts.hostname or 'HOST'} sudo macvm …"
            raise Unable(f"{doing} needs this host's own libvirt, not {uri}", hint)
        if uri.endswith("/session"):
            raise Unable(f"{doing} is not possible with {uri}: macvtap needs root", "use qemu:///system")

    def require_local_root(self, doing: str) -> None:
        """Raises Unable for a remote or session libvirt, or without root."""
        self.require_local(doing)
        if os.geteuid() != 0:
            raise Unable(f"{doing} needs root: it makes links, and files that QEMU's user owns", "sudo macvm …")

    @property
    def has_unfinished(self) -> bool:
        """Whether the journal has rows, of whatever process, and there is the right to settle them."""
        if os.geteuid() != 0 or not (self.state_dir / stores.DATABASE).exists():
            return False
        return bool(self.store.rows("SELECT 1 FROM journal LIMIT 1"))

    def close(self) -> None:
        self.forget_ahead()
        if "hypervisor" in self.__dict__:
            self.hypervisor.close()
        for opened in self._opened:
            opened.close()


def open_context(
    options: Options,
    *,
    readonly: bool,
    say: Callable[[str], None] = _nothing,
    environment: Mapping[str, str] | None = None,
) -> Context:
    """The context of one command. Nothing is opened yet. `readonly` for commands that only look."""
    settings = load_settings(options, os.environ if environment is None else environment)
    return Context(settings, readonly, say)
