"""From live objects to a tree of nodes.

One walk with a stack of its own: nesting is limited by memory, not by Python's. Every node that is not a single plain
value is ``{"$": kind, ...}``; what is met again is ``{"$": "same", "as": id}``, and subtrees below every few dozen
levels lie in a list beside the roots (``{"$": "deep", "n": index}``), because JSON parsers do recurse.
"""

from __future__ import annotations

import collections
import enum
import functools
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flwr_ckpt.store.errors import CheckpointError
from flwr_ckpt.store.values import Json

from . import generators
from .arrays import ArrayEncoder
from .classes import OwnPackages, is_named_tuple, type_name
from .flower import (
    RUNTIME_HANDLES,
    STRATEGIES,
    Array,
    ArrayRecord,
    ConfigRecord,
    MetricRecord,
    Parameters,
    RecordDict,
)
from .leaves import Node, base64_text, encode_leaf, encode_scalar, is_text
from .objects import attributes, container_base, has_state_dict
from .paths import Names, Path

_LEVELS_IN_PLACE = 40
_FACTORIES = (int, float, complex, bool, str, bytes, list, dict, set, tuple, collections.Counter, collections.deque)
FACTORY_BY_NAME: dict[str, Any] = {factory.__name__: factory for factory in _FACTORIES}
_INFINITY = float("inf")
_SMALL = 1 << 62


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something that is not state: where it stands, and what it is."""

    path: Path
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.name})" if self.name else self.kind


@dataclass(slots=True)
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
    opaque: dict[str, Opaque] = field(default_factory=dict)


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
        self._arrays = arrays(Names())
        self._stack: list[tuple[Any, Any, Any, Path | None, str, Any]] = []
        self._met: dict[int, tuple[object, dict[str, Any], Path | None, str, Any]] = {}
        self._open: dict[int, int] = {}  # containers we are inside of, with their depth
        self._open_objects: list[int] = [0]  # depths of the objects we are inside of
        self._deep: list[Node] = []
        self._found = Encoded({}, {})

    def encode(self, roots: Mapping[str, object]) -> Encoded:
        nodes: dict[str, Node] = {}
        for name, value in roots.items():
            self._stack.append((value, nodes, name, None, "attribute", name))
            self._drain()
        self._found.tree = {"roots": nodes, "deep": self._deep}
        return self._found

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
        node = encode_leaf(value)
        if node is not None:
            return node
        if isinstance(value, enum.Enum):
            return self._enum(value, path)
        if isinstance(value, RUNTIME_HANDLES):
            return self._runtime(value, path)
        for matches, encode in _KINDS:
            if matches(value):
                node = encode(self, value, path)
                if node is not None:
                    if type(value) is not bytes:
                        self._met.setdefault(id(value), (value, node, path.parent, path.kind, path.key))
                    return node
        if has_state_dict(value) and not _is_strategy(value, path):
            return self._stateful(value, path)
        if path.parent is None or self._own.walks(value):
            return self._object(value, path)
        if callable(value):
            return self._callable(value, path)
        return self._opaque(value, path)

    def _enum(self, value: enum.Enum, path: Path) -> Node:
        cls = type(value)
        if self._own.finds_value_class(cls):
            if value.name is not None and cls.__members__.get(value.name) is value:
                return {"$": "enum", "type": type_name(cls), "name": value.name}
            if isinstance(value, enum.Flag):
                return {"$": "enum", "type": type_name(cls), "flags": int(value.value)}
        return self._opaque(value, path)

    def _runtime(self, value: object, path: Path) -> Node:
        if path.in_state_dict:
            raise self._unstorable_state_dict(type_name(type(value)), path)
        return {"$": "runtime", "type": type_name(type(value))}

    def _array(self, value: Any, path: Path) -> Node | None:
        encode = next(encode for kind, encode in _ARRAYS if isinstance(value, kind))
        return encode(self._arrays, value, path)

    def _tensor(self, value: Any, path: Path) -> Node | None:
        return self._arrays.tensor(value, path)

    def _generator(self, value: Any, path: Path) -> Node | None:
        state = generators.state_of(value)
        if state is None:
            return None
        node: dict[str, Any] = {"$": "generator", "kind": generators.kind_of(value)}
        self._identify(value, node, path)
        self._stack.append((state, node, "v", path, "call", "state"))
        return node

    def _callable(self, value: Any, path: Path) -> Node:
        if isinstance(value, types.MethodType):
            owner = self._met.get(id(value.__self__))
            found = getattr(type(value.__self__), value.__name__, None)
            if owner is not None and "id" in owner[1] and found is value.__func__:
                return {"$": "method", "name": value.__name__, "of": owner[1]["id"]}
            return self._opaque(value, path)
        name = self._own.function_name(value)
        return self._opaque(value, path) if name is None else {"$": "function", "name": name}

    def _opaque(self, value: object, path: Path) -> Node:
        kind, name = type_name(type(value)), _name_of(value)
        if path.in_state_dict:
            raise self._unstorable_state_dict(f"{kind} {name}".strip(), path)
        self._found.opaque[str(path)] = Opaque(path, kind, name)
        return {"$": "opaque", "type": kind, "name": name}

    @staticmethod
    def _unstorable_state_dict(what: str, path: Path) -> CheckpointError:
        return CheckpointError(
            f"{path}: a {what}, which cannot be stored. A state_dict may hold plain values, arrays, tensors and the "
            "containers of the standard library; leave the entry out of it, or exclude the object"
        )

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

    def _children(self, owner: object, children: Iterable[tuple[Any, Any, Any, str, Any]], path: Path) -> None:
        """Queue what is not a plain value; the first child is the first to be visited."""
        queued = [(value, out, slot, path, kind, key) for value, out, slot, kind, key in children]
        self._stack.append((None, None, owner, None, "", None))
        queued.reverse()
        self._stack.extend(queued)

    def _sequence(self, value: Any, node: dict[str, Any], path: Path, values: Iterable[Any] | None = None) -> Node:
        items: list[Any] = []
        node["v"] = items
        pending = []
        for index, item in enumerate(value if values is None else values):
            if _stands_for_itself(item):
                items.append(item)
            else:
                items.append(None)
                pending.append((item, items, index, "item", index))
        if not pending:
            if type(value) in (tuple, frozenset):
                del self._met[id(value)]  # Python shares constants; that is no alias anybody could notice
            return node
        placed = self._enter(value, path, node)
        self._children(value, pending, path)
        return placed

    def _mapping(self, value: Any, node: dict[str, Any], path: Path, kind: str = "item") -> Node:
        """A mapping with plain string keys is an object in JSON; any other a list of pairs, in order."""
        if not self._excluded and _has_plain_keys(value):
            return self._plain_mapping(value, node, path)
        entries = list(self._entries(value, path, kind))
        if all(type(key) is str for key, _, _ in entries):
            node["v"] = {key: None for key, _, _ in entries}
            places = [(item, node["v"], key, kind, original) for key, item, original in entries]
        else:
            pairs = node["kv"] = [[key, None] for key, _, _ in entries]
            places = [(item, pair, 1, kind, original) for pair, (_, item, original) in zip(pairs, entries, strict=True)]
        pending = []
        for place in places:
            item, out, slot = place[:3]
            if _stands_for_itself(item):
                out[slot] = item
            else:
                pending.append(place)
        if not pending:
            return node
        placed = self._enter(value, path, node)
        self._children(value, pending, path)
        return placed

    def _plain_mapping(self, value: Mapping[str, Any], node: dict[str, Any], path: Path) -> Node:
        """Most mappings, and the large ones above all, in one pass."""
        items: dict[str, Any] = {}
        node["v"] = items
        pending: list[tuple[Any, Any, Any, str, Any]] = []
        for key, item in value.items():
            if _stands_for_itself(item):
                items[key] = item
            else:
                items[key] = None
                pending.append((item, items, key, "item", key))
        if not pending:
            return node
        placed = self._enter(value, path, node)
        self._children(value, pending, path)
        return placed

    def _entries(self, value: Any, path: Path, kind: str) -> Iterable[tuple[Node, Any, Any]]:
        prefix = str(path) if self._excluded else ""
        looks_up = bool(self._excluded) and any(entry.startswith(prefix) for entry in self._excluded)
        for key, item in value.items():
            if looks_up and str(Path(path, kind, key)) in self._excluded:
                continue
            node = key if type(key) is str and is_text(key) else self._key(key)
            if node is None and key is not None:
                if not isinstance(key, RUNTIME_HANDLES):
                    self._opaque(key, path.item(key))
                continue
            yield node, item, key

    def _key(self, key: Any) -> Node | None:
        """A key of a dict: any hashable plain value, and tuples of them; ``None`` if it cannot be stored."""
        if key is None:
            return None
        scalar = encode_scalar(key)
        if scalar is not None:
            return scalar
        if type(key) is bytes:
            return {"$": "bytes", "v": base64_text(key)}
        if type(key) in (tuple, frozenset):
            parts = [self._key(part) for part in key]
            if any(part is None and item is not None for part, item in zip(parts, key, strict=True)):
                return None
            return {"$": type(key).__name__, "v": parts}
        if isinstance(key, enum.Enum) and self._own.finds_value_class(type(key)):
            return self._enum(key, Path.root("key"))
        return encode_leaf(key)

    def _deque(self, value: collections.deque[Any], node: dict[str, Any], path: Path) -> Node:
        node["maxlen"] = value.maxlen
        return self._sequence(value, node, path)

    def _defaultdict(self, value: collections.defaultdict[Any, Any], node: dict[str, Any], path: Path) -> Node:
        factory: Any = value.default_factory
        if factory is not None:
            known = FACTORY_BY_NAME.get(getattr(factory, "__name__", "")) is factory
            node["factory" if known else "own_factory"] = factory.__name__ if known else _name_of(factory)
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

    def _torch_size(self, value: Any, path: Path) -> Node:
        return {"$": "torch.Size", "v": [int(part) for part in value]}

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
        self._found.objects[node["id"]] = value
        self._met[id(value)] = (value, node, path.parent, path.kind, path.key)

    def _stateful(self, value: Any, path: Path) -> Node:
        node: dict[str, Any] = {"$": "stateful", "type": type_name(type(value))}
        self._identify(value, node, path)
        placed = self._enter(value, path, node)
        self._children(value, [(_state_dict(value, path), node, "v", "call", "state_dict")], path)
        return placed

    def _object(self, value: object, path: Path) -> Node:
        node: dict[str, Any] = {"$": "object", "type": type_name(type(value))}
        self._identify(value, node, path)
        if _is_strategy(value, path):
            self._own.add(type(value))
        if self._own.rebuilds(type(value)):
            node["value"] = True
        placed = self._enter(value, path, node)
        places = []
        node["v"] = {}
        for name, item in attributes(value).items():
            if not self._excluded or str(path.attribute(name)) not in self._excluded:
                node["v"][name] = None
                places.append((item, node["v"], name, "attribute", name))
        content = _content_of(value)
        if content is not None:
            places.append((content, node, "content", "call", "content"))
        if _is_strategy(value, path) and has_state_dict(value):
            places.append((_state_dict(value, path), node, "state_dict", "call", "state_dict"))
        self._children(value, places, path)
        return placed


def _has_plain_keys(value: Mapping[Any, Any]) -> bool:
    return all(type(key) is str and key.isascii() for key in value)


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


def _content_of(value: object) -> Any:
    """What an object of a class that inherits from a container holds beside its attributes."""
    base: Any = container_base(value)
    if base is None:
        return None
    return base(base.items(value) if issubclass(base, dict) else base.__iter__(value))


def _name_of(value: object) -> str:
    """Tells functions and classes apart that are not found by name; other objects only by their type."""
    if isinstance(value, functools.partial):
        return f"partial of {_name_of(value.func)}"
    qualname = getattr(value, "__qualname__", None) if callable(value) else None
    return f"{getattr(value, '__module__', '')}:{qualname}" if isinstance(qualname, str) else ""


def _is_strategy(value: object, path: Path) -> bool:
    return isinstance(value, STRATEGIES) or (path.parent is None and path.key == "strategy")


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_torch_size(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and type(value) is torch.Size


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

_ARRAYS: tuple[tuple[Any, Callable[[ArrayEncoder, Any, Path], Node | None]], ...] = (
    (np.ndarray, ArrayEncoder.ndarray),
    ((bytes, bytearray), ArrayEncoder.bytes_),
    (Parameters, ArrayEncoder.parameters),
    (ArrayRecord, ArrayEncoder.array_record),
    (Array, ArrayEncoder.array),
)

_KINDS: tuple[tuple[Callable[[object], bool], Callable[[Encoder, Any, Path], Node | None]], ...] = (
    (lambda value: isinstance(value, (np.ndarray, Parameters, ArrayRecord, Array)), Encoder._array),
    (lambda value: type(value) in (bytes, bytearray), Encoder._array),
    (_is_tensor, Encoder._tensor),
    (generators.is_generator, Encoder._generator),
    (lambda value: isinstance(value, (ConfigRecord, MetricRecord, RecordDict)), Encoder._record),
    (_is_torch_size, Encoder._torch_size),
    (lambda value: is_named_tuple(type(value)), Encoder._named_tuple),
)
