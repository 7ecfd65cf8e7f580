"""libvirt's domains, looked at and changed. Nothing else asks it anything but `connection`, the way to it."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import threading
import time
from collections.abc import Callable, Iterator

from provisioner.errors import HypervisorFailed, NoSlot, NotFound, Taken
from provisioner.host import log
from provisioner.host.connection import Connection, libvirt, translated
from provisioner.model.found import OFF, FoundMachine
from provisioner.model.names import UUID, printable
from provisioner.model.uri import is_local

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "unknown",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "stopping",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}


class Hypervisor(Connection):
    """One connection, opened at the first call. Machines are named by their UUID, so that none is mistaken for another
    that took its name."""

    # looking

    def machines(self) -> list[FoundMachine]:
        """Every domain, macvm's or not, by name: one call for all states, one XML for each."""
        # Imported here, and so beside a connection that `open_ahead` has begun.
        from provisioner.model.domain_xml.reading import found_machine

        shown = []
        with translated("to list its domains"):
            for domain, facts in self.asked(lambda daemon: daemon.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)):
                state = _STATES.get(facts.get("state.state"), "unknown")
                # Deleted in between by someone else: no longer one of them.
                with contextlib.suppress(NotFound), translated("to show a domain"):
                    shown.append((domain.XMLDesc(), state))
        # Parsed when all have come, for where the event loop runs already its thread waits for the interpreter at each.
        found = [found_machine(xml, state) for xml, state in shown]
        return sorted(found, key=lambda machine: machine.name)

    def with_definitions(self) -> list[tuple[FoundMachine, FoundMachine]]:
        """Every domain as it is now, with whether it starts with the host and has a definition, and as that has it: the
        same of one that is off, or has none."""
        from provisioner.model.domain_xml.reading import found_machine

        shown = []
        off = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
        with translated("to list its domains"):
            marked = self.asked(lambda daemon: daemon.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART))
            connection = self.open()
            autostart = {domain.UUIDString() for domain in marked}
            passing = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
            transient = {domain.UUIDString() for domain in passing}
            for domain, facts in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE):
                state = facts.get("state.state")
                with contextlib.suppress(NotFound), translated("to show a domain"):
                    xml = domain.XMLDesc()
                    saved = xml if state in off else domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
                    shown.append((xml, saved, _STATES.get(state, "unknown")))
        found = []
        for xml, saved, state in shown:
            now = found_machine(xml, state)
            now = now._replace(autostart=now.uuid in autostart, defined=now.uuid not in transient)
            found.append((now, now if saved is xml else found_machine(saved, state)))
        return found

    def find(self, name: str) -> FoundMachine | None:
        """The domain of that name or UUID."""
        if not name.isprintable() and name.encode(errors="replace").decode() != name:
            return None  # not UTF-8, as no domain's name can be
        with translated(f"to look for {printable(name, 70)}"):
            looks = [lambda daemon: daemon.lookupByName(name), lambda daemon: daemon.lookupByUUIDString(name)]
            for look in reversed(looks) if UUID.fullmatch(name) else looks:
                try:
                    return self._found(self.asked(look))
                except libvirt.libvirtError as error:
                    if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                        raise
        return None

    def get(self, name: str) -> FoundMachine:
        """Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"no machine is named {printable(name, 70)}", "`macvm list` shows all there are")
        return found

    def _found(self, domain: libvirt.virDomain) -> FoundMachine:
        from provisioner.model.domain_xml.reading import found_machine

        state, _ = domain.state()
        return found_machine(domain.XMLDesc(), _STATES.get(state, "unknown"), bool(domain.autostart()))

    def _domain(self, uuid: str) -> libvirt.virDomain:
        return self.asked(lambda daemon: daemon.lookupByUUIDString(uuid))

    def state(self, uuid: str) -> str | None:
        """None where there is no such domain."""
        with translated("to tell a machine's state"):
            try:
                return _STATES.get(self._domain(uuid).state()[0], "unknown")
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

    def runs(self, uuid: str) -> bool:
        """False too where there is no such domain. Raises HypervisorFailed."""
        return self.state(uuid) not in (None, *OFF)

    def networks(self) -> dict[str, bool]:
        """Names of libvirt's own networks, and whether each is active."""
        with translated("to list its networks"):
            return {
                network.name(): bool(network.isActive())
                for network in self.asked(lambda daemon: daemon.listAllNetworks())
            }

    def qemu_user(self) -> tuple[int, int]:
        """User and group that QEMU runs as, from the daemon's own capabilities."""
        with translated("to show its capabilities"):
            capabilities = self.asked(lambda daemon: daemon.getCapabilities())
        label = re.search(r"<model>dac</model>.*?<baselabel[^>]*>\+(\d+):\+(\d+)</baselabel>", capabilities, re.DOTALL)
        if label:
            return int(label[1]), int(label[2])
        for user in ("libvirt-qemu", "qemu"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(user)
                return entry.pw_uid, entry.pw_gid
        return 0, 0

    def has_uefi(self, arch: str | None, machine: str | None, virt_type: str) -> bool:
        """Whether libvirt finds UEFI firmware for such a machine on its host. It tells nobody who only reads: root asks
        by another connection, and for others it is taken to be there."""
        if self._readonly:
            if os.geteuid() != 0:
                return True
            with contextlib.closing(Hypervisor(self.uri, readonly=False)) as writing:
                return writing.has_uefi(arch, machine, virt_type)
        with translated("to tell what its machines can boot with"):
            found = self.asked(lambda daemon: daemon.getDomainCapabilities(None, arch, machine, virt_type))
        kinds = re.search(r"<enum name='firmware'>(.*?)</enum>", found, re.DOTALL)
        return kinds is not None and "<value>efi</value>" in kinds[1]

    # changing

    def define(self, xml: str, name: str) -> None:
        """Raises HypervisorFailed for XML that libvirt's schema does not allow, Taken for a name in use."""
        with translated(f"to define {name}"):
            try:
                self.open().defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            except libvirt.libvirtError as error:
                if "already exists with uuid" in str(error):
                    hint = "choose another name; `macvm list` shows those in use"
                    raise Taken(f"a machine named {name} exists already", hint) from error
                raise

    def start(self, uuid: str, name: str, *, paused: bool) -> None:
        """Paused, the guest has not run an instruction and its macvtaps are down."""
        with self._denials_named(uuid), translated(f"to start {name}"):
            self._domain(uuid).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    @contextlib.contextmanager
    def _denials_named(self, uuid: str) -> Iterator[None]:
        began = time.time()
        try:
            yield
        except HypervisorFailed as error:
            if not is_local(self.uri):
                raise
            from provisioner.host import denials  # where all is well, nobody needs it

            denials.explain(error, uuid, began, lambda: self.definition(uuid))
            raise

    def resume(self, uuid: str, name: str) -> None:
        with translated(f"to resume {name}"):
            self._domain(uuid).resume()

    def shutdown(self, uuid: str, name: str) -> None:
        """Asks the guest through ACPI; returns at once."""
        with translated(f"to shut {name} down"), self._gone_is_fine():
            self._domain(uuid).shutdown()

    def destroy(self, uuid: str, name: str) -> None:
        """Cuts the power. Off already, or gone, is fine."""
        with translated(f"to cut the power of {name}"), self._gone_is_fine():
            self._domain(uuid).destroy()

    def undefine(self, uuid: str, name: str) -> None:
        """Removes the definition, with what hangs on it. Gone already is fine, as of a machine that runs on without."""
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with translated(f"to undefine {name}"), self._gone_is_fine():
            domain = self._domain(uuid)
            if domain.isPersistent():
                domain.undefineFlags(flags)

    def set_autostart(self, uuid: str, name: str, on: bool) -> None:
        with translated(f"to change autostart of {name}"):
            self._domain(uuid).setAutostart(on)

    def definition(self, uuid: str) -> str:
        """The saved definition's XML, secrets left out."""
        with translated("to show a definition"):
            return str(self._domain(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def set_marks(self, uuid: str, name: str, xml: str, namespace: str, *, live: bool) -> None:
        """Replaces macvm's part of a machine's metadata, in its definition, and where it runs there too."""
        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if live else 0)
        with translated(f"to change the labels of {name}"):
            domain = self._domain(uuid)
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, "macvm", namespace, flags)

    # NICs

    def saved(self, uuid: str) -> FoundMachine:
        """A machine as its definition has it."""
        from provisioner.model.domain_xml.reading import found_machine

        return found_machine(self.definition(uuid))

    def live_definition(self, uuid: str) -> str:
        """The XML of a machine as it runs; the saved one where it does not."""
        with translated("to show a machine"):
            return str(self._domain(uuid).XMLDesc())

    def is_persistent(self, uuid: str) -> bool:
        with translated("to tell whether a machine is saved"):
            return bool(self._domain(uuid).isPersistent())

    def has_snapshots(self, uuid: str) -> bool:
        with translated("to tell of a machine's snapshots"):
            return bool(self._domain(uuid).snapshotNum())

    def has_managed_save(self, uuid: str) -> bool:
        """Whether its next start goes on with the memory that was saved."""
        with translated("to tell whether a machine's memory is saved"):
            return bool(self._domain(uuid).hasManagedSaveImage())

    def attach_nic(self, uuid: str, name: str, xml: str, *, live: bool) -> None:
        """To the running machine, or with `live` False to its definition. Raises NoSlot."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
        with translated(f"to attach a NIC to {name}"):
            try:
                self._domain(uuid).attachDeviceFlags(xml, flags)
            except libvirt.libvirtError as error:
                if "No more available PCI slots" in str(error):
                    raise NoSlot(f"{name} has no free slot for another NIC") from error
                raise

    def update_nic(self, uuid: str, name: str, xml: str, *, live: bool) -> None:
        """Changes the NIC with the same MAC. Live, libvirt changes hardly more than its link state."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
        with translated(f"to change a NIC of {name}"):
            self._domain(uuid).updateDeviceFlags(xml, flags)

    def detach_nic_saved(self, uuid: str, name: str, xml: str) -> None:
        """From the definition; gone already is fine."""
        with translated(f"to detach a NIC of {name}"):
            try:
                self._domain(uuid).detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_DEVICE_MISSING:
                    raise

    def detach_nic_live(self, uuid: str, name: str, xml: str, alias: str, timeout: float) -> bool:
        """From the running machine: True once libvirt has said that the device is gone, False when the guest did not
        let go within `timeout` seconds. libvirt's call succeeds in both cases."""
        gone = threading.Event()

        def removed(_connection: object, _domain: object, device: str, _opaque: object) -> None:
            if device == alias:
                gone.set()

        with translated(f"to detach a NIC of {name}"):
            domain, connection = self._domain(uuid), self.open_for_events()
            event = connection.domainEventRegisterAny(domain, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed, None)
            try:
                domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_DEVICE_MISSING:
                    return True
                if "already in the process of unplug" not in str(error):
                    raise
            finally:
                waited = gone.wait(timeout)
                with contextlib.suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(event)
        return waited

    def network_leases(self, uuid: str) -> list[tuple[str, str]]:
        """MAC and address of what libvirt's own DHCP servers have given to a running machine's NICs on its networks;
        none where libvirt cannot tell."""
        try:
            found = self._domain(uuid).interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
        except libvirt.libvirtError:
            return []
        return [(one["hwaddr"].lower(), entry["addr"]) for one in found.values() for entry in one["addrs"] or ()]

    def agent(self, uuid: str, command: str, timeout: int = 2) -> str | None:
        """The guest agent's answer to one command, both JSON; None where none answers within `timeout` seconds."""
        import libvirt_qemu

        log.trace(libvirt_qemu, "libvirtmod_qemu")
        try:
            return str(libvirt_qemu.qemuAgentCommand(self._domain(uuid), command, timeout, 0))
        except libvirt.libvirtError:
            return None

    @contextlib.contextmanager
    def watching(self, changed: Callable[[], None]) -> Iterator[None]:
        """Calls `changed`, in another thread, whenever a domain comes, goes, or gets or loses a device, and when the
        connection breaks, which is not mended meanwhile: what is asked then fails. Raises HypervisorFailed."""
        connection = self.open_for_events()
        kinds = (
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
        )
        with translated("to tell of its domains"):
            events = [connection.domainEventRegisterAny(None, kind, lambda *_: changed(), None) for kind in kinds]
            connection.registerCloseCallback(lambda *_: changed(), None)
        # Another connection would bring none of these.
        followed, self._followed = self._followed, ""
        try:
            yield
        finally:
            self._followed = followed
            for event in events:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(event)
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()

    @contextlib.contextmanager
    def _gone_is_fine(self) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            off = code == libvirt.VIR_ERR_OPERATION_INVALID and "not running" in str(error)
            if code != libvirt.VIR_ERR_NO_DOMAIN and not off:
                raise
