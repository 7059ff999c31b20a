"""A run's folder on a local disk."""

from __future__ import annotations

import errno
import functools
import mmap
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from ..draft import Buffer
from ..names import temporary_key
from ..same import same_bytes
from .beside import done_beside
from .files import Compare, Files
from .memory import WORTHWHILE, populate
from .system import System

_MAX_BUFFERS = 1024  # IOV_MAX on Linux
_WRITTEN_AT_ONCE = 1 << 22  # bytes: large enough for the kernel's large pages, and small beside a model
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_PART = 1 << 18  # bytes
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe in a file's place must not be waited for


class LocalFiles:
    """A run's folder on a local disk, which no operation leaves: what is a link in it is not followed.

    Parameters
    ----------
    root : Path
        The run's folder; it need not exist. May itself be a link, which is its owner's choice.
    system : System, optional
        Carries out the calls; the operating system itself, if not a test's.
    """

    def __init__(self, root: Path, system: System = os) -> None:
        self.root = root
        self._system = system

    def describe(self, key: str = "") -> str:
        """Give the full path."""
        return str(self.root / key)

    def at_once(self, size: int) -> int:
        """Two, while large reads keep the kernel busy handing out memory; small ones keep the interpreter busy."""
        return 2 if size >= WORTHWHILE else 1

    def make_root(self) -> None:
        """Make the run's folder and those above it, each synced into the one that holds it before the next is made."""
        missing = []
        folder = self.root
        while not self._exists(folder):
            missing.append(folder)
            folder = folder.parent
        # Who made the one that is there may have died before its name was synced; nobody makes another in it before.
        with suppress(PermissionError):  # then nobody with our permissions has made it
            self._sync_path(folder.parent)
        for folder in reversed(missing):
            self._make(folder)
            self._sync_path(folder.parent)

    def keys(self, folder: str = "") -> list[str]:
        """List what a folder holds but folders; for the run's, what its folders hold too.

        What is in a file's place and is none, as a link, is listed: it is damage when it is read, not a gap.
        """
        found: list[str] = []
        if self._is_link(folder):
            return found
        try:
            with self._system.scandir(self.root / folder) as entries:
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    if not entry.is_dir(follow_symlinks=False):
                        found.append(key)
                    elif not folder:
                        found.extend(self.keys(key) or [f"{key}/"])
        except (FileNotFoundError, NotADirectoryError):
            pass
        return found

    def size(self, key: str) -> int | None:
        """Give the size of a regular file; a link is none."""
        try:
            status = self._system.stat(self._path(key), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        """Read through the page cache, not through a map: a bad sector is an error then, and not a signal."""
        descriptor = self._open(key)
        try:
            wanted = self._system.fstat(descriptor).st_size - offset if size is None else size
            return self._read(descriptor, offset, max(wanted, 0))
        finally:
            self._system.close(descriptor)

    def fill(self, key: str, offset: int, target: memoryview) -> Iterator[memoryview]:
        """Read in parts that are still in the processor's cache when they are looked at."""
        descriptor, done = self._open(key), 0
        try:
            if target.nbytes >= WORTHWHILE and self._has(descriptor, offset + target.nbytes):
                populate(target)
            while count := self._system.preadv(descriptor, [target[done : done + _PART]], offset + done):
                yield target[done : done + count]
                done += count
        finally:
            self._system.close(descriptor)

    def view(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        """Map a file into memory."""
        descriptor = self._open(key)
        try:
            if not self._system.fstat(descriptor).st_size:
                return memoryview(b"")
            whole = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
            return whole[offset : None if size is None else offset + size]
        finally:
            self._system.close(descriptor)

    def comparison(self, key: str) -> Compare:
        """Compare through a map, which ends soon after the first difference."""
        whole = self.view(key)
        return lambda offset, data: same_bytes(whole[offset : offset + memoryview(data).nbytes], data)

    def make_folder(self, folder: str) -> None:
        """Make a folder, but never the run's own."""
        self._make(self._path(f"{folder}/"))

    def create(self, key: str, buffers: Sequence[Buffer], *, beside: Callable[[], None] | None = None) -> None:
        """Write with ``writev`` from where the buffers lie, then ``fsync``."""
        descriptor = self._open_new(key)
        try:
            try:
                with done_beside(beside) if beside is not None else nullcontext():
                    self._write_all(descriptor, buffers)
                    self._system.fsync(descriptor)
            finally:
                self._system.close(descriptor)
        except BaseException:
            # Ours alone and never named by a manifest; on a full disk it would take the room of the next try.
            self.remove(key)
            raise

    def publish(self, key: str, data: bytes) -> None:
        """Write beside the target, sync, link into place, sync the folder."""
        temporary = temporary_key(key, secrets.token_hex(8))
        try:
            self.create(temporary, [data])
            self._link_or_write(temporary, key, data)
        finally:
            self.remove(temporary)
        self.sync_folder(_folder_of(key))

    def adopt(self, files: Files, source: str, target: str) -> None:
        """Link, or copy where there are no hard links."""
        if isinstance(files, LocalFiles) and self._is_linked(files._path(source), target):
            self.sync(target)
        else:
            self.create(target, [files.view(source)])

    def sync(self, key: str) -> None:
        """``fsync`` a file."""
        self._sync(self._open(key))

    def sync_folder(self, folder: str = "") -> None:
        """``fsync`` a folder."""
        self._sync_path(self._path(f"{folder}/") if folder else self.root)

    def remove(self, key: str) -> None:
        """Unlink."""
        with suppress(FileNotFoundError):
            self._system.unlink(self._path(key))

    def remove_folder(self, folder: str) -> None:
        """Remove an empty folder, and leave one that is not."""
        try:
            self._system.rmdir(self.root / folder)  # which removes no link
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                raise

    def _open_new(self, key: str) -> int:
        try:
            return self._system.open(self._path(key), _CREATE, 0o666)
        except FileNotFoundError:
            # An older server may have emptied and removed a folder of its dead branch just now. Never the run's own.
            self.make_folder(_folder_of(key))
            return self._system.open(self._path(key), _CREATE, 0o666)

    def _open(self, key: str) -> int:
        descriptor = self._system.open(self._path(key), _READ)
        if stat.S_ISREG(self._system.fstat(descriptor).st_mode):
            return descriptor
        self._system.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "this is no regular file", self.describe(key))

    def _path(self, key: str) -> Path:
        """Where a key lies. Behind a link that would be outside the run: there is nothing of the run's there."""
        folder = _folder_of(key)
        if self._is_link(folder):
            raise FileNotFoundError(
                errno.ENOENT, "a folder of a run is no link; put back what was there", self.describe(folder)
            )
        return _joined(self.root, key)

    def _is_link(self, folder: str) -> bool:
        if not folder:
            return False
        try:
            return stat.S_ISLNK(self._system.stat(_joined(self.root, folder), follow_symlinks=False).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _is_linked(self, source: Path, target: str) -> bool:
        try:
            self._system.link(source, self._path(target), follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return False
        return True

    def _link_or_write(self, temporary: str, key: str, data: bytes) -> None:
        try:
            self._system.link(self._path(temporary), self._path(key))
        except FileExistsError:
            # A network file system may say so after a link that succeeded and whose answer was lost. What is
            # published holds a token of ours, so equal contents are our own.
            if self.read(key) != data:
                raise
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            self.create(key, [data])

    def _exists(self, path: Path) -> bool:
        try:
            self._system.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _make(self, path: Path) -> None:
        try:
            self._system.mkdir(path)
        except FileExistsError:
            if not stat.S_ISDIR(self._system.stat(path).st_mode):
                raise

    def _sync_path(self, folder: Path) -> None:
        self._sync(self._system.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))

    def _sync(self, descriptor: int) -> None:
        try:
            self._system.fsync(descriptor)
        finally:
            self._system.close(descriptor)

    def _has(self, descriptor: int, nbytes: int) -> bool:
        """Whether a file is that long: a manifest may speak of more than there is, and than there is memory."""
        return self._system.fstat(descriptor).st_size >= nbytes

    def _read(self, descriptor: int, offset: int, size: int) -> bytes:
        first = self._system.pread(descriptor, size, offset)
        if len(first) in (0, size):
            return first
        # Linux reads at most 2 GiB at once, and a network file system may read less than it was asked for.
        parts = [first]
        done = len(first)
        while done < size and (part := self._system.pread(descriptor, size - done, offset + done)):
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def _write_all(self, descriptor: int, buffers: Iterable[Buffer]) -> None:
        """Write all, and have the disk begin with one part while the next is copied."""
        begun = done = 0
        for part in _parts(buffers):
            size = sum(view.nbytes for view in part)
            self._write_part(descriptor, part)
            if done > begun:
                # One part behind: the page in which two parts meet is complete then, and is written once.
                self._begin_to_sync(descriptor, begun, done - begun)
            begun, done = done, done + size

    def _write_part(self, descriptor: int, views: list[memoryview]) -> None:
        while views:
            written = self._system.writev(descriptor, views)
            while views and written >= views[0].nbytes:
                written -= views.pop(0).nbytes
            if written:
                views[0] = views[0][written:]

    def _begin_to_sync(self, descriptor: int, offset: int, size: int) -> None:
        """Have the kernel begin to write what a sync would begin with only when all is there.

        On Linux this advice does so without waiting; pages that are not on the disk yet stay cached.
        """
        if sys.platform == "linux":
            with suppress(OSError):  # advice: a sync follows in any case, and it is the sync that counts
                self._system.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def _parts(buffers: Iterable[Buffer]) -> Iterator[list[memoryview]]:
    """Cut what is to be written into what is written at once."""
    part: list[memoryview] = []
    size = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        for start in range(0, view.nbytes, _WRITTEN_AT_ONCE):
            piece = view[start : start + _WRITTEN_AT_ONCE]
            if len(part) == _MAX_BUFFERS or (part and size + piece.nbytes > _WRITTEN_AT_ONCE):
                yield part
                part, size = [], 0
            part.append(piece)
            size += piece.nbytes
    if part:
        yield part


@functools.lru_cache(maxsize=64)  # 10,000 arrays may lie in one file, and a path takes as long to make as to open
def _joined(root: Path, key: str) -> Path:
    return root / key


def _folder_of(key: str) -> str:
    return key.rpartition("/")[0]
