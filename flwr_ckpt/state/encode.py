"""From live objects to a tree of nodes.

One walk with a stack of its own: nesting is limited by memory, not by Python's. Every node that is not a single plain
value is ``{"$": kind, ...}``; what is met again is ``{"$": "same", "as": id}``, and subtrees below every few dozen
levels lie in a list beside the roots (``{"$": "deep", "n": index}``), because JSON parsers do recurse.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr_ckpt.store.errors import CheckpointError
from flwr_ckpt.store.values import Json

from . import generators
from .arrays import ArrayEncoder
from .classes import OwnPackages, is_named_tuple, type_name
from .flower import (
    RUNTIME_HANDLES,
    STRATEGIES,
    ConfigRecord,
    MetricRecord,
    RecordDict,
)
from .leaves import Node, encode_scalar, is_text
from .objects import attributes, content_of, has_state_dict
from .paths import Names, Path
from .singles import Opaque, SingleEncoder, name_of, unstorable_state_dict

_LEVELS_IN_PLACE = 40
_FACTORIES = (int, float, complex, bool, str, bytes, list, dict, set, tuple, collections.Counter, collections.deque)
FACTORY_BY_NAME: dict[str, Any] = {factory.__name__: factory for factory in _FACTORIES}
Child = tuple[Any, Any, Any, str, Any]  # value, where its node goes (container, slot), and its step of the path
_INFINITY = float("inf")
_SMALL = 1 << 62


@dataclass(frozen=True, slots=True)
class Encoded:
    """What one walk found.

    Attributes
    ----------
    tree : Json
        ``{"roots": {name: node}, "deep": [node, ...]}``.
    objects : dict
        The live object behind each identity in the tree.
    opaque : dict
        What is not state, by path.
    """

    tree: Json
    objects: dict[str, object]
    opaque: dict[str, Opaque]


class Encoder:
    """One walk over the roots.

    Parameters
    ----------
    own : OwnPackages
        Grows when a nested strategy is met.
    anchors : Mapping
        ``id(object)`` to the identity it had at the baseline, so that objects that change places are told apart.
    excluded : frozenset of str
        Paths that are not state.
    arrays : callable
        Makes the array encoder over the walk's names.
    """

    def __init__(
        self,
        own: OwnPackages,
        anchors: Mapping[int, str],
        excluded: frozenset[str],
        arrays: Callable[[Names], ArrayEncoder],
    ) -> None:
        self._own = own
        self._anchors = anchors
        self._excluded = excluded
        self._names = Names(anchors.values())
        self._singles = SingleEncoder(own, arrays(Names()))
        self._stack: list[tuple[Any, Any, Any, Path | None, str, Any]] = []
        self._met: dict[int, tuple[object, dict[str, Any], Path | None, str, Any]] = {}
        self._open: dict[int, int] = {}  # containers we are inside of, with their depth
        self._open_objects: list[int] = [0]  # depths of the objects we are inside of
        self._deep: list[Node] = []
        self._objects: dict[str, object] = {}

    def encode(self, roots: Mapping[str, object]) -> Encoded:
        nodes: dict[str, Node] = {}
        for name, value in roots.items():
            self._stack.append((value, nodes, name, None, "attribute", name))
            self._drain()
        return Encoded({"roots": nodes, "deep": self._deep}, self._objects, self._singles.opaque)

    def _drain(self) -> None:
        stack = self._stack
        while stack:
            value, out, slot, parent, kind, key = stack.pop()
            if out is None:
                self._leave(slot)
                continue
            out[slot] = self._node(value, parent, kind, key)

    # -- one value -----------------------------------------------------------------------------------------------

    def _node(self, value: Any, parent: Path | None, kind: str, key: Any) -> Node:
        if value is None:
            return None
        scalar = encode_scalar(value)
        if scalar is not None:
            return scalar
        met = self._met.get(id(value))
        if met is not None:
            return self._again(met, Path(parent, kind, key))
        container = _CONTAINERS.get(type(value))
        if container is None:
            return self._unusual(value, Path(parent, kind, key))
        node: dict[str, Any] = {"$": type(value).__name__}
        self._met[id(value)] = (value, node, parent, kind, key)
        return container(self, value, node, Path(parent, kind, key))

    def _again(self, met: tuple[object, dict[str, Any], Path | None, str, Any], path: Path) -> Node:
        value, node, *where = met
        depth = self._open.get(id(value))
        if depth is not None and depth >= self._open_objects[-1] and node["$"] not in ("object", "stateful"):
            raise CheckpointError(
                f"{path}: leads back to {Path(*where)}, which contains it. A {type(value).__name__} that contains "
                "itself cannot be stored; exclude the attribute, or give the strategy state_dict/load_state_dict"
            )
        if "id" not in node:
            node["id"] = self._names.unique(str(Path(*where)))
        return {"$": "same", "as": node["id"]}

    def _unusual(self, value: Any, path: Path) -> Node:
        node = self._singles.plain(value, path)
        if node is not None:
            return node
        node = self._singles.data(value, path)
        if node is not None:
            self._met[id(value)] = (value, node, path.parent, path.kind, path.key)
            return node
        for matches, encode in _KINDS:
            if matches(value) and (node := encode(self, value, path)) is not None:
                return node
        if has_state_dict(value) and not _is_strategy(value, path):
            return self._stateful(value, path)
        if path.parent is None or self._own.walks(value):
            return self._object(value, path)
        return self._singles.function(value) or self._singles.not_state(value, path)

    def _method(self, value: types.MethodType, path: Path) -> Node | None:
        """A bound method of an object that is walked; by name, because it is made anew at each access."""
        owner = self._met.get(id(value.__self__))
        found = getattr(type(value.__self__), value.__name__, None)
        if owner is None or "id" not in owner[1] or found is not value.__func__:
            return None
        return {"$": "method", "name": value.__name__, "of": owner[1]["id"]}

    def _generator(self, value: Any, path: Path) -> Node | None:
        state = generators.state_of(value)
        if state is None:
            return None
        node: dict[str, Any] = {"$": "generator", "kind": generators.kind_of(value)}
        self._identify(value, node, path)
        self._stack.append((state, node, "v", path, "call", "state"))
        return node

    # -- containers ----------------------------------------------------------------------------------------------

    def _enter(self, value: object, path: Path, node: dict[str, Any]) -> Node:
        """Note that we are inside `value` until `_leave`; put the node out of the way when the nesting is deep."""
        self._open[id(value)] = path.depth
        if node["$"] in ("object", "stateful"):
            self._open_objects.append(path.depth)
        if path.depth % _LEVELS_IN_PLACE == _LEVELS_IN_PLACE - 1:
            self._deep.append(node)
            return {"$": "deep", "n": len(self._deep) - 1}
        return node

    def _leave(self, value: object) -> None:
        depth = self._open.pop(id(value))
        if len(self._open_objects) > 1 and self._open_objects[-1] == depth:
            self._open_objects.pop()

    def _below(self, owner: object, node: dict[str, Any], path: Path, pending: list[Child]) -> Node:
        """Queue what is not a plain value, the first to be visited first; return what goes in the node's place."""
        if not pending:
            return node
        placed = self._enter(owner, path, node)
        self._stack.append((None, None, owner, None, "", None))
        self._stack.extend((value, out, slot, path, kind, key) for value, out, slot, kind, key in reversed(pending))
        return placed

    def _sequence(self, value: Any, node: dict[str, Any], path: Path, values: Iterable[Any] | None = None) -> Node:
        items: list[Any] = []
        node["v"] = items
        pending: list[Child] = []
        for index, item in enumerate(value if values is None else values):
            if _stands_for_itself(item):
                items.append(item)
            else:
                items.append(None)
                pending.append((item, items, index, "item", index))
        if not pending and type(value) in (tuple, frozenset):
            del self._met[id(value)]  # Python shares constants; that is no alias anybody could notice
        return self._below(value, node, path, pending)

    def _mapping(self, value: Any, node: dict[str, Any], path: Path) -> Node:
        """A mapping with plain string keys is an object in JSON; any other a list of pairs, in order."""
        entries = self._entries(value, path)
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
            if _stands_for_itself(item):
                out[slot] = item
            else:
                out[slot] = None
                pending.append((item, out, slot, "item", key))
        node.update({"v": items} if by_name else {"kv": pairs})
        return self._below(value, node, path, pending)

    def _entries(self, value: Mapping[Any, Any], path: Path) -> list[tuple[Node, Any, Any]]:
        """(encoded key, key, item) of all that is state."""
        some_excluded = self._excludes_below(path)
        if not some_excluded and all(type(key) is str and key.isascii() for key in value):
            return [(key, key, item) for key, item in value.items()]
        found = []
        for key, item in value.items():
            if some_excluded and str(path.item(key)) in self._excluded:
                continue
            name = key if type(key) is str and is_text(key) else self._singles.key(key)
            if name is not None or key is None:
                found.append((name, key, item))
            elif not isinstance(key, RUNTIME_HANDLES):
                self._singles.not_state(key, path.item(key))
        return found

    def _excludes_below(self, path: Path) -> bool:
        return bool(self._excluded) and any(entry.startswith(str(path)) for entry in self._excluded)

    def _deque(self, value: collections.deque[Any], node: dict[str, Any], path: Path) -> Node:
        node["maxlen"] = value.maxlen
        return self._sequence(value, node, path)

    def _defaultdict(self, value: collections.defaultdict[Any, Any], node: dict[str, Any], path: Path) -> Node:
        factory: Any = value.default_factory
        if factory is not None:
            known = FACTORY_BY_NAME.get(getattr(factory, "__name__", "")) is factory
            node["factory" if known else "own_factory"] = factory.__name__ if known else name_of(factory)
        return self._mapping(value, node, path)

    def _slice(self, value: slice, node: dict[str, Any], path: Path) -> Node:
        return self._sequence(value, node, path, (value.start, value.stop, value.step))

    def _chain_map(self, value: collections.ChainMap[Any, Any], node: dict[str, Any], path: Path) -> Node:
        return self._sequence(value, node, path, value.maps)

    def _named_tuple(self, value: Any, path: Path) -> Node | None:
        if not self._own.finds_value_class(type(value)):
            return None
        node: dict[str, Any] = {"$": "namedtuple", "type": type_name(type(value))}
        self._met[id(value)] = (value, node, path.parent, path.kind, path.key)
        return self._sequence(value, node, path, tuple.__iter__(value))

    def _record(self, value: Any, path: Path) -> Node:
        kind = next(kind for kind in (ConfigRecord, MetricRecord, RecordDict) if isinstance(value, kind))
        node: dict[str, Any] = {"$": kind.__name__}
        self._met[id(value)] = (value, node, path.parent, path.kind, path.key)
        return self._mapping(value, node, path)

    # -- objects -------------------------------------------------------------------------------------------------

    def _identify(self, value: object, node: dict[str, Any], path: Path) -> None:
        where = str(path)
        anchor = self._anchors.get(id(value))
        node["id"] = self._names.unique(where) if anchor is None else anchor
        if node["id"] != where:
            node["at"] = where
        self._objects[node["id"]] = value
        self._met[id(value)] = (value, node, path.parent, path.kind, path.key)

    def _stateful(self, value: Any, path: Path) -> Node:
        if path.in_state_dict:
            raise unstorable_state_dict(value, path)
        node: dict[str, Any] = {"$": "stateful", "type": type_name(type(value))}
        self._identify(value, node, path)
        return self._below(value, node, path, [(_state_dict(value, path), node, "v", "call", "state_dict")])

    def _object(self, value: object, path: Path) -> Node:
        node: dict[str, Any] = {"$": "object", "type": type_name(type(value))}
        self._identify(value, node, path)
        if _is_strategy(value, path):
            self._own.add(type(value))
        if self._own.rebuilds(type(value)):
            node["value"] = True
        elif path.in_state_dict:
            raise unstorable_state_dict(value, path)
        places: list[Child] = []
        node["v"] = {}
        for name, item in attributes(value).items():
            if not self._excluded or str(path.attribute(name)) not in self._excluded:
                node["v"][name] = None
                places.append((item, node["v"], name, "attribute", name))
        content = content_of(value)
        if content is not None:
            places.append((content, node, "content", "call", "content"))
        if _is_strategy(value, path) and has_state_dict(value):
            places.append((_state_dict(value, path), node, "state_dict", "call", "state_dict"))
        return self._below(value, node, path, places)


def _stands_for_itself(value: Any) -> bool:
    kind = type(value)
    return (
        (kind is float and -_INFINITY < value < _INFINITY)
        or (kind is int and -_SMALL < value < _SMALL)
        or value is None
        or kind is bool
        or (kind is str and value.isascii())
    )


def _state_dict(value: Any, path: Path) -> Any:
    try:
        return value.state_dict()
    except Exception as error:
        raise CheckpointError(f"{path}: its state_dict() raised {type(error).__name__}: {error}") from error


def _is_strategy(value: object, path: Path) -> bool:
    return isinstance(value, STRATEGIES) or (path.parent is None and path.key == "strategy")


_CONTAINERS: dict[type, Callable[[Encoder, Any, dict[str, Any], Path], Node]] = {
    list: Encoder._sequence,
    tuple: Encoder._sequence,
    set: Encoder._sequence,
    frozenset: Encoder._sequence,
    collections.deque: Encoder._deque,
    slice: Encoder._slice,
    collections.ChainMap: Encoder._chain_map,
    dict: Encoder._mapping,
    collections.OrderedDict: Encoder._mapping,
    collections.Counter: Encoder._mapping,
    collections.defaultdict: Encoder._defaultdict,
    types.MappingProxyType: Encoder._mapping,
}

_KINDS: tuple[tuple[Callable[[object], bool], Callable[[Encoder, Any, Path], Node | None]], ...] = (
    (generators.is_generator, Encoder._generator),
    (lambda value: isinstance(value, (ConfigRecord, MetricRecord, RecordDict)), Encoder._record),
    (lambda value: is_named_tuple(type(value)), Encoder._named_tuple),
    (lambda value: isinstance(value, types.MethodType), Encoder._method),
)
