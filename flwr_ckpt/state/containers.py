"""How containers are taken apart: each function fills a node and queues what is not a plain value."""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from .classes import OwnPackages
from .leaves import Node, is_text
from .objects import attributes
from .paths import Path
from .singles import SingleEncoder, name_of

_FACTORIES = (int, float, complex, bool, str, bytes, list, dict, set, tuple, collections.Counter, collections.deque)
FACTORY_BY_NAME: dict[str, Any] = {factory.__name__: factory for factory in _FACTORIES}
Child = tuple[Any, Any, Any, str, Any]  # value, where its node goes (container, slot), and its step of the path
_INFINITY = float("inf")
_SMALL = 1 << 62


class Walk(Protocol):
    """What a container needs of the walk that met it."""

    own: OwnPackages
    singles: SingleEncoder

    def below(self, owner: object, node: dict[str, Any], path: Path, pending: list[Child]) -> Node:
        """Queue the children; return what goes in the node's place."""

    def forget(self, value: object) -> None:
        """Should `value` be met again, it is no alias."""

    def excludes_below(self, path: Path) -> bool: ...

    def excludes(self, path: Path) -> bool: ...


def sequence(walk: Walk, value: Any, node: dict[str, Any], path: Path, values: Iterable[Any] | None = None) -> Node:
    items: list[Any] = []
    node["v"] = items
    pending: list[Child] = []
    for index, item in enumerate(value if values is None else values):
        if stands_for_itself(item):
            items.append(item)
        else:
            items.append(None)
            pending.append((item, items, index, "index", index))
    if not pending and type(value) in (tuple, frozenset):
        walk.forget(value)  # Python shares constants; that is no alias anybody could notice
    return walk.below(value, node, path, pending)


def mapping(walk: Walk, value: Any, node: dict[str, Any], path: Path) -> Node:
    """A mapping with plain string keys is an object in JSON; any other a list of pairs, in order."""
    if not walk.excludes_below(path) and all(type(key) is str and key.isascii() for key in value):
        node["v"] = named = dict(value.items())
        nodes = [(item, named, key, "item", key) for key, item in named.items() if not stands_for_itself(item)]
        return walk.below(value, node, path, nodes + _attributes(value, node))
    entries = _entries(walk, value, path)
    by_name = all(type(name) is str for name, _, _ in entries)
    items: dict[str, Any] = {}
    pairs: list[list[Any]] = []
    pending: list[Child] = []
    for name, key, item in entries:
        out: Any = items
        slot: Any = name
        if not by_name:
            out, slot = [name, None], 1
            pairs.append(out)
        if stands_for_itself(item):
            out[slot] = item
        else:
            out[slot] = None
            pending.append((item, out, slot, "item", key))
    node.update({"v": items} if by_name else {"kv": pairs})
    return walk.below(value, node, path, pending + _attributes(value, node))


def _attributes(value: Any, node: dict[str, Any]) -> list[Child]:
    """An ``OrderedDict`` can have attributes; torch keeps the versions of modules in one, ``_metadata``."""
    if type(value) is not collections.OrderedDict or not (found := attributes(value)):
        return []
    node["attributes"] = dict.fromkeys(found)
    return [(item, node["attributes"], name, "attribute", name) for name, item in found.items()]


def _entries(walk: Walk, value: Mapping[Any, Any], path: Path) -> list[tuple[Node, Any, Any]]:
    """(encoded key, key, item) of all that is state."""
    some_excluded = walk.excludes_below(path)
    found = []
    for key, item in value.items():
        if some_excluded and walk.excludes(path.item(key)):
            continue
        name = key if type(key) is str and is_text(key) else walk.singles.key(key)
        if name is not None or key is None:
            found.append((name, key, item))
        else:
            walk.singles.not_state(key, path.item(key))
    return found


def _deque(walk: Walk, value: collections.deque[Any], node: dict[str, Any], path: Path) -> Node:
    node["maxlen"] = value.maxlen
    return sequence(walk, value, node, path)


def _defaultdict(walk: Walk, value: collections.defaultdict[Any, Any], node: dict[str, Any], path: Path) -> Node:
    factory: Any = value.default_factory
    if factory is not None:
        name = getattr(factory, "__name__", "")
        if FACTORY_BY_NAME.get(name) is factory:
            node["factory"] = name
        elif (found := walk.own.function_name(factory)) is not None:
            node["function"] = found
        else:
            node["own_factory"] = name_of(factory)
            walk.singles.needs_itself(value, f"with the factory {name_of(factory)}", path)
    return mapping(walk, value, node, path)


def _slice(walk: Walk, value: slice, node: dict[str, Any], path: Path) -> Node:
    return sequence(walk, value, node, path, (value.start, value.stop, value.step))


def _chain_map(walk: Walk, value: collections.ChainMap[Any, Any], node: dict[str, Any], path: Path) -> Node:
    return sequence(walk, value, node, path, value.maps)


def stands_for_itself(value: Any) -> bool:
    """Whether a value is its own node: most are, and are put in place at once."""
    kind = type(value)
    return (
        (kind is float and -_INFINITY < value < _INFINITY)
        or (kind is int and -_SMALL < value < _SMALL)
        or value is None
        or kind is bool
        or (kind is str and value.isascii())
    )


CONTAINERS: dict[type, Callable[[Walk, Any, dict[str, Any], Path], Node]] = {
    list: sequence,
    tuple: sequence,
    set: sequence,
    frozenset: sequence,
    collections.deque: _deque,
    slice: _slice,
    collections.ChainMap: _chain_map,
    dict: mapping,
    collections.OrderedDict: mapping,
    collections.Counter: mapping,
    collections.defaultdict: _defaultdict,
    types.MappingProxyType: mapping,
}
