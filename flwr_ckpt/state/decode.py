"""From nodes to values: new containers and arrays, and the live objects that stand for object nodes."""

from __future__ import annotations

import collections
import enum
import importlib
import itertools
import types
from collections.abc import Callable
from typing import Any

from .array_decode import ArrayDecoder
from .arrays import ARRAY_KINDS, BYTES_KINDS
from .classes import VALUE_BASES, OwnPackages
from .containers import FACTORY_BY_NAME
from .flower import ConfigRecord, MetricRecord, RecordDict
from .leaves import Node, decode_leaf
from .objects import new_instance, set_attribute
from .tree import MAPPING_KINDS, NOT_STATE_KINDS, OBJECT_KINDS, SEQUENCE_KINDS, Tree, entries

_RECORDS: dict[str, Any] = {"ConfigRecord": ConfigRecord, "MetricRecord": MetricRecord, "RecordDict": RecordDict}


class NotStateError(Exception):
    """The value holds something that is not state, and so cannot be made again."""


class Decoder:
    """Makes values of the nodes of one tree.

    Parameters
    ----------
    tree : Tree
    arrays : ArrayDecoder
    own : OwnPackages
        Where classes and functions are looked up.
    live : callable
        Gives the live object for its node, or the generator for its node and decoded state.
    """

    def __init__(
        self, tree: Tree, arrays: ArrayDecoder, own: OwnPackages, live: Callable[[dict[str, Any], Any], Any]
    ) -> None:
        self._tree = tree
        self._arrays = arrays
        self._own = own
        self._live = live
        self.made: dict[str, Any] = {}

    def decode(self, node: Node) -> Any:
        """Make the value.

        Raises
        ------
        NotStateError
            If it holds what is not state.
        ValueError
            If it names a class or function that is not there, or is damaged.
        CheckpointError
            If `live` has no object for it.
        """
        result: list[Any] = [None]
        stack: list[tuple[Node, list[Any], Any, list[Any] | None]] = [(node, result, 0, None)]
        while stack:
            node, out, slot, parts = stack.pop()
            if parts is not None:
                out[slot] = self._remember(node, self._build(node, parts))
                continue
            node = self._tree.follow(node)
            if isinstance(node, dict) and node["$"] == "same":
                if node["as"] in self.made:
                    out[slot] = self.made[node["as"]]
                    continue
                node = self._tree.resolve(node)
            below = self._below(node)
            if below is None:
                out[slot] = self._remember(node, self._single(node))
                continue
            parts = [None] * len(below)
            stack.append((node, out, slot, parts))
            stack.extend((child, parts, index, None) for index, child in reversed(list(enumerate(below))))
        return result[0]

    def _remember(self, node: Node, value: Any) -> Any:
        if isinstance(node, dict) and "id" in node:
            self.made[node["id"]] = value
        return value

    def _below(self, node: Node) -> list[Node] | None:
        kind = node["$"] if isinstance(node, dict) else None
        if kind in SEQUENCE_KINDS:
            return list(node["v"])
        if kind in MAPPING_KINDS:
            return [*(value for _, _, value in entries(node)), *node.get("attributes", {}).values()]
        return [node["v"]] if kind == "generator" else None

    def _single(self, node: Node) -> Any:
        if not isinstance(node, dict):
            return node
        kind = node["$"]
        if kind in OBJECT_KINDS:
            return self._live(node, None)
        if kind in ARRAY_KINDS or kind in BYTES_KINDS:
            return self._arrays.decode(node)
        if kind in NOT_STATE_KINDS:
            raise NotStateError(f"a {node['type']}")
        special = _SINGLES.get(kind)
        return decode_leaf(node) if special is None else special(self, node)

    def _build(self, node: dict[str, Any], parts: list[Any]) -> Any:
        kind = node["$"]
        if kind == "generator":
            return self._live(node, parts[0])
        if kind in MAPPING_KINDS:
            keys = [self.key(key) for _, key, _ in entries(node)]
            made = self._mapping(node, dict(zip(keys, parts, strict=False)))
            for name, value in zip(node.get("attributes", {}), parts[len(keys) :], strict=True):
                set_attribute(made, name, value)
            return made
        if kind == "deque":
            return collections.deque(parts, node["maxlen"])
        if kind == "namedtuple":
            return tuple.__new__(self._value_class(node), parts)
        return _SEQUENCES[kind](parts)

    def _mapping(self, node: dict[str, Any], content: dict[Any, Any]) -> Any:
        kind = node["$"]
        if kind == "defaultdict":
            if "own_factory" in node:
                raise ValueError(
                    f"a defaultdict whose factory is {node['own_factory']} cannot be made again from the stored "
                    "state: build it in __init__, or use a factory such as list or int"
                )
            known = FACTORY_BY_NAME.get(node.get("factory", ""))
            factory = self._function(node["function"]) if "function" in node else known
            return collections.defaultdict(factory, content)
        if kind in _RECORDS:
            record = _RECORDS[kind]()
            for key, value in content.items():
                record[key] = value
            return record
        return _MAPPINGS[kind](content)

    def key(self, node: Node) -> Any:
        """A key of a dictionary."""
        if not isinstance(node, dict):
            return node
        if node["$"] in ("tuple", "frozenset"):
            return _SEQUENCES[node["$"]]([self.key(part) for part in node["v"]])
        if node["$"] == "namedtuple":
            return tuple.__new__(self._value_class(node), [self.key(part) for part in node["v"]])
        if node["$"] == "object":
            return self._key_object(node)
        return self._single(node)

    def _key_object(self, node: dict[str, Any]) -> Any:
        cls = self._own.rebuilt_class(node["type"])
        if cls is None:
            raise ValueError(f"the stored state holds a {node['type']}, and there is no such class any more")
        made = new_instance(cls)
        for name, value in node["v"].items():
            set_attribute(made, name, self.key(value))
        return made

    def _value_class(self, node: dict[str, Any]) -> Any:
        cls = self._own.value_class(node["type"])
        if cls is None:
            raise ValueError(f"the stored state holds a {node['type']}, and there is no such class any more")
        return cls

    def _subclass(self, node: dict[str, Any]) -> Any:
        cls = self._value_class(node)
        base: Any = next(base for base in VALUE_BASES if issubclass(cls, base))
        return base.__new__(cls, self._single(node["v"]))

    def _enum(self, node: dict[str, Any]) -> Any:
        cls = self._own.value_class(node["type"])
        if cls is not None and issubclass(cls, enum.Enum):
            if "flags" in node:
                return cls(node["flags"])
            if node["name"] in cls.__members__:
                return cls.__members__[node["name"]]
        raise ValueError(
            f"the stored state holds {node['type']}.{node.get('name', node.get('flags'))}, which is not there any more"
        )

    def _function(self, name: str) -> Any:
        found = self._own.function(name)
        if found is None:
            raise ValueError(
                f"the stored state names the function {name}, which is not in the strategy's modules any more"
            )
        return found

    def _method(self, node: dict[str, Any]) -> Any:
        owner = self.made.get(node["of"])
        if owner is None:
            owner = self.decode(self._tree.by_id[node["of"]])
        function = getattr(type(owner), node["name"], None)
        if not isinstance(function, types.FunctionType):
            raise ValueError(f"the stored state names the method {node['name']} of {node['of']}, which has none")
        return types.MethodType(function, owner)

    @staticmethod
    def _torch_size(node: dict[str, Any]) -> Any:
        return importlib.import_module("torch").Size(node["v"])


_SINGLES: dict[str, Callable[[Decoder, dict[str, Any]], Any]] = {
    "enum": Decoder._enum,
    "function": lambda self, node: self._function(node["name"]),
    "method": Decoder._method,
    "subclass": Decoder._subclass,
    "count": lambda self, node: itertools.count(*(self._single(part) for part in node["v"])),
    "torch.Size": lambda _, node: Decoder._torch_size(node),
}

_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda parts: parts,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "slice": lambda parts: slice(*parts),
    "ChainMap": lambda parts: collections.ChainMap(*parts),
}

_MAPPINGS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "dict": lambda content: content,
    "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter,
    "mappingproxy": types.MappingProxyType,
}
