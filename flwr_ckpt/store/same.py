"""Whether two buffers hold the same bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .draft import Buffer

_FIRST_COMPARED, _MOST_COMPARED = 1 << 12, 1 << 18  # bytes; what is compared at once is to stay in the cache


def same_bytes(one: Buffer, other: Buffer) -> bool:
    """Compare from the front, and stop soon after the first difference."""
    size = memoryview(one).nbytes
    if size != memoryview(other).nbytes:
        return False
    if size <= _FIRST_COMPARED:
        return bytes(one) == bytes(other)
    left, right = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    if left.ctypes.data == right.ctypes.data:
        return True
    start, step = 0, _FIRST_COMPARED
    while start < len(left):
        if not _equal(left[start : start + step], right[start : start + step]):
            return False
        start, step = start + step, min(step * 8, _MOST_COMPARED)
    return True


def _equal(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> bool:
    """Compare eight bytes at a time; the interpreter lock is free meanwhile."""
    whole = len(left) - len(left) % 8
    words = not (left[:whole].view(np.uint64) != right[:whole].view(np.uint64)).any()
    return bool(words) and np.array_equal(left[whole:], right[whole:])
