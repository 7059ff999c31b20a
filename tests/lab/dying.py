"""Processes that stop themselves at an exact system call of the store: ahead of it, after it, or half through it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Literal

Moment = Literal["before", "after", "half"]

CALLS = ("open", "writev", "fsync", "link", "unlink", "mkdir", "rmdir", "scandir")
MOMENTS: tuple[Moment, ...] = ("before", "after", "half")


def kill_me() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, moment: Moment, stop: Callable[[], object] = kill_me) -> None:
    """Have this process stopped at its n-th call (from 0) of any that changes or lists files, in any thread."""
    count = -1

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count != number:
                return call(*arguments, **named)
            if moment == "half" and name == "writev":
                call(arguments[0], [_half(buffer) for buffer in arguments[1]])
            elif moment == "after":
                answer = call(*arguments, **named)
                stop()
                return answer
            stop()
            return call(*arguments, **named)

        return counted

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def _half(buffer: memoryview) -> memoryview:
    return buffer[: buffer.nbytes // 2]
