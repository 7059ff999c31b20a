"""Whether two stored values are the same: same type, same stored bytes.

NaN equals NaN, 1 is neither True nor 1.0. Arrays and generators are state whatever they hold, so that here they count
as equal; objects are told by their identity, and by their fields where they are values (dataclasses).
"""

from __future__ import annotations

from typing import Any

from .arrays import ARRAY_KINDS
from .leaves import Node
from .tree import MAPPING_KINDS, NOT_STATE_KINDS, SEQUENCE_KINDS, Tree, entries, kind_of, token

_UNORDERED = frozenset({"set", "frozenset"})
_NAMING = frozenset({"id", "at"})
_NOT_COMPARED = _NAMING | {"v", "kv", "attributes", "blob", "blobs"}


def alike(left: Node, left_tree: Tree, right: Node, right_tree: Tree) -> bool:
    """Compare two nodes, each with the tree it stands in. Follows aliases; does not recurse."""
    stack: list[tuple[Node, Node]] = [(left, right)]
    seen: set[tuple[int, int]] = set()
    while stack:
        a, b = stack.pop()
        a, b = left_tree.resolve(a), right_tree.resolve(b)
        if not isinstance(a, dict) or not isinstance(b, dict):
            if repr(a) != repr(b):  # tells 1 from True and 1.0, and 0.0 from -0.0; NaN is NaN
                return False
            continue
        if (id(a), id(b)) in seen:
            continue
        seen.add((id(a), id(b)))
        pairs = _pairs(a, left_tree, b, right_tree)
        if pairs is None:
            return False
        stack.extend(pairs)
    return True


def _pairs(a: dict[str, Any], a_tree: Tree, b: dict[str, Any], b_tree: Tree) -> list[tuple[Node, Node]] | None:
    """What remains to be compared, or ``None`` if the two differ already."""
    kind = a["$"]
    if kind in ARRAY_KINDS and b["$"] in ARRAY_KINDS:
        return []
    if kind != b["$"]:
        return None
    if kind in NOT_STATE_KINDS:
        return [] if kind == "runtime" or a == b else None
    if kind == "generator":
        return []
    if kind in ("object", "stateful"):
        return _object_pairs(a, b)
    if kind == "large bytes":
        return [] if "digest" in a and a.get("digest") == b.get("digest") else None
    if kind in SEQUENCE_KINDS or kind in MAPPING_KINDS:
        return _container_pairs(a, a_tree, b, b_tree)
    return [] if _value(a) == _value(b) else None


def _value(node: dict[str, Any]) -> str:
    """Whether others hold it too is no part of a value."""
    return token({name: value for name, value in node.items() if name not in _NAMING})


def _object_pairs(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[Node, Node]] | None:
    if a["type"] != b["type"]:
        return None
    if "value" not in a:
        return [] if a["id"] == b["id"] else None
    if a["v"].keys() != b["v"].keys():
        return None
    return [(value, b["v"][name]) for name, value in a["v"].items()]


def _container_pairs(
    a: dict[str, Any], a_tree: Tree, b: dict[str, Any], b_tree: Tree
) -> list[tuple[Node, Node]] | None:
    if _head(a) != _head(b):
        return None
    if a["$"] in MAPPING_KINDS:
        ours, theirs = ({name: value for name, _, value in entries(node)} for node in (a, b))
        if list(ours) != list(theirs):
            return None
        extra, others = a.get("attributes", {}), b.get("attributes", {})
        if extra.keys() != others.keys():
            return None
        return [
            *((value, theirs[name]) for name, value in ours.items()),
            *((extra[name], others[name]) for name in extra),
        ]
    if len(a["v"]) != len(b["v"]):
        return None
    if a["$"] in _UNORDERED:
        # elements of sets are hashable: small, and flat but for tuples
        ours_sorted, theirs_sorted = (sorted(node["v"], key=_element) for node in (a, b))
        return list(zip(ours_sorted, theirs_sorted, strict=True))
    return list(zip(a["v"], b["v"], strict=True))


def _head(node: dict[str, Any]) -> str:
    return token({name: value for name, value in node.items() if name not in _NOT_COMPARED})


def _element(node: Node) -> str:
    return token(node)


def has_changed(node: Node, tree: Tree, then: Tree) -> bool:
    """Whether anything below is state: more than plain values, or plain values that the run has changed."""
    for below in tree.walk(node):
        kind = kind_of(below)
        if kind in ARRAY_KINDS or kind in ("generator", "stateful"):
            return True
        if kind == "object" and _differs(below, tree, then.by_id.get(below["id"]), then):
            return True
    return False


def _differs(node: dict[str, Any], tree: Tree, before: dict[str, Any] | None, then: Tree) -> bool:
    if before is None or before["$"] != "object" or before["v"].keys() != node["v"].keys():
        return True
    return any(not alike(value, tree, before["v"][name], then) for name, value in node["v"].items())
