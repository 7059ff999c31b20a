"""Stored values in the few words of a log line."""

from __future__ import annotations

from typing import Any

from .leaves import Node, decode_leaf, is_leaf_kind
from .tree import MAPPING_KINDS, MISSING, SEQUENCE_KINDS, Tree, entries

_LENGTH = 80
_BRACKETS = {"list": ("[", "]"), "set": ("{", "}"), "frozenset": ("{", "}"), "deque": ("[", "]")}


def short(tree: Tree, node: Node) -> str:
    """At most about a line."""
    text = _text(tree.resolve(node), 2)
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"


def _text(node: Node, levels: int) -> str:
    if node is MISSING:
        return "nothing"
    if not isinstance(node, dict):
        return repr(node)
    kind = node["$"]
    if kind == "int":
        return f"an integer of {len(node['v'])} hexadecimal digits"
    if is_leaf_kind(kind) and not kind.startswith("torch."):
        return repr(decode_leaf(node))
    if kind in MAPPING_KINDS and levels:
        items = list(entries(node))
        inner = ", ".join(f"{_text(key, 1)}: {_text(value, levels - 1)}" for _, key, value in items[:20])
        return f"{{{inner}{', …' if len(items) > 20 else ''}}}"
    if kind in SEQUENCE_KINDS and levels:
        inner = ", ".join(_text(value, levels - 1) for value in node["v"][:20])
        opening, closing = _BRACKETS.get(kind, ("(", ")"))
        return f"{opening}{inner}{', …' if len(node['v']) > 20 else ''}{closing}"
    return _named(node, kind)


def _named(node: dict[str, Any], kind: str) -> str:
    if kind in ("opaque", "function", "enum"):
        return str(node.get("name") or node.get("flags") or node["type"]).rpartition(":")[2]
    what = str(node.get("type") or kind).rpartition(":")[2]
    return f"<{what}>"
