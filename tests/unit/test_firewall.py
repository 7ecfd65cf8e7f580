"""Which of the host's nftables chains is shut to a shim and open to its parent: rules as `nft -j list ruleset` gives them."""

from __future__ import annotations

from typing import Any

import pytest

from provisioner.model.firewall import closed_to

_LOOPBACK: dict[str, Any] = {"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": "lo"}}
_KNOWN: dict[str, Any] = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
_SSH: dict[str, Any] = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}


def _links(right: Any, key: str = "iifname", op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def _ruleset(
    *matches: dict[str, Any], policy: str = "drop", hook: str = "input", family: str = "inet"
) -> dict[str, Any]:
    place = {"family": family, "table": "filter"}
    base = {**place, "name": "in", "handle": 1, "type": "filter", "hook": hook, "prio": 0, "policy": policy}
    rules = [{**place, "chain": "in", "handle": 2, "expr": [match, {"accept": None}]} for match in matches]
    helper = {"chain": {**place, "name": "other", "handle": 9}}
    items = [{"metainfo": {"version": "1.0.6"}}, {"table": {**place, "handle": 1}}, {"chain": base}, helper]
    return {"nftables": [*items, *({"rule": rule} for rule in rules)]}


@pytest.mark.parametrize(
    "rule",
    [
        _links("eth0"),
        _links("eth0", key="iif"),
        _links({"set": ["lo", "eth0"]}),
        {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["lo", {"accept": None}], ["eth0", {"accept": None}]]}}},
    ],
)  # fmt: skip
def test_a_chain_that_lets_in_the_parent_alone(rule: dict[str, Any]) -> None:
    [closed] = closed_to(_ruleset(_LOOPBACK, _KNOWN, rule), "eth0", "mv-eth0")
    assert closed == ("inet filter in", 'nft insert rule inet filter in iifname "mv-eth0" accept')


@pytest.mark.parametrize(
    "ruleset",
    [
        {"nftables": []},
        _ruleset(_links("eth0"), policy="accept"),
        _ruleset(_links("eth0"), hook="forward"),
        _ruleset(_links("eth0"), family="bridge"),
        _ruleset(_LOOPBACK, _KNOWN, _SSH),
        _ruleset(_links("eth1")),
        _ruleset(_links("eth0", op="!=")),
        _ruleset(_links("eth0"), _links("mv-eth0")),
        _ruleset(_links("eth0"), _links("mv-*")),
        _ruleset(_links({"set": ["eth0", "mv-eth0"]})),
    ],
)
def test_a_chain_that_treats_them_alike(ruleset: dict[str, Any]) -> None:
    assert closed_to(ruleset, "eth0", "mv-eth0") == []
