"""Arrays that lie in the same memory: stored once, described as views of it, and put back as such.

What shares memory is told by addresses, not by ``base``: views of views, tensors made from arrays and tied tensors all
come down to overlapping ranges of bytes, and sorting finds them without comparing every pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .buffers import BlobCollector

Node = dict[str, Any]
Memory = npt.NDArray[np.uint8]


class _Member(NamedTuple):
    low: int
    high: int
    number: int  # in the order of the walk
    node: Node
    array: npt.NDArray[Any]


class Sharing:
    """The arrays that one walk met, and where each lies.

    Holds the arrays, so that no two of them ever had one address at different times. A ``bytearray`` that is held by
    this cannot be resized, so an instance must not outlive its walk.
    """

    def __init__(self) -> None:
        self._met: list[tuple[Node, npt.NDArray[Any]]] = []
        self._may_share = False

    def note(self, node: Node, array: npt.NDArray[Any]) -> None:
        """Take up an array over the very memory of what `node` describes."""
        if array.nbytes:
            self._met.append((node, array))
            # No two arrays own the same memory: only one that looks into another's can share it.
            self._may_share = self._may_share or not array.flags.owndata

    def arrays(self) -> dict[int, npt.NDArray[Any]]:
        """The array of each node, by the node's ``id()``."""
        return {id(node): array for node, array in self._met}

    def settle(self, collector: BlobCollector) -> None:
        """Describe arrays that share memory as views of one blob, and leave the others' blobs out."""
        for group in self._groups() if self._may_share else ():
            if len(group) > 1 or group[0].high - group[0].low < group[0].array.nbytes:
                _settle(group, collector)

    def _groups(self) -> Iterator[list[_Member]]:
        """Runs of overlapping ranges. Two allocations never overlap, so that a run lies within one."""
        members = (_Member(*_bounds(array), number, node, array) for number, (node, array) in enumerate(self._met))
        group: list[_Member] = []
        end = 0
        for member in sorted(members, key=_low):
            if group and member.low >= end:
                yield group
                group = []
            end = max(end, member.high) if group else member.high
            group.append(member)
        if group:
            yield group


def _low(member: _Member) -> int:
    return member.low


def _settle(group: list[_Member], collector: BlobCollector) -> None:
    group.sort(key=lambda member: member.number)
    low, high = min(member.low for member in group), max(member.high for member in group)
    is_bytearray = any("bytearray" in member.node["$"] for member in group)
    named = [member for member in group if "blob" in member.node]
    whole = [member for member in named if member.array.flags.forc and member.array.nbytes == high - low]
    name = (whole or named)[0].node["blob"]
    for member in named:
        if member.node["blob"] != name:
            collector.drop(member.node["blob"])
    if not whole:
        collector.replace(name, memory_at(low, high, group[0].array))
    for member in group:
        if member.node["$"] == "bytearray":  # small enough to have been written into the tree
            member.node.pop("v")
            member.node.update({"$": "large bytearray", "nbytes": member.array.nbytes})
        member.node.update(blob=name, offset=address(member.array) - low, strides=list(member.array.strides))
        if is_bytearray:
            member.node["owner"] = "bytearray"


def address(array: npt.NDArray[Any]) -> int:
    """Of the first element."""
    where: int = array.__array_interface__["data"][0]
    return where


def _bounds(array: npt.NDArray[Any]) -> tuple[int, int]:
    low = address(array)
    if array.flags.forc:
        return low, low + array.nbytes
    high = low + array.itemsize
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = (low + reach, high) if reach < 0 else (low, high + reach)
    return low, high


class _Range:
    """What NumPy needs to make an array of a range of memory that `owner` keeps alive."""

    def __init__(self, low: int, high: int, owner: object, *, readonly: bool) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (low, readonly), "shape": (high - low,), "typestr": "|u1", "version": 3}


def memory_at(low: int, high: int, owner: npt.NDArray[Any], *, readonly: bool = True) -> Memory:
    return np.asarray(_Range(low, high, owner, readonly=readonly))


def memory_of(array: npt.NDArray[Any]) -> Memory:
    """All bytes of an array without gaps, to be written to."""
    low, high = _bounds(array)
    return memory_at(low, high, array, readonly=False)
