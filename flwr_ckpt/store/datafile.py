"""Data files: plain safetensors, written by hand from where the bytes lie, read by place.

The format is an 8-byte length, a JSON header padded with spaces, and the elements one after the other without holes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .draft import Buffer
from .files import Files
from .names import unique
from .npy import ITEM_SIZE
from .records import Chunk

_ALIGNMENT = 8
_FIRST_COMPARED, _MOST_COMPARED = 1 << 12, 1 << 22


@dataclass(frozen=True, slots=True)
class Piece:
    """One array on its way into a data file.

    Attributes
    ----------
    name : str
        The wanted key in the file; one that is taken gets a number.
    payload : memoryview
        The elements as bytes.
    dtype, shape
        As safetensors names them.
    """

    name: str
    payload: memoryview
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A data file as it was written.

    Attributes
    ----------
    head : Chunk
        The header.
    chunks : tuple of Chunk
        One for each piece, in the order in which they were given.
    """

    key: str
    size: int
    head: Chunk
    chunks: tuple[Chunk, ...]


def write_data_file(files: Files, key: str, pieces: Sequence[Piece]) -> Written:
    """Write pieces into a new data file and its contents to the disk.

    Raises
    ------
    OSError
        If it fails; then there is no file.
    """
    # Larger elements first, as safetensors itself does: every array then begins at a multiple of its element size.
    order = sorted(range(len(pieces)), key=lambda index: -ITEM_SIZE[pieces[index].dtype])
    payloads = [pieces[index].payload for index in order]
    head, offsets = layout([pieces[index] for index in order])
    sums: list[int] = []
    files.create(key, [head, *payloads], beside=lambda: sums.extend(map(zlib.crc32, payloads)))
    chunks = {
        index: Chunk(len(head) + offset, payload.nbytes, crc)
        for index, offset, payload, crc in zip(order, offsets, payloads, sums, strict=True)
    }
    return Written(
        key=key,
        size=len(head) + sum(payload.nbytes for payload in payloads),
        head=Chunk(0, len(head), zlib.crc32(head)),
        chunks=tuple(chunks[index] for index in range(len(pieces))),
    )


def same_bytes(one: Buffer, other: Buffer) -> bool:
    """Compare from the front, and stop soon after the first difference."""
    left, right = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    if len(left) != len(right):
        return False
    if left.ctypes.data == right.ctypes.data:
        return True
    start, step = 0, _FIRST_COMPARED
    while start < len(left):
        if not np.array_equal(left[start : start + step], right[start : start + step]):
            return False
        start, step = start + step, min(step * 8, _MOST_COMPARED)
    return True


def layout(pieces: Sequence[Piece]) -> tuple[bytes, list[int]]:
    """Make the header, and say where in the data each piece begins."""
    table: dict[str, object] = {}
    taken = {"__metadata__"}
    offsets, end = [], 0
    for piece in pieces:
        name = unique(piece.name, taken)
        taken.add(name)
        begin, end = end, end + piece.payload.nbytes
        offsets.append(begin)
        table[name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [begin, end]}
    # A name that is no Unicode text (a lone surrogate) is exact in the manifest; this is for other tools.
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, offsets
