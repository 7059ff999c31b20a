"""What the elements of a stored array are, as NumPy says it."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..draft import Buffer
from ..values import Json
from .npy import LONGEST_HEADER, parse_header, split_npy

_MOST_DIMENSIONS = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
_MOST_BYTES = (1 << 63) - 1

NumpyType = tuple["np.dtype[Any]", tuple[int, ...], Literal["C", "F"]]  # elements, shape, memory order


def array_type(data: Buffer) -> tuple[str, tuple[int, ...]] | None:
    """Read dtype and shape from a ``.npy`` file in memory; ``None`` for what is none."""
    header, _ = split_npy(data)
    found = npy_type(header) if header else None
    return None if found is None else (str(found[0]), found[1])


def npy_array(data: Buffer) -> np.ndarray[Any, Any] | None:
    """Read the array out of a ``.npy`` file in memory, as a copy; ``None`` for what is none, or ends too early.

    Unlike ``numpy.load`` this may be done beside any other thread, see `npy_type`.
    """
    header, payload = split_npy(data)
    found = npy_type(header) if header else None
    if found is None or math.prod(found[1]) * found[0].itemsize > payload.nbytes:
        return None
    dtype, shape, order = found
    mapped: np.ndarray[Any, Any] = np.ndarray(shape, dtype, payload, order=order)
    return np.array(mapped, order="K")


def npy_type(header: bytes) -> NumpyType | None:
    """Read a ``.npy`` header; ``None`` for what cannot be read, or speaks of Python objects.

    Python's own parser is left for what NumPy writes for records only: up to 3.11.7 and in 3.12.0 and 3.12.1 two
    threads that parse at once may end in a SystemError, in either of them (CPython, gh-106905).
    """
    if not 12 < len(header) <= LONGEST_HEADER:  # Python's parser takes any text, and its time grows with it
        return None
    try:
        fields: tuple[Any, Any, Any] = parse_header(header) or _parse_as_python(header)
        described, fortran, lengths = fields
        dtype = np.lib.format.descr_to_dtype(described)
        shape = tuple(map(int, lengths))
    except (ValueError, SyntaxError, TypeError, KeyError, OverflowError, RecursionError, MemoryError):
        return None
    if dtype.hasobject or not is_shape(shape, dtype.itemsize):
        return None
    return dtype, shape, "F" if fortran is True else "C"


def _parse_as_python(header: bytes) -> tuple[Any, Any, Any]:
    start = 10 if header[6] == 1 else 12
    fields = ast.literal_eval(header[start:].decode("utf-8" if header[6] >= 3 else "latin-1").strip())
    return fields["descr"], fields.get("fortran_order"), fields["shape"]


def is_shape(shape: Sequence[int], item_size: int) -> bool:
    """Whether an array may have that shape: NumPy multiplies even beside a zero."""
    return (
        len(shape) <= _MOST_DIMENSIONS
        and min(shape, default=0) >= 0
        and math.prod(max(length, 1) for length in shape) * max(item_size, 1) <= _MOST_BYTES
    )


def plain_dtype(name: str) -> np.dtype[Any] | None:
    """Find the type of raw elements by name; ``None`` for one that NumPy itself does not have."""
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return None
    # What another package has registered with NumPy would come out otherwise wherever that package is missing.
    return dtype.newbyteorder("<") if dtype.kind in "biufc" else None


def described_type(description: Json) -> np.dtype[Any]:
    """Make a type of what ``numpy.lib.format.dtype_to_descr`` said of it, after a way through JSON."""
    return without_objects(np.lib.format.descr_to_dtype(_with_tuples(description)))


def without_objects(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Refuse a type whose elements are addresses: nothing of ours is, and somebody else would have chosen them.

    Raises
    ------
    ValueError
        If there are any.
    """
    if dtype.hasobject:
        raise ValueError(f"what is stored holds an array of type {str(dtype)!r:.80}, which is never stored")
    return dtype


def _with_tuples(description: Json) -> Any:
    """The fields of a record are tuples for NumPy; JSON made lists of them."""
    if isinstance(description, str):
        return description
    return [
        (tuple(name) if isinstance(name, list) else name, _with_tuples(kind), *map(tuple, shape))
        for name, kind, *shape in description
    ]
