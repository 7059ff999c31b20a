"""The bytes of stored arrays, verified, from whichever place is sound."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from zlib_ng.zlib_ng import crc32

from ..errors import CheckpointCorruptError
from ..places.files import Files, is_damage
from ..places.memory import unfilled
from .readable import readable_size
from .records import Chunk, Commit, DataFile, Entry, Place

logger = logging.getLogger("flwr")

_SAID_EVERY = 5.0  # seconds
_T = TypeVar("_T")


def read_blob(files: Files, entry: Entry) -> bytes:
    """Read exactly the ``Blob.data`` that was handed over.

    Raises
    ------
    CheckpointCorruptError
        If it is sound nowhere.
    """
    return _read_into(unfilled(entry.nbytes), files, entry)


def read_blobs(files: Files, entries: Sequence[Entry]) -> list[bytes]:
    """Read many blobs, several at once where that pays.

    All memory is taken in this thread: in others it would come from heaps of their own, which are made to grow page
    by page.
    """
    memories = [unfilled(entry.nbytes) for entry in entries]
    return _for_each(files, entries, lambda index: _read_into(memories[index], files, entries[index]))


def view_payloads(files: Files, entries: Sequence[Entry]) -> list[memoryview]:
    """Map the stored bytes of many entries, as `view_payload` does, several at once where that pays."""
    return _for_each(files, entries, lambda index: view_payload(files, entries[index]))


def view_payload(files: Files, entry: Entry) -> memoryview:
    """Map an entry's stored bytes, verified, without reading them into memory of our own.

    Raises
    ------
    CheckpointCorruptError
        If they are sound nowhere.
    """
    for place in entry.places:
        try:
            view = files.view(place.file, place.offset, entry.size)
        except OSError as error:
            if not is_damage(error):
                raise
            continue
        if view.nbytes == entry.size and crc32(view) == entry.crc:
            return view
    return memoryview(read_blob(files, entry))[len(entry.header) :]


def unsound_by_size(files: Files, commit: Commit) -> str | None:
    """Say which file's size makes a commit unsound, or ``None``: another place may hold what the file held."""
    bad = {}
    for file in commit.files:
        size = files.size(file.key)
        if size != file.size:
            found = "is missing" if size is None else f"has {size} bytes"
            bad[file.key] = f"{files.describe(file.key)} {found}; {file.size} bytes were written"
    for entry in commit.entries() if bad else ():
        if entry.places and all(place.file in bad for place in entry.places):
            return bad[entry.places[0].file]
    return None


def problems_of(files: Files, commit: Commit) -> Iterator[str]:
    """Verify every byte of every file that a commit refers to."""
    live: dict[str, dict[int, Chunk]] = {file.key: {} for file in commit.files}
    for entry in commit.entries():
        for place in entry.places:
            live[place.file][place.offset] = Chunk(place.offset, entry.size, entry.crc)
    for file in commit.files:
        yield from _problems_of_file(files, file, [file.head, *live[file.key].values(), *file.dead])


def _problems_of_file(files: Files, file: DataFile, chunks: list[Chunk]) -> Iterator[str]:
    path = files.describe(file.key)
    size = files.size(file.key)
    if size != file.size:
        yield f"{path}: {'is missing' if size is None else f'has {size} bytes'}; {file.size} bytes were written"
        return
    end = 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.offset):
        data = files.read(file.key, chunk.offset, chunk.size)
        if crc32(data) != chunk.crc:
            yield f"{path}: bytes {chunk.offset} to {chunk.offset + chunk.size} are not those that were written"
        if chunk.offset != end:
            yield f"{path}: no checksum covers the bytes from {end} to {chunk.offset}"
        end = chunk.offset + chunk.size
    if end != size:
        yield f"{path}: no checksum covers the bytes from {end} to {size}"


def _read_into(memory: io.BytesIO, files: Files, entry: Entry) -> bytes:
    problems: list[str] = []
    for place in entry.places:
        problem = _read_place(memory, files, entry, place)
        if problem is None:
            if problems:
                logger.warning("%s. Its second copy is sound and was taken.", problems[0])
            return memory.getvalue()
        problems.append(problem)
    if problems:
        raise CheckpointCorruptError(
            f"{'; '.join(problems)}. An older round may be sound: `flwr-ckpt verify` tells which"
        )
    return entry.header


def _read_place(memory: io.BytesIO, files: Files, entry: Entry, place: Place) -> str | None:
    """Read an entry, with its header in front of it, and say what is wrong with what was read."""
    try:
        size, crc = _fill(memory, files, entry, place)
    except OSError as error:
        if not is_damage(error):
            raise
        return f"{files.describe(place.file)}: cannot be read ({error.strerror})"
    if (size, crc) == (entry.size, entry.crc):
        return None
    return (
        f"{files.describe(place.file)}: the array {entry.name!r:.80} does not have the checksum that was written "
        f"({size} of {entry.size} bytes from byte {place.offset})"
    )


def _fill(memory: io.BytesIO, files: Files, entry: Entry, place: Place) -> tuple[int, int]:
    """Give how many bytes there were behind the header, and their checksum, computed from the processor's cache."""
    start = len(entry.header)
    size = crc = 0
    # Each view is released: as long as anybody might write to the memory, `getvalue` gives a copy.
    with memory.getbuffer() as whole, whole[start:] as target:
        whole[:start] = entry.header
        for part in files.fill(place.file, place.offset, target):
            with part:
                crc = crc32(part, crc)
                size += part.nbytes
    return size, crc


def _for_each(files: Files, entries: Sequence[Entry], work: Callable[[int], _T]) -> list[_T]:
    """Do some work on the number of each entry."""
    total = sum(entry.size for entry in entries)
    progress = _Progress(total)

    def run(index: int) -> _T:
        result = work(index)
        progress.done(entries[index].size)
        return result

    at_once = files.at_once(total // max(len(entries), 1))
    if at_once == 1 or len(entries) < 2:
        return [run(index) for index in range(len(entries))]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(run, range(len(entries))))


class _Progress:
    """Says now and then how far a long read has come: a server that restores is not one that hangs."""

    def __init__(self, of: int) -> None:
        self._of = of
        self._done = 0
        self._said = time.monotonic()
        self._lock = threading.Lock()

    def done(self, size: int) -> None:
        """Count bytes that have been read and verified."""
        with self._lock:
            self._done += size
            if time.monotonic() - self._said < _SAID_EVERY:
                return
            self._said = time.monotonic()
            logger.info("Read %s of %s of a checkpoint", readable_size(self._done), readable_size(self._of))
