"""The three trees that decide a restore: what is stored, and the two baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr_ckpt.store.places.confidential import is_confidential

from .compare import alike
from .leaves import Node
from .paths import Path
from .show import short
from .tree import MAPPING_KINDS, MISSING, Tree, entries, kind_of

Entries = dict[str, tuple[Any, Node]]  # token -> key, node


@dataclass(frozen=True)
class Three:
    """What is stored, and what stood at the first hook of the process that stored it, and of this one.

    Attributes
    ----------
    stored, then, now : Tree
    warnings : list of str
        What the user gave anew, so that it stands.
    """

    stored: Tree
    then: Tree
    now: Tree
    warnings: list[str] = field(default_factory=list)

    def is_untouched(self, then: Node, now: Node) -> bool:
        """Whether the user gives what the run began with."""
        return alike(now, self.now, then, self.then)

    def has_come_back(self, node: Node, then: Node) -> bool:
        """Whether the run has not changed it."""
        return alike(node, self.stored, then, self.then)

    def is_reached(self, node: Node, now: Node) -> bool:
        """Whether the user gives what the run came to."""
        return alike(now, self.now, node, self.stored)

    def is_ours(self, node: Node, then: Node, now: Node) -> bool:
        return self.is_untouched(then, now) or self.is_reached(node, now)

    def warn(self, path: Path, node: Node, then: Node, now: Node) -> None:
        if is_confidential(path.key):
            self.warnings.append(f"{path}: another one is given now than the run had come to; what is given stands")
            return
        given = short(self.now, now)
        self.warnings.append(
            f"{path}: {given} is given now; the run began with {short(self.then, then)} and had come to "
            f"{short(self.stored, node)}. {given} stands"
        )

    def counterpart(self, tree: Tree, node: dict[str, Any]) -> dict[str, Any] | None:
        """The same object in a baseline; the class of a root is compared elsewhere."""
        for identity in (node["id"], node.get("at", "")):
            found = tree.by_id.get(identity)
            if found is None or found["$"] != "object":
                continue
            if found["type"] == node["type"] or identity in tree.roots:
                return found
        return None

    def items(self, node: Node, then: Node, now: Node, key: Callable[[Node], Any]) -> tuple[Entries, Entries, Entries]:
        """The entries of a mapping in each tree; `key` makes keys of their nodes."""
        trees = (self.stored, self.then, self.now)
        stored, before, given = (
            _entries(tree.resolve(part), key) for part, tree in zip((node, then, now), trees, strict=True)
        )
        return stored, before, given

    def attributes(self, node: Node, then: Node, now: Node) -> tuple[Entries, Entries, Entries]:
        """The attributes that a mapping has beside its entries."""
        trees = (self.stored, self.then, self.now)
        stored, before, given = (
            named(tree.resolve(part), "attributes") for part, tree in zip((node, then, now), trees, strict=True)
        )
        return stored, before, given


def _entries(node: Node, key: Callable[[Node], Any]) -> Entries:
    if kind_of(node) not in MAPPING_KINDS:
        return {}
    return {token: (key(name), value) for token, name, value in entries(node)}


def named(node: Node, part: str = "v") -> Entries:
    """The attributes of a node that may be none."""
    found = node.get(part, {}) if isinstance(node, dict) else {}
    return {name: (name, value) for name, value in found.items()} if isinstance(found, dict) else {}


def value_of(found: Entries, token: str) -> Node:
    return found[token][1] if token in found else MISSING


def content_of(node: Node) -> Node:
    return node.get("content", MISSING) if isinstance(node, dict) else MISSING


def type_of(node: Node) -> str | None:
    return node.get("type") if isinstance(node, dict) else None
