"""The keys of a lab file, as pydantic's models: what checks a file, and what the JSON schema is made from.

Annotations are values here, and not texts, which pydantic would compile one by one; the default of `defaults` is not
validated, for which its form's validator would be made twice. Every lab command waits for both.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from provisioner.actions.labs.files import Files
from provisioner.actions.labs.words import (
    FileWord,
    MayBeEmpty,
    Several,
    Short,
    Word,
    choice,
    from_usage,
    mistake,
    quoted_mac,
)
from provisioner.errors import Usage
from provisioner.model.checksum import parse_checksum
from provisioner.model.endpoint import IpvlanMode, MacvlanMode
from provisioner.model.machine import Vnc, parse_vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, check_name, is_number, parse_label, printable
from provisioner.model.network import AnyNetwork, Range, parse_range, parse_subnet
from provisioner.model.nic import Address, Addressing, parse_address, parse_addressing, parse_interface, parse_mtu
from provisioner.model.shim import To, parse_to
from provisioner.model.sizes import parse_size

_STRING: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": ["integer", "string"]}
_MODES = tuple(mode.value for mode in MacvtapMode)
_ALL_MODES = tuple(mode.value for mode in MacvlanMode)


def _text(text: str) -> str:
    if not text or "\0" in text:
        raise Usage("this is empty", "write a text, or leave the key out")
    return str(text)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise Usage(f"{printable(text)} is neither true nor false", "one of true, false")
    return text == "true"


def _number(text: str) -> int:
    if not is_number(text) or not int(text):
        raise Usage(f"{printable(text)} is no number", "a whole number from 1 on")
    return int(text)


def _ip(text: str) -> str:
    word = text.strip().lower()
    if word not in ("auto", "dhcp", "none"):
        parse_interface(word)
    return word


def _ipvlan(text: str) -> IpvlanMode:
    if text not in ("l2", "l3"):
        raise Usage(f"{printable(text)} is no mode of an ipvlan", "one of l2, l3")
    return IpvlanMode(text)


def _vnc(text: str) -> Vnc | None:
    return None if text == "false" else parse_vnc("" if text == "true" else text)


def _label_key(text: str) -> str:
    parse_label(f"{text}=")
    if "=" in text:
        raise Usage(f"{printable(text)} cannot be the key of a label", "leave the = out")
    return str(text)


def _label_value(text: str) -> str:
    return parse_label(f"key={text}")[1]


_MAC = Word("a MAC address", quoted_mac(Mac.parse), _STRING)
_ADDRESS = Word("an address", parse_address, _STRING)
_NAME_PATTERN = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

Name = Annotated[str, Word("a name", check_name, {**_STRING, "pattern": _NAME_PATTERN})]
Words = Annotated[str, Word("a text", _text, _STRING)]
Flag = Annotated[bool, Word("true or false", _flag, {"type": "boolean"}, ("true", "false"))]
Number = Annotated[int, Word("a number", _number, {"type": "integer", "minimum": 1})]
Ip = Annotated[str, Word("an address with its length, auto, dhcp or none", _ip, _STRING)]
MacWord = Annotated[Mac, _MAC]
Keys = Annotated[tuple[str, ...], FileWord("a file of public keys", Files.keys)]
UserData = Annotated[tuple[bytes, ...], FileWord("a file of user-data", Files.user_data)]
AddressWord = Annotated[Address, _ADDRESS]
SubnetWord = Annotated[AnyNetwork, Word("a subnet", parse_subnet, _STRING)]
ToWord = Annotated[To, Word("an address, an address with its MAC, or a block", parse_to, _STRING)]
Checksum = Annotated[str, Word("a checksum", lambda text: str(parse_checksum(text)), _STRING)]
LabelKey = Annotated[str, Word("the key of a label", _label_key, _STRING)]
LabelValue = Annotated[str, Word("a label's value", _label_value, {"type": ["string", "number", "boolean"]})]
Pace = Annotated[str, choice("a way to ask the LAN", ("fast", "rfc", "no"))]
Firmware = Annotated[str, choice("a firmware", ("bios", "uefi"))]
VirtType = Annotated[str, choice("a way to run", ("auto", "kvm", "qemu"))]

# Where a key was left out these are None; a file cannot say so.
Count = Annotated[int | None, Word("a number", _number, {"type": "integer", "minimum": 1})]
Memory = Annotated[
    int | None, Word("an amount of memory", lambda text: parse_size(text, what="amount of memory"), _NUMBER)
]
Disk = Annotated[
    int | None, Word("a disk size", lambda text: parse_size(text, plain_unit="g", what="disk size"), _NUMBER)
]
Mode = Annotated[MacvtapMode | None, Word("a macvtap mode", MacvtapMode.parse, {"enum": list(_MODES)}, _MODES)]
AnyMode = Annotated[
    MacvlanMode | None, Word("a macvlan mode", MacvlanMode.parse, {"enum": list(_ALL_MODES)}, _ALL_MODES)
]
Ipvlan = Annotated[IpvlanMode | None, Word("a mode of an ipvlan", _ipvlan, {"enum": ["l2", "l3"]}, ("l2", "l3"))]
OneMac = Annotated[Mac | None, _MAC]
Mtu = Annotated[int | None, Word("an MTU", parse_mtu, {"type": "integer", "minimum": 68, "maximum": 65535})]
OneFile = Annotated[Path | None, FileWord("a file", Files.path)]
OneAddress = Annotated[Address | None, _ADDRESS]
OneRange = Annotated[Range | None, Word("a range of addresses", parse_range, _STRING)]
Screen = Annotated[Vnc | None, Word("true, or an address and a port", _vnc, {"type": ["boolean", "string"]})]


def _says(description: str, default: Any = None) -> Any:
    return Field(default, description=description)


class Form(BaseModel):
    """Keys that nobody wrote are in no `model_fields_set`."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: object) -> object:
        return {} if value is None else value


class _Addressed(Form):
    """What NICs and endpoints share."""

    network: Name = _says("One of the file's networks, which decides parent, mode and addresses.", "")
    parent: Words = _says("The host link to sit on; default: the default route's.", "")
    ip: Annotated[tuple[Ip, ...], Several()] = _says("ADDRESS/LENGTH, auto, dhcp or none; several in a list.", ())
    gateway: Annotated[tuple[AddressWord, ...], Several()] = _says("The guest's router, once a family.", ())
    dns: Annotated[tuple[AddressWord, ...], Several()] = _says("Name servers.", ())
    mac: OneMac = _says('In quotes: "52:54:00:12:34:56"; default: macvm chooses.')
    mtu: Mtu = _says("In bytes, at most the parent's.")

    @property
    def addressing(self) -> Addressing:
        """Raises Usage."""
        ip = self.ip or self._no_ip()
        return parse_addressing(ip, map(str, self.gateway), map(str, self.dns), network=bool(self.network))

    def _no_ip(self) -> tuple[str, ...]:
        return ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            _ = self.addressing
        except Usage as error:
            raise from_usage(error) from None
        return self


class NicForm(_Addressed):
    mode: Mode = _says("The macvtap mode; default: bridge.")
    libvirt: Words = _says("A libvirt network, such as default, in place of all the others.", "")

    @model_validator(mode="after")
    def _libvirt_decides(self) -> Self:
        others = sorted(self.model_fields_set - {"libvirt"})
        if self.libvirt and others:
            raise mistake(f"libvirt takes no {', '.join(others)}", "the libvirt network decides those")
        return self


class EndpointForm(_Addressed):
    mode: AnyMode = _says("The macvlan mode; default: bridge.")
    ipvlan: Ipvlan = _says("An ipvlan in place of a macvlan: l2 or l3.")
    allow_source: Annotated[tuple[MacWord, ...], Several()] = _says("In mode source: take frames from these MACs.", ())
    netns: Words = _says("A namespace that exists: a process, a name or a path.", "")
    shim: Flag = _says("false: leave the host's side alone.", True)
    take_parent: Flag = _says("Let passthrough take a link that the host itself uses.", False)
    probe: Pace = _says("How the LAN is asked whether a network's address is in use.", "fast")

    def _no_ip(self) -> tuple[str, ...]:
        return () if self.network else ("none",)


class VmForm(Form):
    count: Count = _says("NAME-1 … NAME-count, at consecutive addresses.")
    image: Words = _says("NAME[:VERSION], FILE, URL, or one of the file's images; default: CirrOS, else tiny.", "")
    checksum: Checksum = _says("The FILE's or URL's: sha256:… or sha512:…", "")
    insecure_no_checksum: Flag = _says("Take a URL that nothing vouches for.", False)
    memory: Memory = _says("In MiB, or 512M, 2G.")
    vcpus: Number = _says("Virtual CPUs.", 1)
    disk: Disk = _says("Size of the disk, in GiB, or 10G; default: the image's.")
    nics: tuple[NicForm, ...] = _says("Default: one on the default parent.", ())
    user_data: Annotated[tuple[UserData, ...], Several()] = _says("Files for the guest's first boot.", ())
    ssh_keys: Annotated[tuple[Keys, ...], Several()] = _says("Public key files; default: your own.", ())
    password: Words = _says("For the image's login, best as ${VARIABLE}; only its hash reaches the guest.", "")
    template: OneFile = _says("A libvirt domain of yours to start from.")
    firmware: Firmware = _says("What it boots with; default: the image's, else bios.", "")
    virt_type: VirtType = _says("KVM or emulation.", "")
    kernel: OneFile = _says("Boot this kernel, without a boot loader.")
    initrd: OneFile = _says("Its initramfs.")
    cmdline: Words = _says("Its command line.", "")
    vnc: Screen = _says("A screen: true, or ADDRESS[:PORT].")
    vnc_exposed: Flag = _says("Let vnc listen beyond this host, unencrypted.", False)
    start: Flag = _says("false: define only.", True)
    shim: Flag = _says("false: leave the host's side alone.", True)
    take_parent: Flag = _says("Let passthrough take a link that the host itself uses.", False)
    probe: Pace = _says("How the LAN is asked whether a network's address is in use.", "fast")
    autostart: Flag = _says("Start with the host.", False)
    labels: dict[LabelKey, LabelValue] = _says("For `list -l` and the inventory's groups.", {})


class DefaultsForm(VmForm):
    mode: Mode = _says("Of NICs that are on no network.")
    parent: Words = _says("Of NICs that are on no network.", "")


class SubnetForm(Form):
    subnet: SubnetWord = Field(description="192.0.2.0/24, 2001:db8::/64")
    gateway: OneAddress = _says("The guests' router.")
    range: OneRange = _says("Give out only these: a block, or FIRST-LAST.")


class NetworkForm(Form):
    parent: Words = _says("A host link, or its VLAN (eth0.50); default: the default route's.", "")
    mode: Mode = _says("The macvtap mode; default: bridge.")
    subnets: tuple[Annotated[SubnetForm, Short("subnet")], ...] = _says("Either family; several of them.", ())
    reserved: dict[Name, AddressWord] = _says("Addresses that are kept free, each with a name.", {})
    dns: Annotated[tuple[AddressWord, ...], Several()] = _says("Name servers for the guests.", ())
    mtu: Mtu = _says("The guests' MTU, at most the parent's.")
    shim: Flag = _says("false: leave the host's side alone.", True)


class ImageForm(Form):
    source: Words = Field(description="NAME[:VERSION], FILE or URL.")
    checksum: Checksum = _says("The FILE's or URL's: sha256:… or sha512:…", "")


class ShimForm(Form):
    parent: Words = Field(description="The host link.")
    to: Annotated[tuple[ToWord, ...], Several()] = _says(
        "Serve what libvirt does not know: ADDRESS[,MAC] or a block.", ()
    )


_Networks = Annotated[dict[Name, Annotated[NetworkForm, MayBeEmpty()]], MayBeEmpty()]
_Vms = Annotated[dict[Name, Annotated[VmForm, MayBeEmpty()]], MayBeEmpty()]
_Endpoints = Annotated[dict[Name, Annotated[EndpointForm, MayBeEmpty()]], MayBeEmpty()]


class LabForm(Form):
    """A macvm lab: VMs, and the networks, endpoints and shims around them."""

    lab: Name = _says("The lab's name; default: the folder's.", "")
    defaults: DefaultsForm = _says("Keys of a VM, for every VM that does not say them.", DefaultsForm.model_construct())
    images: dict[Name, ImageForm] = _says("Names for images that VMs are made from.", {})
    networks: _Networks = _says("LAN segments with addresses.", {})
    vms: _Vms = _says("VMs by name.", {})
    endpoints: _Endpoints = _says("Network namespaces on the LAN, by name.", {})
    shims: tuple[Annotated[ShimForm, Short("parent")], ...] = _says("Shims that no VM needs by itself.", ())

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: object) -> object:
        # `vms:` with nothing below it is one without VMs.
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def json_schema() -> dict[str, Any]:
    """For editors (JSON Schema, draft 2020-12)."""
    schema = _terse(LabForm.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A macvm lab", **schema}


def _terse(schema: Any) -> Any:
    """Without the titles that repeat a key, and without defaults that are nothing."""
    if isinstance(schema, list):
        return [_terse(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "patternProperties" in schema:
        schema = {**schema, "additionalProperties": False}
    if len(schema.get("allOf", ())) == 1:  # pydantic before 2.10, around a $ref
        schema = {**schema["allOf"][0], **{key: one for key, one in schema.items() if key != "allOf"}}
    empty = "default" in schema and schema["default"] in (None, "", [], {})
    return {key: _terse(one) for key, one in schema.items() if key != "title" and not (key == "default" and empty)}
