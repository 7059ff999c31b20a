"""The calls by which a local run reaches its disk: a dozen functions of `os`, or of what stands in for it in a test."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..draft import Buffer


class FolderEntry(Protocol):
    """What a listing says of a name."""

    @property
    def name(self) -> str:
        """Without the folder."""

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        """Whether it is a folder."""


class System(Protocol):
    """Functions of the module `os`, with its meaning: the module itself is one."""

    def open(self, path: Path, flags: int, mode: int = ..., /) -> int:
        """Open, or create, a file."""

    def close(self, descriptor: int, /) -> None:
        """Close a file."""

    def writev(self, descriptor: int, buffers: Sequence[Buffer], /) -> int:
        """Write from many buffers; perhaps less than all."""

    def pread(self, descriptor: int, size: int, offset: int, /) -> bytes:
        """Read; perhaps less than asked for."""

    def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int, /) -> int:
        """Read into memory; perhaps less than there is room for."""

    def posix_fadvise(self, descriptor: int, offset: int, size: int, advice: int, /) -> None:
        """Say what a part of a file will be used for."""

    def fsync(self, descriptor: int, /) -> None:
        """Make a file's contents, or a folder's names, durable."""

    def fstat(self, descriptor: int, /) -> os.stat_result:
        """Look at an open file."""

    def stat(self, path: Path, *, follow_symlinks: bool = ...) -> os.stat_result:
        """Look at a file."""

    def scandir(self, path: Path, /) -> AbstractContextManager[Iterator[FolderEntry]]:
        """List a folder."""

    def link(self, source: Path, target: Path, *, follow_symlinks: bool = ...) -> None:
        """Give a file a second name."""

    def unlink(self, path: Path, /) -> None:
        """Take a name away."""

    def mkdir(self, path: Path, /) -> None:
        """Make a folder."""

    def rmdir(self, path: Path, /) -> None:
        """Remove an empty folder."""
