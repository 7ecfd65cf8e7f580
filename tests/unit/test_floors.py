"""The four floors: cli → actions → host → model, and one module per outside world."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import provisioner

ROOT = Path(provisioner.__file__).parent

FLOORS = ("model", "host", "actions", "cli")

#: Which floors, and which of the modules beside them, each part may import.
BELOW = {
    "model": {"model", "errors"},
    "host": {"model", "host", "errors", "resources"},
    "context": {"model", "host", "errors", "resources"},
    "actions": {"model", "host", "actions", "context", "errors", "resources"},
    "cli": {"model", "host", "actions", "cli", "context", "errors", "resources"},
    "errors": set[str](),
    "resources": set[str](),
}

#: The only files, or floors, that may import a library.
SOLE_IMPORTER = {
    "libvirt": "host/connection.py",
    "libvirt_qemu": "host/hypervisor.py",
    "pyroute2": "host/links.py",
    "lxml": "model/domain_xml/",
    "pycdlib": "host/seeds.py",
    "sqlite3": "host/",
    "click": "cli/",
}

#: What reaches outside the process: nothing for the floor of values and rules.
OUTSIDE = {
    "socket",
    "subprocess",
    "os",
    "shutil",
    "tempfile",
    "io",
    "fcntl",
    "ctypes",
    "sqlite3",
    "threading",
    "asyncio",
}


def _imports(tree: ast.Module) -> Iterator[str]:
    """Full names, also of what is imported inside a function or as text, as the command line's lazy groups are."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0, "imports are absolute"
                yield from (f"{module}.{name.name}" for name in names)
            case ast.Constant(value=str(text)) if text.startswith("provisioner.") and " " not in text:
                yield text


def _ends_process(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" as name)):
                yield f"line {node.lineno}: {name}()"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="sys"), attr="exit")):
                yield f"line {node.lineno}: sys.exit()"
            case ast.Name(id="SystemExit"):
                yield f"line {node.lineno}: SystemExit"


def _takes_only_random_bytes(tree: ast.Module) -> bool:
    used = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_os(node.value)]
    return set(used) == {"urandom"} and len(used) == sum(_is_os(node) for node in ast.walk(tree))


def _is_os(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "os"


def offences(where: str, source: str) -> list[str]:
    """What a source file at `where`, relative to the package, does against the rules."""
    tree = ast.parse(source)
    part = where.split("/")[0].removesuffix(".py")
    found = []
    for name in _imports(tree):
        words = name.split(".")
        if words[0] == "provisioner" and len(words) > 1 and words[1] not in BELOW.get(part, {words[1]}):
            found.append(f"{where} imports {name}, which is not below it")
        allowed = SOLE_IMPORTER.get(words[0])
        if allowed and not where.startswith(allowed):
            found.append(f"{where} imports {name}, which only {allowed} may")
        if part == "model" and words[0] in OUTSIDE and not (name == "os" and _takes_only_random_bytes(tree)):
            found.append(f"{where} imports {name}: no I/O in model/")
    if part == "model":
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="open")):
                    found.append(f"{where} opens a file")
                case ast.Attribute(attr="read_text" | "read_bytes" | "write_text" | "write_bytes" | "exists" as attr):
                    found.append(f"{where} calls {attr}: no I/O in model/")
    if part != "cli":
        found += [f"{where} {what} below cli/" for what in _ends_process(tree)]
    return found


SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if "_data" not in path.parts)


@pytest.mark.parametrize("where", SOURCES)
def test_no_file_reaches_above_its_floor_or_into_anothers_world(where: str) -> None:
    assert offences(where, (ROOT / where).read_text()) == []


def test_every_file_stands_on_a_floor() -> None:
    known = {*BELOW, "__init__"}
    assert [where for where in SOURCES if where.split("/")[0].removesuffix(".py") not in known] == []
    assert {where.split("/")[0] for where in SOURCES} >= set(FLOORS)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("model/nic.py", "from provisioner.host import store"),
        ("model/nic.py", "from provisioner import context"),
        ("model/nic.py", "import socket"),
        ("model/nic.py", "def f():\n    import os.path"),
        ("model/nic.py", "import os\nos.urandom(3)\nos.remove('x')"),
        ("model/nic.py", "import os\nf = os"),
        ("model/nic.py", "open('/etc/passwd')"),
        ("model/nic.py", "def f(path): return path.read_text()"),
        ("host/store.py", "from provisioner.actions.plan import Plan"),
        ("host/store.py", "from provisioner.context import Context"),
        ("actions/plan.py", "def f():\n    from provisioner.cli import render"),
        ("actions/plan.py", "LAZY = 'provisioner.cli.main'"),
        ("actions/plan.py", "import libvirt"),
        ("actions/plan.py", "print('done')"),
        ("host/disks.py", "import sys\nsys.exit(1)"),
        ("host/disks.py", "raise SystemExit(2)"),
        ("host/netlink.py", "from pyroute2 import IPRoute"),
        ("host/hypervisor.py", "from lxml import etree"),
        ("actions/images.py", "import click"),
        ("context.py", "from provisioner.actions import plan"),
        ("errors.py", "from provisioner.model import names"),
        ("resources.py", "from provisioner.errors import Usage"),
    ],
)
def test_an_offence_is_found(where: str, source: str) -> None:
    assert offences(where, source)


def test_what_is_allowed_is_no_offence() -> None:
    assert offences("cli/run.py", "from provisioner.actions import plan\nimport click, sys\nsys.exit(1)\nprint()") == []


def _is_error(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {
        "Usage", "NotFound", "Taken", "Unable", "HypervisorFailed", "PartlyDone", "TimeUp", "MacvmError",
        "ImageRefused", "StoreFailed", "LinkFailed", "NetlinkFailed", "ToolFailed",
    }  # fmt: skip


def _without_hint(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _is_error(node)]
    return [f"line {call.lineno}" for call in calls if len(call.args) + len(call.keywords) < 2]


@pytest.mark.parametrize("where", SOURCES)
def test_every_error_has_a_hint(where: str) -> None:
    assert _without_hint((ROOT / where).read_text()) == []


def test_an_error_without_a_hint_is_found() -> None:
    assert _without_hint("raise Usage('wrong')\nraise Usage('wrong', 'do this')") == ["line 1"]
