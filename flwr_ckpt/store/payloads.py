"""The bytes of stored arrays, verified, from whichever place is sound."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from .errors import CheckpointCorruptError
from .files import Files, is_damage
from .records import Chunk, Commit, DataFile, Entry, Place

logger = logging.getLogger("flwr")

_THREADS = 2  # one reads while the other computes checksums
_THREADS_FROM = 1 << 23  # bytes


def read_payload(files: Files, entry: Entry) -> bytes:
    """Read an entry's stored bytes, without its header.

    Raises
    ------
    CheckpointCorruptError
        If they are sound nowhere.
    """
    problems: list[str] = []
    for place in entry.places:
        data, problem = _read_place(files, entry, place)
        if data is not None:
            if problems:
                logger.warning("%s. Its second copy is sound and was taken.", problems[0])
            return data
        problems.append(problem)
    if problems:
        raise CheckpointCorruptError(
            f"{'; '.join(problems)}. An older round may be sound: CheckpointStore.verify() tells which"
        )
    return b""


def read_blob(files: Files, entry: Entry) -> bytes:
    """Read exactly the ``Blob.data`` that was handed over.

    Raises
    ------
    CheckpointCorruptError
        If it is sound nowhere.
    """
    payload = read_payload(files, entry)
    return entry.header + payload if entry.header else payload


def read_blobs(files: Files, entries: Sequence[Entry]) -> list[bytes]:
    """Read many blobs, in two threads where that pays."""
    if sum(entry.size for entry in entries) < _THREADS_FROM:
        return [read_blob(files, entry) for entry in entries]
    blobs: list[bytes] = [b""] * len(entries)

    def read(first: int) -> None:
        for index in range(first, len(entries), _THREADS):
            blobs[index] = read_blob(files, entries[index])

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(read, range(_THREADS)))
    return blobs


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
        if view.nbytes == entry.size and zlib.crc32(view) == entry.crc:
            return view
    return memoryview(read_payload(files, entry))


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
        if zlib.crc32(data) != chunk.crc:
            yield f"{path}: bytes {chunk.offset} to {chunk.offset + chunk.size} are not those that were written"
        if chunk.offset != end:
            yield f"{path}: no checksum covers the bytes from {end} to {chunk.offset}"
        end = chunk.offset + chunk.size
    if end != size:
        yield f"{path}: no checksum covers the bytes from {end} to {size}"


def _read_place(files: Files, entry: Entry, place: Place) -> tuple[bytes | None, str]:
    try:
        data = files.read(place.file, place.offset, entry.size)
    except OSError as error:
        if not is_damage(error):
            raise
        return None, f"{files.describe(place.file)}: cannot be read ({error.strerror})"
    if len(data) == entry.size and zlib.crc32(data) == entry.crc:
        return data, ""
    return None, (
        f"{files.describe(place.file)}: the array {entry.name!r:.80} does not have the checksum that was written "
        f"({len(data)} of {entry.size} bytes from byte {place.offset})"
    )
