"""Everything that can go wrong with a checkpoint, as types a caller can tell apart.

Each error is also the builtin one that a reader would expect, so ``except FileNotFoundError`` works
for somebody who has never heard of this package.
"""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint could not be written, read or used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint: no such run, no such round, or retention has removed it."""

    # FileNotFoundError would read one argument as an errno; the message is all there is here.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CheckpointCorruptError(CheckpointError, ValueError):
    """Bytes on disk are not the bytes that were written."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """The checkpoint is sound but belongs to another run: other arrays, class, API, app or configuration."""


class FormatVersionError(CheckpointError):
    """The checkpoint was written by a newer version of this package."""


class FencedError(CheckpointError):
    """Another server has taken this run over; this one must stop."""
