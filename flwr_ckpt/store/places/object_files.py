"""A run's folder in an object store: the same keys and rules as on a disk, with conditional puts for exclusive names.

A put that has returned is durable with its name, and listings are consistent, so there is nothing to sync and there
are no folders. What takes its place is doubt: an answer may be lost after the put has succeeded. Then the same bytes
are put again, and where the name is taken, the object is read back: it is ours if and only if it holds what we wrote.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import MemoryStore, from_url

from ..draft import Buffer
from ..errors import CheckpointError
from ..names import FENCES, fence_key, temporary_key
from .beside import done_beside
from .digests import Digests
from .files import Compare, Files
from .object_errors import as_os_error, may_pass

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

# obstore's own bounds for one request stay: 5 s to connect, 30 s in all (AWS_TIMEOUT and the like change that).
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
_PAUSES = (0.2, 1.0, 4.0)  # seconds before a conditional put is tried again: without an answer obstore does not
_PROCESS = os.getpid()
_PART = 1 << 23  # bytes of one request: several at once have to get through a slow line in their time
_STREAMS = 4  # parts under way at once, each of them in memory
_LARGEST_PUT = 1 << 24  # bytes; above, in parts
_MOST_PARTS = 10_000  # of one object, in S3
_LARGEST_COPY = 5 << 30  # bytes that S3 copies at once


def open_folder(url: str) -> ObjectFiles:
    """Open a folder of a bucket, ``scheme://bucket/folder``; nothing is looked at.

    Credentials and endpoint are those that obstore finds in the environment.

    Raises
    ------
    OSError
        If the environment lacks something, such as the name of an Azure account.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, folder = rest.partition("/")
    if scheme == "memory":
        return ObjectFiles(_memory(bucket), url, folder)
    try:
        store = from_url(f"{scheme}://{bucket}", retry_config=_RETRIES)
    except BaseError as error:
        raise as_os_error(error, url) from None
    return ObjectFiles(store, url, folder)


@cache
def _memory(bucket: str) -> MemoryStore:
    """What is in memory is found again by its name: else a run there could not be opened twice."""
    return MemoryStore()


class ObjectFiles:
    """A run's folder in a bucket.

    Parameters
    ----------
    store : ObjectStore
        The bucket.
    url : str
        For messages.
    root : str
        The folder in the bucket.
    """

    def __init__(self, store: ObjectStore, url: str, root: str) -> None:
        self._store = store
        self._url = url
        self._root = root
        self._digests = Digests()

    def describe(self, key: str = "") -> str:
        """Give the full URL."""
        return f"{self._url}/{key}" if key else self._url

    def at_once(self, size: int) -> int:
        """Some, of any size: each waits for an answer most of the time."""
        return 4

    def make_root(self) -> None:
        """Make sure that the endpoint does what the store rests on; there is no folder to make.

        Raises
        ------
        CheckpointError
            If it overwrites what a conditional put must not, or a listing lacks what has just been put.
        """
        probe = temporary_key(fence_key(0), secrets.token_hex(8))
        try:
            self._put_new(probe, [b"first"])
            if not self._is_refused(probe, b"second") or self.read(probe) != b"first":
                raise CheckpointError(
                    f"{self._url}: this endpoint does not honour conditional puts (If-None-Match: *): a name was put "
                    "twice, so two servers could destroy each other's checkpoints. Use an endpoint that does (Amazon "
                    "S3, Google Cloud Storage, Azure, MinIO, R2), or a folder on a disk"
                )
            if probe not in self.keys(FENCES):
                raise CheckpointError(
                    f"{self._url}: this endpoint does not list what has just been put, so a server could miss the "
                    "newest round. Use an endpoint whose listings are consistent, or a folder on a disk"
                )
        finally:
            self.remove(probe)

    def keys(self, folder: str = "") -> list[str]:
        """List what lies under a prefix, not deeper than a run's folders are."""
        deepest = 1 if folder else 2
        prefix = self._path(folder)
        with self._translated(folder):
            paths = [found["path"] for chunk in obstore.list(self._store, prefix) for found in chunk]
        names = (path[len(prefix) + 1 :] for path in paths)
        return [f"{folder}/{name}" if folder else name for name in names if name.count("/") < deepest]

    def folders(self, folder: str = "") -> list[str]:
        """Name what would be the folders in a folder."""
        with self._translated(folder):
            found = obstore.list_with_delimiter(self._store, self._path(folder))["common_prefixes"]
        return [path.rpartition("/")[2] for path in found]

    def size(self, key: str) -> int | None:
        """Ask for the size of an object."""
        try:
            return self._size(key)
        except FileNotFoundError:
            return None

    def read(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        """Download a part of an object."""
        return b"".join(self._pieces(key, offset, max(self._size(key) - offset, 0) if size is None else size))

    def fill(self, key: str, offset: int, target: memoryview) -> Iterator[memoryview]:
        """Download into memory, the next parts while one is looked at."""
        done = 0
        for piece in self._pieces(key, offset, target.nbytes):
            part = target[done : done + len(piece)]
            np.frombuffer(part, np.uint8)[:] = np.frombuffer(piece, np.uint8)  # without the interpreter's lock
            done += len(piece)
            yield part

    def view(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        """Download a part of an object into memory."""
        return memoryview(self.read(key, offset, size))

    def comparison(self, key: str) -> Compare:
        """Compare with what is remembered of the files that were written here; nothing is downloaded for it."""
        return lambda offset, data: self._digests.holds(key, offset, memoryview(data).cast("B"))

    def make_folder(self, folder: str) -> None:
        """There are no folders."""

    def create(self, key: str, buffers: Sequence[Buffer], *, beside: Callable[[], None] | None = None) -> None:
        """Put a new object; a large one in parts, after a look whether there is one.

        The put of many parts is not conditional everywhere. It need not be: the name of a data file holds a generation
        that this server alone has, by a fence that *was* put conditionally, and is used once; and no manifest refers
        to the file before it is whole. Another file could only come from a server of the same generation, and that
        takes somebody who deletes the run by hand under a running server. Fences and manifests, whose names others
        may be after at this moment, are small.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        size = sum(view.nbytes for view in views)

        def work() -> None:
            if beside is not None:
                beside()
            self._digests.remember(key, views)

        with done_beside(work):
            if size <= _LARGEST_PUT:
                self._put_new(key, views)
            else:
                self._put_parts(key, _slices(views), size)

    def publish(self, key: str, data: bytes) -> None:
        """Put a new object."""
        self._put_new(key, [data])

    def adopt(self, files: Files, source: str, target: str) -> None:
        """Copy on the server's side, or by way of this machine from elsewhere or what is too large for a copy."""
        size = files.size(source)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), files.describe(source))
        if isinstance(files, ObjectFiles) and files._bucket == self._bucket and size <= _LARGEST_COPY:
            self._copy(files._path(source), target)
        elif size <= _LARGEST_PUT:
            self._put_new(target, [files.view(source)])
        else:
            parts = (files.view(source, start, min(_PART, size - start)) for start in range(0, size, _PART))
            self._put_parts(target, parts, size)

    def sync(self, key: str) -> None:
        """What can be read is durable."""

    def sync_folder(self, folder: str = "") -> None:
        """What can be listed is durable."""

    def remove(self, key: str) -> None:
        """Delete an object."""
        self._digests.forget(key)
        with suppress(FileNotFoundError), self._translated(key):
            obstore.delete(self._store, self._path(key))

    def remove_folder(self, folder: str) -> None:
        """There are no folders."""

    # --- requests ------------------------------------------------------------------------------------------------

    def _pieces(self, key: str, offset: int, size: int) -> Iterator[bytes]:
        """Download in pieces, the next ones while one is looked at."""
        if size <= _PART:
            yield self._get(key, offset, size)
            return
        with ThreadPoolExecutor(_STREAMS) as pool:
            waiting: deque[Future[bytes]] = deque()
            for start in range(offset, offset + size, _PART):
                waiting.append(pool.submit(self._get, key, start, min(_PART, offset + size - start)))
                if len(waiting) == _STREAMS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    @property
    def _bucket(self) -> str:
        return self._url[: len(self._url) - len(self._root)]

    def _path(self, key: str) -> str:
        return "/".join(filter(None, (self._root, key)))

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        self._require_own_process()
        try:
            yield
        except (BaseError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # not obstore's, which have no number
            raise as_os_error(error, self.describe(key)) from None  # whose text may hold what no log must

    def _require_own_process(self) -> None:
        if os.getpid() != _PROCESS:  # where it would wait for ever, for threads that were not copied
            raise CheckpointError(
                f"{self._url}: object storage was opened in process {_PROCESS} and is used in process {os.getpid()}, a "
                "child made by fork: start children with the 'spawn' method"
            )

    def _size(self, key: str) -> int:
        with self._translated(key):
            return obstore.head(self._store, self._path(key))["size"]

    def _get(self, key: str, start: int, length: int) -> bytes:
        if not length:
            return b""
        try:
            with self._translated(key):
                return obstore.get_range(self._store, self._path(key), start=start, length=length).to_bytes()
        except FileNotFoundError:
            raise
        except OSError:
            if start < self._size(key):
                raise
            return b""  # a range beyond the end is an error, which each endpoint words in its own way

    def _put_new(self, key: str, buffers: Sequence[Buffer]) -> None:
        """Put under a name that nothing has, or that an earlier try of this very put has taken."""
        self._require_own_process()
        failure: Exception | None = None
        for pause in (0.0, *_PAUSES):
            time.sleep(pause)
            try:
                obstore.put(self._store, self._path(key), list(buffers), mode="create", use_multipart=False)
                return
            except AlreadyExistsError as error:
                failure = error
                found = self._find(key)
                if found is not None:
                    if found == b"".join(buffers):
                        return
                    break
            except (BaseError, OSError) as error:
                failure = error
                if not may_pass(error):
                    break
        assert failure is not None
        raise as_os_error(failure, self.describe(key)) from None

    def _find(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except FileNotFoundError:  # "conflict" may also mean: try again
            return None

    def _put_parts(self, key: str, parts: Iterable[Buffer], size: int) -> None:
        self._require_free(key)
        part = max(_PART, -(-size // _MOST_PARTS))
        with (
            self._translated(key),  # what fails leaves nothing: the writer takes its parts back
            obstore.open_writer(self._store, self._path(key), buffer_size=part, max_concurrency=_STREAMS) as writer,
        ):
            for data in parts:
                writer.write(data)

    def _copy(self, source: str, target: str) -> None:
        with self._translated(target):
            try:
                obstore.copy(self._store, source, self._path(target), overwrite=False)
            except NotSupportedError:  # by S3; see `create` for why a look is enough
                self._require_free(target)
                obstore.copy(self._store, source, self._path(target))

    def _require_free(self, key: str) -> None:
        if self.size(key) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.describe(key))

    def _is_refused(self, key: str, data: bytes) -> bool:
        """Whether a name that is taken cannot be put again."""
        with self._translated(key):
            try:
                obstore.put(self._store, self._path(key), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return True
        return False


def _slices(views: Iterable[memoryview]) -> Iterator[memoryview]:
    for view in views:
        for start in range(0, view.nbytes, _PART):
            yield view[start : start + _PART]
