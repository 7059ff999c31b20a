"""How `flwr-ckpt` ends: the numbers are for scripts, and stay what they are."""

from __future__ import annotations

from enum import IntEnum

from ..store import CheckpointNotFoundError, FencedError


class ExitCode(IntEnum):
    """What an exit code means."""

    DONE = 0
    FAILED = 1  # an error, or something is damaged
    MISSING = 2  # no such run or round, or a command that cannot be understood
    UNFINISHED = 3
    WRITING = 4  # unfinished, and a server on this host is writing it
    TAKEN_OVER = 5


def code_of(error: Exception) -> ExitCode:
    """Give the code with which an error ends a command."""
    if isinstance(error, CheckpointNotFoundError):
        return ExitCode.MISSING
    if isinstance(error, FencedError):
        return ExitCode.TAKEN_OVER
    return ExitCode.FAILED
