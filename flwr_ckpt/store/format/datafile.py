"""Data files: plain safetensors, written by hand from where the bytes lie, read by place.

The format is an 8-byte length, a JSON header padded with spaces, and the elements one after the other without holes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from zlib_ng.zlib_ng import crc32

from ..names import unique
from ..places.files import Files
from .npy import ITEM_SIZE
from .records import Chunk

_ALIGNMENT = 8


class Piece(NamedTuple):
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
    sizes = [payload.nbytes for payload in payloads]
    head, offsets = layout([pieces[index] for index in order])
    sums: list[int] = []
    files.create(key, [head, *payloads], beside=lambda: sums.extend(map(crc32, payloads)))
    places = [len(head) + offset for offset in offsets]
    chunks = dict(zip(order, map(Chunk, places, sizes, sums), strict=True))
    return Written(
        key=key,
        size=len(head) + sum(sizes),
        head=Chunk(0, len(head), crc32(head)),
        chunks=tuple(chunks[index] for index in range(len(pieces))),
    )


def layout(pieces: Sequence[Piece]) -> tuple[bytes, list[int]]:
    """Make the header, and say where in the data each piece begins."""
    sizes = [piece.payload.nbytes for piece in pieces]
    head = _head(tuple((piece.name, piece.dtype, piece.shape, size) for piece, size in zip(pieces, sizes, strict=True)))
    return head, list(accumulate(sizes, initial=0))[:-1]


@lru_cache(maxsize=4)
def _head(arrays: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> bytes:
    """Make the header for arrays of a name, dtype, shape and size; it is the same in every round of most runs."""
    table: dict[str, object] = {}
    taken = {"__metadata__"}
    end = 0
    for wanted, dtype, shape, size in arrays:
        name = unique(wanted, taken)
        taken.add(name)
        begin, end = end, end + size
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    # A name that is no Unicode text (a lone surrogate) is exact in the manifest; this is for other tools.
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
