"""What was found, in lines for a log: path, what it is, how large; and what is not kept."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr_ckpt.store.draft import Blob

from .arrays import ARRAY_KINDS
from .leaves import Node
from .singles import Opaque
from .tree import NOT_STATE_KINDS, Tree, children, kind_of

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def inventory(tree: Tree, blobs: tuple[Blob, ...], opaque: Mapping[str, Opaque], idle: Iterable[str]) -> Iterator[str]:
    """One line for each attribute that holds more than plain values, one for all others, one for each not kept.

    And one for each of the `idle` paths, which the user excluded and which are not there: most likely misspelt.
    """
    sizes = {blob.name: memoryview(blob.data).nbytes for blob in blobs}
    for root, node in tree.roots.items():
        plain = 0
        for name, attribute in _attributes(root, tree.follow(node)):
            counts, nbytes, values = _count(tree, attribute, sizes)
            plain += values
            if counts:
                what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())
                yield f"{name}: {what}{f', {_size(nbytes)}' if nbytes else ''}"
        if plain:
            yield f"{root}: {plain} plain value{'s' if plain > 1 else ''}, kept once they change"
    yield from (f"{path}: {found}, not kept" for path, found in opaque.items())
    yield from (f"exclude: {path} matches nothing" for path in idle)


def _attributes(root: str, node: Node) -> Iterator[tuple[str, Node]]:
    if kind_of(node) == "object":
        yield from ((f"{root}.{name}", value) for name, value in node["v"].items())
        yield from ((root, node[extra]) for extra in ("content", "state_dict") if extra in node)
    else:
        yield root, node


def _count(tree: Tree, node: Node, sizes: Mapping[str, int]) -> tuple[dict[str, int], int, int]:
    """(number of things of each kind, bytes, plain values) in a subtree; what was met before counts there."""
    counts: collections.Counter[str] = collections.Counter()
    nbytes = values = 0
    stack = [node]
    while stack:
        below = tree.follow(stack.pop())
        kind = kind_of(below)
        if kind == "plain":
            values += 1
        elif kind in ARRAY_KINDS or kind == "large bytes":
            counts["array" if kind in ARRAY_KINDS else "block of bytes"] += len(below["v"]) if "v" in below else 1
            nbytes += sum(sizes.pop(name, 0) for name in _blob_names(below)) if isinstance(sizes, dict) else 0
        elif kind == "generator":
            counts["random generator"] += 1
        elif kind == "stateful":
            counts[f"{below['type'].rpartition(':')[2]} by its state_dict"] += 1
        elif kind not in NOT_STATE_KINDS and kind != "same" and not any(True for _ in children(below)):
            values += 1
        if isinstance(below, dict) and kind not in ARRAY_KINDS:
            stack.extend(children(below))
    return counts, nbytes, values


def _blob_names(node: dict[str, Any]) -> list[str]:
    if node["$"] == "ArrayRecord":
        return [array["blob"] for _, array in node["v"]]
    if node["$"] == "masked":
        return [node[part]["blob"] for part in ("data", "mask", "fill")]
    return list(node["blobs"]) if "blobs" in node else [node["blob"]]


def _size(nbytes: int) -> str:
    size, unit = float(nbytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
