"""The stored state of a strategy as a tree to look at: dicts, lists, plain values and arrays.

A viewer, not a loader: classes are not looked up, nothing is put back, and what it does not know it shows as it is
stored. Loading is the business of the room above.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..format.array_types import described_type
from ..values import Json

_SEQUENCES = frozenset({"list", "tuple", "set", "frozenset", "deque", "slice", "ChainMap", "namedtuple", "torch.Size"})
_SCALARS: dict[str, Callable[[Any], object]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "str": lambda text: base64.b64decode(text).decode("utf-8", "surrogatepass"),
    "bytes": base64.b64decode,
    "bytearray": base64.b64decode,
}

_Place = tuple[Any, Any, Json]  # a container, where in it, and the node to show there
_Bytes = Callable[[str], memoryview]
_Array = Callable[[str], "np.ndarray[Any, Any]"]


def view_state(tree: Json, array: _Array, data: _Bytes) -> dict[str, Any]:
    """Show a stored tree.

    Parameters
    ----------
    tree : Json
        ``{"roots": {name: node}, "deep": [node, ...]}``, where every node that is not a plain value is
        ``{"$": kind, ...}``.
    array : callable
        Gives the stored array of a name, typed as the store knows it.
    data : callable
        Gives its bytes.

    Returns
    -------
    dict
        By root; an object is a dict of its attributes, a tuple or a set a list. What was one object is one object,
        so the tree may hold cycles.
    """
    return _Viewer(tree, array, data).show()


class _Viewer:
    """One pass with a stack of its own: nesting is limited by memory, not by Python's."""

    def __init__(self, tree: Json, array: _Array, data: _Bytes) -> None:
        self._roots: Mapping[str, Json] = tree["roots"]
        self._deep: dict[int, Json] = dict(enumerate(tree.get("deep", [])))
        self._array = array
        self._data = data
        self._shown: dict[str, Any] = {}
        self._aliases: list[tuple[Any, Any, str]] = []
        self._stack: list[_Place] = []

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = dict.fromkeys(self._roots)
        self._stack.extend((shown, name, node) for name, node in self._roots.items())
        while self._stack:
            container, slot, node = self._stack.pop()
            container[slot] = self._node(container, slot, node)
        for container, slot, identity in self._aliases:
            container[slot] = self._shown.get(identity, f"<same as {identity}>")
        return shown

    def _node(self, container: Any, slot: Any, node: Json) -> Any:
        while isinstance(node, dict) and node.get("$") == "deep":
            node = self._deep.pop(node["n"])  # each stands in one place: else a few bytes could stand for gigabytes
        if not isinstance(node, dict):
            return node
        if node.get("$") == "same":
            self._aliases.append((container, slot, node["as"]))
            return None
        shown = self._value(node)
        if "id" in node:
            self._shown[node["id"]] = shown
        return shown

    def _value(self, node: Mapping[str, Any]) -> Any:
        kind = str(node.get("$"))
        if kind in _SCALARS:
            return _SCALARS[kind](node["v"])
        if kind == "numpy":
            return np.frombuffer(base64.b64decode(node["v"]), described_type(node["dtype"]))[0]
        if kind in _SEQUENCES:
            return self._list(node["v"])
        if kind == "object":
            extras = [(f"{name}()", node[name]) for name in ("content", "state_dict") if name in node]
            return self._dict([*node["v"].items(), *extras])
        if kind in ("stateful", "generator"):
            return self._dict([("state_dict()" if kind == "stateful" else "state", node["v"])])
        if "blob" in node or "blobs" in node or kind in ("ArrayRecord", "masked"):
            return self._arrays(kind, node)
        if "kv" in node:
            return self._dict([(_key(key), value) for key, value in node["kv"]])
        if isinstance(node.get("v"), dict):
            return self._dict(list(node["v"].items()))
        return _text(kind, node)

    def _arrays(self, kind: str, node: Mapping[str, Any]) -> Any:
        if kind == "ArrayRecord":
            return self._dict(node["v"])
        if kind == "masked":
            return self._dict([(name, node[name]) for name in ("data", "mask", "fill")])
        if kind == "Parameters":
            return [self._array(name) for name in node["blobs"]]
        if kind.startswith("large "):
            return bytes(self._data(node["blob"]))
        if kind == "ndarray":
            return self._ndarray(node)
        return self._array(node["blob"])

    def _ndarray(self, node: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """An array whose type the state tree knows better than the store: big endian, Fortran order, records."""
        if isinstance(node["dtype"], dict):
            return self._array(node["blob"])  # a type that another package registered with NumPy
        shape, order = tuple(node["shape"]), node.get("order", "C")
        array: np.ndarray[Any, Any] = np.ndarray(
            shape, described_type(node["dtype"]), self._data(node["blob"]), order=order
        )
        return array

    def _list(self, nodes: list[Json]) -> list[Any]:
        shown: list[Any] = [None] * len(nodes)
        self._stack.extend((shown, index, node) for index, node in enumerate(nodes))
        return shown

    def _dict(self, entries: list[tuple[Any, Json]]) -> dict[Any, Any]:
        shown = dict.fromkeys(key for key, _ in entries)
        self._stack.extend((shown, key, node) for key, node in entries)
        return shown


def _key(node: Json) -> Any:
    """A key of a dict, as something that can be one."""
    if not isinstance(node, dict):
        return node
    kind = node.get("$")
    if kind in _SCALARS:
        return _SCALARS[kind](node["v"])
    if kind in ("tuple", "frozenset"):
        return tuple(map(_key, node["v"]))
    return _text(str(kind), node)


def _text(kind: str, node: Mapping[str, Any]) -> str:
    """What has no plain form: ``"<function apps.server:weights>"``, ``"<Decimal 0.1>"``."""
    said = [str(value) for name, value in node.items() if name not in ("$", "id", "at") and value != ""]
    return f"<{' '.join([kind, *said])}>"
