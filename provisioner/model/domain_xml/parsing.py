"""The hardened parser, and macvm's own namespace."""

from __future__ import annotations

from lxml import etree

from provisioner.errors import Usage

#: macvm's namespace in `<metadata>`; libvirt keeps foreign namespaces there as they are.
NAMESPACE = "urn:macvm:machine:1"
NS = f"{{{NAMESPACE}}}"

Element = etree._Element


def _parser() -> etree.XMLParser:
    # No entities, no DTD, no network: templates and domains may come from anyone.
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def parse(text: str | bytes, what: str) -> Element:
    """The root of a domain's XML. Raises Usage where it is no XML, no domain, or brings a document type of its own."""
    hint = "a template is a libvirt domain, as `virsh dumpxml` prints it"
    try:
        # Text that libvirt gives needs no detour over bytes; text that names an encoding does.
        if isinstance(text, str) and text.startswith("<?xml"):
            text = text.encode()
        root = etree.fromstring(text, _parser())
    except etree.XMLSyntaxError as error:
        raise Usage(f"{what} is no XML: {error.msg}", hint) from None
    if _has_doctype(root):
        raise Usage(f"{what} has a document type declaration, which could hide entities", "take the <!DOCTYPE …> out")
    if root.tag != "domain":
        raise Usage(f"{what} is no libvirt domain: its root element is <{root.tag}>", hint)
    return root


def _has_doctype(root: Element) -> bool:
    return bool(getattr(root.getroottree().docinfo, "doctype", ""))
