"""Processes that stop themselves at an exact system call of the store: ahead of it, after it, or half through it."""

from __future__ import annotations

import os
import signal
from typing import Any, Literal

Moment = Literal["before", "after", "half"]

# The calls of the store, and about how many of each a dozen rounds make.
CALLS = {"open": 200, "writev": 70, "fsync": 150, "link": 36, "unlink": 60, "mkdir": 36, "rmdir": 10, "scandir": 70}
MOMENTS: tuple[Moment, ...] = ("before", "after", "half")


def kill_me() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(name: str, number: int, moment: Moment) -> None:
    """Have this process killed at its n-th call (from 0) of this name, in any thread."""
    call, count = getattr(os, name), -1

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            if moment == "half" and name == "writev":
                call(arguments[0], [_half(buffer) for buffer in arguments[1]])
            elif moment == "after":
                call(*arguments, **named)
            kill_me()
        return call(*arguments, **named)

    setattr(os, name, counted)


def _half(buffer: memoryview) -> memoryview:
    return buffer[: buffer.nbytes // 2]
