"""How deep a thread is inside the strategy's own hooks."""

from __future__ import annotations

import threading
from types import TracebackType

from ...store import CheckpointError


class Depth(threading.local):
    """Whether a hook was called by the server, or by another of the strategy's own hooks; for each thread.

    Entered around each of the strategy's own hooks. Explains the one failure that the wrapping brings about:
    a `CheckpointError` where a strategy calls itself without end.

    Parameters
    ----------
    name : str
        The strategy's class, for the message.

    Attributes
    ----------
    level : int
        In how many of the strategy's own hooks this thread is: calls of others from there pass through.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.level = 0

    def __enter__(self) -> None:
        self.level += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.level -= 1
        if isinstance(error, RecursionError):
            raise CheckpointError(
                f"{self._name} called itself without end. If it says `super(type(self), self)`, write `super()`: "
                "type(self) is not the class the method stands in as soon as anybody subclasses it, as wrapping does"
            ) from error
