"""The arrays of a round as one safetensors file of their own: a run's files may hold only what has changed."""

from __future__ import annotations

import numpy as np

from ..draft import Buffer
from ..format.datafile import Piece, layout
from ..format.npy import ITEM_SIZE, safetensors_type
from .checkpoint import Checkpoint


def safetensors_of(checkpoint: Checkpoint) -> list[Buffer]:
    """Give the contents of a safetensors file with all global arrays of a round.

    Memory order and byte order become those of safetensors; values, shapes and types stay.

    Raises
    ------
    ValueError
        If safetensors has no name for the type of an array; the message names it.
    """
    pieces = [_piece(checkpoint, name) for name in checkpoint.arrays]
    pieces.sort(key=lambda piece: -ITEM_SIZE[piece.dtype])
    head, _ = layout(pieces)
    return [head, *(piece.payload for piece in pieces)]


def _piece(checkpoint: Checkpoint, name: str) -> Piece:
    array, dtype, shape = checkpoint.arrays[name], checkpoint.dtypes[name], checkpoint.shapes[name]
    lacking = dtype != str(array.dtype)  # what NumPy lacks is flat bytes
    plain = array if lacking else np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    kind = safetensors_type(dtype if lacking else plain.dtype.str)
    if kind is None or int(np.prod(shape, dtype=object)) * ITEM_SIZE[kind] != plain.nbytes:
        raise ValueError(f"the array {name!r} is {dtype}{list(shape)}, which safetensors cannot express: export .npz")
    return Piece(name, plain.reshape(-1).view(np.uint8).data, kind, shape)
