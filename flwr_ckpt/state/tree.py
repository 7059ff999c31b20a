"""The stored tree as it is read: references followed, identities found, dictionaries listed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from flwr_ckpt.store.values import Json

from .arrays import ARRAY_KINDS
from .leaves import Node
from .paths import Path

SEQUENCE_KINDS = frozenset({"list", "tuple", "set", "frozenset", "deque", "slice", "ChainMap", "namedtuple"})
RECORD_KINDS = frozenset({"ConfigRecord", "MetricRecord", "RecordDict"})
MAPPING_KINDS = frozenset({"dict", "OrderedDict", "Counter", "defaultdict", "mappingproxy"}) | RECORD_KINDS
OBJECT_KINDS = frozenset({"object", "stateful"})
NOT_STATE_KINDS = frozenset({"opaque", "runtime"})


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING: Any = _Missing()  # no value here, which is not None


def kind_of(node: Node) -> str:
    """``"plain"`` for what stands for itself, ``"missing"`` for nothing."""
    if isinstance(node, dict):
        return str(node["$"])
    return "missing" if node is MISSING else "plain"


class Tree:
    """One stored tree.

    Parameters
    ----------
    tree : Json
        As the encoder made it, or as ``json.loads`` returned it.
    """

    def __init__(self, tree: Json) -> None:
        self.roots: dict[str, Node] = tree["roots"]
        self._deep: list[Node] = tree["deep"]
        self.by_id: dict[str, dict[str, Any]] = {}
        for root in (*self.roots.values(), *self._deep):
            self._index(root)

    def _index(self, root: Node) -> None:
        """A subtree in the deep list is indexed by itself."""
        stack = [root]
        while stack:
            node = stack.pop()
            if isinstance(node, dict):
                if "id" in node:
                    self.by_id[node["id"]] = node
                stack.extend(child for child in children(node) if isinstance(child, dict))

    def follow(self, node: Node) -> Node:
        """The node itself, where one stands in for it because it lies deep."""
        return self._deep[node["n"]] if isinstance(node, dict) and node["$"] == "deep" else node

    def resolve(self, node: Node) -> Node:
        """The node itself, also where it was met before."""
        node = self.follow(node)
        return self.by_id[node["as"]] if isinstance(node, dict) and node["$"] == "same" else node

    def walk(self, node: Node) -> Iterator[Node]:
        """`node` and all below it, each once."""
        stack, seen = [node], set()
        while stack:
            node = self.resolve(stack.pop())
            if isinstance(node, dict):
                if id(node) in seen:
                    continue
                seen.add(id(node))
                stack.extend(children(node))
            yield node


def children(node: dict[str, Any]) -> Iterator[Node]:
    """The nodes directly below, keys of dictionaries not among them."""
    kind = node["$"]
    if kind in SEQUENCE_KINDS:
        yield from node["v"]
    elif kind in MAPPING_KINDS:
        yield from (value for _, value in node["kv"]) if "kv" in node else node["v"].values()
        yield from node.get("attributes", {}).values()
    elif kind in OBJECT_KINDS:
        if kind == "object":
            yield from node["v"].values()
        else:
            yield node["v"]
        yield from (node[extra] for extra in ("content", "state_dict") if extra in node)
    elif kind == "generator":
        yield node["v"]


def entries(node: dict[str, Any]) -> Iterator[tuple[str, Node, Node]]:
    """(token, key, value) of a dictionary; equal keys have equal tokens."""
    if "kv" in node:
        for key, value in node["kv"]:
            yield token(key), key, value
    else:
        for key, value in node["v"].items():
            yield f'"{key}', key, value


def token(key: Node) -> str:
    return f'"{key}' if isinstance(key, str) else json.dumps(key, sort_keys=True)


def holds_state(tree: Tree, node: Node) -> bool:
    """Whether there is anything below that is more than a plain value: arrays, generators, objects."""
    more = ARRAY_KINDS | OBJECT_KINDS | {"generator"}
    return any(kind_of(below) in more for below in tree.walk(node))


def places(tree: Tree) -> Iterator[tuple[Path, dict[str, Any], bool]]:
    """Every place of a node that is more than a value of JSON's, and whether it was met before at another place."""
    stack: list[tuple[Path, Node]] = [(Path.root(name), root) for name, root in reversed(tree.roots.items())]
    seen: set[int] = set()
    while stack:
        path, node = stack.pop()
        node = tree.resolve(node)
        if not isinstance(node, dict):
            continue
        again = id(node) in seen
        yield path, node, again
        if not again:
            seen.add(id(node))
            below = [(where, child) for where, child in _located(path, node) if isinstance(child, dict)]
            stack.extend(reversed(below))


def _dictionaries(tree: Tree) -> Iterator[tuple[Path, dict[str, Any]]]:
    return ((path, node) for path, node, again in places(tree) if node["$"] in MAPPING_KINDS and not again)


def _located(path: Path, node: dict[str, Any]) -> Iterator[tuple[Path, Node]]:
    """What lies directly below, each with its path."""
    kind = node["$"]
    if kind in MAPPING_KINDS:
        yield from ((path.item(key), value) for _, key, value in entries(node))
        yield from ((path.attribute(name), value) for name, value in node.get("attributes", {}).items())
    elif kind == "object":
        yield from ((path.attribute(name), value) for name, value in node["v"].items())
        yield from ((path, node[extra]) for extra in ("content", "state_dict") if extra in node)
    elif kind == "stateful":
        yield path.state_dict(), node["v"]
    elif kind in SEQUENCE_KINDS:
        yield from ((path.index(index), value) for index, value in enumerate(node["v"]))
    elif kind == "masked":
        yield from ((path.attribute(part), node[part]) for part in ("data", "mask", "fill"))


def dicts_keyed_by(tree: Json, ids: Collection[int | str]) -> dict[str, list[Any]]:
    """The dictionaries that are not empty and all of whose keys lie among `ids`.

    Returns
    -------
    dict
        Path (``strategy.registered_nodes``) to the keys found there.
    """
    if not any(_first_key(node) in ids for node in _mappings(tree)):
        return {}  # as in hardly any commit of hardly any run
    wanted = {token(identity) for identity in ids}
    found = {}
    for path, node in _dictionaries(Tree(tree)):
        keys = [(name, key) for name, key, _ in entries(node)]
        if keys and all(name in wanted for name, _ in keys):
            found[str(path)] = [key for _, key in keys]
    return found


def _mappings(tree: Json) -> Iterator[dict[str, Any]]:
    stack = [*tree["roots"].values(), *tree["deep"]]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if node["$"] in MAPPING_KINDS:
                yield node
            stack.extend(child for child in children(node) if isinstance(child, dict))


def _first_key(node: dict[str, Any]) -> int | str | None:
    """The first key, if it is one that a node could have."""
    key = next(iter(node["v"]), None) if "v" in node else next((key for key, _ in node["kv"]), None)
    return key if type(key) in (int, str) else None
