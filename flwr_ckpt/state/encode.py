"""From live objects to a tree of nodes.

One walk with a stack of its own: nesting is limited by memory, not by Python's. Every node that is not a single plain
value is ``{"$": kind, ...}``; what is met again is ``{"$": "same", "as": id}``, and subtrees below every few dozen
levels lie in a list beside the roots (``{"$": "deep", "n": index}``), because JSON parsers do recurse.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ckpt.store.errors import CheckpointError
from flwr_ckpt.store.values import Json

from . import generators
from .arrays import ArrayEncoder
from .classes import OwnPackages, is_named_tuple, type_name
from .containers import CONTAINERS, Child, mapping, sequence, stands_for_itself
from .flower import RECORDS, STRATEGIES
from .leaves import Node, encode_scalar
from .objects import attributes, content_of, has_state_dict
from .paths import Names, Path
from .singles import Opaque, SingleEncoder, unstorable_state_dict

_LEVELS_IN_PLACE = 40


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
    needed : dict
        What can be put back only into the one that is there, by path.
    excluded : set of str
        The paths that were left out because the user said so.
    unseen : dict
        The live object behind each path of `opaque`: what goes on inside it is not seen.
    """

    tree: Json
    objects: dict[str, object]
    opaque: dict[str, Opaque]
    needed: dict[str, Opaque]
    excluded: set[str]
    unseen: dict[str, object]


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
    arrays : ArrayEncoder
    """

    def __init__(
        self,
        own: OwnPackages,
        anchors: Mapping[int, str],
        excluded: frozenset[str],
        arrays: ArrayEncoder,
    ) -> None:
        self.own = own
        self.singles = SingleEncoder(own, arrays)
        self._arrays = arrays
        self._anchors = anchors
        self._excluded = excluded
        self._names = Names(anchors.values())
        self._stack: list[tuple[Any, Any, Any, Path | None, str, Any]] = []
        self._met: dict[int, tuple[object, dict[str, Any], Path | None, str, Any]] = {}
        self._open: dict[int, int] = {}  # containers we are inside of, with their depth
        self._open_objects: list[int] = [0]  # depths of the objects we are inside of
        self._deep: list[Node] = []
        self._objects: dict[str, object] = {}
        self._left_out: set[str] = set()

    def encode(self, roots: Mapping[str, object]) -> Encoded:
        nodes: dict[str, Node] = {}
        for name, value in roots.items():
            self._stack.append((value, nodes, name, None, "attribute", name))
            self._drain()
        tree = {"roots": nodes, "deep": self._deep}
        return Encoded(
            tree, self._objects, self.singles.opaque, self.singles.needed, self._left_out, self.singles.unseen
        )

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
        path = Path(parent, kind, key)
        if type(value) is np.ndarray and (data := self._arrays.ndarray(value, path)) is not None:
            self._met[id(value)] = (value, data, parent, kind, key)  # what there may be thousands of
            return data
        container = CONTAINERS.get(type(value))
        if container is not None:
            node: dict[str, Any] = {"$": type(value).__name__}
            self._met[id(value)] = (value, node, parent, kind, key)
            return container(self, value, node, path)
        if type(value) is types.FunctionType and parent is not None:
            return self.singles.function(value) or self.singles.not_state(value, path)
        if type(value) in RECORDS:
            return self._record(value, path)
        return self._unusual(value, path)

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
        node = self.singles.plain(value, path)
        if node is not None:
            return node
        node = self.singles.data(value, path)
        if node is not None:
            self._meet(value, node, path)
            return node
        for matches, encode in _KINDS:
            if matches(value) and (node := encode(self, value, path)) is not None:
                return node
        if has_state_dict(value) and not _is_strategy(value, path):
            return self._stateful(value, path)
        if path.parent is None or self.own.walks(value):
            return self._object(value, path)
        return self.singles.function(value) or self.singles.not_state(value, path)

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

    # -- what has something below it -----------------------------------------------------------------------------

    def _enter(self, value: object, path: Path, node: dict[str, Any]) -> Node:
        """Note that we are inside `value` until `_leave`; put the node out of the way when the nesting is deep."""
        self._open[id(value)] = path.depth
        if node["$"] in ("object", "stateful"):
            self._open_objects.append(path.depth)
        if path.depth % _LEVELS_IN_PLACE == _LEVELS_IN_PLACE - 1:
            self._deep.append(node)
            return {"$": "deep", "n": len(self._deep) - 1}
        return node

    def _meet(self, value: object, node: dict[str, Any], path: Path) -> None:
        self._met[id(value)] = (value, node, path.parent, path.kind, path.key)

    def forget(self, value: object) -> None:
        """Should `value` be met again, it is no alias."""
        del self._met[id(value)]

    def excludes_below(self, path: Path) -> bool:
        return bool(self._excluded) and any(entry.startswith(str(path)) for entry in self._excluded)

    def excludes(self, path: Path) -> bool:
        if not self._excluded or str(path) not in self._excluded:
            return False
        self._left_out.add(str(path))
        return True

    def _leave(self, value: object) -> None:
        depth = self._open.pop(id(value))
        if len(self._open_objects) > 1 and self._open_objects[-1] == depth:
            self._open_objects.pop()

    def below(self, owner: object, node: dict[str, Any], path: Path, pending: list[Child]) -> Node:
        """Queue what is not a plain value, the first to be visited first; return what goes in the node's place."""
        if not pending:
            return node
        placed = self._enter(owner, path, node)
        self._stack.append((None, None, owner, None, "", None))
        self._stack.extend((value, out, slot, path, kind, key) for value, out, slot, kind, key in reversed(pending))
        return placed

    def _named_tuple(self, value: Any, path: Path) -> Node | None:
        if not self.own.finds_value_class(type(value)):
            return None
        node: dict[str, Any] = {"$": "namedtuple", "type": type_name(type(value))}
        self._meet(value, node, path)
        return sequence(self, value, node, path, tuple.__iter__(value))

    def _record(self, value: Any, path: Path) -> Node:
        kind = next(kind for kind in RECORDS if isinstance(value, kind))
        node: dict[str, Any] = {"$": kind.__name__}
        self._meet(value, node, path)
        return mapping(self, value, node, path)

    # -- objects -------------------------------------------------------------------------------------------------

    def _identify(self, value: object, node: dict[str, Any], path: Path) -> None:
        where = str(path)
        anchor = self._anchors.get(id(value))
        node["id"] = self._names.unique(where) if anchor is None else anchor
        if node["id"] != where:
            node["at"] = where
        self._objects[node["id"]] = value
        self._meet(value, node, path)

    def _stateful(self, value: Any, path: Path) -> Node:
        if path.in_state_dict:
            raise unstorable_state_dict(value, path)
        node: dict[str, Any] = {"$": "stateful", "type": type_name(type(value))}
        self._identify(value, node, path)
        return self.below(value, node, path, [(_state_dict(value, path), node, "v", "call", "state_dict")])

    def _object(self, value: object, path: Path) -> Node:
        node: dict[str, Any] = {"$": "object", "type": type_name(type(value))}
        self._identify(value, node, path)
        if _is_strategy(value, path):
            self.own.add(type(value))
        if self.own.rebuilds(type(value)):
            node["value"] = True
        elif path.in_state_dict:
            raise unstorable_state_dict(value, path)
        places: list[Child] = []
        node["v"] = {}
        for name, item in attributes(value).items():
            if self._excluded and self.excludes(path.attribute(name)):
                continue
            if stands_for_itself(item):
                node["v"][name] = item
            else:
                node["v"][name] = None
                places.append((item, node["v"], name, "attribute", name))
        content = content_of(value)
        if content is not None:
            places.append((content, node, "content", "content", None))
        if _is_strategy(value, path) and has_state_dict(value):
            places.append((_state_dict(value, path), node, "state_dict", "call", "state_dict"))
        return self.below(value, node, path, places)


def _state_dict(value: Any, path: Path) -> Any:
    try:
        return value.state_dict()
    except Exception as error:  # the user's code may raise anything; the path is what finds it
        raise CheckpointError(f"{path}: its state_dict() raised {type(error).__name__}: {error}") from error


def _is_strategy(value: object, path: Path) -> bool:
    return isinstance(value, STRATEGIES) or (path.parent is None and path.key == "strategy")


_KINDS: tuple[tuple[Callable[[object], bool], Callable[[Encoder, Any, Path], Node | None]], ...] = (
    (generators.is_generator, Encoder._generator),
    (lambda value: isinstance(value, RECORDS), Encoder._record),
    (lambda value: is_named_tuple(type(value)), Encoder._named_tuple),
    (lambda value: isinstance(value, types.MethodType), Encoder._method),
)
