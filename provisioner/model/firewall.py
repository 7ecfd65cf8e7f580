"""Which of the host's own nftables chains drops what comes in by a shim, though not by its parent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_FAMILIES = ("inet", "ip", "ip6")
_LINK_KEYS = ("iif", "iifname")


class Closed(NamedTuple):
    """A chain whose policy drops what comes in; `rule` of nft's lets it in as it does from the parent."""

    chain: str
    rule: str


def closed_to(ruleset: Mapping[str, Any], parent: str, shim: str) -> list[Closed]:
    """`ruleset` as `nft -j list ruleset` has it (libnftables-json(5)). Found are the chains at the hook `input` with
    policy drop that let in what comes by the parent's name, and nothing by the shim's; what they accept by address or
    port is the same for both links."""
    items = ruleset.get("nftables", ())
    chains = [item["chain"] for item in items if "chain" in item]
    rules = [item["rule"] for item in items if "rule" in item]
    found = []
    for chain in chains:
        if chain.get("hook") != "input" or chain.get("policy") != "drop" or chain["family"] not in _FAMILIES:
            continue
        mine = [rule for rule in rules if _place(rule) == (chain["family"], chain["table"], chain["name"])]
        named = {name for rule in mine for name in _links(rule.get("expr", ()))}
        if parent in named and not any(_matches(name, shim) for name in named):
            where = " ".join((chain["family"], chain["table"], chain["name"]))
            found.append(Closed(where, f'nft insert rule {where} iifname "{shim}" accept'))
    return found


def _place(rule: Mapping[str, Any]) -> tuple[str, str, str]:
    return rule["family"], rule["table"], rule["chain"]


def _matches(name: str, link: str) -> bool:
    return link.startswith(name[:-1]) if name.endswith("*") else link == name


def _links(expressions: Sequence[Any]) -> Iterator[str]:
    """Names that a rule compares the incoming link with: one, a set of them, or the keys of a verdict map."""
    for expression in expressions:
        match = expression.get("match") if isinstance(expression, dict) else None
        if match and _is_link(match.get("left")) and match.get("op") in ("==", "in"):
            yield from _names(match.get("right"))
        vmap = expression.get("vmap") if isinstance(expression, dict) else None
        if vmap and _is_link(vmap.get("key")):
            data = vmap.get("data")
            yield from _names([pair[0] for pair in data.get("set", ())] if isinstance(data, dict) else [])


def _is_link(left: Any) -> bool:
    return isinstance(left, dict) and left.get("meta", {}).get("key") in _LINK_KEYS


def _names(right: Any) -> Iterator[str]:
    if isinstance(right, str):
        yield right
    elif isinstance(right, dict):
        yield from _names(right.get("set", ()))
    elif isinstance(right, list):
        for one in right:
            yield from _names(one)
