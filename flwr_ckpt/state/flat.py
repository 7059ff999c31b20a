"""Strategies without arrays or objects of their own, whose capture need not walk them again.

Most are such, and most captures find in them what the one before has found, but for a round number in a config. To
see that takes a look at each attribute; a walk takes several times as long, on the thread that training waits for.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flwr_ckpt.store.values import Json

from .containers import stands_for_itself
from .encode import Encoded
from .flower import RECORDS
from .leaves import Node
from .objects import RESERVED, attributes, dictionary, has_slots
from .tree import RECORD_KINDS

_OF_OBJECT, _OF_RECORD = {"$", "type", "id", "v"}, {"$", "v"}
_PARTS = {"object": _OF_OBJECT, **dict.fromkeys(RECORD_KINDS, _OF_RECORD)}


class _Root(NamedTuple):
    value: Any
    find: Callable[[Any], dict[str, Any]]
    found: dict[str, Any]
    node: dict[str, Any]


class FlatRoots:
    """The roots as the last capture found them, if there is nothing below their attributes."""

    def __init__(self) -> None:
        self._roots: dict[str, _Root] | None = None

    def remember(self, roots: Mapping[str, Any], encoded: Encoded | None) -> None:
        """Take down what a walk has found; forget what was known if that is None, or anything is not flat."""
        self._roots = None
        if encoded is not None:
            nodes = encoded.tree["roots"]
            if all(_is_flat(roots[name], nodes[name]) for name in roots):
                self._roots = {name: _root(roots[name], nodes[name]) for name in roots}

    def again(self, roots: Mapping[str, Any]) -> Json | None:
        """Give the tree that a walk would find, or None where only a walk can tell."""
        if self._roots is None or list(roots) != list(self._roots):
            return None
        for name, known in self._roots.items():
            if roots[name] is not known.value:
                return None
            found = known.find(known.value)
            if list(found) == list(known.found) and all(map(operator.is_, found.values(), known.found.values())):
                continue
            root = _changed(known, found)
            if root is None:
                return None
            self._roots[name] = root
        return {"roots": {name: root.node for name, root in self._roots.items()}, "deep": []}


def _is_flat(value: Any, node: Node) -> bool:
    if not isinstance(node, dict) or node.keys() != _PARTS.get(node["$"]):
        return False
    found = _shown(_way(value)(value))
    return list(found) == list(node["v"]) and all(
        stands_for_itself(item) or type(item) is types.FunctionType for item in found.values()
    )


def _root(value: Any, node: dict[str, Any]) -> _Root:
    find = _way(value)
    return _Root(value, find, find(value), node)


def _way(value: Any) -> Callable[[Any], dict[str, Any]]:
    """How to copy the attributes or items; the quick way for an object that has nothing but a ``__dict__``."""
    if isinstance(value, RECORDS):
        return lambda record: dict(record.items())
    if dictionary(value) is None or has_slots(type(value)):
        return attributes
    return lambda obj: dict(object.__getattribute__(obj, "__dict__"))


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in found.items() if type(name) is str and name != RESERVED}


def _changed(known: _Root, found: dict[str, Any]) -> _Root | None:
    """The root with other plain values in it; None if more than that has changed."""
    if list(found) != list(known.found):
        return None
    shown = dict(known.node["v"])
    for name, item in found.items():
        before = known.found[name]
        if item is before:
            continue
        if name not in shown or not (stands_for_itself(item) and stands_for_itself(before)):
            return None
        shown[name] = item
    return _Root(known.value, known.find, found, {**known.node, "v": shown})
