"""Which live object a stored node stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import generators
from .classes import type_name
from .tree import MISSING, Tree


class LiveObjects:
    """The objects of this process, found by the identity a stored node has, or else by its place.

    Parameters
    ----------
    tree : Tree
        As the live roots would be stored now.
    objects : Mapping
        The live object of each identity in it.
    """

    def __init__(self, tree: Tree, objects: Mapping[str, object]) -> None:
        self._objects = objects
        self._at = {node["at"]: identity for identity, node in tree.by_id.items() if "at" in node}

    def find(self, node: dict[str, Any], stored: Tree) -> Any:
        """The live object for a stored node, or `MISSING`.

        By place only an object that does not stand for another stored one.
        """
        place = node.get("at", node["id"])
        for identity in (node["id"], self._at.get(place, place)):
            found = self._objects.get(identity, MISSING)
            if identity != node["id"] and identity in stored.by_id:
                continue
            if found is not MISSING and _fits(found, node):
                return found
        return MISSING


def _fits(live: object, node: dict[str, Any]) -> bool:
    if node["$"] == "generator":
        return generators.is_generator(live)
    return type_name(type(live)) == str(node["type"])
