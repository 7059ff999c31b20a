"""Strategies without arrays or objects of their own, whose capture need not walk them again.

Most are such, and most captures find in them what the one before has found, but for a round number in a config. To
see that takes a look at each attribute; a walk takes several times as long, on the thread that training waits for.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from flwr_ckpt.store.values import Json

from .containers import stands_for_itself
from .encode import Encoded
from .leaves import Node
from .objects import attributes, dictionary, has_slots
from .tree import RECORD_KINDS

_OF_OBJECT, _OF_RECORD = {"$", "type", "id", "v"}, {"$", "v"}
_PARTS = {"object": _OF_OBJECT, **dict.fromkeys(RECORD_KINDS, _OF_RECORD)}


class _Root(NamedTuple):
    value: Any
    raw: dict[str, Any] | None  # its `__dict__` as it was, where that is all it has
    attributes: dict[str, Any]
    node: dict[str, Any]


class FlatRoots:
    """The roots as the last walk found them, if there is nothing below their attributes."""

    def __init__(self) -> None:
        self._roots: dict[str, _Root] | None = None

    def remember(self, roots: Mapping[str, Any], encoded: Encoded | None) -> None:
        """Take down what a walk has found; forget what was known if that is None, or anything is not flat."""
        self._roots = None
        if encoded is not None:
            found = {name: _root(roots[name], encoded.tree["roots"][name]) for name in roots}
            known = {name: root for name, root in found.items() if root is not None}
            self._roots = known if len(known) == len(found) else None

    def again(self, roots: Mapping[str, Any]) -> Json | None:
        """Give the tree that a walk would find, or None where only a walk can tell."""
        if self._roots is None or list(roots) != list(self._roots):
            return None
        nodes = {}
        for name, known in self._roots.items():
            node = _node(known, roots[name])
            if node is None:
                return None
            nodes[name] = node
        return {"roots": nodes, "deep": []}


def _root(value: Any, node: Node) -> _Root | None:
    if not isinstance(node, dict) or node.keys() != _PARTS.get(node["$"]):
        return None
    found = _attributes(value, node)
    flat = list(found) == list(node["v"]) and all(
        stands_for_itself(item) or type(item) is types.FunctionType for item in found.values()
    )
    return _Root(value, _raw(value, node), found, node) if flat else None


def _raw(value: Any, node: dict[str, Any]) -> dict[str, Any] | None:
    own = dictionary(value) if node["$"] == "object" else None
    return None if own is None or has_slots(type(value)) else dict(own)


def _node(known: _Root, value: Any) -> Node:
    """The node of a root whose attributes are the same objects as before, or other plain values."""
    if value is not known.value:
        return None
    if known.raw is not None and _is_same(dictionary(value) or {}, known.raw):
        return known.node
    found, before = _attributes(value, known.node), known.attributes
    if list(found) != list(before):
        return None
    changed = {name: item for name, item in found.items() if item is not before[name]}
    if not all(stands_for_itself(item) and stands_for_itself(before[name]) for name, item in changed.items()):
        return None
    return {**known.node, "v": {**known.node["v"], **changed}}


def _is_same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return list(now) == list(before) and all(map(operator.is_, now.values(), before.values()))


def _attributes(value: Any, node: dict[str, Any]) -> dict[str, Any]:
    return attributes(value) if node["$"] == "object" else dict(value.items())
