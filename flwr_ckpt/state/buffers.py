"""Copies of what can change in place, taken on the caller's thread into memory that is used again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from flwr_ckpt.store.draft import Blob

_ALIGNMENT = 64
_SPARE = 2  # as many captures as can wait at once: one being written, one queued
_THREADS = 3  # one core does not use up what the memory can move
_PART = 1 << 24  # bytes, for the threads to take in turn; less in all is copied by the caller alone


class BufferPool:
    """Lends out memory; thread-safe, because the writer's thread gives it back.

    The first touch of a page costs several times a memcpy, so that memory given back is kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[npt.NDArray[np.uint8]] = []

    def take(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Lend at least `nbytes`."""
        with self._lock:
            fitting = [memory for memory in self._free if nbytes <= memory.nbytes <= 2 * nbytes]
            if fitting:
                best = min(fitting, key=lambda memory: memory.nbytes)
                self._free = [memory for memory in self._free if memory is not best]
                return best
        return np.empty(nbytes, np.uint8)

    def give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        with self._lock:
            self._free.append(memory)
            del self._free[:-_SPARE]


class _Copy(NamedTuple):
    name: str
    source: npt.NDArray[Any]
    kind: Literal["npy", "raw"]
    dtype: str
    shape: tuple[int, ...]
    stype: str


class BlobCollector:
    """Gathers the arrays of one capture; whatever can change is copied in one go at the end."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._entries: dict[str, Blob | _Copy] = {}

    def add(
        self,
        name: str,
        data: object,
        *,
        kind: Literal["npy", "raw"] = "raw",
        dtype: str = "",
        shape: tuple[int, ...] = (),
        stype: str = "",
    ) -> None:
        """Take up bytes, a buffer, or an array.

        Exactly ``bytes``, and a read-only view of ``bytes``, cannot change and are referenced; all else is copied.
        """
        if type(data) is bytes:
            self._entries[name] = Blob(name, data, kind, dtype, shape, stype)
        elif isinstance(data, memoryview) and data.readonly and type(data.obj) is bytes and data.c_contiguous:
            self._entries[name] = Blob(name, data.cast("B") if data.nbytes else b"", kind, dtype, shape, stype)
        else:
            source = data if isinstance(data, np.ndarray) else _bytes_of(data)
            self._entries[name] = _Copy(name, source, kind, dtype, shape, stype)

    def drop(self, name: str) -> None:
        """Leave out what was taken up under that name."""
        del self._entries[name]

    def replace(self, name: str, memory: npt.NDArray[np.uint8]) -> None:
        """Take up opaque bytes in the place of what has that name."""
        self._entries[name] = _Copy(name, memory, "raw", "", memory.shape, "")

    def finish(self) -> tuple[tuple[Blob, ...], Callable[[], None]]:
        """Copy what has to be copied; return the blobs, and what to call once nobody reads them any more."""
        entries = list(self._entries.values())
        total = sum([_padded(entry.source.nbytes) for entry in entries if isinstance(entry, _Copy)])
        memory = self._pool.take(total) if total else np.empty(0, np.uint8)
        whole, offset = memory.data, 0
        blobs: list[Blob] = []
        copies: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        for entry in entries:
            if isinstance(entry, Blob):
                blobs.append(entry)
                continue
            source, end = entry.source, offset + entry.source.nbytes
            if end > offset:
                order: Literal["C", "F"] = "F" if is_fortran(source) else "C"
                copies.append((np.ndarray(source.shape, source.dtype, whole, offset, order=order), source))
            blobs.append(Blob(entry.name, whole[offset:end], entry.kind, entry.dtype, entry.shape, entry.stype))
            offset = _padded(end)
        _copy_all(copies, total)
        return tuple(blobs), _Once(lambda: self._pool.give_back(memory)) if total else nothing


def _copy_all(copies: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]], nbytes: int) -> None:
    """Copy each second array of a pair to its first. The interpreter's lock is not held meanwhile."""
    if nbytes <= _PART:
        for copy, source in copies:
            np.copyto(copy, source, casting="no")
        return
    parts = iter([part for copy, source in copies for part in _parts(copy, source)])

    def work() -> None:
        for copy, source in parts:  # whoever is free takes the next: to hand each over takes as long as a megabyte
            np.copyto(copy, source, casting="no")

    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(work) for _ in range(_THREADS)]:
            done.result()


def _parts(copy: npt.NDArray[Any], source: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Cut a large array that lies in one piece."""
    order: Literal["C", "F"] = "F" if is_fortran(source) else "C"
    if not (source.flags.c_contiguous or order == "F") or source.nbytes <= _PART:
        yield copy, source
        return
    copy, source = copy.reshape(-1, order=order), np.asarray(source).reshape(-1, order=order)
    step = max(_PART // source.itemsize, 1)
    yield from ((copy[start : start + step], source[start : start + step]) for start in range(0, source.size, step))


class _Once:
    """Memory given back twice would be lent out twice."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._pending = [action]

    def __call__(self) -> None:
        try:
            action = self._pending.pop()
        except IndexError:
            return
        action()


def nothing() -> None:
    """Release what was never taken."""


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def is_fortran(array: npt.NDArray[Any]) -> bool:
    flags = array.flags
    return not flags.c_contiguous and flags.f_contiguous


def _bytes_of(data: Any) -> npt.NDArray[np.uint8]:
    view = memoryview(data)
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)


def total_nbytes(blobs: Iterable[Blob]) -> int:
    return sum(memoryview(blob.data).nbytes for blob in blobs)
