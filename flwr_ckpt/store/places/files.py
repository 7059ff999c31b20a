"""The one seam between the store and where it lies: every file operation of the store goes through `Files`.

The operations are those that a local disk and an object store have in common; a store of another kind, or one that
fails on purpose, is another `Files`. Keys are relative to the run's folder, with ``/`` between parts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ..draft import Buffer

_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EIO)


def is_damage(error: OSError) -> bool:
    """Whether an error says that a file is not there as it was written; no permission, say, is no damage."""
    return error.errno in _DAMAGE


Compare = Callable[[int, Buffer], bool]


class Files(Protocol):
    """What the store asks of the place where a run lies.

    Every method may raise `OSError`; a missing file is a `FileNotFoundError`, a name that is taken a
    `FileExistsError`.
    """

    def at_once(self, size: int) -> int:
        """Say how many reads of about `size` bytes are best done at once."""

    def describe(self, key: str = "") -> str:
        """Say where a key lies, for messages."""

    def make_root(self) -> None:
        """Make the run's folder, durably; no error if it is there."""

    def keys(self, folder: str = "") -> list[str]:
        """List the files of a folder; for ``""`` all of the run.

        A folder that holds nothing is listed with a ``/`` behind it. What is not there has no keys.
        """

    def size(self, key: str) -> int | None:
        """Give the size of a file in bytes, or ``None`` if there is none."""

    def read(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        """Read `size` bytes from `offset`, or all from there; fewer where the file ends."""

    def fill(self, key: str, offset: int, target: memoryview) -> Iterator[memoryview]:
        """Read into memory, and give each part of it as it has come; fewer bytes where the file ends.

        Nothing holds on to a part once the next one is asked for.
        """

    def view(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        """Give what `read` does as read-only memory; from a disk it is read when it is looked at."""

    def comparison(self, key: str) -> Compare:
        """Give what says whether these very bytes lie at an offset of a file that this process wrote.

        They are a whole buffer of those that it was written from. It may say no where it would have to fetch them.
        """

    def make_folder(self, folder: str) -> None:
        """Make one folder in a run's folder that exists; no error if it is there.

        Its name is durable after `sync_folder` of the run's.
        """

    def create(self, key: str, buffers: Sequence[Buffer], *, beside: Callable[[], None] | None = None) -> None:
        """Write a new file from many buffers, and its contents to the disk. What fails leaves no file.

        The *name* is durable only after `sync_folder`. `beside` is done once, while the disk works.
        """

    def publish(self, key: str, data: bytes) -> None:
        """Create a file that is never seen half written, where hard links exist; durable with its name."""

    def adopt(self, files: Files, source: str, target: str) -> None:
        """Give a file of a run, this one or another, a name here that outlives the first.

        Its contents are durable, the name after `sync_folder`.
        """

    def sync(self, key: str) -> None:
        """Make the contents of a file durable, whoever wrote it."""

    def sync_folder(self, folder: str = "") -> None:
        """Make the names in a folder durable."""

    def remove(self, key: str) -> None:
        """Delete a file; no error if it is gone."""

    def remove_folder(self, folder: str) -> None:
        """Delete a folder if it is empty."""
