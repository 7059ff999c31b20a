"""Processes that end or pause themselves at an exact system call of the store: before, after, or half through it."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any, Literal

Moment = Literal["before", "after", "half"]

# The calls of the store, and about how many of each a dozen rounds make.
CALLS = {"open": 200, "writev": 70, "fsync": 150, "link": 36, "unlink": 60, "mkdir": 36, "rmdir": 10, "scandir": 70}
MOMENTS: tuple[Moment, ...] = ("before", "after", "half")


def kill_me() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def pause_me() -> None:
    """Stop, all threads at once, until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def at_call(
    names: Iterable[str], number: int, moment: Moment = "before", *, stop: Callable[[], object] = kill_me
) -> Callable[[], None]:
    """Have this process stopped at its n-th call (from 0) of any of these names, in any thread.

    Returns
    -------
    callable
        Puts the calls back as they were.
    """
    counted = itertools.count()
    calls = {name: getattr(os, name) for name in names}

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*arguments: Any, **named: Any) -> Any:
            if next(counted) != number:
                return call(*arguments, **named)
            if moment == "after":
                answer = call(*arguments, **named)
                stop()
                return answer
            if moment == "half" and name == "writev":
                call(arguments[0], [_half(buffer) for buffer in arguments[1]])
            stop()
            return call(*arguments, **named)

        return stopping

    def put_back() -> None:
        for name, call in calls.items():
            setattr(os, name, call)

    for name, call in calls.items():
        setattr(os, name, wrap(name, call))
    return put_back


def _half(buffer: memoryview) -> memoryview:
    return buffer[: buffer.nbytes // 2]
