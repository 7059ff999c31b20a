"""Whether a stored tree is one: looked at before anything is made of it.

A manifest's digest says that its bytes are those that were written, not by whom. So nothing is taken for granted here
that would cost more time or memory than the bytes of the tree are worth: no part stands in two places but by name, no
container lies in itself, and what names another names one that is there.
"""

from __future__ import annotations

from typing import Any, TypeVar

from flwr_ckpt.store.errors import CheckpointCorruptError
from flwr_ckpt.store.values import Json, require, typed

from .leaves import Node
from .objects import RESERVED
from .tree import MAPPING_KINDS, OBJECT_KINDS, SEQUENCE_KINDS, Tree, children

_T = TypeVar("_T")


def sound_tree(tree: Json) -> Tree:
    """Read a stored tree.

    Raises
    ------
    CheckpointCorruptError
        If it is none.
    """
    try:
        _require_nodes(tree)
        read = Tree(tree)
        _require_no_cycle(read)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointCorruptError(f"the stored state is no tree of it ({error!r:.200})") from error
    return read


def _require_nodes(tree: Json) -> None:
    """Make sure that every node has the parts by which trees are walked, and that none is reached twice."""
    unused = dict(enumerate(typed(tree["deep"], list)))
    identities: set[str] = set()
    named: set[str] = set()
    stack: list[Node] = list(typed(tree["roots"], dict).values())
    while stack:
        node = stack.pop()
        if not isinstance(node, dict):
            continue
        kind = typed(node["$"], str)
        if kind == "deep":
            stack.append(unused.pop(typed(node["n"], int)))
        elif kind == "same":
            named.add(typed(node["as"], str))
        else:
            _require_parts(kind, node)
            if "id" in node:
                require(typed(node["id"], str) not in identities, f"two of {node['id']!r:.80}")
                identities.add(node["id"])
            stack.extend(children(node))
    require(named <= identities, f"no {min(named - identities, default='')!r:.80}")


def _require_parts(kind: str, node: dict[str, Any]) -> None:
    if kind in SEQUENCE_KINDS:
        typed(node["v"], list)
    elif kind in MAPPING_KINDS:
        typed(node["kv"], list) if "kv" in node else typed(node["v"], dict)
        _require_attributes(node.get("attributes", {}))
    elif kind in OBJECT_KINDS:
        typed(node["id"], str)
        typed(node["type"], str)
        if kind == "object":
            _require_attributes(node["v"])
    elif kind == "generator":
        typed(node["id"], str)
        typed(node["kind"], str)


def _require_attributes(attributes: Json) -> None:
    require(RESERVED not in typed(attributes, dict), f"an attribute {RESERVED}")


def _require_no_cycle(tree: Tree) -> None:
    """Objects may lead back to themselves: they are there already. A container that does could not be made."""
    beginnings: list[Node] = list(tree.roots.values())
    done: set[int] = set()
    while beginnings:
        stack, inside = [(beginnings.pop(), False)], set[int]()
        while stack:
            node, leaving = stack.pop()
            node = tree.resolve(node)
            if leaving:
                inside.remove(id(node))
                done.add(id(node))
            elif isinstance(node, dict) and id(node) not in done:
                require(id(node) not in inside, "a container that lies in itself")
                below = list(children(node))
                if node["$"] in OBJECT_KINDS:
                    done.add(id(node))
                    beginnings.extend(below)
                else:
                    inside.add(id(node))
                    stack.append((node, True))
                    stack.extend((child, False) for child in below)
