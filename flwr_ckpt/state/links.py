"""Which places share memory: put back where they can be, and said where they could not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .array_decode import ArrayDecoder
from .live import LiveObjects
from .sharing import address, memory_of
from .tree import MISSING, Tree, places

_KINDS = frozenset({"ndarray", "tensor", "large bytearray", "bytearray"})


class _Place(NamedTuple):
    path: str
    node: dict[str, Any]
    owner: str  # the path of the state_dict it lies in, or empty


class LiveArrays:
    """The arrays of this process by their paths."""

    def __init__(self, tree: Tree, arrays: Mapping[int, np.ndarray[Any, Any]]) -> None:
        self._at = {str(path): (node, arrays[id(node)]) for path, node, _ in places(tree) if id(node) in arrays}

    def get(self, path: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]] | None:
        return self._at.get(path)


class Links:
    """The places that share memory in a stored tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        groups: dict[str, list[_Place]] = {}
        for path, node, _ in places(tree):
            if node["$"] in _KINDS and "blob" in node:
                groups.setdefault(node["blob"], []).append(_Place(str(path), node, str(path.owner() or "")))
        self._groups = {blob: group for blob, group in groups.items() if len(group) > 1}

    def keep_live(self, arrays: ArrayDecoder, live: LiveArrays, objects: LiveObjects) -> None:
        """Where tensors are put back into live ones, those that shared their memory are put back into the same.

        A module loads its state into the parameters it has, and an optimizer holds on to those; what else looked at
        their memory has to look at it again.
        """
        for blob, group in self._groups.items():
            held = [place for place in group if self._is_held(place, objects)]
            if not held:
                continue
            for place in (*held, *group):
                found = live.get(place.path)
                if found is not None and found[1].nbytes == arrays.nbytes(blob) and _fits(place.node, *found):
                    arrays.put_into(blob, memory_of(found[1]))
                    break

    def _is_held(self, place: _Place, objects: LiveObjects) -> bool:
        if place.node["$"] != "tensor" or place.node["device"] != "cpu" or "offset" not in place.node:
            return False
        return bool(place.node["grad"]) or loads_in_place(_owner(self._tree, place.owner, objects))

    def broken(self, live: LiveArrays) -> Iterator[str]:
        """A line for each group that shares its memory no more."""
        for group in self._groups.values():
            found = [(place, where[1]) for place in group if (where := live.get(place.path)) is not None]
            origins = {place.path: address(array) - place.node.get("offset", 0) for place, array in found}
            apart = next((path for path in origins if origins[path] != next(iter(origins.values()))), None)
            if apart is not None:
                first = next(iter(origins))
                yield (
                    f"{first} and {apart} shared their memory when they were stored, and do not now: what is written "
                    "to one is no longer seen through the other. Make one from the other again after a resume, or "
                    "leave one of them out with exclude="
                )


def loads_in_place(obj: object) -> bool:
    """Whether the object's ``load_state_dict`` copies into the tensors that it has."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.nn.Module)


def _owner(tree: Tree, path: str, objects: LiveObjects) -> Any:
    node = next((node for node in tree.by_id.values() if node.get("at", node["id"]) == path), None)
    return MISSING if node is None or node["$"] != "stateful" else objects.find(node, tree)


def _fits(node: dict[str, Any], live_node: dict[str, Any], live: np.ndarray[Any, Any]) -> bool:
    """Whether the live array is made as the stored one was, and has no gaps."""
    same = all(node.get(part) == live_node.get(part) for part in ("$", "dtype", "shape", "device", "conj"))
    return same and list(live.strides) == list(node["strides"]) and live.flags.writeable and live.flags.forc
